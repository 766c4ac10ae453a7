"""What all verifiers share, given anything: only EvidenceError escapes, and nothing is made up."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

import cbor2
import pytest
from certificates import DAY, ca, certificate, der_of, key, leaf, name, root
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from adyton.errors import EvidenceError
from adyton.tee import _x509
from adyton.tee._binary import Reader
from adyton.tee._cbor import decode_cbor, field
from adyton.tee._cose import parse_sign1, sign1_of, verify_sign1
from adyton.tee.evidence import Evidence, check_verifiable
from adyton.testing.forgery import NOW

TAGS = frozenset({17, 18, 28, 29, 35, 258, 399})


def _or_none(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What the call returns, or None if it refuses, which it must say printably. Anything but that escapes."""
    try:
        return call(*arguments, **options)
    except EvidenceError as error:
        said = str(error)
    assert said.isprintable()
    return None


@st.composite
def changed(draw: st.DrawFn, original: bytes) -> bytes:
    """The original with one to four slices replaced, or bytes that mean something in DER or CBOR put in."""
    data = original
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        removed = draw(st.sampled_from((0, 1, 1, 1, 2, 4)) | st.integers(0, len(data)))
        telling = st.sampled_from((0, 1, 2, 3, 5, 6, 0x18, 0x30, 0x5F, 0x7F, 0x80, 0x9F, 0xA3, 0xBF, 0xC0, 0xFF))
        inserted = draw(telling.map(lambda byte: bytes([byte])) | st.binary(max_size=4))
        data = data[:start] + inserted + data[start + removed :]
    return data


def values() -> st.SearchStrategy[Any]:
    """What CBOR can say with keys of integers and text."""
    integers = st.integers(-(1 << 64), (1 << 64) - 1)
    keys = integers | st.text(max_size=8)
    scalars = keys | st.binary(max_size=70) | st.booleans() | st.none() | st.floats(allow_nan=False)
    return st.recursive(
        scalars,
        lambda inner: (
            st.lists(inner, max_size=4).map(tuple)
            | st.dictionaries(keys, inner, max_size=4)
            | st.builds(cbor2.CBORTag, st.sampled_from(sorted(TAGS)), inner)
        ),
        max_leaves=10,
    )


# --- CBOR and COSE


@settings(max_examples=300)
@given(values())
def test_what_cbor_can_say_is_decoded_as_it_was_said(value: Any) -> None:
    data = cbor2.dumps(value)
    assert decode_cbor(data, "it", tags=TAGS) == value
    assert _or_none(decode_cbor, data + b"\0", "it", tags=TAGS) is None
    assert _or_none(decode_cbor, data[:-1], "it", tags=TAGS) is None


def _check_immutable(item: Any) -> None:
    if isinstance(item, tuple):
        for inner in item:
            _check_immutable(inner)
    elif isinstance(item, Mapping):
        assert not isinstance(item, dict)
        assert all(type(key) in (int, str) for key in item)
        _check_immutable(tuple(item.values()))
    elif isinstance(item, cbor2.CBORTag):
        assert item.tag in TAGS
        _check_immutable(item.value)
    else:
        assert not isinstance(item, (list, set, bytearray))


@settings(max_examples=1000)
@given(st.binary(max_size=60) | values().map(cbor2.dumps).flatmap(changed))
def test_any_bytes_are_decoded_or_refused(data: bytes) -> None:
    for tags in (TAGS, frozenset()):
        _check_immutable(_or_none(decode_cbor, data, "it", tags=tags))


@given(
    st.dictionaries(st.integers() | st.text(), values()), st.integers() | st.text(), st.sampled_from((int, str, bytes))
)
def test_a_field_is_of_its_type_or_refused(items: dict[Any, Any], key_: int | str, kind: type) -> None:
    value = _or_none(field, items, key_, kind, "it") if key_ in items else None
    assert value is None or (type(value) is kind and value is items[key_])


PROTECTED = cbor2.dumps({1: -35})
TO_BE_SIGNED = cbor2.dumps(["Signature1", PROTECTED, b"", b"payload"])
_R, _S = decode_dss_signature(key("leaf").sign(TO_BE_SIGNED, ec.ECDSA(hashes.SHA384())))
PARTS: tuple[Any, ...] = (PROTECTED, {}, b"payload", _R.to_bytes(48) + _S.to_bytes(48))
TOKEN = cbor2.dumps(PARTS)


def _payload(data: bytes) -> bytes:
    message = parse_sign1(data, "it")
    verify_sign1(message, key("leaf").public_key(), "it")
    return message.payload


@settings(max_examples=500)
@given(changed(TOKEN) | changed(b"\xd2" + TOKEN) | st.binary(max_size=80))
def test_of_a_changed_token_only_what_was_signed_is_believed(data: bytes) -> None:
    assert _payload(TOKEN) == b"payload"
    assert _or_none(_payload, data) in (None, b"payload")


@settings(max_examples=300)
@given(st.lists(values(), max_size=5) | st.tuples(st.integers(0, 3), values()) | values())
def test_any_item_is_a_token_or_refused(item: Any) -> None:
    if isinstance(item, tuple) and len(item) == 2 and type(item[0]) is int and 0 <= item[0] < 4:
        item = [*PARTS[: item[0]], item[1], *PARTS[item[0] + 1 :]]
    message = _or_none(sign1_of, item, "it")
    if message is not None:
        _or_none(verify_sign1, message, key("leaf").public_key(), "it")


# --- X.509


def _crl(*serials: int) -> bytes:
    builder = x509.CertificateRevocationListBuilder().issuer_name(name("root")).last_update(NOW).next_update(NOW + DAY)
    for serial in serials:
        revoked = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(NOW - DAY)
        revoked = revoked.add_extension(x509.CRLReason(x509.ReasonFlags.ca_compromise), critical=False)
        builder = builder.add_revoked_certificate(revoked.build())
    signed = builder.add_extension(x509.CRLNumber(7), critical=False).sign(key("root"), hashes.SHA384())
    return signed.public_bytes(Encoding.DER)


CRL = _crl(1, 2, 3)
"""The root's, of three others than the CA."""


def _use(certificate_: x509.Certificate) -> None:
    """Everything that a verifier may do with a certificate that was loaded."""
    _x509.spki(certificate_)
    _x509.certificate_sha256(certificate_)
    _or_none(_x509.check_ca, certificate_, "it")
    _or_none(_x509.check_dates, certificate_, NOW, "it")
    crl = _x509.load_crl(CRL, "it")
    for other in (leaf(), ca(), root()):
        _or_none(_x509.check_issued_by, certificate_, other, "it")
        _or_none(_x509.check_issued_by, other, certificate_, "it")
        _or_none(_x509.check_not_revoked, certificate_, crl, other, NOW, "it")
        _or_none(_x509.check_not_revoked, other, crl, certificate_, NOW, "it")
    _or_none(_x509.verify_path, certificate_, [ca()], root(), NOW, "it")
    _or_none(_x509.verify_path, leaf(), [certificate_, ca()], root(), NOW, "it")
    _or_none(_x509.verify_path, leaf(), [ca()], certificate_, NOW, "it")


@pytest.mark.parametrize("action", ["error", "ignore"])
@settings(max_examples=400)
@given(st.sampled_from((leaf(), ca(), root())).map(der_of).flatmap(changed), st.booleans())
def test_a_changed_certificate_can_be_used_or_is_refused(
    action: Literal["error", "ignore"], der: bytes, serial_zero: bool
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        loaded = _or_none(_x509.load_certificate, der, "it", serial_zero=serial_zero)
        if loaded is not None:
            assert der_of(loaded) == der
            _use(loaded)


@settings(max_examples=200)
@given(
    st.sampled_from(
        (
            x509.BasicConstraints,
            x509.KeyUsage,
            x509.SubjectAlternativeName,
            x509.NameConstraints,
            x509.CertificatePolicies,
            x509.ExtendedKeyUsage,
            x509.AuthorityKeyIdentifier,
            x509.CRLDistributionPoints,
        )
    ),
    st.binary(max_size=40) | st.binary(max_size=20).map(lambda content: bytes([0x30, len(content)]) + content),
    st.booleans(),
)
def test_extensions_of_any_content_can_be_used_or_are_refused(
    kind: type[x509.ExtensionType], value: bytes, critical: bool
) -> None:
    made = certificate("leaf", "ca", (x509.UnrecognizedExtension(kind.oid, value), critical))
    loaded = _or_none(_x509.load_certificate, der_of(made), "it")
    if loaded is not None:
        _use(loaded)


def _believed(crl: x509.CertificateRevocationList) -> bool:
    _x509.check_not_revoked(ca(), crl, root(), NOW, "it")
    return True


@settings(max_examples=400)
@given(changed(CRL))
def test_a_changed_crl_is_refused(der: bytes) -> None:
    loaded = _or_none(_x509.load_crl, der, "it")
    if loaded is not None:
        assert (_or_none(_believed, loaded) is None) == (der != CRL)
        assert all(entry.revocation_date_utc for entry in loaded)


@given(changed(_x509.spki(root())) | st.binary(max_size=100))
def test_any_bytes_are_a_public_key_or_refused(der: bytes) -> None:
    _or_none(_x509.load_public_key, der, "it")


# --- bytes and bounds


@given(
    st.binary(max_size=40),
    st.lists(st.tuples(st.sampled_from(("take", "number", "prefixed")), st.integers(0, 9)), max_size=9),
)
def test_a_reader_gives_every_byte_once_and_none_that_is_not_there(data: bytes, asked: list[tuple[str, int]]) -> None:
    reader = Reader(data, "it", order="big")
    taken = b""
    for what, size in asked:
        before = reader.position
        calls: dict[str, Callable[[], Any]] = {
            "take": lambda: reader.take(size, "field"),  # noqa: B023
            "number": lambda: reader.number(size, "field").to_bytes(size),  # noqa: B023
            "prefixed": lambda: reader.prefixed(1, "field", at_most=size),  # noqa: B023
        }
        _or_none(calls[what])
        taken += data[before : reader.position]
        assert before <= reader.position <= len(data)
    assert taken + reader.rest() == data
    reader.end()


@given(st.just("tdx") | st.text(), st.sets(st.binary(max_size=3)), st.binary(max_size=3))
def test_any_label_is_the_wanted_one_or_refused(label: str, anchors: set[bytes], data: bytes) -> None:
    def believed() -> bool:
        check_verifiable(Evidence(tee=label, data=data), "tdx", anchors, NOW)
        return True

    assert (_or_none(believed) is None) == (label != "tdx" or not anchors)
