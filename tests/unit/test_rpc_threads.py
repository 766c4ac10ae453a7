"""The pools and the timer of a server with threads."""

from __future__ import annotations

import threading
import time

import pytest

from adyton.atls.rpc_threads import RpcThreads, refuses_here
from adyton.enclave.rpc_timer import RpcTimer


def test_where_no_thread_can_be_started_those_that_there_are_do_the_work(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with RpcThreads(3, "few") as pool:
        only = pool.submit(threading.get_ident).result(10)
        began, may_end = threading.Event(), threading.Event()

        def hold() -> bool:
            began.set()
            return may_end.wait(10)

        first = pool.submit(hold)
        assert began.wait(10)
        monkeypatch.setattr(threading.Thread, "start", start)
        others = [pool.submit(threading.get_ident) for _ in range(5)]
        may_end.set()
        assert first.result(10)
        assert {each.result(10) for each in others} == {only}
        monkeypatch.undo()
    assert [record.reason for record in caplog.records] == ["can't start new thread"]  # type: ignore[attr-defined]


def test_one_call_too_many_is_made_where_it_is_refused() -> None:
    may_end = threading.Event()
    with RpcThreads(1, "few", waiting=1) as pool:
        assert pool.submit(refuses_here).result(10) is False
        while pool.submit(refuses_here).result(10):  # the one before may still be leaving
            pass
        held = [pool.submit(may_end.wait, 10) for _ in range(2)]
        assert pool.submit(refuses_here).result(10) is True
        may_end.set()
        assert all(each.result(10) for each in held)


def test_where_no_thread_can_be_started_calls_are_refused_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with RpcThreads(1, "few", waiting=0) as pool:
        may_end = threading.Event()
        held = pool.submit(may_end.wait, 10)
        monkeypatch.setattr(threading.Thread, "start", start)
        assert pool.submit(refuses_here).result(10) is True
        may_end.set()
        assert held.result(10)


def test_the_timer_ends_what_lasts_too_long_and_nothing_else() -> None:
    timer = RpcTimer(0.3)
    ended: dict[str, float] = {}
    begun = {}
    for name in ("a", "over", "b"):
        begun[name] = time.monotonic()
        timer.begin(name, lambda name=name: ended.setdefault(name, time.monotonic()))  # type: ignore[misc]
        time.sleep(0.1)
    timer.end("over")
    time.sleep(1)
    assert ended.keys() == {"a", "b"}
    assert all(0.3 <= at - begun[name] < 0.6 for name, at in ended.items())
