"""The attacker is the host of virtual machines: it boots what it likes, and tells the guest what it likes.

Its TPM is a program of its own, so it has one way to win, and a test shows it. Beside it stands the attacker inside:
code of the enclave that has turned, with the rights that the enclave has.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
from attack_expectations import pinning
from attacked_clients import TELLERS
from attacks.test_hostile_hosts import (
    bundle,
    project,
    test_a_genuine_enclave_with_a_configuration_that_is_not_the_pinned_one,
    test_an_impostor_that_differs_in_one_byte_takes_the_port_over,
    test_evidence_that_the_host_asks_for_over_bytes_of_its_choice,
)
from machines import boots
from vm_parties import (
    SECONDS,
    boots_another_image,
    confidant_bundle,
    findings,
    load,
    refusal,
    target_of,
    tells_the_guest,
    vm_policy,
    vm_server,
    with_one_byte_changed,
)

from adyton.atls.binding import carried, host_report_data
from adyton.errors import EvidenceError, PolicyError, UnsupportedError
from adyton.host.bundles import Bundle
from adyton.host.image.image import Image, build_image
from adyton.host.image.reference.hcrtm import event_log, launch_document
from adyton.host.image.reference.ovmf import ovmf_events
from adyton.host.launch.qemu import launcher as qemu
from adyton.host.launch.qemu.firmware import find_firmware
from adyton.host.launch.qemu.machine import linux_command_line
from adyton.host.launch.qemu.sandbox import new_uid
from adyton.host.launch.qemu.vtpm import Vtpm
from adyton.host.launch.qemu.vtpm_authority import VtpmAuthority
from adyton.host.manager import EnclaveManager
from adyton.policy.appraisal import evaluate
from adyton.policy.document import Policy
from adyton.tee.tpm.launch import pcr0

__all__ = [
    "bundle",
    "project",
    "test_a_genuine_enclave_with_a_configuration_that_is_not_the_pinned_one",
    "test_an_impostor_that_differs_in_one_byte_takes_the_port_over",
    "test_evidence_that_the_host_asks_for_over_bytes_of_its_choice",
]

pytestmark = [*boots, pytest.mark.timeout(300)]
HERE = platform.machine()


@pytest.fixture(scope="module")
def technology() -> str:
    """For the tests that are those of every host."""
    return "vm"


@pytest.fixture(scope="module")
def attacked(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """What the host was asked to run."""
    return confidant_bundle(tmp_path_factory.mktemp("attacked") / "project")


@pytest.fixture(scope="module")
def accepted(attacked: Bundle) -> bytes:
    """The client's policy, made before the host begins to lie."""
    return vm_policy(attacked)


@pytest.fixture
def boot(manager: EnclaveManager) -> Callable[[Bundle], str]:
    """Start it as this host does, and say where clients find it."""
    return lambda bundle: target_of(load(manager, bundle))


Boot = Callable[[Bundle], str]


def image_of(bundle: Bundle) -> Image:
    return build_image(bundle, architecture=HERE)


def changing(monkeypatch: pytest.MonkeyPatch, part: str, folder: Path) -> Callable[[Image, str], tuple[Image, str]]:
    """From now on one byte of that part is another where it is booted; what image and command line are then."""
    if part == "command-line":
        monkeypatch.setattr(qemu, "linux_command_line", lambda name: other_command_line(linux_command_line(name)))
        return lambda image, command_line: (image, other_command_line(command_line))
    boots_another_image(monkeypatch, lambda image: with_one_byte_changed(image, part, folder))
    return lambda image, command_line: (with_one_byte_changed(image, part, folder), command_line)


def other_command_line(genuine: str) -> str:
    other = genuine.replace("loglevel=4", "loglevel=5")
    assert other != genuine
    return other


# --- what is booted


@pytest.mark.parametrize("part", ["kernel", "system", "application", "command-line"])
def test_one_byte_of_what_is_booted_is_refused_by_its_name(
    boot: Boot, attacked: Bundle, accepted: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, part: str
) -> None:
    image, line = changing(monkeypatch, part, tmp_path)(image_of(attacked), linux_command_line(HERE))
    digests = {name: sha256(getattr(image, name).read_bytes()) for name in ("kernel", "system", "application")}
    document = launch_document(digests, line)
    error = refusal(boot(attacked), accepted)
    assert isinstance(error, grpc.RpcError)
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    measured = digests.get(part, sha256(line.encode()))
    assert findings(error) == {"pcrs": f"0={pcr0(document).hex()}", "launch": f"{part}={measured.hex()}"}


def test_a_host_that_measures_one_image_and_boots_another_is_believed(
    boot: Boot, attacked: Bundle, accepted: bytes, secret: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The documented limit: this TPM is the host's own program. On SEV-SNP or TDX it is not the host that measures."""
    genuine, other = image_of(attacked), image_of(confidant_bundle(tmp_path / "other", answer=b"impostor: "))
    boots_another_image(monkeypatch, lambda _: other)
    put = qemu._booted
    monkeypatch.setattr(qemu, "_booted", lambda *given: replace(put(*given), digests=genuine.digests()))
    assert TELLERS["threads"](boot(attacked), accepted, secret, timeout=SECONDS) == b"impostor: " + secret


def test_another_machine_of_the_same_image_is_as_good_unless_the_policy_pins_the_ca(
    boot: Boot, attacked: Bundle, accepted: bytes, secret: bytes, tmp_path: Path
) -> None:
    with vm_server(tmp_path) as server:
        pinned = pinning(server)
        assert TELLERS["threads"](server.target, pinned, secret, timeout=SECONDS) == b"genuine: " + secret
    target = boot(attacked)
    assert TELLERS["threads"](target, accepted, secret, timeout=SECONDS) == b"genuine: " + secret
    assert findings(refusal(target, pinned)).keys() == {"channel.ca_sha256"}


# --- what is told


def launch_log(image: Image) -> bytes:
    return event_log(launch_document(image.digests(), linux_command_line(HERE)))


def test_the_log_of_the_image_that_was_asked_for_does_not_hide_another(
    boot: Boot, attacked: Bundle, accepted: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tells_the_guest(monkeypatch, event_log=launch_log(image_of(attacked)))
    changing(monkeypatch, "application", tmp_path)
    found = findings(refusal(boot(attacked), accepted))
    assert found["pcrs"].startswith("0=")
    assert found["launch"] == "application=missing; command-line=missing; kernel=missing; system=missing"


@pytest.mark.parametrize("lie", ["no log", "another boot's"])
def test_a_log_that_is_not_of_this_boot_explains_nothing(
    boot: Boot, attacked: Bundle, accepted: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lie: str
) -> None:
    """Even where the right image runs: a policy that wants to know the parts is not satisfied with less."""
    other = image_of(confidant_bundle(tmp_path / "other", answer=b"impostor: "))
    tells_the_guest(monkeypatch, event_log=launch_log(other) if lie == "another boot's" else b"")
    found = findings(refusal(boot(attacked), accepted))
    assert found == {"launch": "application=missing; command-line=missing; kernel=missing; system=missing"}


def test_the_certificate_of_another_tpm_is_not_this_ones(
    boot: Boot, attacked: Bundle, accepted: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = Vtpm.start(tmp_path, document=None, authority=VtpmAuthority.open(), uid=new_uid())
    other.close()
    tells_the_guest(monkeypatch, certificates=other.certificates)
    error = refusal(boot(attacked), accepted)
    assert isinstance(error, EvidenceError)
    assert "none of the certificates is its own" in error.message


def test_a_tpm_of_another_maker_is_not_trusted(
    boot: Boot, attacked: Bundle, accepted: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = VtpmAuthority.open(tmp_path)
    monkeypatch.setattr(qemu, "VtpmAuthority", SimpleNamespace(open=lambda: other))
    error = refusal(boot(attacked), accepted)
    assert isinstance(error, EvidenceError)
    assert "does not end in a root that is trusted" in error.message


# --- from inside


@pytest.mark.parametrize(
    ("trick", "message"),
    [
        ("another key", "none of the certificates is its own"),
        ("a key that certifies itself", "no valid path to the trusted root"),
    ],
)
def test_code_that_has_turned_can_not_quote_in_software(tmp_path: Path, trick: str, message: str) -> None:
    with vm_server(tmp_path) as server:
        server.ask("Turn", trick.encode())
        error = refusal(server.target, server.honest)
    assert isinstance(error, EvidenceError)
    assert message in error.message


def test_code_that_has_turned_can_not_take_back_what_was_measured(tmp_path: Path) -> None:
    """It adds to a register, and is itself refused from then on; and a quote from before is of another nonce."""
    with vm_server(tmp_path) as server:
        before = server.enclave.collect_evidence(b"\1" * 64)
        server.ask("Turn", b"extend PCR 0")
        error = refusal(server.target, server.honest)
    assert findings(error)["launch"] == "application=missing; command-line=missing; kernel=missing; system=missing"
    assert findings(error)["pcrs"].startswith("0=")
    policy = Policy.parse(server.honest)
    evaluate(before, policy, now=datetime.now(UTC), report_data=carried("tpm", host_report_data(b"\1" * 64)))
    with pytest.raises(PolicyError) as caught:
        evaluate(before, policy, now=datetime.now(UTC), report_data=carried("tpm", host_report_data(b"\2" * 64)))
    assert findings(caught.value).keys() == {"report_data"}


# --- where firmware measures


@pytest.fixture(scope="module")
def with_ovmf(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    try:
        find_firmware(HERE, "ovmf")
    except UnsupportedError as problem:
        pytest.skip(str(problem))
    settings = '[vm]\nfirmware = "ovmf"\n'
    return confidant_bundle(tmp_path_factory.mktemp("ovmf") / "project", settings=settings)


def test_what_is_computed_of_firmware_is_what_the_tpm_quotes(boot: Boot, with_ovmf: Bundle, secret: bytes) -> None:
    policy = vm_policy(with_ovmf)
    assert all(f'"{register}" = ["' in policy.decode() for register in range(1, 10))
    assert TELLERS["threads"](boot(with_ovmf), policy, secret, timeout=SECONDS) == b"genuine: " + secret


@pytest.mark.parametrize(
    ("part", "register", "name"),
    [("kernel", 4, "kernel"), ("application", 9, "initrd"), ("command-line", 9, "command-line")],
)
def test_firmware_tells_of_one_byte_of_what_is_booted(
    boot: Boot,
    with_ovmf: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    part: str,
    register: int,
    name: str,
) -> None:
    policy = vm_policy(with_ovmf)
    image, line = changing(monkeypatch, part, tmp_path)(image_of(with_ovmf), linux_command_line(HERE))
    events = ovmf_events(
        kernel=image.kernel.read_bytes(),
        initrd=image.system.read_bytes() + image.application.read_bytes(),
        command_line=line,
        memory_mb=with_ovmf.settings.vm.memory_mb,
    )
    found = findings(refusal(boot(with_ovmf), policy))
    assert found["launch"] == f"{name}={events[name].hex()}"
    assert found["pcrs"].startswith(f"{register}=")
    assert ";" not in found["pcrs"]


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
