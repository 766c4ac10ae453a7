"""The life of an enclave: one table of transitions, and the calls that its end waits for."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from adyton.enclave.lifecycle import TRANSITIONS, LifeCycle, State, Step
from adyton.errors import WrongStateError

SECONDS = 10.0
#: The shortest way to each state.
WAYS: dict[State, tuple[Step, ...]] = {
    State.UNINITIALIZED: (),
    State.INITIALIZING: (Step.INITIALIZE,),
    State.RUNNING: (Step.INITIALIZE, Step.INITIALIZED),
    State.FINALIZING: (Step.INITIALIZE, Step.INITIALIZED, Step.FINALIZE),
    State.FINALIZED: (Step.INITIALIZE, Step.INITIALIZED, Step.FINALIZE, Step.FINALIZED),
}


@contextmanager
def in_flight(life: LifeCycle, step: Step) -> Iterator[None]:
    life.begin(step)
    try:
        yield
    finally:
        life.end()


def life_in(state: State) -> LifeCycle:
    life = LifeCycle()
    for step in WAYS[state]:
        life.take(step)
    assert life.state is state
    return life


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("step", Step)
def test_a_step_leads_where_the_table_says_or_nowhere(state: State, step: Step) -> None:
    life = life_in(state)
    target = TRANSITIONS.get((state, step))
    if target is None:
        with pytest.raises(
            WrongStateError, match=rf"^{step.value} needs the state [A-Z]+; the enclave is {state.value}$"
        ):
            life.take(step)
        with pytest.raises(WrongStateError, match=rf"; the enclave is {state.value}$"), in_flight(life, step):
            pytest.fail("the call was let in")
    else:
        life.take(step)
    assert life.state is (target or state)


def test_only_the_last_state_has_no_way_out() -> None:
    assert set(TRANSITIONS.values()) == set(State)
    assert {state for state, _ in TRANSITIONS} == set(State) - {State.FINALIZED}
    assert {step for _, step in TRANSITIONS} == set(Step)


def test_of_many_threads_one_initializes() -> None:
    life, barrier, let_in = LifeCycle(), threading.Barrier(16), []

    def attempt() -> None:
        barrier.wait(SECONDS)
        try:
            life.take(Step.INITIALIZE)
            let_in.append(True)
        except WrongStateError:
            pass

    with ThreadPoolExecutor(16) as pool:
        for each in [pool.submit(attempt) for _ in range(16)]:
            each.result(SECONDS)
    assert let_in == [True]


def test_draining_without_calls_takes_no_time() -> None:
    assert life_in(State.RUNNING).drain(3600) == 0


def test_draining_counts_the_calls_that_are_still_in_flight_when_the_time_is_over() -> None:
    life = life_in(State.RUNNING)
    with in_flight(life, Step.RUN), in_flight(life, Step.COLLECT_EVIDENCE):
        begun = time.monotonic()
        assert life.drain(0.1) == 2
        assert 0.1 <= time.monotonic() - begun < 5
        assert life.drain(0) == 2
    assert life.drain(0) == 0


@pytest.mark.parametrize("seconds", [SECONDS, 1.8e16])
def test_draining_ends_with_the_last_call(seconds: float) -> None:
    life = life_in(State.RUNNING)
    with ThreadPoolExecutor() as pool:
        with in_flight(life, Step.RUN):
            draining = pool.submit(life.drain, seconds)
            with pytest.raises(TimeoutError):
                draining.result(0.05)
        assert draining.result(SECONDS) == 0


def test_a_call_that_fails_is_in_flight_no_more() -> None:
    life = life_in(State.RUNNING)
    with pytest.raises(KeyError), in_flight(life, Step.RUN):
        raise KeyError
    assert life.drain(0) == 0


def test_a_call_that_was_refused_was_never_in_flight() -> None:
    life = life_in(State.FINALIZING)
    with pytest.raises(WrongStateError), in_flight(life, Step.RUN):
        pytest.fail("the call was let in")
    assert life.drain(0) == 0
