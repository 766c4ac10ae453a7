"""Believing evidence beside checking its signatures and nothing else: `python3 dev.py bench evidence`.

Each TEE's verifier and the bare library take turns on the same bytes in one process. Bare is dcap-qvl for SGX and TDX;
for all others `cryptography`, with keys that are loaded and messages that are cut out beforehand: one call for each
signature that the verifier must check. Evidence is of the fake vendors that are shipped for tests, and where the real
vectors are, of hardware too.

A verifier remembers what it parsed: certificates, keys, collateral. The ratio is of evidence whose platform it has met
before; "first" is its time when it has met nobody. A goal that is missed is named, and the exit code is then 1.
"""

from __future__ import annotations

import argparse
import base64
import functools
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import dcap_qvl
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from adyton.policy.appraisal import appraise
from adyton.policy.rules import SCHEMAS
from adyton.tee._cose import Sign1
from adyton.tee._dcap_chain import parse_pck_chain
from adyton.tee._tpm import Quote
from adyton.tee._x509 import load_certificate, load_public_key, spki
from adyton.tee.azure.format import encode_azure, parse_azure
from adyton.tee.cca.format import parse_cca
from adyton.tee.evidence import Endorsement, EndorsementKind, Evidence
from adyton.tee.nitro.format import parse_nitro
from adyton.tee.psa.format import parse_psa
from adyton.tee.registry import TEES, tee
from adyton.tee.simulated.format import parse_simulated, signature_input
from adyton.tee.snp.chain import find_leaf
from adyton.tee.snp.format import parse_snp
from adyton.tee.tpm.format import parse_tpm
from adyton.testing.forgery import Case
from adyton.testing.samples import genuine

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

from real_vectors import content, manifest
from rule_values import EVERYTHING, fitting_table, policy_of

Call = Callable[[], object]

ROUNDS, FIRST_TIMES, PROCESSES = 400, 40, 15
GOALS = {"sgx": 1.3, "tdx": 1.3}
GOAL_OF_OTHERS = 2.0
IMPORT_GOAL_MS = 150.0
IMPORTS = "import adyton, adyton.policy.appraisal, adyton.tee.registry"
VERIFIERS = "; [each.verifier() for each in adyton.tee.registry.TEES.values()]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Our way and the bare library's. `goal` is the highest ratio that will do; None: whatever it is."""

    title: str
    ours: Call
    bare: Call
    goal: float | None


# --- the bare library


def check(key: Any, signature: bytes, signed: bytes, digest: Any, pad: Any = None) -> Call:
    """One signature check; `pad` is for keys of RSA."""
    if isinstance(key, ec.EllipticCurvePublicKey):
        return partial(key.verify, signature, signed, ec.ECDSA(digest))
    return partial(key.verify, signature, signed, pad, digest)


def links(leaf: x509.Certificate, others: Iterable[x509.Certificate]) -> Iterator[Call]:
    """The signature of each certificate from the leaf up to the root, without the root's own, which says nothing."""
    by_name = {each.subject: each for each in others}
    while leaf.issuer != leaf.subject:
        issuer = by_name[leaf.issuer]
        pad = leaf.signature_algorithm_parameters
        yield check(issuer.public_key(), leaf.signature, leaf.tbs_certificate_bytes, leaf.signature_hash_algorithm, pad)
        leaf = issuer


def certificates(ders: Iterable[bytes]) -> list[x509.Certificate]:
    return [load_certificate(der, "a certificate", serial_zero=True) for der in ders]


def stapled(evidence: Evidence) -> list[x509.Certificate]:
    return certificates(evidence.endorsed(EndorsementKind.CERTIFICATE))


def stapled_key(evidence: Evidence) -> object:
    return load_public_key(next(evidence.endorsed(EndorsementKind.PUBLIC_KEY)), "a key")


def cose(message: Sign1, key: Any) -> Call:
    half = len(message.signature) // 2
    r, s = (int.from_bytes(each, "big") for each in (message.signature[:half], message.signature[half:]))
    digest = {256: hashes.SHA256(), 384: hashes.SHA384()}[key.key_size]
    return check(key, encode_dss_signature(r, s), message.to_be_signed, digest)


def tpm_quote(quote: Quote, key: Any) -> Call:
    return check(key, quote.signature.value, quote.attest.encoded, hashes.SHA256(), padding.PKCS1v15())


def bare_snp(evidence: Evidence) -> Iterator[Call]:
    report, others = parse_snp(evidence.data), stapled(evidence)
    leaf = find_leaf(others, report)
    signature = encode_dss_signature(report.signature_r, report.signature_s)
    yield check(leaf.public_key(), signature, report.signed_part, hashes.SHA384())
    yield from links(leaf, others)


def bare_nitro(evidence: Evidence) -> Iterator[Call]:
    document = parse_nitro(evidence.data)
    leaf, *others = certificates((document.certificate, *document.cabundle))
    yield cose(document.message, leaf.public_key())
    yield from links(leaf, others)


def bare_tpm(evidence: Evidence) -> Iterator[Call]:
    parsed, others = parse_tpm(evidence.data), stapled(evidence)
    yield tpm_quote(parsed.quote, parsed.ak.key)
    yield from links(next(each for each in others if spki(each) == parsed.ak.spki), others)


def bare_azure(evidence: Evidence) -> Iterator[Call]:
    parsed = parse_azure(evidence.data)
    yield tpm_quote(parsed.quote, parsed.hcl.ak)
    yield from bare_snp(Evidence(tee="snp", data=parsed.hardware_evidence, endorsements=evidence.endorsements))


def bare_cca(evidence: Evidence) -> Iterator[Call]:
    token = parse_cca(evidence.data)
    yield cose(token.platform.message, stapled_key(evidence))
    key = token.realm.key
    yield cose(token.realm.message, ec.EllipticCurvePublicKey.from_encoded_point(key.curve, key.point))


def bare_psa(evidence: Evidence) -> Iterator[Call]:
    message = parse_psa(evidence.data).message
    assert isinstance(message, Sign1)
    yield cose(message, stapled_key(evidence))


def bare_simulated(evidence: Evidence) -> Iterator[Call]:
    parsed = parse_simulated(evidence.data)
    (leaf,) = certificates([parsed.leaf_certificate_der])
    yield check(leaf.public_key(), parsed.signature, signature_input(parsed.signed_part), hashes.SHA256())
    yield from links(leaf, stapled(evidence))


BARE: Mapping[str, Callable[[Evidence], Iterator[Call]]] = {
    "snp": bare_snp,
    "nitro": bare_nitro,
    "tpm": bare_tpm,
    "azure": bare_azure,
    "cca": bare_cca,
    "psa": bare_psa,
    "simulated": bare_simulated,
}


def in_turn(calls: Sequence[Call]) -> None:
    for call in calls:
        call()


def bare_dcap(label: str, case: Case) -> tuple[Call, Call]:
    """What a caller of dcap-qvl does who is given collateral as JSON, and one who has it parsed."""
    quote, seconds = case.evidence.data, int(case.now.timestamp())
    root = parse_pck_chain(tee(label).parser()(quote).quote.signature.pck_data).root_der
    text = next(case.evidence.endorsed(EndorsementKind.DCAP_COLLATERAL)).decode()
    parsed = dcap_qvl.QuoteCollateralV3.from_json(text)

    def from_json() -> None:
        collateral = dcap_qvl.QuoteCollateralV3.from_json(text)
        policy = dcap_qvl.QuotePolicy.claims_only(seconds)
        dcap_qvl.QuoteVerifier(root).verify_with_policy(quote, collateral, seconds, policy)

    return from_json, partial(dcap_qvl.verify_with_root_ca, quote, parsed, root, seconds)


def comparisons(label: str, case: Case, note: str) -> Iterator[Comparison]:
    title = f"{label}{note}"
    ours: Call = partial(case.verify_with, tee(label).verifier())
    goal = GOALS.get(label, GOAL_OF_OTHERS)
    if label in BARE:
        yield Comparison(title=title, ours=ours, bare=partial(in_turn, [*BARE[label](case.evidence)]), goal=goal)
        return
    from_json, parsed = bare_dcap(label, case)
    yield Comparison(title=title, ours=ours, bare=from_json, goal=goal)
    yield Comparison(title=f"{title}, beside parsed collateral", ours=ours, bare=parsed, goal=None)


# --- evidence of hardware


def real() -> Iterator[tuple[str, Case, str]]:
    """Label, case and note for one piece of evidence of each kind; nothing where the vectors are not."""
    if not manifest():
        return
    yield "sgx", real_dcap("sgx", "sgx/dcapqvl_sgx_quote.bin"), ", real, version 3"
    yield "tdx", real_dcap("tdx", "tdx/dcapqvl_tdx_quote.bin"), ", real, version 4"
    yield "tdx", real_dcap("tdx", "tdx/go-tdx-guest_quote_v5.bin"), ", real, version 5"
    milan = pem("snp/roots/ask_ark_milan.pem")
    report = content("snp/extracted_oak_cb_evidence_report.bin")
    yield "snp", real_amd("snp", report, content("snp/extracted_oak_vcek.der"), *milan), ", real"
    yield "nitro", real_nitro("nitro/extracted_dstack_nitro_cose.bin"), ", real"
    parts = json.loads(content("az_vtpm/snp_evidence-v2.json"))
    yield "azure", real_amd("azure", azure(parts), unpadded(parts["vcek"]), *milan), ", real, on SEV-SNP"


def real_dcap(label: str, name: str) -> Case:
    """A quote with the first collateral that the manifest found it genuine with."""
    runs = manifest()[name]["measured"]["full_verification"]
    run = next(each for each in runs if not each["dcap_qvl"].startswith("REJECT"))
    data = content(run["collateral"].removeprefix("vectors/"))
    collateral = Endorsement(kind=EndorsementKind.DCAP_COLLATERAL, data=data)
    evidence = Evidence(tee=label, data=content(name), endorsements=(collateral,))
    return Case(evidence=evidence, anchors=tee(label).anchors(), now=datetime.fromtimestamp(run["verify_time"], UTC))


def real_amd(label: str, data: bytes, *ders: bytes) -> Case:
    """The leaf's certificate comes first."""
    endorsements = tuple(Endorsement(kind=EndorsementKind.CERTIFICATE, data=der) for der in ders)
    evidence = Evidence(tee=label, data=data, endorsements=endorsements)
    now = certificates(ders)[0].not_valid_before_utc + timedelta(days=2)
    return Case(evidence=evidence, anchors=tee(label).anchors(), now=now)


def real_nitro(name: str) -> Case:
    now = datetime.fromisoformat(manifest()[name]["expected"]["verify_time"])
    return Case(evidence=Evidence(tee="nitro", data=content(name)), anchors=tee("nitro").anchors(), now=now)


def azure(parts: Mapping[str, Any]) -> bytes:
    quote = parts["tpm_quote"]
    return encode_azure(
        hcl_report=unpadded(parts["hcl_report"]),
        quoted=bytes.fromhex(quote["message"]),
        signature=bytes.fromhex("0014 000b 0100" + quote["signature"]),  # RSASSA with SHA-256, in 256 bytes
        pcrs={"sha256": {index: bytes.fromhex(value) for index, value in enumerate(quote["pcrs"])}},
    )


def unpadded(encoded: str) -> bytes:
    return base64.urlsafe_b64decode(encoded + "==")


def pem(name: str) -> list[bytes]:
    found = re.findall(rb"-----BEGIN CERTIFICATE-----(.*?)-----END CERTIFICATE-----", content(name), re.DOTALL)
    return [base64.b64decode(each) for each in found]


# --- measuring


def milliseconds(call: Call) -> float:
    begun = time.perf_counter()
    call()
    return (time.perf_counter() - begun) * 1000


def first_time(call: Call) -> float:
    """Milliseconds, with nothing remembered."""
    for name in [name for name in sys.modules if name.startswith("adyton.tee.")]:
        for value in vars(sys.modules[name]).values():
            if isinstance(value, functools._lru_cache_wrapper):
                value.cache_clear()
    return milliseconds(call)


def spread(values: list[float]) -> str:
    cuts = statistics.quantiles(values, n=20, method="inclusive")
    return f"{statistics.median(values):.3f} ({cuts[0]:.3f} to {cuts[-1]:.3f})"


def compare(one: Comparison, rounds: int) -> Iterator[str]:
    """Print a row; yield the goal that is missed."""
    first = [first_time(one.ours) for _ in range(min(rounds, FIRST_TIMES))]
    one.bare()
    turns = [(milliseconds(one.ours), milliseconds(one.bare)) for _ in range(rounds)]
    ours, bare = map(list, zip(*turns, strict=True))
    ratio = statistics.median(mine / base for mine, base in turns)
    of_medians = statistics.median(ours) / statistics.median(bare)
    cells = (
        spread(ours),
        spread(bare),
        f"{of_medians:.2f}",
        f"{ratio:.2f}",
        one.goal or "",
        f"{statistics.median(first):.3f}",
    )
    print("|", one.title, "|", " | ".join(map(str, cells)), "|", flush=True)
    if one.goal is not None and ratio > one.goal:
        yield f"{one.title} takes {ratio:.2f} times as long as the bare library, {one.goal} is the goal"


def compare_imports(processes: int) -> Iterator[str]:
    """Print what importing takes beyond an interpreter that imports nothing; yield the goal that is missed."""
    statements = {"nothing": "pass", "client": IMPORTS, "verifiers": IMPORTS + VERIFIERS}
    runs = {
        name: partial(subprocess.run, [sys.executable, "-c", each], check=True) for name, each in statements.items()
    }
    turns = [{name: milliseconds(run) for name, run in runs.items()} for _ in range(processes)]
    client, verifiers = ([turn[name] - turn["nothing"] for turn in turns] for name in ("client", "verifiers"))
    print(f"| import of policy and registry, ms | {spread(client)} | {IMPORT_GOAL_MS:.0f} |")
    print(f"| the same, and of all verifiers, ms | {spread(verifiers)} | |")
    if statistics.median(client) > IMPORT_GOAL_MS:
        yield f"the import takes {statistics.median(client):.0f} ms, {IMPORT_GOAL_MS:.0f} are the goal"


def appraisal(label: str, rounds: int) -> None:
    """Print how long a policy takes whose one rule has every key and accepts."""
    case = genuine(label)
    verified = case.verify_with(tee(label).verifier())
    policy = policy_of(label, fitting_table(SCHEMAS[label], verified, case.now))
    run = partial(appraise, verified, policy, now=case.now, report_data=verified.report_data, allow=EVERYTHING)
    print(f"| appraisal of {label}, µs | {spread([1000 * milliseconds(run) for _ in range(rounds)])} | |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"at least 2; {ROUNDS} if not given")
    rounds = max(2, parser.parse_args().rounds)
    libraries = ", ".join(f"{name} {version(name)}" for name in ("cryptography", "dcap-qvl", "cbor2"))
    print(
        f"{rounds} rounds, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; "
        f"CPython {platform.python_version()}, {libraries}; medians, and in brackets 5 % to 95 %\n"
    )
    print("| evidence | ours, ms | bare, ms | ratio of medians | median ratio | goal | first, ms |")
    print("|---|---|---|---|---|---|---|")
    cases = [*((label, genuine(label), "") for label in TEES), *real()]
    missed = [each for case in cases for one in comparisons(*case) for each in compare(one, rounds)]
    print("\n| what else | median (5 % to 95 %) | goal |\n|---|---|---|")
    missed += compare_imports(min(rounds, PROCESSES))
    appraisal("tdx", rounds)
    print("\n" + ("\n".join(f"missed: {each}" for each in missed) or "every goal is met"))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
