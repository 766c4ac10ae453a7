"""What the command prints of others' words."""

from __future__ import annotations

import pytest

from adyton.cli.main import say


def test_a_terminal_is_shown_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    say("title \x1b]0;mine\x07 and \x9b2J\nsecond line, café")
    assert capsys.readouterr().err == "title \\u001b]0;mine\\u0007 and \\u009b2J\nsecond line, café\n"
