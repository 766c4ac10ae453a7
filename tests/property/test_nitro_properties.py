"""Whatever is given as an attestation document: only EvidenceError escapes, and only what was signed is believed."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import cbor2
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st
from mutating import bit_flips, mutations

from adyton.errors import EvidenceError
from adyton.tee.evidence import Endorsement, EndorsementKind
from adyton.tee.nitro.format import parse_nitro
from adyton.tee.nitro.verify import VerifiedNitro, verify_nitro
from adyton.testing import nitro
from adyton.testing.forgery import Case
from adyton.testing.nitro import LEAF, DocumentRecipe, NitroVendor, PkiRecipe, milliseconds

VENDOR = NitroVendor()
LEAF_KEY = nitro.new_p384_key()
OWN_LEAF = replace(LEAF, new_key=lambda: LEAF_KEY)
GENUINE = VENDOR.case(DocumentRecipe(leaf=OWN_LEAF))
DATA = GENUINE.evidence.data
CLAIMS = cbor2.loads(cbor2.loads(DATA)[2])


def _verified(case: Case) -> VerifiedNitro | None:
    """What the verifier says, or None if it refuses. Anything but `EvidenceError` escapes."""
    try:
        return verify_nitro(case.evidence, anchors=case.anchors, now=case.now)
    except EvidenceError:
        return None


def _with(data: bytes) -> Case:
    return replace(GENUINE, evidence=replace(GENUINE.evidence, data=data))


def _made(**recipe: Any) -> VerifiedNitro | None:
    return _verified(VENDOR.case(DocumentRecipe(**{"leaf": OWN_LEAF} | recipe)))


def _claims(**claims: Any) -> VerifiedNitro | None:
    return _made(edit_claims=nitro.given(**claims))


def values() -> st.SearchStrategy[Any]:
    """Anything that CBOR can say, tags and keys of any kind included."""
    keys = st.integers(-40, 40) | st.text(max_size=8) | st.binary(max_size=4) | st.booleans() | st.floats()
    scalars = keys | st.integers() | st.none() | st.binary(max_size=70) | st.just(cbor2.undefined)
    return st.recursive(
        scalars,
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(keys, inner, max_size=4)
            | st.builds(cbor2.CBORTag, st.integers(6, 70000), inner)
        ),
        max_leaves=12,
    )


def test_the_original_is_believed() -> None:
    assert _verified(GENUINE) is not None


@given(
    st.binary(max_size=600) | values().map(cbor2.dumps) | st.lists(values(), min_size=4, max_size=4).map(cbor2.dumps)
)
def test_what_nobody_signed_is_refused(data: bytes) -> None:
    assert _verified(_with(data)) is None


@settings(max_examples=300)
@given(mutations(DATA) | bit_flips(DATA))
def test_a_mutation_is_refused_or_changes_nothing(data: bytes) -> None:
    assert _verified(_with(data)) in (None, _verified(GENUINE))


@settings(max_examples=200)
@given(st.integers(0, 3), values())
def test_a_part_of_the_message_can_not_be_replaced(index: int, value: Any) -> None:
    parts = cbor2.loads(DATA)
    parts[index] = value
    assert _verified(_with(cbor2.dumps(parts))) in (None, _verified(GENUINE))


@settings(max_examples=200)
@given(mutations(nitro.DocumentRecipe().protected) | values().map(cbor2.dumps), values())
def test_whatever_the_headers_say_it_is_es384_or_refused(protected: bytes, unprotected: Any) -> None:
    verified = _made(protected=protected, unprotected=unprotected)
    assert verified is None or cbor2.loads(protected)[1] == -35


@settings(max_examples=500)
@given(
    st.sampled_from(sorted(CLAIMS)), values() | st.integers(0, 1 << 64) | st.lists(st.binary(max_size=3), max_size=9)
)
def test_a_claim_of_any_value_is_said_as_it_was_signed_or_refused(key: str, value: Any) -> None:
    verified = _claims(**{key: value})
    if verified is not None:
        assert key not in ("digest", "certificate", "cabundle") or value == CLAIMS[key]
        said = {**CLAIMS, "timestamp": milliseconds(verified.timestamp)}
        said |= {name: getattr(verified, name) for name in ("module_id", "pcrs", "public_key", "user_data", "nonce")}
        assert said == CLAIMS | {key: value}


@given(st.dictionaries(st.text(max_size=10) | st.integers(), values(), min_size=1, max_size=3))
def test_claims_that_are_not_known_are_refused(more: dict[Any, Any]) -> None:
    verified = _made(edit_claims=lambda claims: {**more, **claims})
    assert (verified is None) == bool(more.keys() - CLAIMS.keys())


@given(st.dictionaries(st.integers(-1, 33), st.binary(max_size=3) | st.sampled_from([bytes(32), b"4" * 48, bytes(64)])))
def test_pcrs_are_all_said_or_refused(more: dict[int, bytes]) -> None:
    pcrs = dict(nitro.PCRS) | more
    verified = _claims(pcrs=pcrs)
    fits = all(0 <= index < 32 and len(value) in (32, 48, 64) for index, value in pcrs.items())
    assert (verified.pcrs if verified else None) == (pcrs if fits else None)


@settings(max_examples=300)
@given(mutations(CLAIMS["certificate"]) | bit_flips(CLAIMS["certificate"]))
def test_a_mutated_certificate_is_refused_even_if_its_own_key_signs_the_rest(der: bytes) -> None:
    assert (_made(edit_claims=lambda claims: claims | {"certificate": der}) is None) == (der != CLAIMS["certificate"])


@settings(max_examples=300)
@given(st.integers(0, 2), st.data())
def test_a_mutated_cabundle_is_refused(index: int, data: st.DataObject) -> None:
    bundle = list(VENDOR.cabundle)
    bundle[index] = data.draw(mutations(bundle[index]) | bit_flips(bundle[index]))
    verified = _claims(cabundle=bundle)
    assert (verified is None) == (bundle[index] != VENDOR.cabundle[index])


@settings(max_examples=200)
@given(
    st.binary(max_size=40),
    st.sampled_from(
        [
            x509.BasicConstraints,
            x509.KeyUsage,
            x509.SubjectAlternativeName,
            x509.NameConstraints,
            x509.CertificatePolicies,
            x509.ExtendedKeyUsage,
            x509.AuthorityKeyIdentifier,
            x509.SubjectKeyIdentifier,
            x509.CRLDistributionPoints,
            x509.AuthorityInformationAccess,
        ]
    ),
    st.booleans(),
    st.sampled_from(["leaf", "instance", "zone", "root"]),
)
def test_extensions_of_any_content_raise_nothing_else(
    value: bytes, kind: type[x509.ExtensionType], critical: bool, part: str
) -> None:
    pki, leaf = PkiRecipe(), LEAF
    recipe = leaf if part == "leaf" else getattr(pki, part)
    kept = tuple(item for item in recipe.extensions if not isinstance(item[0], kind))
    changed = replace(recipe, extensions=(*kept, (x509.UnrecognizedExtension(kind.oid, value), critical)))
    if part == "leaf":
        _made(leaf=changed)
    else:
        _verified(NitroVendor(replace(pki, **{part: changed})).case())


@given(st.lists(st.builds(Endorsement, kind=st.sampled_from(EndorsementKind), data=st.binary(max_size=99)), max_size=4))
def test_whatever_is_stapled_changes_nothing(endorsements: list[Endorsement]) -> None:
    case = replace(GENUINE, evidence=replace(GENUINE.evidence, endorsements=tuple(endorsements)))
    assert _verified(case) == _verified(GENUINE)


@given(
    st.datetimes(timezones=st.just(UTC))
    | st.timedeltas(timedelta(minutes=-10), timedelta(hours=4)).map(GENUINE.now.__add__)
)
def test_at_any_time_the_verdict_is_that_of_the_dates(now: datetime) -> None:
    inside = GENUINE.now + LEAF.begins_after <= now <= GENUINE.now + LEAF.ends_after
    assert (_verified(replace(GENUINE, now=now)) is not None) == inside


@given(mutations(DATA) | st.binary(max_size=200).map(lambda tail: DATA[:20] + tail))
def test_what_parses_is_in_the_bytes(data: bytes) -> None:
    try:
        document = parse_nitro(data)
    except EvidenceError:
        return
    said = cbor2.loads(document.message.payload)
    assert document.module_id == said["module_id"]
    assert milliseconds(document.timestamp) == said["timestamp"]
    assert list(document.cabundle) == said["cabundle"]
