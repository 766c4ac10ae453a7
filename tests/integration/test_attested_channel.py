"""What becomes of calls on an attested channel when its connections come and go. Real servers, real sockets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from observing import eventually
from one_shot_servers import NO_CONNECTION, SERVICE, OneShotOpener, ServerProcess, carried_out, start, tls
from translator import translator_pb2, translator_pb2_grpc

from adyton.atls.channel import AttestedChannel
from adyton.errors import DeadlineError, EvidenceError, PolicyError, UnreachableError

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


def quick(failures: int) -> float:
    return 0.05


class Methods:
    """The server's four kinds of method, each as a function of an ID."""

    def __init__(self, channel: grpc.Channel) -> None:
        made: Any = channel
        self.once: Any = made.unary_unary(f"/{SERVICE}/Once")
        self.down: Any = made.unary_stream(f"/{SERVICE}/Down")
        self.up: Any = made.stream_unary(f"/{SERVICE}/Up")
        self.both: Any = made.stream_stream(f"/{SERVICE}/Both")

    def kinds(self) -> list[Callable[[str], Any]]:
        wait = {"wait_for_ready": True, "timeout": 20}
        return [
            lambda name: self.once(name.encode(), **wait),
            lambda name: list(self.down(name.encode(), **wait)),
            lambda name: self.up(iter([name.encode(), b"more"]), **wait),
            lambda name: list(self.both(iter([name.encode(), b"more"]), **wait)),
            lambda name: self.once.future(name.encode(), **wait).result(),
            lambda name: self.up.future(iter([name.encode(), b"more"]), **wait).result(),
        ]


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def opener(journal: Path) -> Iterator[OneShotOpener]:
    server, port = start(journal, tls())
    yield OneShotOpener(port)
    server.stop(None).wait()


@pytest.fixture
def channel(opener: OneShotOpener) -> Iterator[AttestedChannel]:
    with AttestedChannel(opener, backoff=quick) as made:
        yield made


@pytest.fixture
def methods(channel: AttestedChannel) -> Methods:
    return Methods(channel)


@pytest.fixture
def process(journal: Path) -> Iterator[ServerProcess]:
    made = ServerProcess(journal)
    yield made
    made.kill()


def in_threads(work: Callable[[int], object], count: int = 8) -> None:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()


def test_each_kind_of_call_finds_the_server_again_after_a_restart(journal: Path, process: ServerProcess) -> None:
    opener = OneShotOpener(process.port)
    with AttestedChannel(opener, backoff=quick) as channel:
        kinds = Methods(channel).kinds()
        for number, call in enumerate(kinds):
            call(f"before-{number}")
            process.kill()
            process.start()
            call(f"after-{number}")
    assert len(opener.opened) == 1 + len(kinds)
    assert carried_out(journal) == [f"{when}-{n}" for n in range(len(kinds)) for when in ("before", "after")]


@pytest.mark.slow
def test_restarts_under_load_fail_only_what_was_under_way_and_repeat_nothing(
    journal: Path, process: ServerProcess
) -> None:
    opener = OneShotOpener(process.port)
    ends, kills, failed, done = (
        time.monotonic() + 9,
        list[tuple[float, float]](),
        list[tuple[float, float, str]](),
        list[str](),
    )
    with AttestedChannel(opener, backoff=quick) as channel:
        kinds = Methods(channel).kinds()

        def work(thread: int) -> None:
            number = 0
            while time.monotonic() < ends:
                number += 1
                name, begun = f"{thread}-{number}", time.monotonic()
                try:
                    kinds[number % len(kinds)](name)
                except grpc.RpcError as error:
                    failed.append((begun, time.monotonic(), str(error.details())))
                else:
                    done.append(name)

        def restart() -> None:
            for _ in range(3):
                time.sleep(1.5)
                begun = time.monotonic()
                process.kill()
                kills.append((begun, time.monotonic()))
                process.start()

        restarting = threading.Thread(target=restart)
        restarting.start()
        in_threads(work)
        restarting.join()
    not_under_way = [each for each in failed if not any(each[0] <= dead and alive <= each[1] for alive, dead in kills)]
    assert not not_under_way
    twice = {name: times for name, times in Counter(carried_out(journal)).items() if times > 1}
    assert not twice
    assert set(done) <= set(carried_out(journal))
    assert len(opener.opened) == 1 + len(kills)


@pytest.mark.slow
def test_connections_that_age_break_no_call(journal: Path) -> None:
    options = [("grpc.max_connection_age_ms", 400), ("grpc.max_connection_age_grace_ms", 5000)]
    server, port = start(journal, tls(), options=options)
    opener = OneShotOpener(port)
    with AttestedChannel(opener, backoff=quick) as channel:
        kinds = Methods(channel).kinds()
        ends = time.monotonic() + 3
        errors: list[Exception] = []

        def work(thread: int) -> None:
            number = 0
            while time.monotonic() < ends and not errors:
                number += 1
                try:
                    kinds[number % len(kinds)](f"{thread}-{number}")
                except Exception as error:
                    errors.append(error)

        in_threads(work, 4)
    server.stop(None).wait()
    assert not errors
    assert len(opener.opened) >= 4
    assert max(Counter(carried_out(journal)).values()) == 1


def test_many_calls_at_once_cause_one_attestation(opener: OneShotOpener, methods: Methods) -> None:
    opener.gate.clear()
    threading.Timer(0.3, opener.gate.set).start()
    in_threads(lambda number: methods.once(str(number).encode()))
    assert opener.attempts == 1


def test_a_refusal_reaches_every_caller_as_its_own_and_holds_for_a_while(
    opener: OneShotOpener, channel: AttestedChannel
) -> None:
    once: Any = channel.unary_unary(f"/{SERVICE}/Once")
    opener.problems.append(PolicyError("not acceptable"))
    opener.gate.clear()
    threading.Timer(0.2, opener.gate.set).start()
    errors: list[PolicyError] = []

    def work(_: int) -> None:
        with pytest.raises(PolicyError) as caught:
            once(b"x", wait_for_ready=True)
        errors.append(caught.value)

    in_threads(work)
    assert len({id(error) for error in errors}) == 8
    assert all(isinstance(error, grpc.RpcError) for error in errors)
    assert opener.attempts == 1


def test_within_the_back_off_a_call_fails_at_once_and_after_it_opens_anew(opener: OneShotOpener) -> None:
    waits: list[int] = []

    def slow(failures: int) -> float:
        waits.append(failures)
        return 0.3

    with AttestedChannel(opener, backoff=slow) as channel:
        methods = Methods(channel)
        opener.problems.append(UnreachableError("down"))
        for _ in range(3):
            with pytest.raises(UnreachableError, match="down"):
                methods.once(b"x")
        assert opener.attempts == 1
        assert methods.once(b"y", wait_for_ready=True) == b"y"
        assert (opener.attempts, waits) == (2, [1])


def test_the_deadline_holds_while_an_attestation_hangs_which_goes_on(opener: OneShotOpener, methods: Methods) -> None:
    opener.gate.clear()
    begun = time.monotonic()
    with pytest.raises(DeadlineError):
        methods.once(b"x", timeout=0.2)
    assert time.monotonic() - begun < 2
    with pytest.raises(grpc.RpcError) as caught:
        next(methods.down(b"x", timeout=0.2))
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    opener.gate.set()
    assert methods.once(b"y") == b"y"
    assert opener.attempts == 1


def test_a_call_cancelled_during_the_attestation_is_never_sent(
    opener: OneShotOpener, methods: Methods, journal: Path
) -> None:
    opener.gate.clear()
    future, stream = methods.once.future(b"x"), methods.down(b"y")
    called: list[object] = []
    future.add_done_callback(called.append)
    assert future.running()
    assert future.cancel()
    assert stream.cancel()
    assert (future.cancelled(), future.done(), called) == (True, True, [future])
    with pytest.raises(grpc.FutureCancelledError):
        future.result()
    with pytest.raises(grpc.RpcError):
        next(stream)
    opener.gate.set()
    methods.once(b"z")
    assert carried_out(journal) == ["z"]


def test_closing_during_an_attestation_ends_the_wait_and_the_session(
    opener: OneShotOpener, channel: AttestedChannel, methods: Methods
) -> None:
    opener.gate.clear()
    future = methods.once.future(b"x")
    eventually(lambda: opener.attempts == 1)
    channel.close()
    assert future.code() is grpc.StatusCode.CANCELLED
    with pytest.raises(ValueError, match="closed channel"):
        methods.once(b"x")
    opener.gate.set()
    eventually(lambda: len(opener.opened) == 1)
    late: Any = opener.opened[0].channel.unary_unary(f"/{SERVICE}/Once")
    eventually(lambda: is_closed(late))


def test_closing_closes_the_connection(opener: OneShotOpener, channel: AttestedChannel) -> None:
    Methods(channel).once(b"1")
    kept: Any = opener.opened[0].channel.unary_unary(f"/{SERVICE}/Once")
    channel.close()
    assert is_closed(kept)


def is_closed(call: Any) -> bool:
    try:
        call(b"probe")
    except ValueError:
        return True
    return False


def test_a_session_is_renewed_on_its_own_connection(opener: OneShotOpener, methods: Methods) -> None:
    opener.renew_after = 0.0
    methods.once(b"1")
    methods.once(b"2")
    assert (len(opener.opened), opener.renewals) == (1, 1)


def test_a_refused_renewal_ends_the_calls_under_way_too(opener: OneShotOpener, methods: Methods) -> None:
    opener.renew_after = 0.0
    stream = methods.down(b"1 hang 1")
    next(stream)
    opener.problems.append(EvidenceError("no longer"))
    with pytest.raises(EvidenceError, match="no longer"):
        methods.once(b"2")
    assert stream.code() is grpc.StatusCode.CANCELLED


def test_a_renewal_on_a_lost_connection_opens_a_new_one(
    opener: OneShotOpener, channel: AttestedChannel, methods: Methods
) -> None:
    opener.renew_after = 0.0
    methods.once(b"1")
    opener.problems.append(UnreachableError("gone"))
    assert methods.once(b"2") == b"2"
    assert len(opener.opened) == 2
    assert channel.attestation is opener.opened[1].attestation


def test_an_answer_in_the_words_of_a_lost_connection_is_not_repeated(
    opener: OneShotOpener, methods: Methods, journal: Path
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        methods.once(b"1 answered")
    assert (caught.value.code(), caught.value.details()) == (UNAVAILABLE, NO_CONNECTION)
    methods.once.future(b"2 answered").exception()
    methods.once(b"3")
    assert carried_out(journal) == ["1", "2", "3"]
    assert len(opener.opened) == 1


def test_an_unavailable_that_nobody_marked_ends_the_session_and_is_not_repeated(
    opener: OneShotOpener, methods: Methods, journal: Path
) -> None:
    with pytest.raises(grpc.RpcError, match="not today"):
        methods.once(b"1 unavailable")
    methods.once(b"2")
    assert carried_out(journal) == ["1", "2"]
    assert len(opener.opened) == 2


def test_metadata_deadline_compression_and_credentials_arrive(methods: Methods) -> None:
    class Bearer(grpc.AuthMetadataPlugin):
        def __call__(self, context: Any, callback: Any) -> None:
            callback((("authorization", "Bearer abc"),), None)

    told = json.loads(
        methods.once(
            b"1 headers",
            timeout=5,
            metadata=(("colour", "green"),),
            credentials=grpc.metadata_call_credentials(Bearer()),
            compression=grpc.Compression.Gzip,
        )
    )
    assert (told["colour"], told["authorization"]) == ("green", "Bearer abc")
    assert 3 < told["left"] <= 5
    response, call = methods.once.with_call(b"2")
    assert (response, call.code(), dict(call.trailing_metadata())) == (b"2", grpc.StatusCode.OK, {"served": "2"})
    stream = methods.down(b"3 hang 1", timeout=5)
    assert dict(stream.initial_metadata()) == {"begun": "3"}
    assert 3 < stream.time_remaining() <= 5
    assert stream.cancel()
    assert stream.code() is grpc.StatusCode.CANCELLED


def test_a_stream_that_its_owner_drops_is_cancelled(opener: OneShotOpener, methods: Methods) -> None:
    ended = threading.Event()
    stream = methods.down(b"1 hang 1")
    next(stream)
    stream.add_callback(ended.set)
    del stream
    assert ended.wait(5)


def test_messages_taken_before_a_first_try_that_was_never_sent_are_sent_in_the_second(
    journal: Path, process: ServerProcess
) -> None:
    opener = OneShotOpener(process.port)
    with AttestedChannel(opener, backoff=quick) as channel:
        methods = Methods(channel)
        methods.once(b"0")
        process.kill()
        process.start()
        inside: list[int] = []

        def numbers() -> Iterator[bytes]:
            for number in range(200):
                inside.append(number)
                yield f"n{number}".encode()

        assert list(methods.both(numbers())) == [f"n{number}".encode() for number in range(200)]
        assert inside == list(range(200))


def test_interceptors_and_generated_stubs_stand_on_it(journal: Path) -> None:
    class Translator(translator_pb2_grpc.TranslatorServicer):
        def GetTranslation(self, request: Any, context: Any) -> Any:
            return translator_pb2.GetTranslationResponse(translated_word=request.input_word.upper())

        def TranslateText(self, request_iterator: Any, context: Any) -> Any:
            raise NotImplementedError

    class Seen(grpc.UnaryUnaryClientInterceptor):
        codes: list[object] = []  # noqa: RUF012

        def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
            call = continuation(client_call_details, request)
            self.codes.append(call.code())
            return call

    server, port = start(
        journal, tls(), add=lambda made: translator_pb2_grpc.add_TranslatorServicer_to_server(Translator(), made)
    )
    opener = OneShotOpener(port)
    opener.problems.append(PolicyError("not yet"))
    with AttestedChannel(opener, backoff=lambda _: 0.0) as channel:
        stub = translator_pb2_grpc.TranslatorStub(grpc.intercept_channel(channel, Seen()))
        with pytest.raises(PolicyError, match="not yet"):
            stub.GetTranslation(translator_pb2.GetTranslationRequest(input_word="asylo"))
        request = translator_pb2.GetTranslationRequest(input_word="asylo")
        assert stub.GetTranslation(request).translated_word == "ASYLO"
        assert stub.GetTranslation.future(request).result().translated_word == "ASYLO"
    assert Seen.codes == [grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.OK, grpc.StatusCode.OK]
    server.stop(None).wait()


def test_a_channel_says_when_it_is_ready(opener: OneShotOpener, channel: AttestedChannel) -> None:
    opener.problems.append(UnreachableError("not yet"))
    grpc.channel_ready_future(channel).result(timeout=10)
    assert opener.attempts == 2


FORKED = """
import os, sys
import grpc
sys.path.insert(0, sys.argv[2])
from one_shot_servers import OneShotOpener, ServerProcess
from pathlib import Path
from adyton.atls.channel import AttestedChannel
server = ServerProcess(Path(sys.argv[1]))
channel = AttestedChannel(OneShotOpener(server.port))
once = channel.unary_unary("/one.Shot/Once")
once(b"parent")
child = os.fork()
if child == 0:
    try:
        once(b"child")
    except grpc.RpcError as error:
        print(error.code().name, error.details(), flush=True)
    os._exit(0)
os.waitpid(child, 0)
print(once(b"parent again").decode(), flush=True)
server.kill()
"""


def test_after_a_fork_the_child_is_told_and_a_process_ends_without_closing(journal: Path) -> None:
    tests = str(Path(__file__).parent.parent)
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED, str(journal), tests],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
        env=dict(os.environ),
    )
    assert ran.stdout.splitlines() == [
        "FAILED_PRECONDITION the channel was made in another process; make one after the fork",
        "parent",
    ]
