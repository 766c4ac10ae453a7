"""The enclave's end of the control protocol: what becomes of whatever a host asks and an application does."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import ModuleType

import grpc
import pytest
from observing import answer_of

from adyton.atls.binding import host_report_data
from adyton.bundle.settings import Settings
from adyton.enclave.runtime import Runtime
from adyton.errors import AdytonError, ApplicationError, StatusCode
from adyton.proto.control_pb2 import CollectEvidence, Finalize, Initialize, Reply, Request, Run
from adyton.tee.evidence import Endorsement, EndorsementKind, Evidence
from adyton.tee.message import decode_evidence

SECONDS = 10.0
CRL = Endorsement(kind=EndorsementKind.CRL, data=b"a list")

APPLICATION = """
from adyton.enclave.application import TrustedApplication
from adyton.proto.enclave_pb2 import EnclaveOutput

acts = {}  # what a test wants to happen: call → a function

class App(TrustedApplication):
    def initialize(self, config):
        acts.get("initialize", lambda *_: None)(self, config)

    def run(self, input):
        return acts.get("run", lambda *_: EnclaveOutput())(self, input)

    def finalize(self, final):
        acts.get("finalize", lambda *_: None)(self, final)
"""


class EchoDevice:
    """A device whose evidence is what was asked, with something stapled to it."""

    tee = "echo"

    def collect_evidence(self, report_data: bytes) -> Evidence:
        return Evidence(tee=self.tee, data=report_data, endorsements=(CRL,))


@pytest.fixture
def application(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module `own_application`; log handlers, environment and working folder are put back afterwards."""
    (tmp_path / "own_application.py").write_text(APPLICATION)
    (tmp_path / "data").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    environment = dict(os.environ)
    root = logging.getLogger()
    handlers, levels = root.handlers[:], {name: logging.getLogger(name).level for name in ("", "grpc")}
    import own_application  # type: ignore[import-not-found]

    yield own_application
    del sys.modules["own_application"]
    root.handlers[:] = handlers
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture
def runtime(application: ModuleType, tmp_path: Path) -> Runtime:
    return make_runtime(tmp_path)


def make_runtime(folder: Path, *, device: bool = True) -> Runtime:
    return Runtime(
        settings=Settings(name="a", application="own_application:App", include=("a",)),
        application_directory=folder,
        data_directory=folder / "data",
        device=EchoDevice() if device else None,
        request_stop=lambda _: None,
    )


def initialize(config: bytes = b"") -> Request:
    return Request(initialize=Initialize(config=config, name="an enclave"))


def run(data: bytes = b"") -> Request:
    return Request(run=Run(input=data))


def finalize(final: bytes = b"", drain_ms: int = 0) -> Request:
    return Request(finalize=Finalize(final=final, drain_ms=drain_ms))


def evidence(question: bytes = bytes(64)) -> Request:
    return Request(collect_evidence=CollectEvidence(question=question))


def status(reply: Reply) -> tuple[StatusCode, str]:
    return StatusCode(reply.status.code), reply.status.message


OK = (StatusCode.OK, "")


def not_an(name: str) -> tuple[StatusCode, str]:
    return StatusCode.INVALID_ARGUMENT, f"the host sent what is not an {name}"


def raising(error: BaseException) -> object:
    def act(*_: object) -> None:
        raise error

    return act


def test_a_whole_life(runtime: Runtime, application: ModuleType) -> None:
    application.acts["run"] = lambda app, _: application.EnclaveOutput() if app.context.name == "an enclave" else None
    assert status(answer_of(runtime, initialize())) == OK
    assert status(answer_of(runtime, run())) == OK
    wanted = Evidence(tee="echo", data=host_report_data(b"x" * 64), endorsements=(CRL,))
    assert decode_evidence(answer_of(runtime, evidence(b"x" * 64)).result) == wanted
    assert not runtime.finalized.is_set()
    assert status(answer_of(runtime, finalize())) == OK
    assert runtime.finalized.is_set()


def test_a_call_in_a_wrong_state_names_both_states(runtime: Runtime) -> None:
    early = [(run(), "run"), (evidence(), "collect_evidence"), (finalize(), "finalize")]
    for request, word in early:
        reply = answer_of(runtime, request)
        message = f"{word} needs the state RUNNING; the enclave is UNINITIALIZED"
        assert (status(reply), reply.status.wrong_state) == ((StatusCode.FAILED_PRECONDITION, message), True)
    answer_of(runtime, initialize())
    message = "initialize needs the state UNINITIALIZED; the enclave is RUNNING"
    assert status(answer_of(runtime, initialize())) == (StatusCode.FAILED_PRECONDITION, message)
    answer_of(runtime, finalize())
    for request, word in early:
        message = f"{word} needs the state RUNNING; the enclave is FINALIZED"
        assert status(answer_of(runtime, request)) == (StatusCode.FAILED_PRECONDITION, message)


def test_a_request_for_nothing_is_refused(runtime: Runtime) -> None:
    assert status(answer_of(runtime, Request(id=1)))[0] is StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("call", ["initialize", "run", "finalize"])
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ApplicationError(StatusCode.NOT_FOUND, "no such book", mend="x"), (StatusCode.NOT_FOUND, "no such book (x)")),
        (AdytonError("oops"), (StatusCode.INTERNAL, "oops")),
        (ApplicationError(StatusCode.ABORTED, "no \udcff"), (StatusCode.ABORTED, "no \\udcff")),
        (ApplicationError(StatusCode.ABORTED, "x" * 5000), (StatusCode.ABORTED, "x" * 4096)),
        (KeyError("secret"), (StatusCode.INTERNAL, "uncaught KeyError in CALL")),
        (SystemExit("secret"), (StatusCode.INTERNAL, "uncaught SystemExit in CALL")),
        (KeyboardInterrupt("secret"), (StatusCode.INTERNAL, "uncaught KeyboardInterrupt in CALL")),
        (BaseExceptionGroup("secret", [ValueError()]), (StatusCode.INTERNAL, "uncaught ExceptionGroup in CALL")),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_what_an_application_raises_becomes_a_status(
    runtime: Runtime,
    application: ModuleType,
    call: str,
    error: BaseException,
    expected: tuple[StatusCode, str],
) -> None:
    application.acts[call] = raising(error)
    replies = {"initialize": answer_of(runtime, initialize()), "run": answer_of(runtime, run())}
    replies["finalize"] = answer_of(runtime, finalize())
    assert status(replies[call]) == (expected[0], expected[1].replace("CALL", call))
    assert "secret" not in str(replies[call])


def test_an_error_that_is_none_of_ours_gets_an_answer_too(runtime: Runtime, application: ModuleType) -> None:
    answer_of(runtime, initialize())
    application.acts["run"] = raising(ApplicationError(grpc.StatusCode.NOT_FOUND, "x"))  # type: ignore[arg-type]
    assert status(answer_of(runtime, run()))[0] is StatusCode.INTERNAL
    application.acts["run"] = raising(ApplicationError(StatusCode.NOT_FOUND, KeyError("x")))  # type: ignore[arg-type]
    assert status(answer_of(runtime, run()))[0] is StatusCode.INTERNAL


def test_the_traceback_goes_to_the_log(
    runtime: Runtime, application: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    answer_of(runtime, initialize())
    application.acts["run"] = raising(KeyError("which"))
    answer_of(runtime, run())
    line = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert (line["level"], line["message"]) == ("ERROR", "uncaught exception in run")
    assert "KeyError: 'which'" in line["traceback"]


def test_an_enclave_whose_initialize_failed_can_be_initialized_again(runtime: Runtime, application: ModuleType) -> None:
    application.acts["initialize"] = raising(ApplicationError(StatusCode.UNAVAILABLE, "later"))
    assert status(answer_of(runtime, initialize())) == (StatusCode.UNAVAILABLE, "later")
    assert "the enclave is UNINITIALIZED" in status(answer_of(runtime, run()))[1]
    application.acts.clear()
    assert status(answer_of(runtime, initialize())) == OK


def test_a_failing_finalize_ends_the_life_too(runtime: Runtime, application: ModuleType) -> None:
    answer_of(runtime, initialize())
    application.acts["finalize"] = raising(OSError("secret"))
    assert status(answer_of(runtime, finalize())) == (StatusCode.INTERNAL, "uncaught OSError in finalize")
    assert runtime.finalized.is_set()
    assert "the enclave is FINALIZED" in status(answer_of(runtime, finalize()))[1]


@pytest.mark.parametrize(
    ("output", "expected"), [(None, OK), ("text", (StatusCode.INTERNAL, "uncaught TypeError in run"))]
)
def test_run_gives_an_output_or_nothing(
    runtime: Runtime, application: ModuleType, output: object, expected: tuple[StatusCode, str]
) -> None:
    answer_of(runtime, initialize())
    application.acts["run"] = lambda *_: output
    reply = answer_of(runtime, run())
    assert (status(reply), reply.result) == (expected, b"")


def test_evidence_is_over_64_bytes(runtime: Runtime) -> None:
    answer_of(runtime, initialize())
    for length in (0, 63, 65):
        reply = answer_of(runtime, evidence(bytes(length)))
        assert status(reply) == (StatusCode.INVALID_ARGUMENT, "a question has 64 bytes")


def test_an_enclave_without_a_device_makes_no_evidence(application: ModuleType, tmp_path: Path) -> None:
    runtime = make_runtime(tmp_path, device=False)
    answer_of(runtime, initialize())
    code, message = status(answer_of(runtime, evidence()))
    assert (code, message) == (StatusCode.UNIMPLEMENTED, "this enclave has no device that makes evidence")


def test_finalizing_waits_for_the_runs_in_flight_and_lets_no_other_in(
    runtime: Runtime, application: ModuleType
) -> None:
    gate, inside, order = threading.Event(), threading.Event(), []

    def slow_run(*_: object) -> None:
        inside.set()
        assert gate.wait(SECONDS)
        order.append("run")

    application.acts.update(run=slow_run, finalize=lambda *_: order.append("finalize"))
    answer_of(runtime, initialize())
    with ThreadPoolExecutor() as pool:
        running = pool.submit(partial(answer_of, runtime), run())
        assert inside.wait(SECONDS)
        ending = pool.submit(partial(answer_of, runtime), finalize(drain_ms=2**64 - 1))
        try:
            until = time.monotonic() + SECONDS
            while "RUNNING; the enclave is FINALIZING" not in status(answer_of(runtime, evidence()))[1]:
                assert time.monotonic() < until
            assert status(answer_of(runtime, run()))[0] is StatusCode.FAILED_PRECONDITION
            assert not order
        finally:
            gate.set()
        assert status(ending.result(SECONDS)) == status(running.result(SECONDS)) == OK
    assert order == ["run", "finalize"]


def test_bytes_that_are_no_message_are_refused(runtime: Runtime) -> None:
    assert status(answer_of(runtime, initialize(b"\xff"))) == not_an("EnclaveConfig")
    answer_of(runtime, initialize())
    assert status(answer_of(runtime, run(b"\xff"))) == not_an("EnclaveInput")
    assert status(answer_of(runtime, finalize(b"\xff"))) == not_an("EnclaveFinal")
    assert runtime.finalized.is_set()
