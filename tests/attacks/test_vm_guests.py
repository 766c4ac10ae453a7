"""Attacks by what runs in a guest: an impostor of another firmware, and an application that wants to be root."""

from __future__ import annotations

from pathlib import Path

import pytest
from machines import LOAD_SECONDS, boots, needs_ovmf

import adyton
from adyton.errors import PolicyError
from adyton.host.bundles import Bundle
from adyton.host.image.image import build_image
from adyton.host.image.reference import ovmf
from adyton.host.launch.qemu.firmware import find_ovmf
from adyton.host.launch.qemu.machine import linux_command_line
from adyton.host.manager import EnclaveManager
from adyton.proto.grpc_application_pb2 import actual_server_port
from adyton.testing.policies import launcher_policy
from adyton.testing.probes import PLAIN, SERVER, answer, command, config, server_config, write_probe_project

pytestmark = [*boots, pytest.mark.timeout(400)]

#: What an impostor does when it is imported: it writes the registers of another machine's boot, and its event log.
IMPOSTOR = """
import os, struct
def extend(register, digest):
    session = struct.pack(">IHBH", 0x40000009, 0, 0, 0)
    body = struct.pack(">II", register, len(session)) + session + struct.pack(">IH", 1, 0xB) + digest
    tpm = os.open("/dev/tpmrm0", os.O_RDWR)
    os.write(tpm, struct.pack(">HII", 0x8002, 10 + len(body), 0x182) + body)
    assert os.read(tpm, 4096)[6:10] == bytes(4)
    os.close(tpm)
for register, digest in {events!r}:
    extend(register, bytes.fromhex(digest))
"""
#: What tells whether it was ever imported by root.
WATCHED = """
import os, sys
print(f"imported by uid {os.getuid()} in {os.getpid()}", file=sys.stderr, flush=True)
"""


def measured_by_firmware(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """Register and digest of each event that OVMF would extend: anybody can compute them from public files."""
    extended: dict[bytes, tuple[bytes, ...]] = {}
    extend = ovmf._extended

    def remember(*digests: bytes) -> bytes:
        value = extend(*digests)
        extended[value] = digests
        return value

    monkeypatch.setattr(ovmf, "_extended", remember)
    image = build_image(bundle, architecture="x86_64")
    pcrs = ovmf.ovmf_pcrs(
        firmware=find_ovmf().read_bytes(),
        kernel=image.kernel.read_bytes(),
        initrd=image.system.read_bytes() + image.application.read_bytes(),
        command_line=linux_command_line("x86_64"),
        memory_mb=bundle.settings.vm.memory_mb,
    )
    return [(index, digest.hex()) for index, value in pcrs.items() for digest in extended[value]]


@needs_ovmf
def test_a_machine_without_firmware_that_writes_anothers_registers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PCR 1 to 9 are as the policy wants them, for the guest has written them. PCR 0 can't be."""
    genuine = Bundle.build(write_probe_project(tmp_path / "genuine", SERVER, '[vm]\nfirmware = "ovmf"\n'))
    policy = launcher_policy(genuine, on="vm")
    events = measured_by_firmware(genuine, monkeypatch)
    project = write_probe_project(tmp_path / "impostor", SERVER)
    with (project / "probe" / "servers.py").open("a") as servers:
        servers.write(IMPOSTOR.format(events=events))
    with EnclaveManager() as manager:
        bundle = Bundle.build(project)
        impostor = manager.load("impostor", bundle, server_config(), on="vm", timeout_seconds=LOAD_SECONDS)
        address = impostor.address_of(impostor.enter_and_run().Extensions[actual_server_port])
        with pytest.raises(PolicyError) as refused:
            adyton.connect(address, policy, timeout=60)
    (finding,) = [each for each in refused.value.findings if each.subject == "pcrs"]
    assert finding.wanted.startswith("0=")
    assert "; " not in finding.wanted, "only PCR 0 is another"


def test_nothing_of_the_application_is_imported_by_root(tmp_path: Path) -> None:
    """Names that Python's own modules try to import, and those of packages: the application has modules called so."""
    project = write_probe_project(tmp_path / "probe", PLAIN)
    for path in ("org/__init__.py", "org/python/__init__.py", "org/python/core.py", "cbor2.py", "sitecustomize.py"):
        (project / path).parent.mkdir(parents=True, exist_ok=True)
        (project / path).write_text(WATCHED)
    text = (project / "enclave.toml").read_text()
    include = 'include = ["probe", "org", "cbor2.py", "sitecustomize.py"]'
    (project / "enclave.toml").write_text(text.replace('include = ["probe"]', include))
    with EnclaveManager() as manager:
        enclave = manager.load("probe", Bundle.build(project), config(), on="vm", timeout_seconds=LOAD_SECONDS)
        assert answer(enclave.enter_and_run(command("answer hello"))) == "hello"
        printed = "\n".join(enclave.log_tail())
    assert "imported by uid 0" not in printed
