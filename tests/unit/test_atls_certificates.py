"""The channel's certificates: their profiles, and what gRPC's core makes of them in real handshakes."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from concurrent import futures
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID

from adyton.atls.certificates import (
    BACKDATED,
    CA_LIFETIME,
    DEFAULT_AUDIENCE,
    Issued,
    issue_leaf,
    issue_open_client,
    key_pem,
    make_ca,
    open_client_ca,
    parse_certificate,
    pem,
    sign_leaf,
    spki,
    spki_sha256,
    validity,
)
from adyton.errors import EvidenceError
from adyton.testing.forgery import NOW

DAY = timedelta(days=1)
CA = make_ca(NOW)


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def leaf_of(ca: Issued, now: datetime = NOW, lifetime: timedelta = DAY) -> Issued:
    key = new_key()
    made = issue_leaf(ca, key.public_key(), [DEFAULT_AUDIENCE, "b.example"], now, lifetime)
    return Issued(key=key, certificate=made, issuer=ca)


def usages(usage: x509.KeyUsage) -> set[str]:
    names = (
        "digital_signature content_commitment key_encipherment data_encipherment key_agreement key_cert_sign crl_sign"
    )
    return {name for name in names.split() if getattr(usage, name)}


def check_identifiers(certificate: x509.Certificate, issuer: Issued) -> None:
    subject = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    authority = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert subject == x509.SubjectKeyIdentifier.from_public_key(key)
    assert authority == x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key())


def check_ca(issued: Issued) -> None:
    constraints = issued.certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    usage = issued.certificate.extensions.get_extension_for_class(x509.KeyUsage)
    assert (constraints.critical, constraints.value.ca, constraints.value.path_length) == (True, True, 0)
    assert usage.critical
    assert usages(usage.value) == {"key_cert_sign"}
    assert isinstance(issued.key.curve, ec.SECP256R1)
    check_identifiers(issued.certificate, issued)
    issued.certificate.verify_directly_issued_by(issued.certificate)


def check_leaf(certificate: x509.Certificate, ca: Issued, names: list[str], use: x509.ObjectIdentifier) -> None:
    extensions = certificate.extensions
    constraints = extensions.get_extension_for_class(x509.BasicConstraints)
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    assert (constraints.critical, constraints.value.ca) == (True, False)
    assert usage.critical
    assert usages(usage.value) == {"digital_signature"}
    alternatives = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(alternatives) == [x509.DNSName(name) for name in names]
    extended = extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    assert (extended.critical, list(extended.value)) == (True, [use])
    check_identifiers(certificate, ca)
    certificate.verify_directly_issued_by(ca.certificate)


def test_everybody_has_the_key_of_the_open_client_ca() -> None:
    ca = open_client_ca()
    seed = b"atls open client CA v1: this key is public; it authenticates nobody"
    scalar = int.from_bytes(hashlib.sha256(seed).digest(), "big") % 2**255
    assert ca.key.private_numbers().private_value == scalar
    assert ca.spki_sha256.hex() == "083594bdb93477eb41254e8e5410202dc3d208a3b1a5aa26b96f1190dcff5262"
    assert ca.certificate.subject.rfc4514_string() == "CN=ATLS open client CA v1"
    assert ca.certificate.not_valid_before_utc == datetime(2026, 1, 1, tzinfo=UTC)
    assert ca.certificate.not_valid_after_utc == datetime(2056, 1, 1, tzinfo=UTC)
    check_ca(ca)


def test_a_clients_certificate_is_a_leaf_of_the_open_client_ca_for_its_own_key() -> None:
    key = new_key()
    made = issue_open_client(key)
    check_leaf(made, open_client_ca(), ["client.atls.internal"], ExtendedKeyUsageOID.CLIENT_AUTH)
    assert spki_sha256(key.public_key()) == hashlib.sha256(spki(key.public_key())).digest()
    assert made.public_key() == key.public_key()


def test_an_enclaves_ca_issues_leaves_only() -> None:
    check_ca(CA)
    assert CA.certificate.not_valid_before_utc == NOW - BACKDATED
    assert CA.certificate.not_valid_after_utc == NOW + CA_LIFETIME
    assert CA.issuer is None


def test_a_servers_leaf_has_its_names_and_begins_before_it_was_made() -> None:
    leaf = leaf_of(CA)
    check_leaf(leaf.certificate, CA, [DEFAULT_AUDIENCE, "b.example"], ExtendedKeyUsageOID.SERVER_AUTH)
    assert leaf.certificate.not_valid_before_utc == NOW - BACKDATED
    assert leaf.certificate.not_valid_after_utc == NOW + DAY
    assert leaf.der == leaf.certificate.public_bytes(serialization.Encoding.DER)


def test_no_leaf_outlives_its_ca() -> None:
    late = NOW + CA_LIFETIME - timedelta(hours=1)
    assert leaf_of(CA, late).certificate.not_valid_after_utc == NOW + CA_LIFETIME


def test_no_two_certificates_share_a_subject_or_a_serial_number() -> None:
    # Of two pinned certificates with one subject, gRPC's core finds only the first.
    made = [make_ca(NOW).certificate, make_ca(NOW).certificate, *(leaf_of(CA).certificate for _ in range(3))]
    assert len({certificate.subject for certificate in made}) == 5
    assert len({certificate.serial_number for certificate in made}) == 5


def test_a_peers_certificate_is_read_with_its_key() -> None:
    leaf = leaf_of(CA)
    assert parse_certificate(leaf.der) == (leaf.certificate, leaf.key.public_key())


def _self_signed(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    name = x509.Name([])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(NOW).not_valid_after(NOW + DAY)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.DER)


@pytest.mark.parametrize(
    ("der", "said"),
    [
        (b"", "can't be read"),
        (b"\x30\x00", "can't be read"),
        (CA.der[:-1], "can't be read"),
        (CA.der + b"\x00", "can't be read"),
        (pem(CA.certificate), "can't be read"),
        (_self_signed(ec.generate_private_key(ec.SECP384R1())), "not for a P-256 key"),
        (_self_signed(ec.generate_private_key(ec.SECP256K1())), "not for a P-256 key"),
        (_self_signed(ed25519.Ed25519PrivateKey.generate()), "not for a P-256 key"),
    ],
    ids=["nothing", "an empty sequence", "cut off", "a byte too many", "PEM", "P-384", "secp256k1", "Ed25519"],
)
def test_what_is_no_certificate_of_a_p256_key_is_refused(der: bytes, said: str) -> None:
    with pytest.raises(EvidenceError, match=said):
        parse_certificate(der)


# --- in real handshakes


@contextlib.contextmanager
def server_that_shows(key: ec.EllipticCurvePrivateKey, chain: bytes) -> Iterator[int]:
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key_pem(key), chain)]))
    server.start()
    try:
        yield port
    finally:
        server.stop(0).wait()


def call_something(channel: grpc.Channel) -> None:
    call: Any = channel.unary_unary("/no/method")
    call(b"", timeout=10)


def is_accepted(key: ec.EllipticCurvePrivateKey, chain: bytes, pinned: x509.Certificate, name: str) -> bool:
    """Whether gRPC connects to a server with that key and chain, where one certificate is all that is trusted."""
    options = [("grpc.ssl_target_name_override", name), ("grpc.use_local_subchannel_pool", 1)]
    credentials = grpc.ssl_channel_credentials(pem(pinned))
    with (
        server_that_shows(key, chain) as port,
        grpc.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel,
    ):
        try:
            call_something(channel)
        except grpc.RpcError as problem:
            call: Any = problem
            if call.code() is grpc.StatusCode.UNIMPLEMENTED:  # it got as far as the server
                return True
            assert call.code() is grpc.StatusCode.UNAVAILABLE
    return False


def issued_by(leaf: Issued) -> Issued:
    """What somebody makes who has a leaf's key: a certificate for a key of their own, under that leaf."""
    rogue = leaf_of(leaf, datetime.now(UTC))
    return Issued(key=rogue.key, certificate=rogue.certificate, issuer=leaf)


def test_grpc_accepts_a_pinned_leaf_and_nothing_that_its_key_issues() -> None:
    leaf = leaf_of(make_ca(datetime.now(UTC)), datetime.now(UTC))
    assert is_accepted(leaf.key, pem(leaf.certificate), leaf.certificate, DEFAULT_AUDIENCE)
    rogue = issued_by(leaf)
    chain = pem(rogue.certificate) + pem(leaf.certificate)
    assert not is_accepted(rogue.key, chain, leaf.certificate, DEFAULT_AUDIENCE)


def test_without_the_key_usage_it_would_accept_what_the_leaf_issues() -> None:
    """That the extension is what refuses in the test above: a leaf that only lacks it."""
    now = datetime.now(UTC)
    ca, key = make_ca(now), new_key()
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "bare")])
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(ca.certificate.subject)
    builder = (
        builder.public_key(key.public_key()).serial_number(1).not_valid_before(now - DAY).not_valid_after(now + DAY)
    )
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    bare = Issued(key=key, certificate=builder.sign(ca.key, hashes.SHA256()), issuer=ca)
    rogue = issued_by(bare)
    chain = pem(rogue.certificate) + pem(bare.certificate)
    assert is_accepted(rogue.key, chain, bare.certificate, DEFAULT_AUDIENCE)


def test_grpc_accepts_a_leaf_under_its_ca_by_its_names_only() -> None:
    ca = make_ca(datetime.now(UTC))
    leaf = leaf_of(ca, datetime.now(UTC))
    assert is_accepted(leaf.key, pem(leaf.certificate), ca.certificate, "b.example")
    common_name = leaf.certificate.subject.rfc4514_string().removeprefix("CN=")
    assert not is_accepted(leaf.key, pem(leaf.certificate), ca.certificate, "c.example")
    assert not is_accepted(leaf.key, pem(leaf.certificate), ca.certificate, common_name.replace(" ", "-"))


def test_grpc_takes_no_clients_certificate_for_a_servers_whatever_its_names() -> None:
    """Or whoever is enrolled could stand in for the enclave to those who know only its CA."""
    now = datetime.now(UTC)
    ca, key = make_ca(now), new_key()
    for usage, accepted in ((ExtendedKeyUsageOID.SERVER_AUTH, True), (ExtendedKeyUsageOID.CLIENT_AUTH, False)):
        names = [x509.DNSName(DEFAULT_AUDIENCE)]
        dates = validity(ca, now, DAY)
        made = sign_leaf(ca, key.public_key(), subject="a caller", names=names, usage=usage, validity=dates)
        assert is_accepted(key, pem(made), ca.certificate, DEFAULT_AUDIENCE) is accepted


def test_grpc_refuses_a_leaf_of_another_ca() -> None:
    leaf = leaf_of(make_ca(datetime.now(UTC)), datetime.now(UTC))
    other = make_ca(datetime.now(UTC))
    assert not is_accepted(leaf.key, pem(leaf.certificate), other.certificate, DEFAULT_AUDIENCE)
