"""The first process of an enclave keeps the keys and the device; the others ask it over a socket pair."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from channel_parties import CLAIMS, NAMES, VendorDevice, slow_device
from vaults import make_vault

from adyton.atls.batch import BatchedQuotes, DeviceQuotes, Quote, QuoteSource
from adyton.atls.binding import fold, report_data
from adyton.atls.certificates import Issued, key_pem
from adyton.atls.identity import Identity, LocalIdentity, RotatingIdentity
from adyton.enclave.keeper import NOTICE_SECONDS, Keeper, KeeperClient
from adyton.errors import ApplicationError, EvidenceError, StatusCode
from adyton.proto import keeper_pb2
from adyton.proto.frames import MAX_FRAME_BYTES, encode_frame, read_frame
from adyton.tee.evidence import Evidence
from adyton.tee.simulated.format import parse_simulated


def node(index: int) -> bytes:
    return hashlib.sha512(index.to_bytes(4, "big")).digest()


class Source:
    """An identity that counts who asks, and can be replaced."""

    def __init__(self) -> None:
        self.asked = 0
        self.identity = LocalIdentity(names=NAMES, claims=CLAIMS).current()

    def current(self) -> Identity:
        self.asked += 1
        return self.identity

    def rotate(self) -> Identity:
        self.identity = LocalIdentity(names=NAMES, claims=CLAIMS).current()
        return self.identity


@contextlib.contextmanager
def kept(identity: RotatingIdentity | None = None, quotes: QuoteSource | None = None) -> Iterator[socket.socket]:
    """A server process's end of the socket pair; the other end is served."""
    keeper = Keeper(identity or Source(), BatchedQuotes(quotes or DeviceQuotes(VendorDevice())), make_vault())
    mine, theirs = socket.socketpair()
    thread = threading.Thread(target=keeper.serve, args=(theirs,))
    thread.start()
    with mine:
        yield mine
    thread.join(10)
    assert not thread.is_alive()
    assert theirs.fileno() == -1  # served until the process was gone, and closed


def same(one: Issued | None, other: Issued | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.der == other.der and key_pem(one.key) == key_pem(other.key) and same(one.issuer, other.issuer)


def test_all_processes_have_the_same_keys_certificates_and_claims() -> None:
    source = Source()
    clock_identity = source.identity
    source.identity = replace(clock_identity, leaves=(clock_identity.leaf, clock_identity.leaf))
    with kept(source) as connection:
        got = KeeperClient(connection).current()
    assert (got.claims, got.renew_at) == (CLAIMS, source.identity.renew_at)
    assert len(got.leaves) == 2
    assert all(map(same, got.leaves, source.identity.leaves))
    assert same(got.ca, source.identity.ca)
    assert got.find(source.identity.leaf.spki_sha256) is got.leaves[0]


def test_an_identity_is_asked_for_once_until_there_is_another() -> None:
    source = Source()
    with kept(source) as connection:
        client = KeeperClient(connection)
        first = client.current()
        assert client.current() is first
        assert source.asked == 1
        source.identity = replace(source.identity, renew_at=source.identity.renew_at - timedelta(days=1))
        client = KeeperClient(connection)
        client.current()
        source.identity = LocalIdentity(names=NAMES, claims=CLAIMS).current()
        assert same(client.current().leaf, source.identity.leaf)
        assert source.asked == 3


def test_a_processs_quotes_lead_to_what_the_device_signed(tmp_path: Path) -> None:
    with slow_device(tmp_path, 0.02) as (device, hardware), contextlib.ExitStack() as stack:
        above = BatchedQuotes(DeviceQuotes(device))
        processes = [BatchedQuotes(KeeperClient(stack.enter_context(kept(quotes=above)))) for _ in range(3)]
        with ThreadPoolExecutor(48) as pool:
            quotes = list(pool.map(lambda index: processes[index % 3].quote(node(index)), range(48)))
        assert hardware.quotes < 12
        for index, quote in enumerate(quotes):
            signed = parse_simulated(quote.evidence.data).report_data
            assert signed == report_data(fold(node(index), quote.path))
        stack.close()


def test_evidence_arrives_whole_with_its_endorsements_and_its_path() -> None:
    class Fixed:
        def quote(self, node: bytes) -> Quote:
            return Quote(evidence=evidence, path=(b"L" + bytes(64), b"R" + node))

    evidence = VendorDevice().collect_evidence(bytes(64))
    assert evidence.endorsements
    with kept(quotes=Fixed()) as connection:
        assert KeeperClient(connection).quote(node(1)) == Quote(
            evidence=evidence, path=(b"L" + bytes(64), b"R" + node(1))
        )


@pytest.mark.parametrize(
    ("problem", "status", "message"),
    [
        (ApplicationError(StatusCode.RESOURCE_EXHAUSTED, "too many"), StatusCode.RESOURCE_EXHAUSTED, "too many"),
        (EvidenceError("out of order"), StatusCode.UNAUTHENTICATED, "out of order"),
        (ZeroDivisionError("a secret"), StatusCode.INTERNAL, "no evidence: uncaught ZeroDivisionError"),
    ],
    ids=["ours", "the device's", "any other"],
)
def test_errors_pass_with_their_status_and_the_next_question_is_answered(
    problem: Exception, status: StatusCode, message: str
) -> None:
    class Failing:
        def quote(self, node: bytes) -> Quote:
            raise problem

    with kept(quotes=Failing()) as connection:
        client = KeeperClient(connection)
        with pytest.raises(ApplicationError) as caught:
            client.quote(node(1))
        assert (caught.value.status, caught.value.message) == (status, message)
        assert client.current().claims == CLAIMS


def test_without_its_first_process_a_process_is_unavailable() -> None:
    mine, theirs = socket.socketpair()
    with mine:
        theirs.close()
        client = KeeperClient(mine)
        for ask in (lambda: client.quote(node(1)), client.current):
            with pytest.raises(ApplicationError, match="first process is gone") as caught:
                ask()
            assert caught.value.status is StatusCode.UNAVAILABLE


def test_a_first_process_that_ends_in_the_middle_is_unavailable_or_an_error_of_ours() -> None:
    mine, theirs = socket.socketpair()
    with mine, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(KeeperClient(mine).quote, node(1))
        assert read_frame(theirs)
        theirs.close()
        problem = asked.exception(10)
    assert isinstance(problem, ApplicationError)
    assert problem.status is StatusCode.UNAVAILABLE


def test_threads_of_one_process_get_each_its_own_answer() -> None:
    class Labelled:
        def quote(self, node: bytes) -> Quote:
            return Quote(evidence=Evidence(tee="simulated", data=node))

    with kept(quotes=Labelled()) as connection, ThreadPoolExecutor(16) as pool:
        client = KeeperClient(connection)
        nodes = [node(index) for index in range(64)]
        # What answers is a batch, so a path may lead from a node to what was quoted.
        for asked, quote in zip(nodes, pool.map(client.quote, nodes), strict=True):
            assert fold(asked, quote.path) == quote.evidence.data


def test_a_known_identity_is_there_at_once_while_a_quote_takes_its_time() -> None:
    class Slow:
        def quote(self, node: bytes) -> Quote:
            asked.set()
            assert answered.wait(10)
            return Quote(evidence=Evidence(tee="simulated", data=node))

    asked, answered = threading.Event(), threading.Event()
    with kept(quotes=Slow()) as connection, ThreadPoolExecutor(2) as pool:
        client = KeeperClient(connection)
        known = client.current()
        quote = pool.submit(client.quote, node(1))
        assert asked.wait(10)
        time.sleep(NOTICE_SECONDS)
        current = pool.submit(client.current)
        try:
            assert current.result(5) is known
            assert not quote.done()
        finally:
            answered.set()
        assert quote.result(10).evidence.data == node(1)


def test_a_process_that_is_gone_ends_its_thread_and_no_other() -> None:
    keeper = Keeper(Source(), BatchedQuotes(DeviceQuotes(VendorDevice())), make_vault())
    pairs = [socket.socketpair() for _ in range(2)]
    threads = [threading.Thread(target=keeper.serve, args=(theirs,)) for _, theirs in pairs]
    for thread in threads:
        thread.start()
    pairs[0][0].close()
    threads[0].join(10)
    assert [thread.is_alive() for thread in threads] == [False, True]
    assert KeeperClient(pairs[1][0]).current().claims == CLAIMS
    pairs[1][0].close()
    threads[1].join(10)


@pytest.mark.parametrize(
    "sent",
    [b"\x00", b"\x00\x00\x00\x05abc", (MAX_FRAME_BYTES + 1).to_bytes(4, "big")],
    ids=["half a length", "half a frame", "too long"],
)
def test_a_broken_stream_ends_the_connection_without_a_word(sent: bytes) -> None:
    with kept() as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""


def test_a_client_takes_no_answer_that_is_too_long() -> None:
    mine, theirs = socket.socketpair()
    with mine, theirs:
        theirs.sendall((MAX_FRAME_BYTES + 1).to_bytes(4, "big"))
        with pytest.raises(ApplicationError, match="the enclave's first process is gone"):
            KeeperClient(mine).current()


def test_the_message_says_what_the_thread_was_asked() -> None:
    with kept() as connection:
        connection.sendall(encode_frame(keeper_pb2.Request(identity=True).SerializeToString()))
        frame: Any = read_frame(connection)
    reply = keeper_pb2.Reply.FromString(frame)
    assert reply.WhichOneof("result") == "identity"
    assert reply.code == 0
