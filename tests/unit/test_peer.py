"""Who calls: the identities of connections, how long and how many, and which certificate counts."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from adyton.atls.certificates import issue_open_client, pem, spki_sha256
from adyton.atls.peer import CONNECTED, MAX_PEM_BYTES, Peer, Peers, client_spki_sha256, peer

NOW = datetime(2026, 7, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


class Call:
    """What gRPC says of the connection of a call."""

    def __init__(self, certificate_pem: bytes | None, *, reused: bytes | None = b"false") -> None:
        facts = {"x509_pem_cert": certificate_pem, "ssl_session_reused": reused}
        self._facts = {name: [value] for name, value in facts.items() if value is not None}

    def auth_context(self) -> Mapping[str, list[bytes]]:
        return self._facts


def caller(seconds: float = 10, rule: str = "front end") -> Peer:
    return Peer(
        rule=rule,
        tee="simulated",
        measurement=b"\x11" * 48,
        platform="",
        insecurities=("simulated",),
        expires_at=NOW + seconds * SECOND,
    )


def key_of(number: int) -> bytes:
    return number.to_bytes(32, "big")


@pytest.fixture
def clock() -> Clock:
    return Clock()


# --- identities of connections


def test_a_caller_is_found_by_its_key_and_no_other(clock: Clock) -> None:
    peers = Peers(clock=clock)
    peers.enrol(key_of(1), caller())
    assert peers.find(key_of(1)) == caller()
    assert peers.find(key_of(2)) is None
    assert peers.find(b"") is None


def test_a_caller_is_known_until_it_expires(clock: Clock) -> None:
    peers = Peers(clock=clock)
    peers.enrol(key_of(1), caller(10))
    clock.now = NOW + timedelta(seconds=9.999)
    assert peers.find(key_of(1)) is not None
    clock.now = NOW + 10 * SECOND
    assert peers.find(key_of(1)) is None


def test_a_caller_that_enrols_again_has_its_new_identity(clock: Clock) -> None:
    peers = Peers(clock=clock)
    peers.enrol(key_of(1), caller(10))
    peers.enrol(key_of(1), caller(20, rule="back end"))
    clock.now = NOW + 15 * SECOND
    assert peers.find(key_of(1)) == caller(20, rule="back end")


def test_those_that_have_expired_are_forgotten_at_the_next_enrolment(clock: Clock) -> None:
    peers = Peers(clock=clock)
    for number in range(5):
        peers.enrol(key_of(number), caller(number + 1))
    clock.now = NOW + 3 * SECOND
    peers.enrol(key_of(9), caller(10))
    assert len(peers) == 3


def test_where_there_are_too_many_the_first_to_expire_gives_way(clock: Clock) -> None:
    peers = Peers(max_peers=3, clock=clock)
    for number, seconds in enumerate([20, 10, 30]):
        peers.enrol(key_of(number), caller(seconds))
    peers.enrol(key_of(3), caller(5))
    assert len(peers) == 3
    assert [peers.find(key_of(number)) is not None for number in range(4)] == [True, False, True, True]


def test_a_caller_that_enrols_again_puts_nobody_out(clock: Clock) -> None:
    peers = Peers(max_peers=2, clock=clock)
    peers.enrol(key_of(1), caller(10))
    peers.enrol(key_of(2), caller(20))
    peers.enrol(key_of(2), caller(30))
    assert peers.find(key_of(1)) == caller(10)


def test_threads_may_enrol_and_look_at_once(clock: Clock) -> None:
    peers = Peers(max_peers=50, clock=clock)
    problems: list[Exception] = []

    def work(first: int) -> None:
        try:
            for number in range(first, first + 200):
                peers.enrol(key_of(number), caller(number + 1))
                peers.find(key_of(number))
        except Exception as problem:
            problems.append(problem)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(0, 800, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    assert len(peers) == 50


def test_an_identity_without_a_time_zone_is_none() -> None:
    with pytest.raises(ValueError, match="time zone"):
        Peer(
            rule="",
            tee="",
            measurement=b"",
            platform="",
            insecurities=(),
            expires_at=datetime(2026, 7, 1),
        )


# --- the key of a connection


@pytest.fixture(scope="module")
def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@pytest.fixture(scope="module")
def certificate_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return pem(issue_open_client(key))


@pytest.fixture
def enrolled(key: ec.EllipticCurvePrivateKey) -> Iterator[Peer]:
    """In this process's own `CONNECTED`, whose clock is the machine's."""
    expires_at = datetime.now(UTC) + timedelta(minutes=5)
    identity = Peer(rule="r", tee="snp", measurement=b"m", platform="p", insecurities=(), expires_at=expires_at)
    name = spki_sha256(key.public_key())
    CONNECTED.enrol(name, identity)
    yield identity
    CONNECTED.enrol(name, Peer(rule="r", tee="snp", measurement=b"m", platform="p", insecurities=(), expires_at=NOW))


def test_a_connection_is_named_by_its_clients_key(key: ec.EllipticCurvePrivateKey, certificate_pem: bytes) -> None:
    assert client_spki_sha256(Call(certificate_pem)) == spki_sha256(key.public_key())


def test_an_enrolled_caller_has_its_identity(enrolled: Peer, certificate_pem: bytes) -> None:
    assert peer(Call(certificate_pem)) == enrolled


def test_another_key_has_none(enrolled: Peer) -> None:
    assert peer(Call(pem(issue_open_client(ec.generate_private_key(ec.SECP256R1()))))) is None


def test_a_caller_without_a_certificate_has_none() -> None:
    assert peer(Call(None)) is None
    assert peer(Call(None, reused=None)) is None


@pytest.mark.parametrize("reused", [b"true", b"", None])
def test_a_resumed_session_has_none(enrolled: Peer, certificate_pem: bytes, reused: bytes | None) -> None:
    assert client_spki_sha256(Call(certificate_pem, reused=reused)) is None
    assert peer(Call(certificate_pem, reused=reused)) is None


def _with_key(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, comment: str = "") -> bytes:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "client")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).serial_number(1)
    builder = builder.public_key(key.public_key()).not_valid_before(NOW).not_valid_after(NOW + SECOND)
    if comment:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.RFC822Name(comment)]), critical=False)
    return pem(builder.sign(key, hashes.SHA256()))


def test_a_key_that_is_not_of_p256_names_no_connection() -> None:
    assert client_spki_sha256(Call(_with_key(ec.generate_private_key(ec.SECP384R1())))) is None
    assert client_spki_sha256(Call(_with_key(rsa.generate_private_key(65537, 2048)))) is None


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"certificate",
        b"\xff",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n",
    ],
)
def test_what_is_no_certificate_names_no_connection(broken: bytes) -> None:
    assert client_spki_sha256(Call(broken)) is None


def test_a_certificate_that_is_too_long_is_not_looked_at(key: ec.EllipticCurvePrivateKey) -> None:
    assert client_spki_sha256(Call(_with_key(key, "a@" + "b" * 10_000))) == spki_sha256(key.public_key())
    long = _with_key(key, "a@" + "b" * MAX_PEM_BYTES)
    assert client_spki_sha256(Call(long)) is None
