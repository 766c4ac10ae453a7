"""The runtime in a real guest finds SEV-SNP, TDX, CCA and Nitro by itself, where the guest's own kernel has them.

The hardware is emulated inside the guest, in its kernel's own files (FUSE over the kernel's own configfs-tsm, CUSE as
/dev/nsm), and signs under fake vendors' roots. Everything else is the product's: PID 1 gives the hardware to the
enclave's unprivileged process or asks it for that process, and the evidence comes out to be verified.
"""

from __future__ import annotations

import lzma
import struct
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import cbor2
import guest_devices
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from guest_devices.template import REPORT_DATA, Template
from machines import LOAD_SECONDS, boots, quoted

import adyton.testing
from adyton.atls.binding import host_report_data
from adyton.bundle.archive import encode_archive, parse_archive
from adyton.errors import ApplicationError
from adyton.host.bundles import Bundle
from adyton.host.image.apt import KERNEL_PREFIX, fetch
from adyton.host.image.architecture import host_architecture
from adyton.host.image.cache import Cache, default_cache
from adyton.host.image.deb import read_deb
from adyton.host.image.locking import choose_lock, locked_packages
from adyton.host.image.tree import File
from adyton.host.launch import registry
from adyton.host.launch.qemu.launcher import QemuLauncher
from adyton.host.manager import EnclaveClient, EnclaveManager
from adyton.tee.evidence import Endorsement, Evidence
from adyton.tee.registry import tee
from adyton.testing import cca, dcap, nitro, snp, snp_pki
from adyton.testing.forgery import Case
from adyton.testing.probes import config, probe_bundle

pytestmark = [*boots, pytest.mark.timeout(300)]

Ask = Callable[[EnclaveClient, str], str]
PID1 = "runtime/adyton/enclave/guest/pid1.py"
PLUG = b"\nfrom guest_devices import plug\n\nplug.plug_in()\n"
CUSE = "/kernel/fs/fuse/cuse.ko.xz"
#: In the order of a report's certificates: leaf, ASK, ARK.
SNP_GUIDS = (
    "63da758d-e664-4564-adc5-f4b93be8accd",
    "4ab7b379-bbac-4fe4-a02f-05aef327c782",
    "c0b406a4-a803-4952-9743-3fb6014cd0ae",
)
QUESTIONS = (b"first question".ljust(64), b"another one".ljust(64))


Load = Callable[[Bundle, str], EnclaveClient]


class WithoutTpm(QemuLauncher):
    """What the machines of SEV-SNP, TDX, CCA and Nitro have in common."""

    def _start_tpm(self, *_: object) -> None:
        return None


@pytest.fixture
def load(manager: EnclaveManager, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Start a bundle on a technology."""
    monkeypatch.setitem(registry.LAUNCHERS, "without-tpm", f"{__name__}:WithoutTpm")
    return lambda bundle, on: manager.load("probe", bundle, config(), on=on, timeout_seconds=LOAD_SECONDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vendor:
    """A fake one: what its hardware makes evidence from, and a genuine case, for its anchors and its time.

    `endorsements` do not come from the hardware but from elsewhere, as collateral does.
    """

    template: Template
    case: Case
    endorsements: tuple[Endorsement, ...] = ()


def amd() -> Vendor:
    case = snp.SnpVendor().case(snp.SnpRecipe(report=snp.put(0x50, REPORT_DATA)))
    certificates = [each.data for each in case.evidence.endorsements]
    template = Template(
        provider="sev_guest",
        key=_der(snp_pki.leaf_key()),
        evidence=case.evidence.data,
        message=case.evidence.data[:0x2A0],
        signature_at=0x2A0,
        number_bytes=72,
        digest_bits=384,
        little_endian=True,
        staples=_cert_table(certificates),
    )
    return Vendor(template=template, case=case)


def _cert_table(certificates: list[bytes]) -> bytes:
    table, position = b"", 24 * (len(certificates) + 1)
    for guid, der in zip(SNP_GUIDS, certificates, strict=True):
        table += uuid.UUID(guid).bytes + struct.pack("<II", position, len(der))
        position += len(der)
    return b"".join((table, bytes(24), *certificates))


def intel() -> Vendor:
    vendor = dcap.DcapVendor()
    case = vendor.case("tdx", dcap.QuoteRecipe(edit_body=dcap.overwrite(520, REPORT_DATA)))
    signed = 48 + 584
    template = Template(
        provider="tdx_guest",
        key=_der(vendor.attestation_key),
        evidence=case.evidence.data,
        message=case.evidence.data[:signed],
        signature_at=signed + 4,
        number_bytes=32,
        digest_bits=256,
    )
    return Vendor(template=template, case=case, endorsements=case.evidence.endorsements)


def arm() -> Vendor:
    case = cca.CcaVendor().case(realm={10: REPORT_DATA})
    realm = cbor2.loads(cbor2.loads(case.evidence.data).value[44241][1])
    template = _signed_last("arm_cca_guest", cca.REALM_KEY, case.evidence.data, realm.value)
    return Vendor(template=template, case=case, endorsements=case.evidence.endorsements)


def aws() -> Vendor:
    key = nitro.new_p384_key()
    recipe = nitro.DocumentRecipe(
        leaf=replace(nitro.LEAF, new_key=lambda: key), edit_claims=nitro.given(user_data=REPORT_DATA)
    )
    case = nitro.NitroVendor().case(recipe)
    return Vendor(template=_signed_last("nsm", key, case.evidence.data, cbor2.loads(case.evidence.data)), case=case)


def _signed_last(provider: str, key: ec.EllipticCurvePrivateKey, evidence: bytes, parts: list[bytes]) -> Template:
    """Evidence that ends with the signature of a COSE_Sign1 of those four parts."""
    protected, _, payload, signature = parts
    assert evidence.endswith(signature)
    return Template(
        provider=provider,
        key=_der(key),
        evidence=evidence,
        message=cbor2.dumps(["Signature1", protected, b"", payload]),
        signature_at=len(evidence) - len(signature),
        number_bytes=48,
        digest_bits=384,
    )


def _der(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


def bundle_with(template: Template | None, **more: bytes) -> Bundle:
    """The probe's bundle, with that hardware beside PID 1. `more`: files of the hardware's, by name.

    Without a template there is configfs-tsm, and nobody to answer for it.
    """
    files = dict(parse_archive(probe_bundle().data))
    files[PID1] += PLUG
    here, kernels = Path(guest_devices.__file__).parent, Path(adyton.testing.__file__).parent
    for path in here.glob("*.py"):
        files[f"runtime/guest_devices/{path.name}"] = path.read_bytes()
    for name in ("__init__", "kernels/__init__", "kernels/emulated", "kernels/nsm", "kernels/tsm"):
        files[f"runtime/adyton/testing/{name}.py"] = (kernels / f"{name}.py").read_bytes()
    if template is not None:
        files["runtime/guest_devices/template.json"] = template.encode()
    files |= {f"runtime/guest_devices/{name}": content for name, content in more.items()}
    return Bundle.parse(encode_archive(files))


def cuse_module(bundle: Bundle) -> bytes:
    """The driver of CUSE, of the very kernel that the image has; its signature is Debian's."""
    architecture, cache = host_architecture(), Cache(default_cache())
    lock = choose_lock(parse_archive(bundle.data), (architecture,), cache, print)
    (package,) = (each for each in locked_packages(lock, architecture) if each.name.startswith(KERNEL_PREFIX))
    path = fetch([package], architecture, cache, print)[package.name]
    (module,) = read_deb(path.read_bytes(), package.name, lambda name: name.endswith(CUSE)).values()
    assert isinstance(module, File)
    return lzma.decompress(module.content)


def verified(vendor: Vendor, evidence: Evidence, question: bytes) -> None:
    """Genuine under the fake root, and about that question."""
    whole = replace(evidence, endorsements=(*evidence.endorsements, *vendor.endorsements))
    found = replace(vendor.case, evidence=whole).verify_with(tee(evidence.tee).verifier())
    assert found.report_data == host_report_data(question)


def evidence_of(enclave: EnclaveClient, vendor: Vendor) -> list[Evidence]:
    """Verified answers to two questions."""
    answers = [enclave.collect_evidence(each, timeout_seconds=60) for each in QUESTIONS]
    for question, evidence in zip(QUESTIONS, answers, strict=True):
        verified(vendor, evidence, question)
    return answers


@pytest.mark.parametrize(("label", "make"), [("snp", amd), ("tdx", intel), ("cca", arm)], ids=["SEV-SNP", "TDX", "CCA"])
def test_an_enclave_in_a_guest_gives_evidence_of_the_configfs_tsm_that_it_finds(
    label: str, make: Callable[[], Vendor], load: Load, ask: Ask
) -> None:
    vendor = make()
    enclave = load(bundle_with(vendor.template), "without-tpm")
    assert {each.tee for each in evidence_of(enclave, vendor)} == {label}
    with pytest.raises(ApplicationError, match="uncaught PermissionError in run"):
        ask(enclave, "write /sys/kernel/config/tsm/report/x/inblob")


def test_an_enclave_in_a_guest_asks_the_nitro_security_module_that_it_finds(load: Load) -> None:
    vendor = aws()
    bundle = bundle_with(vendor.template, **{"cuse.ko": cuse_module(probe_bundle())})
    enclave = load(bundle, "without-tpm")
    assert {each.tee for each in evidence_of(enclave, vendor)} == {"nitro"}


def test_a_configfs_tsm_that_nobody_answers_for_leaves_the_evidence_to_the_tpm(load: Load) -> None:
    """As where a driver was loaded that found nothing to drive. The folder is the kernel's own."""
    enclave = load(bundle_with(None), "vm")
    assert quoted(enclave).tee == "tpm"


def test_a_machine_without_any_such_hardware_runs_and_has_no_evidence(load: Load, ask: Ask) -> None:
    enclave = load(probe_bundle(), "without-tpm")
    assert ask(enclave, "answer hello") == "hello"
    with pytest.raises(ApplicationError, match="has no device that makes evidence"):
        enclave.collect_evidence(bytes(64), timeout_seconds=60)
    assert any("no hardware here that gives evidence" in line for line in enclave.log_tail())
