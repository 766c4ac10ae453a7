"""Is an SNP report genuine: made by a chip of AMD's, for a guest of its own? No I/O; time and anchors are arguments.

Trusted before: the anchors and `now`. Trusted after: that whoever has the key of `reported_tcb`, firmware of at least
that version, said all of the result. *Not* checked, because policy decides it: which measurement, whether debugging is
allowed, which VMPL, which products and TCB versions are good enough, and whether a CRL must be there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar, Final

from adyton.errors import EvidenceError
from adyton.tee._pins import AMD_ARK_GENOA, AMD_ARK_MILAN, AMD_ARK_TURIN
from adyton.tee._x509 import certificate_sha256
from adyton.tee.evidence import EndorsementKind, Evidence, check_verifiable
from adyton.tee.snp.chain import (
    Chain,
    check_revocation,
    check_validity,
    common_name,
    find_chain,
    find_leaf,
    load_certificates,
)
from adyton.tee.snp.format import GuestPolicy, PlatformInfo, Signer, SnpReport, parse_snp
from adyton.tee.snp.leaf import Leaf, check_owner, check_tcb, parse_leaf
from adyton.tee.snp.products import PRODUCTS, Product, ProductName, Tcb
from adyton.tee.steps import Step, Trace

ANCHORS: Final = frozenset({AMD_ARK_MILAN, AMD_ARK_GENOA, AMD_ARK_TURIN})
"""SHA-256 of AMD's root certificates."""

FORMAT: Final = Step(
    title="the report is well-formed, and of a version that is known",
    reference="AMD 56860, section 7.3",
)
SIGNATURE: Final = Step(
    title="the key of a VCEK or VLEK certificate signed it",
    reference="AMD 56860, section 7.3",
)
CHAIN: Final = Step(
    title="an anchor issued that certificate, through an ASK or ASVK",
    reference="RFC 5280, section 6.1; RFC 4055, section 3.1",
)
VALIDITY: Final = Step(
    title="all certificates are valid now",
    reference="RFC 5280, sections 4.1.2.5 and 4.2",
)
REVOCATION: Final = Step(
    title="the root's CRL, if there is one, is current and does not list the ASK or ASVK",
    reference="RFC 5280, section 6.3",
)
PRODUCT: Final = Step(
    title="root, certificates and CPU are of one product",
    reference="AMD 57230, tables 8 and 11; AMD 56860, section 7.3",
)
ENDORSEMENT: Final = Step(
    title="the certificate is for the report's TCB version, and for its chip or a cloud provider",
    reference="AMD 57230, tables 8 and 11",
)
TCB: Final = Step(
    title="the TCB versions are well-formed and in order: reported, committed, current",
    reference="AMD 56860, section 2.2",
)
STEPS: Final[tuple[Step, ...]] = (FORMAT, SIGNATURE, CHAIN, VALIDITY, REVOCATION, PRODUCT, ENDORSEMENT, TCB)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedSnp:
    """What a genuine report says, field by field as in `SnpReport`.

    `chip_id` is zero where the host masks it. `csp_id` names the cloud provider whose VLEK it is, None for a VCEK.
    `reported_tcb` is the one that the signing key belongs to; `committed_tcb` can't be rolled back below, `current_tcb`
    ran when the report was made, `launch_tcb` when the guest was started. `revocation_checked` says whether a CRL of
    the root was there.
    """

    tee: ClassVar[str] = "snp"

    measurement: bytes
    report_data: bytes
    host_data: bytes
    family_id: bytes
    image_id: bytes
    guest_svn: int
    guest_policy: GuestPolicy
    vmpl: int
    product: ProductName
    signer: Signer
    csp_id: str | None
    reported_tcb: Tcb
    current_tcb: Tcb
    committed_tcb: Tcb
    launch_tcb: Tcb
    platform_info: PlatformInfo
    chip_id: bytes
    report_id: bytes
    report_id_ma: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    author_key_enabled: bool
    mask_chip_key: bool
    current_version: tuple[int, int, int]
    committed_version: tuple[int, int, int]
    launch_mitigations: int | None
    current_mitigations: int | None
    report_version: int
    revocation_checked: bool
    evidence_sha256: bytes
    anchor_sha256: bytes

    @property
    def debug(self) -> bool:
        """Whether the host may read and write the guest's memory."""
        return self.guest_policy.debug

    @property
    def tcb(self) -> str:
        """The product and the reported TCB version."""
        return f"{self.product} {self.reported_tcb}"

    @property
    def platform(self) -> str:
        """The chip, in hex, or the cloud provider."""
        return self.chip_id.hex() if self.csp_id is None else self.csp_id


def verify_snp(
    evidence: Evidence, *, anchors: Collection[bytes], now: datetime, trace: Trace | None = None
) -> VerifiedSnp:
    """Go through `STEPS`; the first that fails raises `EvidenceError`. A `now` without time zone is a `ValueError`.

    `evidence.data` is the report; the certificates come with it in any order, others may be among them.
    """
    check_verifiable(evidence, VerifiedSnp.tee, anchors, now)
    trace = trace or Trace()
    trace.begin(FORMAT)
    report = parse_snp(evidence.data)
    trace.begin(SIGNATURE)
    certificates = load_certificates(evidence.endorsed(EndorsementKind.CERTIFICATE))
    certificate = find_leaf(certificates, report)
    trace.begin(CHAIN)
    chain = find_chain(certificate, certificates, anchors)
    trace.begin(VALIDITY)
    check_validity(chain, now)
    trace.begin(REVOCATION)
    revocation_checked = check_revocation(chain.ask, chain.ark, evidence.endorsed(EndorsementKind.CRL), now)
    trace.begin(PRODUCT)
    leaf = parse_leaf(chain.leaf)
    product = _find_product(chain, leaf, report)
    trace.begin(ENDORSEMENT)
    check_tcb(leaf, report, product)
    check_owner(leaf, report, product)
    trace.begin(TCB)
    tcbs = _check_tcbs(report, product)
    return _verified(report, product.name, leaf.csp_id, tcbs, revocation_checked, certificate_sha256(chain.ark))


def _find_product(chain: Chain, leaf: Leaf, report: SnpReport) -> Product:
    """The product whose root it is, once the ASK, the leaf, and the CPU if the report names it, are of the same."""
    root, issuer = common_name(chain.ark), common_name(chain.ask)
    product = PRODUCTS.get(root.removeprefix("ARK-"))
    if product is None:
        raise EvidenceError(f"the root {root[:64]!r} is of no product that is known")
    wanted = f"SEV-{product.name}" if report.signer == "VCEK" else f"SEV-VLEK-{product.name}"
    if issuer != wanted:
        raise EvidenceError(f"the {report.signer} was issued by {issuer[:64]!r}, not by {wanted!r}")
    if leaf.product_name.partition("-")[0] != product.name:
        named = leaf.product_name[:64]
        raise EvidenceError(f"the {report.signer} is for the product {named!r}, not for {product.name}")
    if report.cpuid is not None and not product.has_cpu(*report.cpuid[:2]):
        family, model, _ = report.cpuid
        raise EvidenceError(f"the SNP report is of a CPU of family {family:#x} and model {model:#x}: no {product.name}")
    return product


def _check_tcbs(report: SnpReport, product: Product) -> dict[str, Tcb]:
    """The four TCB versions, by the names of the result's fields."""
    reported = product.tcb(report.reported_tcb, "reported")
    committed = product.tcb(report.committed_tcb, "committed")
    current = product.tcb(report.current_tcb, "current")
    _check_order(reported, committed, "the reported TCB is above the committed one")
    _check_order(committed, current, "the committed TCB is above the current one")
    return {
        "reported_tcb": reported,
        "committed_tcb": committed,
        "current_tcb": current,
        "launch_tcb": product.tcb(report.launch_tcb, "launch"),
    }


def _check_order(lower: Tcb, higher: Tcb, message: str) -> None:
    if any(part > limit for part, limit in zip(lower.parts.values(), higher.parts.values(), strict=True)):
        raise EvidenceError(f"{message}: {lower}, and {higher}")


def _verified(
    report: SnpReport,
    product: ProductName,
    csp_id: str | None,
    tcbs: dict[str, Tcb],
    revocation_checked: bool,
    anchor_sha256: bytes,
) -> VerifiedSnp:
    return VerifiedSnp(
        measurement=report.measurement,
        report_data=report.report_data,
        host_data=report.host_data,
        family_id=report.family_id,
        image_id=report.image_id,
        guest_svn=report.guest_svn,
        guest_policy=report.policy,
        vmpl=report.vmpl,
        product=product,
        signer=report.signer,
        csp_id=csp_id,
        platform_info=report.platform_info,
        chip_id=report.chip_id,
        report_id=report.report_id,
        report_id_ma=report.report_id_ma,
        id_key_digest=report.id_key_digest,
        author_key_digest=report.author_key_digest,
        author_key_enabled=report.author_key_enabled,
        mask_chip_key=report.mask_chip_key,
        current_version=report.current_version,
        committed_version=report.committed_version,
        launch_mitigations=report.launch_mitigations,
        current_mitigations=report.current_mitigations,
        report_version=report.version,
        revocation_checked=revocation_checked,
        evidence_sha256=hashlib.sha256(report.signed_part).digest(),
        anchor_sha256=anchor_sha256,
        **tcbs,
    )
