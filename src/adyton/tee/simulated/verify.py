"""Is simulated evidence genuine: made by the platform whose root the caller trusts? No I/O; time is an argument.

Genuine says only that the platform of that root said so, and the simulation's platform protects from nothing. *Not*
checked, because policy decides it: how old the evidence is, which measurement it has, what its report_data binds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import ClassVar, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import verification

from adyton.errors import EvidenceError
from adyton.tee._x509 import MALFORMED, certificate_sha256, check_dates, load_certificate
from adyton.tee.evidence import EndorsementKind, Evidence, check_verifiable
from adyton.tee.simulated.format import parse_simulated, signature_input
from adyton.tee.simulated.signature import verify_low_s
from adyton.tee.steps import Step, Trace

MAX_ISSUED_IN_FUTURE: Final = timedelta(minutes=5)
"""How far the platform's clock may be ahead of the verifier's."""

ANCHORS: Final[frozenset[bytes]] = frozenset()
"""None: every machine's simulation has a root of its own, which a policy must name."""

_FORMAT: Final = Step(title="the evidence parses to its last byte", reference="adyton.tee.simulated.format")
_LEAF: Final = Step(title="the leaf certificate parses", reference="RFC 5280, section 4.1")
_KEY: Final = Step(title="its key is of P-256", reference="SP 800-186, section 3.2.1.3")
_ROLE: Final = Step(title="it may sign and may not certify", reference="RFC 5280, sections 4.2.1.3 and 4.2.1.9")
_DATES: Final = Step(title="it is valid now", reference="RFC 5280, section 4.1.2.5")
_CHAIN: Final = Step(title="a trusted root, valid now, issued it", reference="RFC 5280, section 6.1")
_SIGNATURE: Final = Step(title="it signed the evidence, in canonical form", reference="FIPS 186-5, section 6.4.2")
_TIME: Final = Step(title="the evidence is not from the future", reference="RFC 9334, section 10")

STEPS: Final = (_FORMAT, _LEAF, _KEY, _ROLE, _DATES, _CHAIN, _SIGNATURE, _TIME)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedSimulated:
    """What genuine evidence says."""

    tee: ClassVar[str] = "simulated"
    tcb: ClassVar[str] = "simulation: protects nothing"
    platform: ClassVar[str] = ""

    measurement: bytes
    report_data: bytes
    issued_at: datetime
    evidence_sha256: bytes
    anchor_sha256: bytes


def verify_simulated(
    evidence: Evidence, *, anchors: Collection[bytes], now: datetime, trace: Trace | None = None
) -> VerifiedSimulated:
    """Verify in the order of `STEPS`; the first that fails raises `EvidenceError`.

    The root comes as a CERTIFICATE endorsement, and is one if its SHA-256 is among `anchors`. Trusted after: that the
    owner of that root's key signed the result.
    """
    check_verifiable(evidence, VerifiedSimulated.tee, anchors, now)
    trace = trace or Trace()
    trace.begin(_FORMAT)
    parsed = parse_simulated(evidence.data)
    trace.begin(_LEAF)
    leaf = load_certificate(parsed.leaf_certificate_der, "the leaf certificate of the simulated evidence")
    trace.begin(_KEY)
    key = _check_key(leaf)
    trace.begin(_ROLE)
    _check_role(leaf.extensions)
    trace.begin(_DATES)
    check_dates(leaf, now, "the leaf certificate")
    trace.begin(_CHAIN)
    root = _verify_chain(leaf, _pinned_roots(evidence, anchors), now)
    trace.begin(_SIGNATURE)
    signed = signature_input(parsed.signed_part)
    verify_low_s(key, parsed.signature, signed)
    trace.begin(_TIME)
    if parsed.issued_at - now > MAX_ISSUED_IN_FUTURE:
        raise EvidenceError(f"the simulated evidence is from the future: issued {parsed.issued_at}, now it is {now}")
    return VerifiedSimulated(
        measurement=parsed.measurement,
        report_data=parsed.report_data,
        issued_at=parsed.issued_at,
        evidence_sha256=hashlib.sha256(signed).digest(),
        anchor_sha256=certificate_sha256(root),
    )


def _pinned_roots(evidence: Evidence, anchors: Collection[bytes]) -> list[x509.Certificate]:
    # Only what is pinned is looked into at all.
    stapled = evidence.endorsed(EndorsementKind.CERTIFICATE)
    pinned = [der for der in stapled if hashlib.sha256(der).digest() in anchors]
    return [load_certificate(der, "a trusted root") for der in pinned]


def _check_key(leaf: x509.Certificate) -> ec.EllipticCurvePublicKey:
    key = leaf.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise EvidenceError("the leaf certificate's key is not of P-256")
    return key


def _check_role(extensions: x509.Extensions) -> None:
    try:
        constraints = extensions.get_extension_for_class(x509.BasicConstraints)
        usage = extensions.get_extension_for_class(x509.KeyUsage)
    except x509.ExtensionNotFound as error:
        raise EvidenceError("the leaf certificate lacks basicConstraints or keyUsage") from error
    if constraints.value.ca:
        raise EvidenceError("the leaf certificate is a CA")
    if not usage.critical:
        raise EvidenceError("the leaf certificate's keyUsage is not critical")
    if not usage.value.digital_signature:
        raise EvidenceError("the leaf certificate's keyUsage lacks digitalSignature")


def _verify_chain(leaf: x509.Certificate, roots: Sequence[x509.Certificate], now: datetime) -> x509.Certificate:
    """The one of `roots` that issued `leaf` itself; it must be a CA and valid at `now`."""
    if not roots:
        raise EvidenceError("no trusted root came with the simulated evidence")
    policy = verification.PolicyBuilder().store(verification.Store(list(roots))).time(now).max_chain_depth(0)
    policy = policy.extension_policies(ca_policy=_ROOT_EXTENSIONS, ee_policy=verification.ExtensionPolicy.permit_all())
    try:
        chain = policy.build_client_verifier().verify(leaf, []).chain
    except (verification.VerificationError, *MALFORMED) as error:
        message = f"the leaf certificate has no valid chain to any of the {len(roots)} trusted roots"
        raise EvidenceError(message) from error
    if len(chain) != 2:
        raise EvidenceError("the leaf certificate is itself given as a root")
    return chain[1]


def _check_may_certify(_policy: verification.Policy, _root: x509.Certificate, usage: x509.KeyUsage) -> None:
    # The library sees to the extension's presence only.
    if not usage.key_cert_sign:
        raise ValueError("the root's keyUsage lacks keyCertSign")


_ROOT_EXTENSIONS: Final = (
    verification.ExtensionPolicy.permit_all()
    .require_present(x509.BasicConstraints, verification.Criticality.CRITICAL, None)
    .require_present(x509.KeyUsage, verification.Criticality.CRITICAL, _check_may_certify)
)
