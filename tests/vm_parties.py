"""An enclave in a virtual machine for attackers to attack, its honest policy, and how its host can lie of it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import confidant
import pytest
from attacked_servers import OTHER_NAME, AttackedServer
from cryptography import x509

import adyton
from adyton.atls.certificates import spki_sha256
from adyton.errors import AdytonError, PolicyError
from adyton.host.bundles import LOCK, Bundle, runtime_lock
from adyton.host.image.image import Image, build_image
from adyton.host.launch.qemu import launcher as qemu
from adyton.host.launch.registry import launcher
from adyton.host.manager import EnclaveClient, EnclaveManager
from adyton.policy.reference_values import policy_for
from adyton.proto import grpc_application_pb2 as extensions
from adyton.proto.guest import BootDocument

SECONDS = 90.0
"""How long whatever has to do with an emulated machine may take."""
SETTINGS = f"""
name = "confidant"
application = "confidant:Confidant"
include = ["confidant.py"]

[server]
names = ["{OTHER_NAME}"]
plain_tls = true
"""


def confidant_bundle(folder: Path, *, answer: bytes = confidant.ANSWER, settings: str = "") -> Bundle:
    """The bundle of an enclave that answers so; `settings` is more of its enclave.toml."""
    folder.mkdir()
    source = Path(confidant.__file__).read_text()
    (folder / "confidant.py").write_text(source.replace(f'b"{confidant.ANSWER.decode()}"', repr(answer)))
    (folder / "enclave.toml").write_text(SETTINGS + settings)
    (folder / LOCK).write_bytes(runtime_lock())
    return Bundle.build(folder)


def vm_policy(bundle: Bundle) -> bytes:
    """What accepts the bundle in a virtual machine of this host. It ends in an empty [channel] table."""
    honest = launcher("vm")
    text = policy_for(json.dumps(honest.measurements(bundle)).encode(), honest.anchors())
    return f"{text}\n[channel]\n".encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class VmServer(AttackedServer):
    """One in a virtual machine. `honest` is its policy, which demands nothing of the channel."""

    honest: bytes
    enclave: EnclaveClient

    @property
    def heard(self) -> bytes:
        return self.ask("Heard")

    def policy(self, channel: str = "") -> bytes:
        return self.honest + channel.encode()

    def ask(self, method: str, request: bytes = b"") -> bytes:
        """What a method of `Confidant` answers to the test itself."""
        with adyton.connect(self.target, self.honest, timeout=SECONDS) as channel:
            call: Any = channel.unary_unary(f"/{confidant.SERVICE}/{method}")
            answer: bytes = call(request, timeout=SECONDS)
        return answer


def load(manager: EnclaveManager, bundle: Bundle) -> EnclaveClient:
    """Boot the bundle."""
    config = adyton.EnclaveConfig()
    config.Extensions[extensions.server_address] = "127.0.0.1"
    config.Extensions[extensions.port] = 0
    return manager.load("confidant", bundle, config, on="vm", timeout_seconds=SECONDS)


def target_of(enclave: EnclaveClient) -> str:
    return enclave.address_of(enclave.enter_and_run().Extensions[extensions.actual_server_port])


@contextlib.contextmanager
def vm_server(folder: Path) -> Iterator[VmServer]:
    """A running one, whose TLS key has leaked into `folder`."""
    bundle = confidant_bundle(folder / "project")
    with EnclaveManager() as manager:
        enclave = load(manager, bundle)
        ports = enclave.enter_and_run().Extensions
        plain = enclave.address_of(ports[extensions.actual_plain_tls_port])
        unnamed = VmServer(
            folder=folder,
            port=_number(target_of(enclave)),
            plain_port=_number(plain),
            ca_sha256="",
            honest=vm_policy(bundle),
            enclave=enclave,
        )
        leaked = unnamed.ask("Leak")
        start = leaked.index(b"-----BEGIN CERTIFICATE")
        (folder / "key.pem").write_bytes(leaked[:start])
        (folder / "chain.pem").write_bytes(leaked[start:])
        ca = x509.load_pem_x509_certificates(leaked[start:])[-1]
        yield replace(unnamed, ca_sha256=spki_sha256(ca.public_key()).hex())  # type: ignore[arg-type]


def _number(address: str) -> int:
    return int(address.rpartition(":")[2])


def refusal(target: str, policy: bytes) -> AdytonError:
    """How the client that has this policy refuses what is there."""
    with pytest.raises(AdytonError) as caught, adyton.connect(target, policy, timeout=SECONDS):
        pass
    return caught.value


def findings(error: AdytonError) -> dict[str, str]:
    """What a policy has against the evidence: subject → what was got."""
    assert isinstance(error, PolicyError)
    return {finding.subject: finding.got for finding in error.findings}


# --- hosts that lie: each is the launcher of this machine, changed in one way for the length of a test


def boots_another_image(patch: pytest.MonkeyPatch, change: Any) -> None:
    """It boots `change` of the image, an `Image`, and measures what it boots."""
    patch.setattr(qemu, "build_image", lambda *given, **options: change(build_image(*given, **options)))


def tells_the_guest(patch: pytest.MonkeyPatch, **lie: Any) -> None:
    """It puts these fields into the boot document."""
    patch.setattr(qemu, "BootDocument", lambda **fields: BootDocument(**{**fields, **lie}))


def with_one_byte_changed(image: Image, part: str, folder: Path) -> Image:
    """An image of which one byte of "kernel", "system" or "application" differs, that boots as the other does."""
    path: Path = getattr(image, part)
    data = bytearray(path.read_bytes())
    position = _idle_in_kernel(data) if part == "kernel" else _IN_MTIME
    data[position] ^= 1
    changed = folder / part
    changed.write_bytes(data)
    changed.chmod(0o444)
    parts: dict[str, Any] = {part: changed}
    return replace(image, **parts)


_IN_MTIME = 53
"""The last digit of the first entry's time of modification, in a newc archive."""


def _idle_in_kernel(kernel: bytearray) -> int:
    """On x86_64 in the version that the setup header points to, which is for people; on aarch64 a reserved byte."""
    if kernel[0x202:0x206] != b"HdrS":
        return 0x20
    return int.from_bytes(kernel[0x20E:0x210], "little") + 0x200 + 2
