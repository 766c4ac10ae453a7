"""Whatever bytes an SNP verifier is given: only EvidenceError escapes, and only what was signed is believed."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from cryptography import x509
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mutating import bit_flips, mutations

from adyton.errors import EvidenceError
from adyton.tee.evidence import MAX_ENDORSEMENTS, Endorsement, EndorsementKind
from adyton.tee.snp.format import REPORT_BYTES, SIGNED_BYTES, Signer, SnpReport, parse_snp
from adyton.tee.snp.products import PRODUCTS, ProductName
from adyton.tee.snp.verify import VerifiedSnp, verify_snp
from adyton.testing import snp_pki
from adyton.testing.forgery import Case, fields_of
from adyton.testing.snp_pki import BEGIN, END, CertificateRecipe, CrlRecipe
from adyton.testing.snp_vendor import SnpRecipe, SnpVendor, put

GENUINE = SnpVendor().case(SnpRecipe(crls=(CrlRecipe(),)))
DATA = GENUINE.evidence.data
PRODUCT_NAMES: tuple[ProductName, ...] = tuple(PRODUCTS[name].name for name in PRODUCTS)
SIGNERS: tuple[Signer, ...] = ("VCEK", "VLEK")


def _verified(case: Case) -> VerifiedSnp | None:
    """What the verifier makes of it, or None if it refuses; anything else that it raises fails the test."""
    try:
        return verify_snp(case.evidence, anchors=case.anchors, now=case.now)
    except EvidenceError as error:
        if not error.message.isprintable() or len(error.message) > 300:
            raise AssertionError(f"no short printable message: {error.message!r}") from error
        return None


BELIEVED = _verified(GENUINE)


def _with(data: bytes) -> Case:
    return replace(GENUINE, evidence=replace(GENUINE.evidence, data=data))


def _made(product: ProductName = "Genoa", /, **recipe: Any) -> VerifiedSnp | None:
    return _verified(SnpVendor(product).case(SnpRecipe(**recipe)))


@st.composite
def overwritten(draw: st.DrawFn, original: bytes) -> bytes:
    """The original, of the same length, with other bytes in one to three places."""
    data = original
    for _ in range(draw(st.integers(1, 3))):
        data = put(draw(st.integers(0, len(data) - 8)), draw(st.binary(min_size=1, max_size=8)))(data)
    return data


def test_the_original_is_believed() -> None:
    assert BELIEVED is not None
    assert BELIEVED.revocation_checked


@given(st.binary(max_size=2048) | st.binary(min_size=REPORT_BYTES, max_size=REPORT_BYTES))
def test_random_bytes_are_refused(data: bytes) -> None:
    assert _verified(_with(data)) is None


@settings(max_examples=300)
@given(mutations(DATA) | bit_flips(DATA) | overwritten(DATA))
def test_no_mutation_is_believed(data: bytes) -> None:
    assert (_verified(_with(data)) is not None) == (data == DATA)


def test_no_flipped_bit_is_believed_in_any_byte() -> None:
    for bit in range(0, REPORT_BYTES * 8, 9):
        data = bytearray(DATA)
        data[bit // 8] ^= 1 << bit % 8
        assert _verified(_with(bytes(data))) is None, bit


def _agree(report: SnpReport, result: VerifiedSnp) -> bool:
    """Whether the result says what the report says, field by field where both have it."""
    tcbs = {"reported_tcb", "committed_tcb", "current_tcb", "launch_tcb"}
    common = (set(SnpReport.__slots__) & set(VerifiedSnp.__slots__)) - tcbs
    return {name: getattr(report, name) for name in common} == {name: getattr(result, name) for name in common}


@settings(max_examples=200)
@given(st.sampled_from(PRODUCT_NAMES), st.sampled_from((2, 3, 5)), st.sampled_from(SIGNERS), st.data())
def test_of_what_the_chip_signs_all_or_nothing_is_believed(
    product: ProductName, version: int, signer: Signer, data: st.DataObject
) -> None:
    # The signature is in order, so this reaches everything behind it.
    part = data.draw(overwritten(SnpVendor(product).signed_part(version, signer)))
    case = SnpVendor(product).case(SnpRecipe(version=version, signer=signer, report=lambda _: part))
    result = _verified(case)
    if result is not None:
        assert case.evidence.data[:SIGNED_BYTES] == part
        assert _agree(parse_snp(case.evidence.data), result)


@settings(max_examples=200)
@given(
    st.sampled_from((0x00, 0x08, 0x30, 0x34, 0x38, 0x40, 0x48, 0x180, 0x188, 0x1E0, 0x1E8, 0x1F0, 0x1F8, 0x200)),
    st.binary(min_size=1, max_size=8),
)
@example(0x188, b"\x19\xa0\x02")
def test_any_value_of_a_field_that_means_something_is_believed_or_refused(offset: int, value: bytes) -> None:
    result = _made(report=put(offset, value))
    assert result is None or result.product == "Genoa"


@given(st.binary(max_size=REPORT_BYTES).map(lambda head: head + DATA[len(head) :]) | overwritten(DATA))
def test_what_parses_has_its_bytes_where_they_were(data: bytes) -> None:
    try:
        report = parse_snp(data)
    except EvidenceError:
        return
    assert report.signed_part == data[:SIGNED_BYTES]
    signature = report.signature_r.to_bytes(72, "little") + report.signature_s.to_bytes(72, "little")
    assert data[SIGNED_BYTES:] == signature.ljust(512, b"\0")


# --- certificates and CRLs


@settings(max_examples=200)
@given(st.integers(0, len(GENUINE.evidence.endorsements) - 1), st.data())
def test_a_mutated_endorsement_is_refused_or_says_nothing_else(index: int, data: st.DataObject) -> None:
    stapled = list(GENUINE.evidence.endorsements)
    original = stapled[index].data
    stapled[index] = replace(stapled[index], data=data.draw(mutations(original) | bit_flips(original)))
    result = _verified(replace(GENUINE, evidence=replace(GENUINE.evidence, endorsements=tuple(stapled))))
    if result is not None:
        assert fields_of(replace(result, revocation_checked=True)) == fields_of(BELIEVED)


@given(
    st.lists(
        st.builds(Endorsement, kind=st.sampled_from(EndorsementKind), data=st.binary(max_size=300)),
        max_size=MAX_ENDORSEMENTS,
    )
)
def test_random_endorsements_are_refused(endorsements: list[Endorsement]) -> None:
    assert _verified(replace(GENUINE, evidence=replace(GENUINE.evidence, endorsements=tuple(endorsements)))) is None


@settings(max_examples=100)
@given(st.sampled_from(["leaf", "ask", "ark"]), st.data())
def test_what_amd_signs_can_be_refused_and_raises_nothing_else(part: str, data: st.DataObject) -> None:
    # Even a certificate that is malformed under a good signature: a vendor's mistake is no crash.
    def edited(recipe: CertificateRecipe) -> CertificateRecipe:
        return replace(recipe, edit=lambda der: data.draw(bit_flips(der) | overwritten(der)))

    _made(**{part: edited})


@settings(max_examples=100)
@given(
    st.sampled_from(PRODUCT_NAMES),
    st.sampled_from(SIGNERS),
    st.sampled_from(("1", "2", "3.1", "3.2", "3.3", "3.4", "3.8", "3.9", "4", "5")),
    st.none()
    | st.binary(max_size=70)
    | st.integers(0, 255).map(snp_pki.integer)
    | st.text(max_size=140).map(snp_pki.ia5),
)
def test_extensions_of_any_content_are_believed_or_refused(
    product: ProductName, signer: Signer, arc: str, value: bytes | None
) -> None:
    result = _made(product, signer=signer, leaf=lambda recipe: snp_pki.changed(recipe, arc, value))
    if result is not None:
        assert result.product == product
        assert result.platform.isprintable()


@settings(max_examples=100)
@given(
    st.sampled_from(
        [x509.BasicConstraints, x509.KeyUsage, x509.NameConstraints, x509.SubjectAlternativeName, x509.CRLNumber]
    ),
    st.binary(max_size=30),
    st.booleans(),
    st.sampled_from(["leaf", "ask", "ark"]),
)
def test_other_extensions_of_any_content_raise_nothing_else(
    kind: type[x509.ExtensionType], value: bytes, critical: bool, part: str
) -> None:
    extra = (x509.UnrecognizedExtension(kind.oid, value), critical)

    def extended(recipe: CertificateRecipe) -> CertificateRecipe:
        kept = tuple(each for each in recipe.extensions if each[0].oid != kind.oid)
        return replace(recipe, extensions=(*kept, extra))

    _made(**{part: extended})


@settings(max_examples=100)
@given(
    st.sets(st.integers(1, 2**64) | st.just(snp_pki.ASK_SERIAL), max_size=4),
    st.binary(max_size=30),
    st.booleans(),
)
def test_a_crl_decides_by_the_serial_number_of_the_ask(revoked: set[int], value: bytes, critical: bool) -> None:
    extra = (snp_pki.extension("99", value), critical)
    result = _made(crls=(CrlRecipe(revoked=tuple(revoked), extensions=(extra,)),))
    assert (result is None) == (critical or snp_pki.ASK_SERIAL in revoked)


@given(
    st.datetimes(timezones=st.just(UTC))
    | st.datetimes(BEGIN.replace(tzinfo=None), END.replace(tzinfo=None), timezones=st.just(UTC))
)
def test_at_any_time_the_verdict_is_that_of_the_dates(now: datetime) -> None:
    assert (_verified(replace(GENUINE, now=now)) is not None) == (BEGIN <= now <= END)
