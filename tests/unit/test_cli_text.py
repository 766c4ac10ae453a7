"""What the command prints of others' words."""

from __future__ import annotations

import subprocess
import sys

import pytest

from adyton.cli.main import say


def test_a_terminal_is_shown_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    say("title \x1b]0;mine\x07 and \x9b2J\nsecond line, café")
    assert capsys.readouterr().err == "title \\u001b]0;mine\\u0007 and \\u009b2J\nsecond line, café\n"


def test_a_terminal_that_is_gone_changes_no_exit_status(capfd: pytest.CaptureFixture[str]) -> None:
    with open("/dev/full", "w") as gone:  # noqa: PTH123
        code = "from adyton.cli.main import say; say('one'); say('two'); print('done')"
        done = subprocess.run([sys.executable, "-c", code], stderr=gone, check=False, timeout=60)
    assert (done.returncode, capfd.readouterr().out) == (0, "done\n")
