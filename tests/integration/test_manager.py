"""The host's door: names, deadlines, and what is left when things go wrong."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from observing import eventually, processes_that_mention

import adyton
from adyton.errors import (
    AlreadyExistsError,
    ApplicationError,
    ConfigurationError,
    ControlProtocolError,
    DeadlineError,
    EnclaveDiedError,
    EvidenceError,
    UnsupportedError,
    WrongStateError,
)
from adyton.host.manager import EnclaveClient, EnclaveManager
from adyton.proto import control_pb2
from adyton.proto.control_server import ControlServer, Send
from adyton.proto.frames import Stream
from adyton.testing.probes import SERVER, answer, command, config, farewell, probe_bundle, server_config

Ask = Callable[[EnclaveClient, str], str]


def nothing_left(directory: Path) -> None:
    assert not list(directory.glob("enclave-*"))
    assert not processes_that_mention(str(directory))


def test_a_name_is_used_once(manager: EnclaveManager) -> None:
    first = manager.load("one", probe_bundle())
    with pytest.raises(AlreadyExistsError, match="'one' is loaded already"):
        manager.load("one", probe_bundle())
    assert manager.get("one") is first
    first.destroy()
    assert manager.get("one") is None
    manager.load("one", probe_bundle())


@pytest.mark.parametrize("name", ["", "../up", "a b", "x" * 200, "-dash"])
def test_bad_names(manager: EnclaveManager, name: str) -> None:
    with pytest.raises(ConfigurationError, match="is no name for an enclave"):
        manager.load(name, probe_bundle())


def test_an_unknown_technology(manager: EnclaveManager) -> None:
    with pytest.raises(UnsupportedError, match=r"no launcher 'abacus'.*known: process"):
        manager.load("probe", probe_bundle(), on="abacus")


def test_a_missing_bundle(manager: EnclaveManager, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"can't read .*nothing\.adyton"):
        manager.load("probe", tmp_path / "nothing.adyton")
    with pytest.raises(ConfigurationError, match=r"enclave\.toml: No such file"):
        manager.load("probe", tmp_path)


def test_enclaves_load_side_by_side(manager: EnclaveManager, ask: Ask) -> None:
    with ThreadPoolExecutor(4) as pool:
        enclaves = list(pool.map(lambda number: manager.load(f"n{number}", probe_bundle()), range(4)))
    # The threads that loaded them are gone now; the enclaves are not.
    time.sleep(0.3)
    assert len({ask(each, "data") for each in enclaves}) == 4


def test_one_of_two_loads_of_a_name_at_once_wins(manager: EnclaveManager) -> None:
    def load(_: int) -> str:
        try:
            manager.load("same", probe_bundle())
        except AlreadyExistsError:
            return "refused"
        return "loaded"

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(load, range(2))) == ["loaded", "refused"]


def test_a_hanging_initialize_ends_at_the_deadline(manager: EnclaveManager, runtime_directory: Path) -> None:
    with pytest.raises(DeadlineError, match="initialize was not answered"):
        manager.load("probe", probe_bundle(), config("sleep 60"), timeout_seconds=2)
    nothing_left(runtime_directory)
    manager.load("probe", probe_bundle())


def test_an_enclave_that_dies_while_it_initializes(manager: EnclaveManager) -> None:
    with pytest.raises(EnclaveDiedError, match="exit code 7") as caught:
        manager.load("probe", probe_bundle(), config("exit 7"))
    assert caught.value.exit_status == 7
    with pytest.raises(EnclaveDiedError, match="killed by SIGKILL") as caught:
        manager.load("probe", probe_bundle(), config("kill"))
    assert caught.value.exit_status == -9


def test_destroy_twice_names_the_state(manager: EnclaveManager) -> None:
    enclave = manager.load("probe", probe_bundle())
    enclave.destroy()
    with pytest.raises(WrongStateError, match="destroy needs a loaded enclave; 'probe' is destroyed"):
        enclave.destroy()
    with pytest.raises(WrongStateError, match="collect evidence needs a loaded enclave"):
        enclave.collect_evidence(bytes(64))


def test_a_run_while_finalizing_names_both_states(manager: EnclaveManager) -> None:
    enclave = manager.load("probe", probe_bundle())
    destroying = threading.Thread(target=enclave.destroy, args=(farewell("sleep 1"),))
    slow = enclave.run_future(command("sleep 0.5"))
    destroying.start()
    time.sleep(0.1)
    request = control_pb2.Request(run=control_pb2.Run())
    late = enclave._control.call(request)  # what a client that did not know of the destroy would send
    with pytest.raises(WrongStateError, match="run needs the state RUNNING; the enclave is FINALIZING"):
        late.result(5)
    slow.result(5)
    destroying.join()


def test_calls_longer_than_the_drain_do_not_hold_up_the_end(manager: EnclaveManager) -> None:
    enclave = manager.load("probe", probe_bundle())
    stuck = enclave.run_future(command("sleep 60"))
    begun = time.monotonic()
    enclave.destroy(timeout_seconds=4)
    assert time.monotonic() - begun < 6
    with pytest.raises(EnclaveDiedError):
        stuck.result(1)


def test_the_end_of_the_manager_destroys_everything(runtime_directory: Path) -> None:
    with EnclaveManager() as manager:
        enclaves = [manager.load(name, probe_bundle()) for name in ("a", "b")]
    for each in enclaves:
        with pytest.raises(WrongStateError):
            each.enter_and_run()
    nothing_left(runtime_directory)


def test_an_error_in_the_block_is_not_hidden_by_the_end(runtime_directory: Path) -> None:
    def story() -> None:
        with EnclaveManager() as manager:
            enclave = manager.load("probe", probe_bundle())
            with pytest.raises(EnclaveDiedError):
                enclave.enter_and_run(command("kill"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        story()
    nothing_left(runtime_directory)


class Impostor:
    """A launched enclave that speaks the protocol and answers every request with the same bytes."""

    control: Stream

    def __init__(self, answer_bytes: bytes) -> None:
        self._reply = control_pb2.Reply(status=control_pb2.Status(), result=answer_bytes)
        self.control, self._inside = socket.socketpair()
        self._thread = threading.Thread(target=ControlServer(self._inside, self._accept).serve)
        self._thread.start()

    def _accept(self, _: control_pb2.Request) -> Callable[[Send], None]:
        return lambda send: send(self._reply)

    def address_of(self, port: int) -> str:
        return f"localhost:{port}"

    def log_tail(self) -> tuple[str, ...]:
        return ()

    def wait(self, timeout_seconds: float) -> bool:
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def explain(self, *, started: bool) -> EnclaveDiedError:
        return EnclaveDiedError("the impostor is gone")

    def close(self) -> None:
        self._inside.close()


def test_an_answer_that_is_none_is_not_taken_for_one() -> None:
    enclave = EnclaveClient("impostor", Impostor(b"\xff"), on_gone=lambda _: None)
    with pytest.raises(EvidenceError, match="the message of evidence does not parse"):
        enclave.collect_evidence(bytes(64))
    with pytest.raises(ControlProtocolError, match="what is not an EnclaveOutput"):
        enclave.enter_and_run()
    enclave.destroy()


def test_asyncio(runtime_directory: Path) -> None:
    async def story() -> None:
        async with adyton.aio.EnclaveManager() as manager:
            first, second = await asyncio.gather(
                manager.load("first", probe_bundle()), manager.load("second", probe_bundle())
            )
            outputs = await asyncio.gather(*(first.enter_and_run(command(f"answer {number}")) for number in range(20)))
            assert [answer(each) for each in outputs] == [str(number) for number in range(20)]
            with pytest.raises(DeadlineError):
                await second.enter_and_run(command("sleep 5"), timeout_seconds=0.1)
            await first.enter_and_run(command("stop done"))
            assert await first.wait_stop_requested() == "done"
            assert (await first.collect_evidence(bytes(64))).tee == "simulated"
            with pytest.raises(EnclaveDiedError):
                await second.enter_and_run(command("exit 1"))
            with pytest.raises(EnclaveDiedError):
                await second.destroy()
            await first.destroy()
            with pytest.raises(WrongStateError):
                await first.enter_and_run()

    asyncio.run(story())
    nothing_left(runtime_directory)


def test_a_cancelled_load_leaves_no_enclave(runtime_directory: Path) -> None:
    async def story() -> None:
        async with adyton.aio.EnclaveManager() as manager:
            loading = asyncio.create_task(manager.load("probe", probe_bundle(), config("sleep 1")))
            await asyncio.sleep(0.5)
            loading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await loading
            await asyncio.sleep(2)

    asyncio.run(story())
    eventually(lambda: not list(runtime_directory.glob("enclave-*")))
    nothing_left(runtime_directory)


def test_a_run_that_was_sent_before_destroy_is_carried_out(manager: EnclaveManager) -> None:
    for number in range(20):
        enclave = manager.load("probe", probe_bundle())
        runs = [enclave.run_future(command(f"answer {number}")) for _ in range(10)]
        enclave.destroy()
        assert [answer(each.result(0)) for each in runs] == [str(number)] * 10


def test_what_destroy_refuses_changes_nothing(manager: EnclaveManager, ask: Ask) -> None:
    enclave = manager.load("probe", probe_bundle())
    with pytest.raises(AttributeError, match="SerializeToString"):
        enclave.destroy("not a message")  # type: ignore[arg-type]
    assert ask(enclave, "answer still here") == "still here"
    enclave.destroy(timeout_seconds=float("inf"))


def test_a_callback_can_not_wait_for_its_own_enclave(manager: EnclaveManager, ask: Ask) -> None:
    enclave = manager.load("probe", probe_bundle())
    outcome: Future[str] = Future()

    def destroy(_: object) -> None:
        try:
            enclave.destroy()
        except WrongStateError as problem:
            outcome.set_result(problem.message)

    enclave.stop_requested.add_done_callback(destroy)
    ask(enclave, "stop now")
    assert "call it from another one" in outcome.result(10)
    assert ask(enclave, "answer still here") == "still here"


def test_close_waits_for_a_load_and_leaves_nothing_of_it(runtime_directory: Path) -> None:
    manager = EnclaveManager()
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(manager.load, "slow", probe_bundle(), config("sleep 2"))
        eventually(lambda: bool(list(runtime_directory.glob("enclave-*"))))
        manager.close()
        with pytest.raises(WrongStateError, match="closed while the enclave was loading"):
            loading.result(0.5)
    nothing_left(runtime_directory)
    with pytest.raises(WrongStateError, match="this one is closed"):
        manager.load("more", probe_bundle())


def test_a_name_is_not_free_while_its_enclave_is_being_destroyed(manager: EnclaveManager) -> None:
    enclave = manager.load("probe", probe_bundle())
    destroying = threading.Thread(target=enclave.destroy, args=(farewell("sleep 1"),))
    destroying.start()
    time.sleep(0.3)
    with pytest.raises(AlreadyExistsError):
        manager.load("probe", probe_bundle())
    destroying.join()
    manager.load("probe", probe_bundle())


def test_close_waits_for_another_threads_destroy(runtime_directory: Path) -> None:
    manager = EnclaveManager()
    enclave = manager.load("probe", probe_bundle())
    destroying = threading.Thread(target=enclave.destroy, args=(farewell("sleep 1"),))
    destroying.start()
    time.sleep(0.3)
    manager.close()
    nothing_left(runtime_directory)
    destroying.join()


def test_a_dead_enclaves_name_is_free_and_a_told_death_is_not_told_again(ask: Ask) -> None:
    with EnclaveManager() as manager:
        first = manager.load("probe", probe_bundle())
        with pytest.raises(EnclaveDiedError):
            ask(first, "kill")
        second = manager.load("probe", probe_bundle())
        assert ask(second, "answer new") == "new"
        with pytest.raises(EnclaveDiedError):
            ask(second, "exit 3")


def test_a_death_that_nobody_was_told_of_is_told_at_the_end() -> None:
    manager = EnclaveManager()
    enclave = manager.load("probe", probe_bundle())
    enclave.run_future(command("kill"))
    eventually(lambda: enclave.has_died)
    with pytest.raises(EnclaveDiedError, match="killed by SIGKILL"):
        manager.close()


def test_a_fork_does_not_end_its_parents_enclaves(manager: EnclaveManager, ask: Ask) -> None:
    enclave = manager.load("probe", probe_bundle())
    pid = os.fork()
    if pid == 0:
        manager.close()
        try:
            enclave.destroy()
        except WrongStateError:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert ask(enclave, "answer alive") == "alive"


def test_a_failed_initialize_brings_its_log(manager: EnclaveManager) -> None:
    with pytest.raises(ApplicationError, match="its last log lines:") as caught:
        manager.load("probe", probe_bundle(), config("raise the reason"))
    assert "the reason" in "".join(caught.value.log_tail)


def test_a_configuration_that_is_too_long(manager: EnclaveManager) -> None:
    with pytest.raises(ConfigurationError, match="the control protocol takes 4194304"):
        manager.load("probe", probe_bundle(), config("answer " + "x" * 5_000_000))


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_200_cycles_leave_nothing(manager: EnclaveManager, runtime_directory: Path) -> None:
    bundle = probe_bundle(SERVER)

    def cycle() -> None:
        enclave = manager.load("cycle", bundle, server_config())
        assert enclave.enter_and_run().ByteSize() > 0
        enclave.destroy()

    def held() -> tuple[int, int, list[int], int]:
        children = processes_that_mention(str(runtime_directory))
        return (
            len(list(Path("/proc/self/fd").iterdir())),
            threading.active_count(),
            children,
            len(list(runtime_directory.iterdir())),
        )

    cycle()
    before = held()
    for _ in range(200):
        cycle()
    assert held() == before
    assert before[2] == []
