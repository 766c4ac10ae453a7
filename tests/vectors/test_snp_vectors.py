"""Real reports of real AMD machines, under AMD's own roots: Milan in versions 2 and 3, VCEK and VLEK, and one Genoa.

AMD's certificates are in the manifest as DER or PEM; CRLs of its roots only as they were from 2022 to 2023.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from real_vectors import DIRECTORY, content, ids, manifest, needs_vectors

from adyton.errors import EvidenceError
from adyton.tee._x509 import certificate_sha256
from adyton.tee.evidence import Endorsement, Evidence
from adyton.tee.snp.chain import check_revocation, common_name, find_root, load_certificates
from adyton.tee.snp.format import GuestPolicy, SnpReport, parse_snp
from adyton.tee.snp.verify import ANCHORS, VerifiedSnp, verify_snp
from adyton.testing.snp_vendor import SnpRecipe, SnpVendor, certificate, crl

pytestmark = needs_vectors

CRL_GENOA = "snp/extracted_steward_amd_crl_0.der"
CRL_MILAN = "snp/extracted_steward_amd_crl_1.der"
CRL_TIME = datetime(2023, 1, 1, tzinfo=UTC)
"""When both CRLs were current."""
REVOKED_ASK = "snp/negative/revoked_ask_genoa_131073.der"
GENOA_ROOTS = "snp/roots/ask_ark_genoa.pem"
MILAN_ROOTS = "snp/roots/ask_ark_milan.pem"

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----(.*?)-----END CERTIFICATE-----", re.DOTALL)


def _ders(name: str) -> list[bytes]:
    """The certificates of a file, DER or PEM, as they are."""
    data = content(name)
    return [base64.b64decode(match) for match in _PEM.findall(data)] or [data]


def _stapled(*names: str) -> tuple[Endorsement, ...]:
    return tuple(certificate(der) for name in names for der in _ders(name))


def _evidence(name: str, leaf: str, roots: str, *crls: str) -> Evidence:
    endorsements = _stapled(leaf, roots) + tuple(crl(content(each)) for each in crls)
    return Evidence(tee="snp", data=content(name), endorsements=endorsements)


def _verified(evidence: Evidence, now: datetime) -> VerifiedSnp:
    return verify_snp(evidence, anchors=ANCHORS, now=now)


def _pairs(genuine: bool) -> list[tuple[str, str]]:
    """Each report with each certificate that the manifest has measured it with."""
    return [
        (name, f"snp/{leaf}")
        for name in ids("snp", "evidence")
        for leaf, measured in manifest()[name]["measured"].items()
        if measured["signature"] is genuine
    ]


def _measured(name: str, leaf: str) -> dict[str, Any]:
    measured: dict[str, Any] = manifest()[name]["measured"][leaf.removeprefix("snp/")]
    return measured


def _window(name: str, leaf: str) -> tuple[datetime, datetime]:
    """The first and the last day on which the certificate is valid; both may be so in part only."""
    begin, end = (datetime.fromisoformat(day).replace(tzinfo=UTC) for day in _measured(name, leaf)["cert_window"])
    return begin, end


def _genuine(name: str, leaf: str) -> VerifiedSnp:
    roots = f"snp/roots/{_measured(name, leaf)['chain']}"
    return _verified(_evidence(name, leaf, roots), _window(name, leaf)[0] + timedelta(days=2))


# --- reports


@pytest.mark.parametrize(("name", "leaf"), _pairs(genuine=True))
def test_a_real_report_is_believed_with_its_certificate(name: str, leaf: str) -> None:
    measured, expected = _measured(name, leaf), manifest()[name]["expected"]
    result = _genuine(name, leaf)
    assert expected["authentic"]
    assert leaf.removeprefix("snp/") in expected["endorsement"]
    assert (result.report_version, result.signer) == (expected["report_version"], expected["signing_key"])
    assert (result.debug, result.vmpl) == (expected["debug_allowed"], expected["vmpl"])
    assert result.guest_policy.migrate_ma == expected["migrate_ma"]
    assert result.platform_info.alias_check_complete == expected["alias_check_complete"]
    assert (result.product, result.csp_id) == (measured["product"].partition("-")[0], measured["csp"])
    assert (measured["hwid_match"], measured["tcb_match"]) == (True if result.csp_id is None else None, True)
    assert (
        measured["tcb"]
        == measured["cert_tcb"]
        == {
            "bl": result.reported_tcb.bootloader,
            "tee": result.reported_tcb.tee,
            "snp": result.reported_tcb.snp,
            "ucode": result.reported_tcb.microcode,
        }
    )
    assert result.anchor_sha256 in ANCHORS
    assert not result.revocation_checked


@pytest.mark.parametrize("name", ids("snp", "evidence"))
def test_a_real_report_says_what_the_manifest_claims(name: str) -> None:
    raw = {"sig_algo", "policy", "platform_info", "key_info"}  # checked when parsed, or there bit by bit
    claims = {key: value for key, value in manifest()[name]["claims"].items() if key not in raw}
    assert claims.pop("policy_bits") == _policy_bits(parse_snp(content(name)).policy) | {"rsvd1": True}
    assert claims == _claims(parse_snp(content(name)))


def _policy_bits(policy: GuestPolicy) -> dict[str, int]:
    return {
        "abi_minor": policy.abi_minor,
        "abi_major": policy.abi_major,
        "smt": policy.smt,
        "migrate_ma": policy.migrate_ma,
        "debug": policy.debug,
        "single_socket": policy.single_socket,
        "cxl": policy.cxl_allow,
        "mem_aes256": policy.mem_aes_256_xts,
        "rapl_dis": policy.rapl_disabled,
        "ciphertext_hiding": policy.ciphertext_hiding,
        "page_swap_disable": policy.page_swap_disabled,
    }


def _claims(report: SnpReport) -> dict[str, Any]:
    """The rest of the report, by the manifest's names."""
    info = report.platform_info
    texts = ("family_id", "image_id", "report_data", "measurement", "host_data", "id_key_digest", "author_key_digest")
    ids_ = ("report_id", "report_id_ma", "chip_id")
    tcbs = ("current_tcb", "reported_tcb", "committed_tcb", "launch_tcb")
    return {
        **{name: getattr(report, name) for name in ("version", "guest_svn", "vmpl")},
        **{name: getattr(report, name).hex() for name in (*texts, *ids_)},
        **{name: int.from_bytes(getattr(report, name), "little") for name in tcbs},
        "cpuid": list(report.cpuid or (0, 0, 0)),
        "current": list(reversed(report.current_version)),
        "committed": list(reversed(report.committed_version)),
        "launch_mit": report.launch_mitigations or 0,
        "current_mit": report.current_mitigations or 0,
        "key": {
            "author_key_en": report.author_key_enabled,
            "mask_chip_key": report.mask_chip_key,
            "signing_key": 0 if report.signer == "VCEK" else 1,
        },
        "platform": {
            "smt": info.smt,
            "tsme": info.tsme,
            "ecc": info.ecc,
            "rapl_dis": info.rapl_disabled,
            "ciphertext_hiding": info.ciphertext_hiding,
            "alias_check_complete": info.alias_check_complete,
            "tio": info.tio,
        },
    }


@pytest.mark.parametrize(("name", "leaf"), _pairs(genuine=True))
def test_a_real_report_is_believed_only_while_its_certificate_is_valid(name: str, leaf: str) -> None:
    roots = f"snp/roots/{_measured(name, leaf)['chain']}"
    begin, end = _window(name, leaf)
    for now, said in ((begin - timedelta(days=2), "is not yet valid"), (end + timedelta(days=2), "has expired")):
        with pytest.raises(EvidenceError, match=f"the leaf {said}"):
            _verified(_evidence(name, leaf, roots), now)


@pytest.mark.parametrize(("name", "leaf"), _pairs(genuine=False))
def test_a_real_report_is_refused_with_another_certificate(name: str, leaf: str) -> None:
    is_leaf = _measured(name, leaf)["cert_cn"] == "SEV-VCEK"
    said = "signature does not verify" if is_leaf else "there is no VCEK certificate"
    with pytest.raises(EvidenceError, match=said):
        _verified(_evidence(name, leaf, MILAN_ROOTS), datetime(2026, 7, 1, tzinfo=UTC))


@pytest.mark.parametrize("name", ids("snp", "evidence"))
def test_a_real_report_is_refused_with_every_other_chips_certificate(name: str) -> None:
    claims = manifest()[name]["claims"]
    for other, leaf in _pairs(genuine=True):
        if manifest()[other]["claims"]["chip_id"] != claims["chip_id"]:
            with pytest.raises(EvidenceError, match=r"signature does not verify|there is no V[CL]EK certificate"):
                _verified(_evidence(name, leaf, MILAN_ROOTS), datetime(2026, 7, 1, tzinfo=UTC))


AZURE: dict[str, tuple[Callable[[bytes], bytes], str, str]] = {
    "az_vtpm/snp_hcl-report.bin": (bytes, "az_vtpm/snp_vcek.pem", "Milan bootloader 3 tee 0 snp 8 microcode 115"),
    "az_vtpm/snp_evidence-genoa.json": (
        lambda data: bytes(json.loads(data)["report"]),
        "az_vtpm/snp_vcek-genoa.pem",
        "Genoa bootloader 10 tee 0 snp 23 microcode 84",
    ),
}
"""HCL reports, which have the hardware's at byte 32. One is the only real report of a Genoa that there is here."""


@pytest.mark.parametrize("name", AZURE)
def test_the_reports_inside_azures_are_believed(name: str) -> None:
    hcl_report, leaf, tcb = AZURE[name]
    roots = GENOA_ROOTS if "genoa" in name else MILAN_ROOTS
    data = hcl_report(content(name))[32 : 32 + 1184]
    evidence = Evidence(tee="snp", data=data, endorsements=_stapled(leaf, roots))
    assert _verified(evidence, datetime(2026, 1, 1, tzinfo=UTC)).tcb == tcb


# --- roots and revocation


@pytest.mark.parametrize("name", ids("snp", "root"))
def test_the_pinned_roots_are_amds_and_issued_the_asks(name: str) -> None:
    ask, ark = load_certificates(_ders(name))
    assert find_root(ask, (ask, ark), ANCHORS) is ark
    product = common_name(ark).removeprefix("ARK-")
    assert common_name(ask) == (f"SEV-VLEK-{product}" if "vlek" in name else f"SEV-{product}")
    assert product.lower() in name


def test_there_is_a_root_for_every_pin() -> None:
    roots = {certificate_sha256(load_certificates(_ders(name))[1]) for name in ids("snp", "root")}
    assert roots == ANCHORS


def test_the_revoked_ask_is_refused_and_its_successor_is_not() -> None:
    expected, measured = (manifest()["snp/case_revoked_ask"][part] for part in ("expected", "measured"))
    revoked, successor, ark = load_certificates([*_ders(REVOKED_ASK), *_ders(GENOA_ROOTS)])
    assert (expected["accept"], revoked.serial_number, successor.serial_number) == (False, 131073, 131074)
    for ask in (revoked, successor):
        assert find_root(ask, (revoked, successor, ark), ANCHORS) is ark
    with pytest.raises(EvidenceError, match=f"the ASK has been revoked: on {re.escape(measured['revocation_date'])}"):
        check_revocation(revoked, ark, [content(CRL_GENOA)], CRL_TIME)
    assert check_revocation(successor, ark, [content(CRL_GENOA)], CRL_TIME)


def test_a_real_report_is_believed_with_the_crl_of_its_time_only() -> None:
    name, leaf = "snp/extracted_steward_report.bin", "snp/extracted_steward_vcek.der"
    both = _evidence(name, leaf, MILAN_ROOTS, CRL_GENOA, CRL_MILAN)
    assert _verified(both, CRL_TIME).revocation_checked
    assert not _verified(_evidence(name, leaf, MILAN_ROOTS, CRL_GENOA), CRL_TIME).revocation_checked
    with pytest.raises(EvidenceError, match="the CRL for the ASK has expired"):
        _verified(both, datetime(2023, 6, 1, tzinfo=UTC))


def test_a_report_of_another_chip_is_refused_with_a_real_vcek() -> None:
    # The report that the manifest names for this case is not in the set, so a report of that kind takes its place.
    case = manifest()["snp/case_foreign_vcek"]
    assert (case["source"]["derived_from"] in manifest(), case["expected"]["accept"]) == (False, False)
    foreign = SnpVendor("Genoa").case(SnpRecipe(version=5)).evidence
    foreign = replace(foreign, endorsements=_stapled("snp/dstack_vcek.pem", MILAN_ROOTS))
    with pytest.raises(EvidenceError, match="signature does not verify with the key of the VCEK"):
        _verified(foreign, datetime(2026, 7, 1, tzinfo=UTC))


# --- every file of the manifest is one of those above, or contains one of them

CONTAINED: dict[str, tuple[str, ...]] = {
    "snp/dstack_snp_attestation.bin": ("snp/extracted_dstack_snp_attestation_report.bin",),
    "snp/dstack_snp_attestation2.json": ("snp/extracted_dstack2_report.bin",),
    "snp/steward_milan.signed.crl.csr": (
        *("snp/extracted_steward_report.bin", "snp/extracted_steward_vcek.der"),
        *("snp/extracted_steward_amd_crl_0.der", "snp/extracted_steward_amd_crl_1.der"),
    ),
    "snp/steward_genoa.pkipath": (REVOKED_ASK,),
    "snp/oak_cb_evidence.binarypb": ("snp/extracted_oak_cb_evidence_report.bin",),
    "snp/oak_cb_endorsements.binarypb": ("snp/extracted_oak_vcek.der",),
}
"""Files in containers of others, and what in them is verified on its own."""
LEAVES = {leaf for _, leaf in _pairs(genuine=True) + _pairs(genuine=False)}
ASKS = {"snp/dstack_ask.pem", "snp/extracted_dstack2_cert0.pem"}


@pytest.mark.parametrize("name", CONTAINED)
def test_a_container_has_the_files_that_are_verified(name: str) -> None:
    if not (DIRECTORY / name).is_file():
        pytest.skip("the manifest has it, the directory only what is in it")
    data = content(name)
    for part in CONTAINED[name]:
        assert content(part) in data or content(part).hex().encode() in data


@pytest.mark.parametrize("name", sorted(ASKS))
def test_an_ask_on_its_own_is_that_of_the_roots(name: str) -> None:
    assert _ders(name) == _ders(MILAN_ROOTS)[:1]


def test_no_file_of_the_manifest_is_left_unused() -> None:
    cases = {"snp/case_revoked_ask", "snp/case_foreign_vcek"}
    used = {REVOKED_ASK, CRL_GENOA, CRL_MILAN, *CONTAINED, *LEAVES, *ASKS, *cases}
    assert set(ids("snp")) == used | set(ids("snp", "root", "evidence"))
