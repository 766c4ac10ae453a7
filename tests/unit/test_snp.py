"""AMD SEV-SNP: the report, the certificates, and what a verifier makes of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from itertools import permutations
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from adyton.errors import EvidenceError
from adyton.tee.evidence import Endorsement
from adyton.tee.registry import tee
from adyton.tee.snp.format import GuestPolicy, PlatformInfo, Signer, parse_snp
from adyton.tee.snp.products import PRODUCTS, ProductName, Tcb
from adyton.tee.snp.verify import ANCHORS, STEPS, VerifiedSnp, verify_snp
from adyton.tee.steps import Trace
from adyton.testing import snp, snp_pki
from adyton.testing.forgery import NOW, Case, fields_of
from adyton.testing.snp_pki import CertificateRecipe, CrlRecipe
from adyton.testing.snp_vendor import SnpRecipe, SnpVendor, certificate, put
from adyton.testing.tees import TeeConformance

P384_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973
SIGNERS: tuple[Signer, ...] = ("VCEK", "VLEK")


class TestSnp(TeeConformance):
    label = "snp"
    forgeries = snp.FORGERIES

    def genuine(self) -> Case:
        return SnpVendor().case()


def verified(case: Case) -> VerifiedSnp:
    return verify_snp(case.evidence, anchors=case.anchors, now=case.now)


def made(product: ProductName = "Genoa", /, **recipe: Any) -> VerifiedSnp:
    return verified(SnpVendor(product).case(SnpRecipe(**recipe)))


def refusal(case: Case) -> str:
    with pytest.raises(EvidenceError) as caught:
        verified(case)
    return caught.value.message


# --- format


def test_a_report_has_the_documented_layout() -> None:
    data = SnpVendor("Genoa").case().evidence.data
    report = parse_snp(data)
    assert len(data) == 1184
    assert (report.version, report.guest_svn) == (5, 7)
    assert (report.family_id, report.image_id) == (bytes(range(0x10, 0x20)), bytes(range(0x20, 0x30)))
    assert (report.signer, report.author_key_enabled, report.mask_chip_key) == ("VCEK", True, False)
    assert report.report_data == bytes(range(0x50, 0x90))
    assert report.measurement == bytes(range(0x90, 0xC0))
    assert report.host_data == bytes(range(0xC0, 0xE0))
    assert report.id_key_digest == bytes(range(0xE0, 0x100)) + bytes(range(0x10))
    assert report.author_key_digest == bytes(range(0x10, 0x40))
    assert report.report_id == bytes(range(0x40, 0x60))
    assert report.report_id_ma == bytes(range(0x60, 0x80))
    assert report.cpuid == (0x19, 0x11, 1)
    assert report.chip_id == snp_pki.HWID
    assert report.reported_tcb == bytes((9, 2, 0, 0, 0, 0, 22, 72))
    assert report.launch_tcb == bytes((9, 2, 0, 0, 0, 0, 22, 73))
    assert report.committed_tcb == bytes((9, 2, 0, 0, 0, 0, 22, 74))
    assert report.current_tcb == bytes((9, 2, 0, 0, 0, 0, 22, 75))
    assert (report.current_version, report.committed_version) == ((1, 55, 29), (1, 54, 28))
    assert (report.launch_mitigations, report.current_mitigations) == (3, 7)
    assert report.signed_part == data[:0x2A0]


def test_numbers_are_little_endian() -> None:
    recipe = SnpRecipe(report=put(0x04, bytes((1, 2, 3, 4))), edit=put(0x2A0, b"\x01\x02" + bytes(46)))
    report = parse_snp(SnpVendor().case(recipe).evidence.data)
    assert (report.guest_svn, report.signature_r) == (0x04030201, 0x0201)


def test_what_a_version_does_not_have_is_none() -> None:
    reports = {
        version: parse_snp(SnpVendor("Milan").case(SnpRecipe(version=version)).evidence.data) for version in (2, 3)
    }
    assert (reports[2].cpuid, reports[3].cpuid) == (None, (0x19, 1, 1))
    assert {report.launch_mitigations for report in reports.values()} == {None}
    assert {report.current_mitigations for report in reports.values()} == {None}


@pytest.mark.parametrize(
    ("bit", "name"),
    [
        (16, "smt"),
        (18, "migrate_ma"),
        (19, "debug"),
        (20, "single_socket"),
        (21, "cxl_allow"),
        (22, "mem_aes_256_xts"),
        (23, "rapl_disabled"),
        (24, "ciphertext_hiding"),
        (25, "page_swap_disabled"),
    ],
)
def test_each_bit_of_the_guest_policy_is_a_field_and_none_is_refused(bit: int, name: str) -> None:
    policy = made(report=put(0x08, (1 << 17 | 1 << bit | 0x0137).to_bytes(8, "little"))).guest_policy
    assert (policy.abi_major, policy.abi_minor) == (1, 0x37)
    assert [field for field in GuestPolicy.__slots__ if getattr(policy, field) is True] == [name]


@pytest.mark.parametrize(
    ("bit", "name"),
    [
        (0, "smt"),
        (1, "tsme"),
        (2, "ecc"),
        (3, "rapl_disabled"),
        (4, "ciphertext_hiding"),
        (5, "alias_check_complete"),
        (6, "iommu_write_safe"),
        (7, "tio"),
    ],
)
def test_each_bit_of_the_platform_info_is_a_field(bit: int, name: str) -> None:
    info = made(report=put(0x40, bytes([1 << bit]))).platform_info
    assert [field for field in PlatformInfo.__slots__ if getattr(info, field)] == [name]


def test_whether_there_is_an_author_key_is_told() -> None:
    assert made().author_key_enabled
    assert not made(report=put(0x48, b"\0")).author_key_enabled


# --- what is genuine


@pytest.mark.parametrize("signer", SIGNERS)
@pytest.mark.parametrize("version", [2, 3, 5])
@pytest.mark.parametrize("product", PRODUCTS)
def test_every_product_version_and_signer_is_believed(product: ProductName, version: int, signer: Signer) -> None:
    case = SnpVendor(product).case(SnpRecipe(version=version, signer=signer))
    trace = Trace()
    result = verify_snp(case.evidence, anchors=case.anchors, now=case.now, trace=trace)
    assert tuple(trace.begun) == STEPS
    assert (result.tee, result.product, result.report_version, result.signer) == ("snp", product, version, signer)
    assert result.csp_id == (None if signer == "VCEK" else "CN=csp.example")
    assert result.platform == (result.csp_id or result.chip_id.hex())
    assert result.evidence_sha256 == hashlib.sha256(case.evidence.data[:0x2A0]).digest()
    assert {result.anchor_sha256} == case.anchors
    assert not result.revocation_checked


def test_a_result_says_what_the_report_says() -> None:
    case = SnpVendor().case()
    report = parse_snp(case.evidence.data)
    result = verified(case)
    same = (
        *("measurement", "report_data", "host_data", "family_id", "image_id", "guest_svn", "vmpl", "platform_info"),
        *("chip_id", "report_id", "report_id_ma", "id_key_digest", "author_key_digest", "author_key_enabled"),
        *("mask_chip_key", "current_version", "committed_version", "launch_mitigations", "current_mitigations"),
    )
    assert {name: getattr(result, name) for name in same} == {name: getattr(report, name) for name in same}
    assert result.guest_policy == report.policy
    levels = {"bootloader": 9, "tee": 2, "snp": 22}
    assert result.reported_tcb == Tcb(**levels, microcode=72)
    assert result.launch_tcb == Tcb(**levels, microcode=73)
    assert result.committed_tcb == Tcb(**levels, microcode=74)
    assert result.current_tcb == Tcb(**levels, microcode=75)


def test_the_tcb_is_a_line_in_the_layout_of_the_product() -> None:
    assert made("Milan").tcb == "Milan bootloader 4 tee 1 snp 23 microcode 200"
    assert made("Genoa").tcb == "Genoa bootloader 9 tee 2 snp 22 microcode 72"
    assert made("Turin").tcb == "Turin fmc 1 bootloader 3 tee 1 snp 4 microcode 130"
    assert made("Turin").reported_tcb == Tcb(fmc=1, bootloader=3, tee=1, snp=4, microcode=130)


def test_debugging_and_the_vmpl_are_for_policy_to_judge() -> None:
    result = made(report=lambda part: put(0x30, b"\x03")(put(0x0A, b"\x0a")(part)))
    assert (result.debug, result.guest_policy.smt, result.vmpl) == (True, False, 3)
    assert not made().debug


def test_the_tcb_at_launch_may_be_above_the_current_one() -> None:
    assert made(report=put(0x1F7, b"\xff")).launch_tcb.microcode == 255


def test_equal_tcbs_are_in_order() -> None:
    tcb = bytes((9, 2, 0, 0, 0, 0, 22, 72))
    result = made(report=lambda part: put(0x38, tcb)(put(0x1E0, tcb)(part)))
    assert result.reported_tcb == result.committed_tcb == result.current_tcb


@pytest.mark.parametrize(
    ("product", "model"),
    [
        ("Milan", 0x0F),
        ("Genoa", 0x10),
        ("Genoa", 0x1F),
        ("Genoa", 0xA0),
        ("Genoa", 0xAF),
        ("Turin", 0x00),
        ("Turin", 0x1F),
    ],
)
def test_cpus_at_the_bounds_of_a_product_are_of_it(product: ProductName, model: int) -> None:
    assert made(product, report=put(0x189, bytes([model]))).product == product


def test_a_vlek_is_of_any_chip_and_may_be_used_where_vceks_are_masked() -> None:
    assert made(signer="VLEK").chip_id == bytes(64)
    result = made(signer="VLEK", report=lambda part: put(0x48, b"\x06")(put(0x1A0, snp_pki.HWID)(part)))
    assert (result.chip_id, result.mask_chip_key, result.platform) == (snp_pki.HWID, True, "CN=csp.example")


def test_the_twin_of_a_signature_makes_the_same_evidence() -> None:
    case = SnpVendor().case()
    s = parse_snp(case.evidence.data).signature_s
    twin = put(0x2E8, (P384_ORDER - s).to_bytes(48, "little"))(case.evidence.data)
    assert fields_of(verified(replace(case, evidence=replace(case.evidence, data=twin)))) == fields_of(verified(case))


# --- certificates


def _with_endorsements(case: Case, *endorsements: Endorsement) -> Case:
    return replace(case, evidence=replace(case.evidence, endorsements=endorsements))


def test_endorsements_may_come_in_any_order() -> None:
    case = SnpVendor().case(SnpRecipe(crls=(CrlRecipe(),)))
    for endorsements in permutations(case.evidence.endorsements):
        assert verified(_with_endorsements(case, *endorsements)).revocation_checked


@pytest.mark.parametrize("signer", SIGNERS)
def test_the_chain_is_found_among_those_of_others(signer: Signer) -> None:
    case = SnpVendor().case(SnpRecipe(signer=signer))
    other_signer: Signer = "VLEK" if signer == "VCEK" else "VCEK"
    others = [
        *_of_another("Milan", signer=signer),
        *_of_another("Turin", crls=(CrlRecipe(ends=NOW - timedelta(days=1)),)),
        *_of_another("Genoa", signer=other_signer)[:2],
        _certificate(replace(snp_pki.leaf("Genoa", signer), key=snp_pki.small_key())),
        _certificate(replace(snp_pki.ask("Genoa", signer), key=snp_pki.ark_key())),
        _certificate(replace(snp_pki.ark("Genoa"), serial=1)),
    ]
    for endorsements in ((*others, *case.evidence.endorsements), (*case.evidence.endorsements, *others)):
        result = verified(_with_endorsements(case, *endorsements))
        assert fields_of(result) == fields_of(verified(case))


def _of_another(product: ProductName, **recipe: Any) -> tuple[Endorsement, ...]:
    """What comes with the reports of another chip."""
    key = ec.generate_private_key(ec.SECP384R1())
    return SnpVendor(product).case(SnpRecipe(leaf_key=lambda: key, **recipe)).evidence.endorsements


def _certificate(recipe: CertificateRecipe) -> Endorsement:
    return certificate(snp_pki.certificate(recipe))


def test_a_chain_under_any_of_several_anchors_is_believed() -> None:
    case = SnpVendor().case()
    both = case.anchors | SnpVendor("Milan").case().anchors
    everything = _with_endorsements(replace(case, anchors=both), *_of_another("Milan"), *case.evidence.endorsements)
    assert {verified(everything).anchor_sha256} == case.anchors


def test_a_leaf_may_have_extensions_that_are_not_critical() -> None:
    authority = x509.AuthorityKeyIdentifier(b"key", None, None)

    def extended(recipe: CertificateRecipe) -> CertificateRecipe:
        return replace(
            recipe, extensions=(*recipe.extensions, (authority, False), (snp_pki.extension("99", b""), False))
        )

    assert made(leaf=extended).signer == "VCEK"


def test_a_product_name_may_have_a_stepping() -> None:
    for name in ("Genoa", "Genoa-B1"):
        assert made(leaf=lambda recipe, name=name: snp_pki.changed(recipe, "2", snp_pki.ia5(name))).product == "Genoa"


@pytest.mark.parametrize("part", ["leaf", "ask", "ark"])
def test_certificates_are_valid_to_their_last_second(part: str) -> None:
    assert made(**{part: lambda recipe: replace(recipe, begins=NOW, ends=NOW)}).signer == "VCEK"
    case = SnpVendor().case(SnpRecipe(**{part: lambda recipe: replace(recipe, ends=NOW)}))  # type: ignore[arg-type]
    assert "has expired" in refusal(replace(case, now=NOW + timedelta(microseconds=1)))


def test_the_time_may_be_of_any_zone() -> None:
    case = SnpVendor().case()
    here = timezone(timedelta(hours=-8))
    assert verified(replace(case, now=NOW.astimezone(here))).signer == "VCEK"
    for edge, said in ((datetime.min, "is not yet valid"), (datetime.max, "has expired")):
        assert said in refusal(replace(case, now=edge.replace(tzinfo=UTC)))


def test_the_anchors_are_the_three_roots_of_amd() -> None:
    assert {anchor.hex()[:8] for anchor in ANCHORS} == {"69d063b4", "4c6598d1", "1f084161"}
    assert {len(anchor) for anchor in ANCHORS} == {32}
    assert tee("snp").anchors() is ANCHORS


def test_a_masked_chip_is_something_that_the_host_can_mend() -> None:
    with pytest.raises(EvidenceError) as caught:
        verified(snp.FORGERIES["a masked chip"].make())
    assert caught.value.mend == "have the host unset MASK_CHIP_ID, or use a VLEK"


# --- revocation


def test_a_current_crl_of_the_root_is_a_check_of_revocation() -> None:
    for signer in SIGNERS:
        assert made(signer=signer, crls=(CrlRecipe(),)).revocation_checked
        assert made(
            signer=signer, crls=(CrlRecipe(revoked=(snp_pki.ASK_SERIAL - 1, 1)), CrlRecipe())
        ).revocation_checked


@pytest.mark.parametrize(
    "recipe",
    [
        CrlRecipe(issuer="ARK-Milan"),
        CrlRecipe(issuer="SEV-Genoa", signed_by=snp_pki.ask_key),
        CrlRecipe(issuer="somebody", revoked=(snp_pki.ASK_SERIAL,), ends=NOW - timedelta(days=1)),
    ],
)
def test_crls_of_others_check_nothing_and_are_ignored(recipe: CrlRecipe) -> None:
    assert not made(crls=(recipe,)).revocation_checked
    assert made(crls=(recipe, CrlRecipe())).revocation_checked


def test_a_crl_is_current_to_its_last_second() -> None:
    assert made(crls=(CrlRecipe(begins=NOW, ends=NOW),)).revocation_checked


# --- forgeries


@pytest.mark.parametrize("name", snp.FORGERIES)
def test_each_forgery_is_refused_in_one_printable_sentence(name: str) -> None:
    message = refusal(snp.FORGERIES[name].make())
    assert snp.FORGERIES[name].refusal in message
    assert message.isprintable()
    assert not message.endswith(".")
    assert len(message) < 200


def test_what_is_replaced_in_a_forgery_is_all_that_is_wrong_with_it() -> None:
    # The same ways of making certificates and reports, with values that are right.
    right: dict[str, Callable[[CertificateRecipe], CertificateRecipe]] = {
        "leaf": lambda recipe: snp_pki.changed(recipe, "4", snp_pki.HWID),
        "ask": lambda recipe: replace(recipe, serial=1),
        "ark": lambda recipe: replace(recipe, edit=lambda der: der.replace(b"ARK-Genoa", b"ARK-Genoa")),
    }
    assert made(report=put(0x34, b"\x01"), edit=put(0x49F, b"\0"), crls=(CrlRecipe(),), **right).revocation_checked
