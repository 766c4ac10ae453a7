"""Whatever a host asks and an application does: the life goes where the table says, and every request is answered."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from observing import answer_of

from adyton.bundle.settings import Settings
from adyton.enclave.lifecycle import TRANSITIONS, LifeCycle, State, Step
from adyton.enclave.runtime import Runtime
from adyton.errors import ApplicationError, BundleError, StatusCode, WrongStateError
from adyton.proto.control_pb2 import CollectEvidence, Finalize, Initialize, Request, Run, Status
from adyton.proto.enclave_pb2 import EnclaveConfig, EnvironmentVariable

APPLICATION = """
from adyton.enclave.application import TrustedApplication

outcome = None  # what the next call raises

def act():
    if outcome is not None:
        raise outcome

class App(TrustedApplication):
    def initialize(self, config):
        act()

    def run(self, input):
        act()

    def finalize(self, final):
        act()
"""
SECRET = "a message that may quote a request"
OK = (StatusCode.OK, "")
#: What an application raises, and what the host is told, by the call's name.
Outcome = tuple[BaseException | None, Callable[[str], tuple[StatusCode, str]]]
OUTCOMES: tuple[Outcome, ...] = (
    (None, lambda _: OK),
    (ApplicationError(StatusCode.NOT_FOUND, "no such book"), lambda _: (StatusCode.NOT_FOUND, "no such book")),
    (BundleError("damaged"), lambda _: (StatusCode.DATA_LOSS, "damaged")),
    (ValueError(SECRET), lambda call: (StatusCode.INTERNAL, f"uncaught ValueError in {call}")),
    (SystemExit(SECRET), lambda call: (StatusCode.INTERNAL, f"uncaught SystemExit in {call}")),
)
outcomes = st.sampled_from(OUTCOMES)
REFUSED_CONFIGURATIONS = (
    b"\xff",
    EnclaveConfig(current_working_directory="missing").SerializeToString(),
    EnclaveConfig(environment_variables=[EnvironmentVariable(name="X")]).SerializeToString(),
)


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the application is; log handlers, environment and working folder are put back afterwards."""
    folder = tmp_path_factory.mktemp("application")
    (folder / "an_application.py").write_text(APPLICATION)
    (folder / "data").mkdir()
    environment, root = dict(os.environ), logging.getLogger()
    handlers, levels = root.handlers[:], {name: logging.getLogger(name).level for name in ("", "grpc")}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.chdir(folder)
        yield folder
    sys.modules.pop("an_application", None)
    root.handlers[:] = handlers
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    os.environ.clear()
    os.environ.update(environment)


def application() -> ModuleType:
    import an_application  # type: ignore[import-not-found]

    module: ModuleType = an_application
    return module


def make_runtime(folder: Path) -> Runtime:
    return Runtime(
        settings=Settings(name="a", application="an_application:App", include=("a",)),
        application_directory=folder,
        data_directory=folder / "data",
        device=None,
        request_stop=lambda _: None,
    )


class Life(RuleBasedStateMachine):
    """A runtime, next to a model that is nothing but the table."""

    folder: Path

    def __init__(self) -> None:
        super().__init__()
        self.runtime = make_runtime(self.folder)
        self.state = State.UNINITIALIZED

    def _ask(self, request: Request, step: Step, expected: tuple[StatusCode, str]) -> bool:
        """Ask, and compare the answer; whether the life cycle let the request in."""
        status = answer_of(self.runtime, request).status
        target = TRANSITIONS.get((self.state, step))
        if target is None:
            (needed,) = (state.value for state, each in TRANSITIONS if each is step)
            message = f"{step.value} needs the state {needed}; the enclave is {self.state.value}"
            assert status == Status(code=StatusCode.FAILED_PRECONDITION, message=message, wrong_state=True)
            return False
        self.state = target
        assert (status.code, status.message, status.wrong_state) == (*expected, False)
        assert SECRET not in status.message
        return True

    @rule(outcome=outcomes)
    def initialize(self, outcome: Outcome) -> None:
        application().outcome, told = outcome  # type: ignore[attr-defined]
        expected = told("initialize")
        if self._ask(Request(initialize=Initialize()), Step.INITIALIZE, expected):
            ended = Step.INITIALIZED if expected == OK else Step.INITIALIZE_FAILED
            self.state = TRANSITIONS[self.state, ended]

    @rule(config=st.sampled_from(REFUSED_CONFIGURATIONS))
    def initialize_with_what_is_refused(self, config: bytes) -> None:
        status = answer_of(self.runtime, Request(initialize=Initialize(config=config))).status
        right = self.state is State.UNINITIALIZED
        assert status.code == (StatusCode.INVALID_ARGUMENT if right else StatusCode.FAILED_PRECONDITION)
        assert status.wrong_state != right

    @rule(outcome=outcomes)
    def run(self, outcome: Outcome) -> None:
        application().outcome, told = outcome  # type: ignore[attr-defined]
        self._ask(Request(run=Run()), Step.RUN, told("run"))

    @rule(outcome=outcomes)
    def finalize(self, outcome: Outcome) -> None:
        application().outcome, told = outcome  # type: ignore[attr-defined]
        if self._ask(Request(finalize=Finalize()), Step.FINALIZE, told("finalize")):
            self.state = TRANSITIONS[self.state, Step.FINALIZED]

    @rule(length=st.sampled_from([0, 63, 64, 65]))
    def collect_evidence(self, length: int) -> None:
        no_device = (StatusCode.UNIMPLEMENTED, "this enclave has no device that makes evidence")
        no_report_data = (StatusCode.INVALID_ARGUMENT, "a question has 64 bytes")
        request = Request(collect_evidence=CollectEvidence(question=bytes(length)))
        self._ask(request, Step.COLLECT_EVIDENCE, no_device if length == 64 else no_report_data)

    @rule()
    def nothing(self) -> None:
        assert answer_of(self.runtime, Request(id=1)).status.code == StatusCode.INVALID_ARGUMENT

    @invariant()
    def only_the_end_is_final(self) -> None:
        assert self.runtime.finalized.is_set() == (self.state is State.FINALIZED)


def test_no_sequence_of_calls_leaves_the_table(folder: Path) -> None:
    Life.folder = folder
    run_state_machine_as_test(Life, settings=settings(max_examples=60, stateful_step_count=25))


@given(st.lists(st.sampled_from(Step), max_size=12))
def test_no_sequence_of_steps_leaves_the_table(steps: list[Step]) -> None:
    life = LifeCycle()
    for step in steps:
        before = life.state
        if target := TRANSITIONS.get((before, step)):
            life.take(step)
        else:
            with pytest.raises(WrongStateError, match=f"the enclave is {before.value}"):
                life.take(step)
        assert life.state is (target or before)


messages = st.binary(max_size=60) | st.builds(
    lambda data, at, byte: data[:at] + bytes([byte]) + data[at + 1 :],
    st.just(EnclaveConfig(current_working_directory="sub", host_name="h").SerializeToString()),
    st.integers(0, 12),
    st.integers(0, 255),
)


@settings(max_examples=300)
@given(messages, messages, messages)
def test_random_bytes_are_taken_or_invalid(config: bytes, data: bytes, final: bytes) -> None:
    application().outcome = None  # type: ignore[attr-defined]
    runtime = make_runtime(Path(application().__file__ or "").parent)
    code = answer_of(runtime, Request(initialize=Initialize(config=config))).status.code
    assert code in (StatusCode.OK, StatusCode.INVALID_ARGUMENT)
    if code != StatusCode.OK:
        assert answer_of(runtime, Request(initialize=Initialize())).status.code == StatusCode.OK
    assert answer_of(runtime, Request(run=Run(input=data))).status.code in (StatusCode.OK, StatusCode.INVALID_ARGUMENT)
    last = answer_of(runtime, Request(finalize=Finalize(final=final))).status.code
    assert last in (StatusCode.OK, StatusCode.INVALID_ARGUMENT)
    assert runtime.finalized.is_set()
