"""How often one connection may ask for evidence."""

from __future__ import annotations

import pytest

from adyton.atls import allowance
from adyton.atls.allowance import MAX_A_MINUTE, MAX_A_MINUTE_WITHOUT_KEY, Allowance
from adyton.atls.attester import Connection
from adyton.errors import ApplicationError, StatusCode


def client(key: bytes, address: str = "ipv4:192.0.2.1") -> Connection:
    return Connection(tls_version="TLSv1.3", session_reused=False, server_name="", client_sha256=key, address=address)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def refused(made: Allowance, key: bytes) -> bool:
    try:
        made.take(client(key))
    except ApplicationError as problem:
        return problem.status is StatusCode.RESOURCE_EXHAUSTED
    return False


@pytest.mark.parametrize(("key", "at_most"), [(b"k" * 32, MAX_A_MINUTE), (b"", MAX_A_MINUTE_WITHOUT_KEY)])
def test_a_connection_has_so_many_a_minute_and_again_in_the_next(key: bytes, at_most: int) -> None:
    made = Allowance(clock=(clock := Clock()))
    for _ in range(2):
        assert [refused(made, key) for _ in range(at_most + 3)] == [False] * at_most + [True] * 3
        clock.now += 60


def test_who_goes_on_asking_is_not_kept_out_longer() -> None:
    made = Allowance(clock=(clock := Clock()))
    for _ in range(59):
        refused(made, b"k")
        clock.now += 1
    assert refused(made, b"k")
    clock.now += 1
    assert not refused(made, b"k")


def test_connections_do_not_take_from_each_other() -> None:
    made = Allowance()
    assert not any(refused(made, bytes([number])) for number in range(200))


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allowance, "MAX_CONNECTIONS", 3)
    made = Allowance()
    for _ in range(MAX_A_MINUTE):
        made.take(client(b"first"))
    for key in (b"a", b"b"):
        made.take(client(key))
    assert refused(made, b"first")
    for key in (b"c", b"d", b"e"):
        made.take(client(key))
    assert not refused(made, b"first")


def test_clients_without_a_key_are_told_apart_by_their_addresses() -> None:
    made = Allowance()
    for _ in range(MAX_A_MINUTE_WITHOUT_KEY):
        made.take(client(b""))
    with pytest.raises(ApplicationError):
        made.take(client(b""))
    made.take(client(b"", "ipv4:192.0.2.2"))
