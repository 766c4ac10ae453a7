"""The life of an enclave: one table of transitions, and the lock around it."""

from __future__ import annotations

import enum
import threading
import time

from adyton.errors import WrongStateError


class State(enum.Enum):
    """Where an application is in its life."""

    UNINITIALIZED = "UNINITIALIZED"
    INITIALIZING = "INITIALIZING"
    RUNNING = "RUNNING"
    FINALIZING = "FINALIZING"
    FINALIZED = "FINALIZED"


class Step(enum.Enum):
    """What can happen to it: three calls of the host, and what becomes of them."""

    INITIALIZE = "initialize"
    INITIALIZED = "initialize succeeded"
    INITIALIZE_FAILED = "initialize failed"
    RUN = "run"
    COLLECT_EVIDENCE = "collect_evidence"
    FINALIZE = "finalize"
    FINALIZED = "finalize ended"


#: The only ways. A failing finalize ends the life as a succeeding one does.
TRANSITIONS: dict[tuple[State, Step], State] = {
    (State.UNINITIALIZED, Step.INITIALIZE): State.INITIALIZING,
    (State.INITIALIZING, Step.INITIALIZED): State.RUNNING,
    (State.INITIALIZING, Step.INITIALIZE_FAILED): State.UNINITIALIZED,
    (State.RUNNING, Step.RUN): State.RUNNING,
    (State.RUNNING, Step.COLLECT_EVIDENCE): State.RUNNING,
    (State.RUNNING, Step.FINALIZE): State.FINALIZING,
    (State.FINALIZING, Step.FINALIZED): State.FINALIZED,
}


class LifeCycle:
    """The state of one application, and how many calls are in it. Safe to use from any thread."""

    def __init__(self) -> None:
        self._state = State.UNINITIALIZED
        self._in_flight = 0
        self._changed = threading.Condition()

    @property
    def state(self) -> State:
        """Where it is now; another thread may have moved it by the time the caller looks."""
        return self._state

    def take(self, step: Step) -> None:
        """Go where the table says. Raises WrongStateError, which names both states, where it says nothing."""
        with self._changed:
            self._take(step)

    def begin(self, step: Step) -> None:
        """As `take`, for a call that may overlap with others and that finalizing waits for: until `end`."""
        with self._changed:
            self._take(step)
            self._in_flight += 1

    def end(self) -> None:
        """A call that began is over."""
        with self._changed:
            self._in_flight -= 1
            self._changed.notify_all()

    def drain(self, timeout_seconds: float) -> int:
        """Wait until no call is in flight, or the time is over; how many still are."""
        until = time.monotonic() + timeout_seconds
        with self._changed:
            while self._in_flight and (left := until - time.monotonic()) > 0:
                self._changed.wait(min(left, threading.TIMEOUT_MAX))
            return self._in_flight

    def _take(self, step: Step) -> None:
        target = TRANSITIONS.get((self._state, step))
        if target is None:
            needed = " or ".join(state.value for state, each in TRANSITIONS if each is step)
            raise WrongStateError(f"{step.value} needs the state {needed}; the enclave is {self._state.value}")
        self._state = target
