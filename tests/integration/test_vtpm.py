"""The virtual machine's TPM: real swtpm, as QEMU speaks to it, and evidence as the guest's device collects it."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from vtpms import (
    DIGESTS,
    DOCUMENT,
    OK,
    PCR_RESET,
    REPORT_DATA,
    SECONDS,
    STARTUP,
    STORE_VOLATILE,
    TPM_FAIL,
    ends,
    needs_swtpm,
    pcr_0,
    quoted,
    running,
)

from adyton.errors import EvidenceError, LaunchError
from adyton.host.image.reference.hcrtm import launch_document
from adyton.host.launch.qemu.swtpm_control import Command, SwtpmControl, pass_on
from adyton.host.launch.qemu.vtpm_authority import ROOT_COMMON_NAME, VtpmAuthority
from adyton.tee._event_log import authenticated
from adyton.tee._tpm_quote import EVENT_LOG
from adyton.tee.tpm.launch import HCRTM_EVENT, parse_launch, pcr0
from adyton.testing.kernels.emulated import Files
from adyton.testing.tpm_quotes import agile_log


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> VtpmAuthority:
    return VtpmAuthority.open(tmp_path_factory.mktemp("authority"))


# --- the launch in the evidence


@needs_swtpm
def test_a_guest_proves_what_was_launched(tmp_path: Path, authority: VtpmAuthority) -> None:
    with running(tmp_path, authority) as (vtpm, qemu):
        verified = quoted(qemu, authority, vtpm.certificates, vtpm.event_log)
    assert verified.report_data == hashlib.sha256(REPORT_DATA).digest()
    assert verified.ak_provenance == "certificate"
    assert verified.quote.clock_safe  # so its maker left it in order
    assert verified.quote.pcrs["sha256"][0] == pcr0(DOCUMENT)
    (event,) = verified.quote.events[0]
    assert (event.event_type, authenticated(event)) == (HCRTM_EVENT, True)
    assert dict(parse_launch(event.data)) == {**DIGESTS, "command-line": hashlib.sha256(b"panic=-1").digest()}


@needs_swtpm
def test_without_a_document_nothing_is_measured(tmp_path: Path, authority: VtpmAuthority) -> None:
    with running(tmp_path, authority, document=None) as (vtpm, qemu):
        assert vtpm.event_log == b""
        assert pcr_0(qemu, vtpm, authority) == bytes(32)


@needs_swtpm
def test_the_log_that_a_device_is_given_goes_before_the_kernels(tmp_path: Path, authority: VtpmAuthority) -> None:
    log = agile_log([(4, 5, b"boot loader")], banks=["sha256"])
    kernels = Files(**{EVENT_LOG: log})
    with running(tmp_path, authority) as (vtpm, qemu):
        qemu.extend(4, b"boot loader")
        own = quoted(qemu, authority, vtpm.certificates, None, kernels).quote.events
        given = quoted(qemu, authority, vtpm.certificates, vtpm.event_log, kernels).quote.events
        none = quoted(qemu, authority, vtpm.certificates, b"", kernels).quote.events
    assert (set(own), set(given), set(none)) == ({4}, {0}, set())


@needs_swtpm
def test_another_byte_is_another_pcr_0(tmp_path: Path, authority: VtpmAuthority) -> None:
    changed = launch_document(DIGESTS, "panic=-2")
    with running(tmp_path, authority, changed) as (vtpm, qemu):
        value = pcr_0(qemu, vtpm, authority)
        proven = quoted(qemu, authority, vtpm.certificates, b"").quote.pcrs["sha256"][0]
    assert value == proven == pcr0(changed) != pcr0(DOCUMENT)


@needs_swtpm
def test_the_log_of_another_launch_proves_nothing(tmp_path: Path, authority: VtpmAuthority) -> None:
    with running(tmp_path / "a", authority) as (expected, _):
        log = expected.event_log
    with running(tmp_path / "b", authority, launch_document(DIGESTS, "panic=-2")) as (vtpm, qemu):
        assert quoted(qemu, authority, vtpm.certificates, log).quote.events == {}


@needs_swtpm
def test_a_reset_machine_is_measured_again_and_keeps_nothing(tmp_path: Path, authority: VtpmAuthority) -> None:
    with running(tmp_path, authority) as (vtpm, qemu):
        qemu.extend(0, b"from the guest")
        qemu.extend(8, b"from the guest")
        before = quoted(qemu, authority, vtpm.certificates, vtpm.event_log).quote.pcrs["sha256"]
        qemu.reset()
        after = quoted(qemu, authority, vtpm.certificates, vtpm.event_log).quote.pcrs["sha256"]
    assert before[0] != pcr0(DOCUMENT)
    assert before[8] != bytes(32)
    assert (after[0], after[8]) == (pcr0(DOCUMENT), bytes(32))


@needs_swtpm
@pytest.mark.parametrize("locality", range(5))
def test_a_guest_can_not_reset_what_the_boot_measured(tmp_path: Path, authority: VtpmAuthority, locality: int) -> None:
    with running(tmp_path, authority) as (vtpm, qemu):
        qemu.extend(0, b"from the guest")
        extended = pcr_0(qemu, vtpm, authority)
        assert qemu.command(Command.SET_LOCALITY, bytes([locality, 0, 0, 0])) == OK  # QEMU pads it
        reset = {index for index in range(24) if qemu.on_pcr(PCR_RESET, index) == OK}
        assert reset.isdisjoint(range(16))
        assert 16 in reset or locality == 4  # the debugging PCR: so the commands were in order
        assert pcr_0(qemu, vtpm, authority) == extended


@needs_swtpm
def test_a_guest_that_starts_the_tpm_again_changes_nothing(tmp_path: Path, authority: VtpmAuthority) -> None:
    with running(tmp_path, authority) as (vtpm, qemu):
        qemu.extend(0, b"from the guest")
        extended = pcr_0(qemu, vtpm, authority)
        assert qemu.transmit(struct.pack(">HIIH", 0x8001, 12, STARTUP, 0))[6:10] != OK
        assert pcr_0(qemu, vtpm, authority) == extended


# --- the proxy


@needs_swtpm
@pytest.mark.parametrize("command", [Command.HASH_START, Command.HASH_DATA, Command.HASH_END, STORE_VOLATILE, 99])
def test_qemu_can_not_measure_nor_carry_the_tpm_away(tmp_path: Path, authority: VtpmAuthority, command: int) -> None:
    with running(tmp_path, authority) as (vtpm, qemu):
        assert qemu.command(command) == b""
        assert ends(vtpm.process)
        assert vtpm.explain().startswith(
            f"QEMU gave the virtual TPM the command {int(command)}, which is not passed on"
        )


@needs_swtpm
def test_qemu_gets_the_whole_of_each_answer(tmp_path: Path, authority: VtpmAuthority) -> None:
    bodies = {Command.SET_BUFFERSIZE: bytes(4), Command.SET_LOCALITY: b"\0", Command.RESET_TPMESTABLISHED: bytes(4)}
    sizes = {Command.GET_CAPABILITY: 8, Command.GET_TPMESTABLISHED: 8, Command.GET_CONFIG: 8}
    sizes |= {Command.SET_BUFFERSIZE: 16, Command.SET_LOCALITY: 4, Command.CANCEL_TPM_CMD: 4}
    sizes |= {Command.RESET_TPMESTABLISHED: 4, Command.STOP: 4}
    with running(tmp_path, authority) as (_, qemu):
        answers = {command: qemu.command(command, bodies.get(command, b"")) for command in sizes}
        assert {command: len(answer) for command, answer in answers.items()} == sizes
        not_running = qemu.command(Command.GET_TPMESTABLISHED)
    assert not_running == struct.pack(">I", 10)  # no more than the error


@needs_swtpm
def test_commands_may_come_in_pieces(tmp_path: Path, authority: VtpmAuthority) -> None:
    with running(tmp_path, authority) as (vtpm, qemu):
        for byte in struct.pack(">II", Command.INIT, 0):
            qemu.control.sendall(bytes([byte]))
            time.sleep(0.01)
        assert qemu.control.recv(16) == OK
        assert qemu.transmit(struct.pack(">HIIH", 0x8001, 12, STARTUP, 0))[6:10] == OK
        assert pcr_0(qemu, vtpm, authority) == pcr0(DOCUMENT)


@pytest.mark.parametrize("refused", [Command.HASH_START, Command.HASH_DATA, Command.HASH_END])
def test_a_tpm_that_does_not_measure_does_not_start(refused: Command) -> None:
    seen: list[int] = []

    def swtpm(connection: socket.socket) -> None:
        while request := connection.recv(8192):
            (command,) = struct.unpack_from(">I", request)
            seen.append(command)
            connection.sendall(TPM_FAIL if command == refused else OK)

    with proxied(swtpm) as qemu:
        qemu.sendall(struct.pack(">II", Command.INIT, 0))
        assert qemu.recv(16) == TPM_FAIL
    assert seen[0] == Command.INIT
    assert seen[-2:] == [refused, Command.STOP]


def test_a_tpm_that_neither_measures_nor_stops_is_hung_up_on() -> None:
    def swtpm(connection: socket.socket) -> None:
        while request := connection.recv(8192):
            (command,) = struct.unpack_from(">I", request)
            connection.sendall(OK if command == Command.INIT else TPM_FAIL)

    with proxied(swtpm) as qemu:
        qemu.sendall(struct.pack(">II", Command.INIT, 0))
        assert qemu.recv(16) == b""


def test_the_answer_of_a_tpm_that_shuts_down_arrives() -> None:
    def swtpm(connection: socket.socket) -> None:
        connection.recv(8192)
        connection.sendall(OK)

    for _ in range(100):  # a second write, even an empty one, would sometimes come after swtpm's end
        with proxied(swtpm) as qemu:
            qemu.sendall(struct.pack(">I", Command.SHUTDOWN))
            assert qemu.recv(16) == OK


@contextmanager
def proxied(swtpm: Callable[[socket.socket], None]) -> Iterator[socket.socket]:
    """QEMU's end of a proxy in front of a control channel that does what `swtpm` does."""
    qemu, proxy = socket.socketpair()
    ours, theirs = socket.socketpair()
    qemu.settimeout(SECONDS)

    def run_proxy() -> None:
        with proxy, ours, contextlib.suppress(OSError, LaunchError):
            pass_on(proxy, SwtpmControl(ours), DOCUMENT)

    def run_swtpm() -> None:
        with theirs:
            swtpm(theirs)

    threads = [threading.Thread(target=run) for run in (run_proxy, run_swtpm)]
    for thread in threads:
        thread.start()
    try:
        yield qemu
    finally:
        qemu.close()
        for thread in threads:
            thread.join(SECONDS)
            assert not thread.is_alive()


# --- the authority


def test_the_root_is_made_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    root = VtpmAuthority.open().root
    assert VtpmAuthority.open().root == root
    assert root.subject.rfc4514_string() == f"CN={ROOT_COMMON_NAME}"
    path = tmp_path / "adyton/vtpm/root.pem"
    assert (path.stat().st_mode & 0o777, [each.name for each in path.parent.iterdir()]) == (0o600, ["root.pem"])
    path.chmod(0o644)
    with pytest.raises(LaunchError, match=r"the virtual TPM's root .* can be read by others"):
        VtpmAuthority.open()


def test_a_root_without_a_place_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setenv("HOME", "relative")
    with pytest.raises(LaunchError, match="there is no place for the virtual TPM's root"):
        VtpmAuthority.open()


def test_a_certificate_is_for_attestation_only_and_ends_with_its_root(tmp_path: Path) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    authority = VtpmAuthority.open(tmp_path, clock=lambda: now)
    leaf, root = map(x509.load_der_x509_certificate, authority.certify(spki))
    assert (leaf.public_key(), root) == (key, authority.root)
    assert leaf.not_valid_after_utc == root.not_valid_after_utc > now + timedelta(days=3650)
    assert leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    usages = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert [usage.dotted_string for usage in usages] == ["2.23.133.8.3"]


def test_only_keys_of_elliptic_curves_are_certified(authority: VtpmAuthority) -> None:
    key = rsa.generate_private_key(65537, 2048).public_key()
    with pytest.raises(EvidenceError, match="not one of an elliptic curve"):
        authority.certify(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(EvidenceError, match="the attestation key does not parse"):
        authority.certify(b"no key")
