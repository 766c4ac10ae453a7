"""docs/sealing.md: its commands, as they stand there, and then those of the pages that are read in the same folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from newcomer import DEVELOPMENT, newcomer_with_a_clone, type_commands


@pytest.mark.slow
def test_sign_run_and_send_secrets_and_go_on_to_other_pages(tmp_path: Path) -> None:
    newcomer = newcomer_with_a_clone(tmp_path, activated=DEVELOPMENT)
    assert type_commands("docs/sealing.md", newcomer) == 12
    assert list((newcomer.cwd / "state").glob("adyton-secrets-*.store"))
    for page in ("docs/evidence.md", "examples/translator/README.md"):
        type_commands(page, newcomer)
