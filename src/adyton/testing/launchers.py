"""The conformance kit for launchers: what holds of an enclave whatever it runs on.

A test module subclasses `LauncherConformance` with pytest and gives it the fixture `technology` (and, if the launcher
takes options, `start`). A new launcher passes it unchanged.
"""

from __future__ import annotations

import ast
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from adyton.errors import (
    ApplicationError,
    BundleError,
    DeadlineError,
    EnclaveDiedError,
    StatusCode,
    WrongStateError,
)
from adyton.host.bundles import Bundle
from adyton.host.manager import EnclaveClient, EnclaveManager
from adyton.proto.enclave_pb2 import EnclaveConfig
from adyton.tee.registry import TEES
from adyton.testing.probes import answer, command, config, farewell, probe_bundle

Start = Callable[..., EnclaveClient]


class LauncherConformance:
    """Every test loads enclaves with `start` and speaks to them through EnclaveClient only."""

    @pytest.fixture
    def bundle(self) -> Bundle:
        """The plain probe, which takes one environment variable."""
        return probe_bundle(settings='[environment]\nallow = ["GREETING"]\n')

    @pytest.fixture
    def manager(self) -> Iterator[EnclaveManager]:
        """Destroys what a test leaves."""
        with EnclaveManager() as made:
            yield made

    @pytest.fixture
    def start(self, manager: EnclaveManager, technology: str, bundle: Bundle) -> Start:
        """Load an enclave of the technology under test."""

        def load(
            configuration: EnclaveConfig | None = None,
            name: str = "probe",
            target: Bundle = bundle,
            state: Path | None = None,
        ) -> EnclaveClient:
            return manager.load(name, target, configuration, on=technology, state=state)

        return load

    def ask(self, enclave: EnclaveClient, words: str, timeout_seconds: float = 30) -> str:
        """What the probe answers to `words`."""
        return answer(enclave.enter_and_run(command(words), timeout_seconds=timeout_seconds))

    def wait_for_log(self, enclave: EnclaveClient, text: str) -> None:
        """The log has a way of its own to the host, so it may come after an answer."""
        until = time.monotonic() + 10
        while text not in "".join(enclave.log_tail()):
            assert time.monotonic() < until, enclave.log_tail()
            time.sleep(0.02)

    def test_runs_what_the_bundle_says(self, start: Start) -> None:
        """The extensions of an application cross the boundary both ways."""
        assert self.ask(start(), "answer hello") == "hello"

    def test_nothing_of_the_hosts_environment_is_inside(self, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
        """Only what the runtime sets, and what enclave.toml lists."""
        monkeypatch.setenv("HOSTS_SECRET", "x")
        configuration = config()
        configuration.environment_variables.add(name="GREETING", value="good morning")
        enclave = start(configuration)
        own = {"LANG", "HOME", "TMPDIR", "PATH", "GRPC_VERBOSITY"}
        assert set(ast.literal_eval(self.ask(enclave, "environ"))) <= {*own, "GREETING"}
        assert self.ask(enclave, "env GREETING") == "good morning"

    def test_only_variables_of_enclave_toml_are_taken(self, start: Start) -> None:
        """The host is not trusted to choose."""
        configuration = config()
        configuration.environment_variables.add(name="PYTHONPATH", value="/tmp")  # noqa: S108
        with pytest.raises(ApplicationError, match="'PYTHONPATH' is not one that the enclave takes") as caught:
            start(configuration)
        assert caught.value.status is StatusCode.INVALID_ARGUMENT

    def test_its_own_folder_can_be_written(self, start: Start) -> None:
        """The data directory."""
        enclave = start()
        folder = self.ask(enclave, "data")
        assert self.ask(enclave, f"write {folder}/file") == "7"
        assert self.ask(enclave, f"read {folder}/file") == "7"

    def test_what_is_written_to_the_state_folder_is_there_after_a_restart(self, start: Start, tmp_path: Path) -> None:
        """Whether the enclave was finalized or died. Without the host's word it has no such folder."""
        state = tmp_path / "a state folder"
        first = start(state=state)
        file = f"{self.ask(first, 'state')}/file"
        self.ask(first, f"write {file}")
        first.destroy()
        second = start(state=state)
        assert self.ask(second, f"show {file}") == "written"
        self.ask(second, f"keep kept {file}")
        with pytest.raises(EnclaveDiedError):
            self.ask(second, "kill")
        assert self.ask(start(state=state), f"show {file}") == "kept"
        assert self.ask(start(name="without"), "state") == "None"

    def test_a_changed_bundle_does_not_start(self, start: Start, bundle: Bundle) -> None:
        """One byte of the application, under the digest of the right one."""
        forged = Bundle(
            sha256=bundle.sha256,
            data=bundle.data.replace(b"do as they are told", b"do as they are tolD"),
            settings=bundle.settings,
            lock=bundle.lock,
        )
        assert forged.data != bundle.data
        with pytest.raises(BundleError, match="SHA-256 differs"):
            start(target=forged)

    def test_statuses_cross_the_boundary(self, start: Start) -> None:
        """An application's own status, and an uncaught exception by its type only."""
        enclave = start()
        with pytest.raises(ApplicationError, match="no more") as caught:
            self.ask(enclave, "status RESOURCE_EXHAUSTED no more")
        assert caught.value.status is StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(ApplicationError) as caught:
            self.ask(enclave, "raise the secret")
        assert (caught.value.status, caught.value.message) == (StatusCode.INTERNAL, "uncaught ValueError in run")
        self.wait_for_log(enclave, "the secret")

    def test_a_failed_initialize_gives_its_status_and_frees_the_name(self, start: Start) -> None:
        """And the enclave is gone."""
        with pytest.raises(ApplicationError, match="uncaught ValueError in initialize"):
            start(config("raise no"))
        with pytest.raises(ApplicationError, match="not now") as caught:
            start(config("status ABORTED not now"))
        assert caught.value.status is StatusCode.ABORTED
        assert self.ask(start(), "answer again") == "again"

    def test_calls_overlap(self, start: Start) -> None:
        """Eight sleeps of half a second take less than eight halves."""
        enclave = start()
        begun = time.monotonic()
        futures = [enclave.run_future(command("sleep 0.5")) for _ in range(8)]
        for future in futures:
            future.result(30)
        assert time.monotonic() - begun < 3

    def test_a_call_has_a_deadline_and_the_enclave_goes_on(self, start: Start) -> None:
        """The host waits no longer than it said."""
        enclave = start()
        with pytest.raises(DeadlineError, match=r"run was not answered in 0\.2 s"):
            self.ask(enclave, "sleep 5", timeout_seconds=0.2)
        assert self.ask(enclave, "answer still here") == "still here"
        enclave.destroy(timeout_seconds=20)

    def test_destroy_drains(self, start: Start) -> None:
        """A call in flight is answered before the application is finalized; a later one names both states."""
        enclave = start()
        running = enclave.run_future(command("sleep 1"))
        destroying = threading.Thread(target=enclave.destroy)
        destroying.start()
        running.result(30)
        destroying.join()
        with pytest.raises(WrongStateError, match="run needs a loaded enclave; 'probe' is destroyed"):
            self.ask(enclave, "answer")

    def test_a_failing_finalize_reports_its_status_and_ends_the_enclave(self, start: Start) -> None:
        """The name is free again."""
        enclave = start()
        with pytest.raises(ApplicationError, match="not clean") as caught:
            enclave.destroy(farewell("status DATA_LOSS not clean"))
        assert caught.value.status is StatusCode.DATA_LOSS
        start()

    def test_a_hanging_finalize_ends_at_the_deadline(self, start: Start) -> None:
        """Nothing waits for ever."""
        enclave = start()
        with pytest.raises(DeadlineError, match="finalize was not answered"):
            enclave.destroy(farewell("sleep 60"), timeout_seconds=1)
        start()

    @pytest.mark.parametrize("end", ["exit 3", "kill"])
    def test_death_is_noticed_at_once_and_explained(self, start: Start, end: str) -> None:
        """With the last log lines, by every call in flight, and by the next."""
        enclave = start()
        self.ask(enclave, "print the last words")
        waiting = enclave.run_future(command("sleep 60"))
        begun = time.monotonic()
        with pytest.raises(EnclaveDiedError) as caught:
            self.ask(enclave, end)
        with pytest.raises(EnclaveDiedError):
            waiting.result(1)
        assert time.monotonic() - begun < 5
        assert "the last words" in caught.value.log_tail
        with pytest.raises(EnclaveDiedError):
            self.ask(enclave, "answer")
        with pytest.raises(EnclaveDiedError):
            enclave.destroy()

    def test_the_application_can_ask_to_be_finalized(self, start: Start) -> None:
        """The host hears the reason."""
        enclave = start()
        assert enclave.wait_stop_requested(0) is None
        self.ask(enclave, "stop enough is enough")
        assert enclave.wait_stop_requested(10) == "enough is enough"

    def test_answers_of_any_size(self, start: Start) -> None:
        """Up to a frame; beyond it RESOURCE_EXHAUSTED, and the enclave goes on."""
        enclave = start()
        assert len(self.ask(enclave, "large 3000000")) == 3_000_000
        with pytest.raises(ApplicationError) as caught:
            self.ask(enclave, "large 5000000")
        assert caught.value.status is StatusCode.RESOURCE_EXHAUSTED
        assert self.ask(enclave, "answer fine") == "fine"

    def test_evidence_answers_the_hosts_question(self, start: Start) -> None:
        """Two questions, two answers, of a TEE that this build knows; another length is refused.

        What the hardware signs is not the host's bytes but their digest in a domain of the host's own.
        """
        enclave = start()
        first, second = (enclave.collect_evidence(byte * 64) for byte in (b"a", b"b"))
        assert first.tee == second.tee in TEES
        assert first.data != second.data
        with pytest.raises(Exception, match="a question has 64 bytes"):
            enclave.collect_evidence(b"short")
