"""Log lines that strangers cause are few."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from adyton.atls.sparing import SparingLog


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, Any, Any]]:
    return [
        (record.message, vars(record)["who"], vars(record).get("left_out"))
        for record in caplog.records
        if record.name == "tests.sparing"
    ]


def test_of_a_kind_there_is_one_line_a_second_which_says_how_many_there_were(caplog: pytest.LogCaptureFixture) -> None:
    log = SparingLog(logging.getLogger("tests.sparing"), clock=(clock := Clock()))
    for number in range(5):
        log.warning("refused", kind="a", extra={"who": number})
    clock.now += 0.5
    log.warning("refused", kind="b", extra={"who": "another kind"})
    log.warning("refused", kind="a", extra={"who": "too early"})
    clock.now += 0.5
    log.warning("refused", kind="a", extra={"who": 6})
    clock.now += 1
    log.warning("refused", kind="a", extra={"who": 7})
    assert lines(caplog) == [
        ("refused", 0, None),
        ("refused", "another kind", None),
        ("refused", 6, 5),
        ("refused", 7, None),
    ]


def test_kinds_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    log = SparingLog(logging.getLogger("tests.sparing"), clock=Clock())
    for number in range(3000):
        log.warning("refused", kind=str(number), extra={"who": number})
    assert len(log._kinds) <= 1024
    assert len(lines(caplog)) == 3000
