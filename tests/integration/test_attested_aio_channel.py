"""The attested channel on asyncio, over real servers in processes that are killed and started again."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from aio_one_shot_servers import LOST_WORDS, SERVICE, OneShotServer, PlainOpener, each
from translator import translator_pb2, translator_pb2_grpc

from adyton.atls.aio_channel import AttestedAioChannel
from adyton.errors import EvidenceError, PolicyError, UnreachableError, WrongStateError

SECONDS = 20.0
KINDS = ("UnaryUnary", "UnaryStream", "StreamUnary", "StreamStream")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[OneShotServer]:
    with OneShotServer(tmp_path) as running:
        yield running


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, SECONDS))


def method(channel: grpc.aio.Channel, kind: str) -> Any:
    made: dict[str, Callable[[str], Any]] = {
        "UnaryUnary": channel.unary_unary,
        "UnaryStream": channel.unary_stream,
        "StreamUnary": channel.stream_unary,
        "StreamStream": channel.stream_stream,
        "Metadata": channel.unary_unary,
    }
    return made[kind](f"/{SERVICE}/{kind}")


async def ask(channel: grpc.aio.Channel, kind: str, *requests: bytes, **options: Any) -> list[bytes]:
    request: Any = each(*requests) if kind.startswith("Stream") else requests[0]
    call = method(channel, kind)(request, **options)
    if kind.endswith("Stream"):
        return [response async for response in call]
    return [await call]


def quick(_failures: int) -> float:
    return 0.05


@pytest.mark.parametrize(
    ("kind", "requests", "responses"),
    [
        ("UnaryUnary", [b"a"], [b"a"]),
        ("UnaryStream", [b"a"], [b"a 0", b"a 1", b"a 2"]),
        ("StreamUnary", [b"a", b"b"], [b"a b"]),
        ("StreamStream", [b"a", b"b"], [b"a", b"b"]),
    ],
)
def test_each_kind_of_call_works_before_and_after_a_restart(
    server: OneShotServer, kind: str, requests: list[bytes], responses: list[bytes]
) -> None:
    async def work() -> None:
        opener = PlainOpener(server)
        async with AttestedAioChannel(opener) as channel:
            for number in range(3):
                assert await ask(channel, kind, *requests) == responses
                if number < 2:
                    server.kill()
                    server.start()
            assert opener.opens == 3
            assert str(channel.attestation) == "attestation 3"

    run(work())


def test_calls_that_come_before_the_loss_is_noticed_are_begun_anew_and_carried_out_once(server: OneShotServer) -> None:
    async def work() -> None:
        opener = PlainOpener(server)
        async with AttestedAioChannel(opener) as channel:
            server.kill()
            server.start()
            # No await since: the event loop has heard of nothing, and the calls go to the dead connection.
            with blind(opener):
                asked = [ask(channel, kind, f"{kind}-{n}".encode()) for kind in KINDS for n in range(5)]
                await asyncio.gather(*asked)
            assert opener.opens == 2
        assert sorted(server.executed())[1:] == sorted(set(server.executed()))[1:]
        assert len(server.executed()) == len(asked)

    run(work())


@contextlib.contextmanager
def blind(opener: PlainOpener) -> Iterator[None]:
    """The first session's channel says for ever that it is ready, as it may for a moment."""
    channel: Any = opener.sessions[0].channel
    channel.get_state = lambda try_to_connect=False: grpc.ChannelConnectivity.READY
    yield


def test_streams_that_are_written_to_are_begun_anew_with_what_was_not_sent(server: OneShotServer) -> None:
    async def work() -> None:
        opener = PlainOpener(server)
        async with AttestedAioChannel(opener) as channel:
            server.kill()
            server.start()
            with blind(opener):
                chat = method(channel, "StreamStream")()
                join = method(channel, "StreamUnary")()
                nothing = method(channel, "StreamUnary")()
                await nothing.done_writing()
                for request in (b"one", b"two"):
                    await chat.write(request)
                    assert await chat.read() == request
                    await join.write(request)
                await chat.done_writing()
                await join.done_writing()
                assert await chat.read() is grpc.aio.EOF
                assert await join == b"one two"
                assert await nothing == b""
            with pytest.raises(asyncio.InvalidStateError):
                await join.write(b"three")
        assert sorted(server.executed()) == ["one", "one", "two", "two"]

    run(work())


def test_an_iterator_that_still_waits_when_its_stream_is_begun_anew_is_not_asked_by_two(server: OneShotServer) -> None:
    async def work() -> None:
        opener = PlainOpener(server)
        go_on = asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            await go_on.wait()
            for number in range(20):
                yield b"%d" % number

        async with AttestedAioChannel(opener) as channel:
            server.kill()
            server.start()
            with blind(opener):
                call = method(channel, "StreamStream")(slow())
                assert ("greeting", "hello") in list(await call.initial_metadata())
                assert opener.opens == 2
                go_on.set()
                assert [int(response) async for response in call] == list(range(20))
                plain = method(channel, "StreamUnary")(b"%d" % number for number in range(20))
                assert (await plain).split() == [b"%d" % number for number in range(20)]

    run(work())


def test_under_load_a_killed_server_costs_only_the_calls_in_flight_and_nothing_runs_twice(
    server: OneShotServer,
) -> None:
    async def work() -> None:
        opener = PlainOpener(server)
        errors: collections.Counter[str] = collections.Counter()
        numbers, over, calls_done = itertools.count(), asyncio.Event(), 0

        async def keep_asking(channel: grpc.aio.Channel, kind: str) -> None:
            nonlocal calls_done
            while not over.is_set():
                try:
                    await ask(channel, kind, f"{kind}-{next(numbers)}".encode(), timeout=SECONDS, wait_for_ready=True)
                    calls_done += 1
                except grpc.aio.AioRpcError as error:
                    errors[f"{error.code().name}: {error.details()}"[:60]] += 1

        async with AttestedAioChannel(opener, backoff=quick) as channel:
            tasks = [asyncio.create_task(keep_asking(channel, kind)) for kind in KINDS * 2]
            for _ in range(3):
                await asyncio.sleep(0.4)
                await asyncio.to_thread(server.kill)
                await asyncio.to_thread(server.start)
            await asyncio.sleep(0.4)
            over.set()
            await asyncio.gather(*tasks)
        assert calls_done > 100
        # One call of each, and one more that was begun before the kernel had told gRPC of the end.
        assert errors.total() <= 3 * 2 * len(tasks)
        # The second is how grpc.aio says that a request could not be written any more.
        assert {said.split(":")[0] for said in errors} <= {"UNAVAILABLE", "INTERNAL"}
        assert not any("failed to connect" in said for said in errors)
        assert len(opener.sessions) == 4
        assert len(server.executed()) == len(set(server.executed()))

    run(work())


def test_a_server_that_ends_its_connections_again_and_again_costs_no_error(tmp_path: Path) -> None:
    async def work() -> None:
        opener = PlainOpener(aging)
        async with AttestedAioChannel(opener) as channel:
            ends, answered = time.monotonic() + 3, 0
            while time.monotonic() < ends:
                kinds = KINDS * 3
                answers = await asyncio.gather(*(ask(channel, kind, b"a", timeout=10) for kind in kinds))
                answered += len(answers)
            assert answered > 500
            assert opener.opens >= 4
        assert len(aging.executed()) == answered

    with OneShotServer(tmp_path, max_age_ms=400) as aging:
        run(work())


def test_many_calls_at_once_cause_one_attestation_and_share_its_failure(server: OneShotServer) -> None:
    async def work() -> None:
        refusal = PolicyError("not acceptable")
        opener = PlainOpener(server, refusals=[refusal], before_open=lambda: asyncio.sleep(0.1))
        channel = AttestedAioChannel(opener)
        calls = [method(channel, "UnaryUnary")(b"a") for _ in range(50)]
        outcomes: list[Any] = await asyncio.gather(*calls, return_exceptions=True)
        assert opener.opens == 1
        assert len(set(map(id, outcomes))) == 50
        for outcome in outcomes:
            assert isinstance(outcome, PolicyError)
            assert isinstance(outcome, grpc.aio.AioRpcError)
            assert outcome.code() is grpc.StatusCode.PERMISSION_DENIED
            assert outcome.__cause__ is refusal
        assert await calls[0].code() is grpc.StatusCode.PERMISSION_DENIED
        assert "not acceptable" in await calls[0].details()
        assert not await calls[0].initial_metadata()
        assert calls[0].done()
        assert not calls[0].cancelled()
        await channel.close()

    run(work())


def test_after_a_failure_calls_fail_at_once_until_the_back_off_is_over(server: OneShotServer) -> None:
    async def work() -> None:
        waits: list[int] = []

        def backoff(failures: int) -> float:
            waits.append(failures)
            return 0.2

        opener = PlainOpener(server, refusals=[UnreachableError("first"), UnreachableError("second")])
        channel = AttestedAioChannel(opener, backoff=backoff)
        for kind in KINDS:
            with pytest.raises(UnreachableError, match="first"):
                await ask(channel, kind, b"a")
        assert (opener.opens, waits) == (1, [1])
        assert channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.TRANSIENT_FAILURE
        await channel.wait_for_state_change(grpc.ChannelConnectivity.TRANSIENT_FAILURE)
        with pytest.raises(UnreachableError, match="second"):
            await ask(channel, "UnaryUnary", b"a")
        assert (opener.opens, waits) == (2, [1, 2])
        assert await ask(channel, "UnaryUnary", b"a", wait_for_ready=True) == [b"a"]
        assert opener.opens == 3
        await channel.close()

    run(work())


def test_wait_for_ready_never_waits_for_an_enclave_that_was_refused(server: OneShotServer) -> None:
    async def work() -> None:
        channel = AttestedAioChannel(PlainOpener(server, refusals=[EvidenceError("forged")]))
        with pytest.raises(EvidenceError, match="forged"):
            await ask(channel, "UnaryUnary", b"a", wait_for_ready=True)
        with pytest.raises(EvidenceError, match="forged"):
            await channel.channel_ready()
        await channel.close()

    run(work())


def test_wait_for_ready_ends_at_the_deadline(server: OneShotServer) -> None:
    async def work() -> None:
        channel = AttestedAioChannel(PlainOpener(server, refusals=[UnreachableError("nobody")]))
        with pytest.raises(grpc.aio.AioRpcError, match="nobody") as caught:
            await ask(channel, "UnaryUnary", b"a", wait_for_ready=True, timeout=0.2)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await channel.close()

    run(work())


def test_a_session_is_renewed_on_its_own_connection_once_for_all_calls(server: OneShotServer) -> None:
    async def work() -> None:
        opener = PlainOpener(server, renew_after_seconds=0.2)
        async with AttestedAioChannel(opener) as channel:
            await asyncio.sleep(0.25)
            await asyncio.gather(*(ask(channel, kind, b"a") for kind in KINDS))
            assert (opener.opens, opener.renewals) == (1, 1)
            assert str(channel.attestation) == "renewed 1"

    run(work())


def test_a_refused_renewal_ends_the_calls_in_flight_with_its_reason(server: OneShotServer) -> None:
    async def work() -> None:
        opener = PlainOpener(server, renew_after_seconds=0.2, renewal_refusals=[PolicyError("revoked")])
        async with AttestedAioChannel(opener) as channel:
            chat = method(channel, "StreamStream")()
            await chat.write(b"a")
            assert await chat.read() == b"a"
            slow = method(channel, "UnaryUnary")(b"slow:a")
            reading = asyncio.create_task(chat.read())
            await asyncio.sleep(0.25)
            for refused in (ask(channel, "UnaryUnary", b"b"), reading, slow):
                with pytest.raises(PolicyError, match="revoked"):
                    await refused
            assert await chat.code() is grpc.StatusCode.PERMISSION_DENIED
        assert "b" not in server.executed()

    run(work())


def test_a_renewal_on_a_lost_connection_opens_a_new_one(server: OneShotServer) -> None:
    async def work() -> None:
        opener = PlainOpener(server, renew_after_seconds=0.1, renewal_refusals=[UnreachableError("gone")])
        async with AttestedAioChannel(opener) as channel:
            await asyncio.sleep(0.15)
            assert await ask(channel, "UnaryUnary", b"a") == [b"a"]
            assert (opener.opens, opener.renewals) == (2, 1)

    run(work())


@pytest.mark.parametrize("kind", KINDS)
def test_a_call_that_is_cancelled_while_the_enclave_is_attested_sends_nothing(server: OneShotServer, kind: str) -> None:
    async def work() -> None:
        channel = AttestedAioChannel(PlainOpener(server, before_open=lambda: asyncio.sleep(0.1)))
        call = method(channel, kind)(each(b"a") if kind.startswith("Stream") else b"a")
        ended = asyncio.Event()
        call.add_done_callback(lambda _: ended.set())
        await asyncio.sleep(0.02)
        assert not call.done()
        assert call.cancel()
        assert not call.cancel()
        assert (call.done(), call.cancelled()) == (True, True)
        assert await call.code() is grpc.StatusCode.CANCELLED
        await ended.wait()
        task = asyncio.create_task(ask(channel, kind, b"b"))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await ask(channel, "UnaryUnary", b"c")
        await channel.close()
        assert server.executed() == ["c"]

    run(work())


def test_closing_ends_calls_that_wait_for_an_attestation_that_hangs(server: OneShotServer) -> None:
    async def work() -> None:
        channel = AttestedAioChannel(PlainOpener(server, before_open=asyncio.Event().wait))
        call = method(channel, "UnaryUnary")(b"a")
        waits = asyncio.create_task(channel.channel_ready())
        await asyncio.sleep(0.02)
        assert channel.get_state() is grpc.ChannelConnectivity.CONNECTING
        await channel.close()
        with pytest.raises(asyncio.CancelledError):
            await call
        with pytest.raises(grpc.aio.UsageError):
            await waits
        with pytest.raises(grpc.aio.UsageError):
            method(channel, "UnaryUnary")(b"a")
        assert channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN
        await channel.close()

    run(work())


def test_closing_with_grace_lets_calls_end(server: OneShotServer) -> None:
    async def work() -> None:
        async with AttestedAioChannel(PlainOpener(server)) as channel:
            short, chat = method(channel, "UnaryUnary")(b"slow:a"), method(channel, "StreamStream")()
            await chat.write(b"a")
            await channel.close(1.0)
            assert await short == b"slow:a"
            assert chat.cancelled()

    run(work())


def test_a_deadline_covers_the_attestation_which_goes_on_for_others(server: OneShotServer) -> None:
    async def work() -> None:
        opener = PlainOpener(server, before_open=lambda: asyncio.sleep(0.3))
        channel = AttestedAioChannel(opener)
        patient = method(channel, "UnaryUnary")(b"a", timeout=SECONDS)
        begun = time.monotonic()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(channel, "UnaryUnary", b"b", timeout=0.1)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert time.monotonic() - begun < 0.25
        assert patient.time_remaining() < SECONDS
        assert await patient == b"a"
        assert (opener.opens, server.executed()) == (1, ["a"])
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(channel, "UnaryUnary", b"slow:c", timeout=0.1)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await channel.close()

    run(work())


class Logging:
    def __init__(self) -> None:
        self.seen: list[str] = []

    def mark(self, details: Any) -> Any:
        self.seen.append(details.method.decode())
        details.metadata.add("marked", "yes")
        return details


class UnaryUnaryLog(Logging, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await continuation(self.mark(client_call_details), request)


class UnaryStreamLog(Logging, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await continuation(self.mark(client_call_details), request)


class StreamUnaryLog(Logging, grpc.aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return await continuation(self.mark(client_call_details), request_iterator)


class StreamStreamLog(Logging, grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return await continuation(self.mark(client_call_details), request_iterator)


def test_interceptors_of_all_kinds_see_each_call_once_though_it_is_begun_anew(server: OneShotServer) -> None:
    async def work() -> None:
        logs: list[Any] = [UnaryUnaryLog(), UnaryStreamLog(), StreamUnaryLog(), StreamStreamLog()]
        opener = PlainOpener(server)
        async with AttestedAioChannel(opener, interceptors=logs) as channel:
            for _ in range(2):
                assert await ask(channel, "UnaryUnary", b"a") == [b"a"]
                assert await ask(channel, "UnaryStream", b"a") == [b"a 0", b"a 1", b"a 2"]
                assert await ask(channel, "StreamUnary", b"a", b"b") == [b"a b"]
                assert await ask(channel, "StreamStream", b"a", b"b") == [b"a", b"b"]
                if opener.opens == 1:
                    server.kill()
                    server.start()
                    blind(opener).__enter__()
            assert opener.opens == 2
            chat = method(channel, "StreamStream")()
            await chat.write(b"a")
            assert await chat.read() == b"a"
            await chat.done_writing()
            assert await chat.code() is grpc.StatusCode.OK
            assert "marked=yes" in (await ask(channel, "Metadata", b""))[0].decode()
        assert [log.seen for log in logs] == [
            [f"/{SERVICE}/UnaryUnary"] * 2 + [f"/{SERVICE}/Metadata"],
            [f"/{SERVICE}/UnaryStream"] * 2,
            [f"/{SERVICE}/StreamUnary"] * 2,
            [f"/{SERVICE}/StreamStream"] * 3,
        ]

    run(work())


class OneAfterTheOther(grpc.aio.UnaryUnaryClientInterceptor):
    """Lets calls go on in a task of its own, which the first of them has started, as a rate limiter does."""

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[Any] = asyncio.Queue()
        self._worker: asyncio.Task[None] | None = None

    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        self._worker = self._worker or asyncio.create_task(self._work())
        begun: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        await self._waiting.put((continuation, client_call_details, request, begun))
        return await begun

    async def stop(self) -> None:
        assert self._worker is not None
        self._worker.cancel()
        await asyncio.wait([self._worker])

    async def _work(self) -> None:
        while True:
            continuation, details, request, begun = await self._waiting.get()
            begun.set_result(await continuation(details, request))


def test_an_interceptor_of_two_channels_sends_each_request_to_its_own(server: OneShotServer, tmp_path: Path) -> None:
    """And with the codec of its own method, though it goes on in the task of another call."""

    def stranger(_: bytes) -> bytes:
        return b"of the other method"

    async def work(other: OneShotServer) -> None:
        shared = OneAfterTheOther()
        async with (
            AttestedAioChannel(PlainOpener(server), interceptors=[shared]) as one,
            AttestedAioChannel(PlainOpener(other), interceptors=[shared]) as two,
        ):
            assert await ask(one, "UnaryUnary", b"for one") == [b"for one"]
            assert await ask(two, "UnaryUnary", b"for two") == [b"for two"]
            encoded: Any = one.unary_unary(f"/{SERVICE}/UnaryUnary", request_serializer=stranger)
            assert await encoded(b"again for one") == b"of the other method"
            assert await ask(one, "UnaryUnary", b"and again") == [b"and again"]
        await shared.stop()
        assert server.executed() == ["for one", "of the other method", "and again"]
        assert other.executed() == ["for two"]

    elsewhere = tmp_path / "other"
    elsewhere.mkdir()
    with OneShotServer(elsewhere) as other:
        run(work(other))


def test_interceptors_hear_of_a_refused_enclave(server: OneShotServer) -> None:
    async def work() -> None:
        opener = PlainOpener(server, refusals=[PolicyError("no")])
        channel = AttestedAioChannel(opener, interceptors=[UnaryUnaryLog()])
        with pytest.raises(PolicyError):
            await ask(channel, "UnaryUnary", b"a")
        await channel.close()

    run(work())


def test_metadata_compression_and_call_credentials_reach_the_server(server: OneShotServer) -> None:
    async def work(*interceptors: grpc.aio.ClientInterceptor) -> None:
        async with AttestedAioChannel(PlainOpener(server), interceptors=interceptors) as channel:
            call = method(channel, "Metadata")(
                b"",
                metadata=(("mine", "1"),),
                credentials=grpc.access_token_call_credentials("ticket"),
                compression=grpc.Compression.Gzip,
                timeout=5,
            )
            seen = (await call).decode().split("\n")
            assert "mine=1" in seen
            assert "authorization=Bearer ticket" in seen
            assert ("first", "1") in list(await call.initial_metadata())
            assert ("last", "2") in list(await call.trailing_metadata())
            assert await call.code() is grpc.StatusCode.OK

    run(work())
    run(work(UnaryUnaryLog()))


@pytest.mark.parametrize("interceptors", [(), (UnaryUnaryLog(), StreamStreamLog())])
def test_generated_stubs_work(server: OneShotServer, interceptors: Any) -> None:
    async def work() -> None:
        async with AttestedAioChannel(PlainOpener(server), interceptors=interceptors) as channel:
            stub: Any = translator_pb2_grpc.TranslatorStub(channel)
            request = translator_pb2.GetTranslationRequest(input_word="asylo")
            assert (await stub.GetTranslation(request)).translated_word == "sanctuary"
            words = [response.translated_word async for response in stub.TranslateText(each_word(request, request))]
            assert words == ["sanctuary"] * 2
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.GetTranslation(translator_pb2.GetTranslationRequest())
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    run(work())


async def each_word(*requests: Any) -> AsyncIterator[Any]:
    for request in requests:
        yield request


def test_an_applications_own_unavailable_is_not_sent_again(server: OneShotServer) -> None:
    async def work() -> None:
        opener = PlainOpener(server)
        async with AttestedAioChannel(opener) as channel:
            for kind in ("UnaryUnary", "UnaryStream"):
                with pytest.raises(grpc.aio.AioRpcError, match=LOST_WORDS):
                    await ask(channel, kind, f"refused:{kind}".encode())
        assert server.executed() == ["refused:UnaryUnary", "refused:UnaryStream"]
        assert opener.opens == 1

    run(work())


def test_a_call_that_nobody_awaits_is_carried_out(server: OneShotServer) -> None:
    async def work() -> None:
        opener = PlainOpener(server)
        async with AttestedAioChannel(opener) as channel:
            server.kill()
            server.start()
            with blind(opener):
                method(channel, "UnaryUnary")(b"a")
                while "a" not in server.executed():
                    await asyncio.sleep(0.01)

    run(work())


def test_the_state_of_the_channel_can_be_waited_for(server: OneShotServer) -> None:
    async def work() -> None:
        channel = AttestedAioChannel(PlainOpener(server))
        states = grpc.ChannelConnectivity
        assert channel.get_state() is states.IDLE
        assert channel.get_state(try_to_connect=True) is states.CONNECTING
        await channel.wait_for_state_change(states.CONNECTING)
        assert channel.get_state() is states.READY
        await channel.channel_ready()
        server.kill()
        await channel.wait_for_state_change(states.READY)
        assert channel.get_state() is states.IDLE
        await channel.close()

    run(work())


def test_async_with_raises_if_the_enclave_is_refused(server: OneShotServer) -> None:
    async def work() -> None:
        opener = PlainOpener(server, refusals=[PolicyError("no")])
        with pytest.raises(PolicyError) as caught:
            await AttestedAioChannel(opener).__aenter__()
        assert isinstance(caught.value, grpc.aio.AioRpcError)

    run(work())


def test_another_event_loop_and_another_process_are_refused(
    server: OneShotServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        async def elsewhere() -> None:
            with pytest.raises(WrongStateError, match="event loop") as caught:
                method(channel, "UnaryUnary")(b"a")
            assert isinstance(caught.value, grpc.aio.AioRpcError)

        async with AttestedAioChannel(PlainOpener(server)) as channel:
            await asyncio.to_thread(lambda: asyncio.run(elsewhere()))
            with monkeypatch.context() as patch:
                patch.setattr(os, "getpid", lambda: 1)
                with pytest.raises(WrongStateError, match="process"):
                    method(channel, "UnaryUnary")(b"a")

    run(work())


def test_a_lost_session_leaves_no_connection_behind(server: OneShotServer) -> None:
    async def work() -> None:
        opener = PlainOpener(server)
        async with AttestedAioChannel(opener) as channel:
            for _ in range(3):
                server.kill()
                server.start()
                await ask(channel, "UnaryUnary", b"a")
            await asyncio.sleep(0.05)
            states = [session.channel.get_state for session in opener.sessions]
            assert [state().name for state in states] == ["SHUTDOWN"] * 3 + ["READY"]

    run(work())
