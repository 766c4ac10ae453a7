"""A virtual machine from nothing to its first attested RPC, beside a bare boot: `python3 dev.py bench vm`.

Both take turns, so that what else this machine does meets both. The bare machine is the same one, with the same
initramfs, but for the TPM and for /init, which is an empty file: what is timed is QEMU's start until the kernel says
that it can't execute it. The other one is timed from the call that loads an enclave to the first answer. A goal that is
missed is named, and the exit code is then 1.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ["GRPC_VERBOSITY"] = "NONE"  # read as gRPC is loaded, whose core logs each connection that comes to nothing

from parties import PROJECT, ROOT, descendants, process_seconds
from translator.translator_pb2 import GetTranslationRequest
from translator.translator_pb2_grpc import TranslatorStub

import adyton
from adyton.host.image.cpio import encode_cpio
from adyton.host.image.image import Image, build_image
from adyton.host.image.tree import File
from adyton.host.launch.child import kill_group
from adyton.host.launch.launcher import LaunchRequest
from adyton.host.launch.qemu.accelerator import choose_accelerator
from adyton.host.launch.qemu.enclave import VmEnclave
from adyton.host.launch.qemu.firmware import QBOOT, find_firmware
from adyton.host.launch.qemu.launcher import INITRD, KERNEL, QemuLauncher
from adyton.host.launch.qemu.machine import Machine, linux_command_line
from adyton.host.launch.qemu.sandbox import new_uid, sandboxed
from adyton.policy.document import Policy
from adyton.proto import control_pb2
from adyton.proto import grpc_application_pb2 as extensions
from adyton.proto.control_client import ControlClient
from adyton.proto.guest import Started
from adyton.testing.policies import launcher_policy

DOCS = ROOT / "docs"
BEGIN, END = "<!-- bench vm: begin -->\n", "<!-- bench vm: end -->\n"

GOAL = 1.6
MEMORY_MB = (512, 256)
"""What a machine has unless enclave.toml says otherwise, and the least that it may say."""
SECONDS = 90.0
BARE_ENDS = b"Failed to execute /init"

HOST = "host: image checked and measured, TPM made, QEMU started"
TO_PID1 = "firmware and kernel, until PID 1 has an interpreter"
PID1 = "PID 1, until it forks the enclave's process"
READY = "the enclave's process, until its runtime is ready"
INITIALIZE = "initialize, until the server is up"
CHANNEL = "channel: probe, handshake, quote, verification"
RPC = "first RPC"
Times = dict[str, float]
"""Seconds by phase, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """The machine that is measured: the translator's, with so much memory."""

    memory_mb: int
    bundle: adyton.Bundle
    image: Image
    policy: Policy
    accelerator: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What QEMU, with what it is confined by, has used: CPU time, and the most memory of its largest process."""

    cpu_seconds: float
    megabytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One turn of each: seconds that passed, and what the two machines used of the host."""

    bare: float
    full: Times
    bare_usage: Usage
    full_usage: Usage

    @property
    def ratio(self) -> float:
        """The whole beside the bare boot."""
        return sum(self.full.values()) / self.bare

    @property
    def cpu_ratio(self) -> float:
        """The same, in CPU time of QEMU."""
        return self.full_usage.cpu_seconds / self.bare_usage.cpu_seconds


def subject(memory_mb: int) -> Subject:
    """Build the translator with so much memory, and its image if it is not in the cache."""
    with tempfile.TemporaryDirectory() as folder:
        project = shutil.copytree(PROJECT, Path(folder, "translator"))
        with (project / "enclave.toml").open("a") as settings:
            settings.write(f"\n[vm]\nmemory_mb = {memory_mb}\n")
        bundle = adyton.Bundle.build(project)
    image = build_image(bundle, architecture=platform.machine())
    policy = launcher_policy(bundle, on="vm")
    accelerator = choose_accelerator(image)
    return Subject(memory_mb=memory_mb, bundle=bundle, image=image, policy=policy, accelerator=accelerator)


# --- the bare machine


def bare_boot(of: Subject) -> tuple[float, Usage]:
    """Seconds from the start of QEMU until the kernel would run its first process."""
    mine, theirs = zip(*(socket.socketpair() for _ in range(2)), strict=True)
    with contextlib.ExitStack() as stack:
        for each in (*mine, *theirs):
            stack.enter_context(each)
        initrd = Path(stack.enter_context(tempfile.TemporaryDirectory()), "initrd")
        of.image.write_initrd(initrd)
        with initrd.open("ab") as end:  # of two files with one name, Linux keeps the latter
            end.write(encode_cpio({"init": File(content=b"", executable=True)}))
        initrd.chmod(0o444)
        initrd.parent.chmod(0o755)
        return seconds_to_init(bare_machine(of, [each.fileno() for each in theirs]), of.image.kernel, initrd)


def bare_machine(of: Subject, descriptors: Sequence[int]) -> Machine:
    """As the launcher makes it, without a TPM; nobody speaks on its trunk."""
    trunk_fd, monitor_fd = descriptors
    firmware = find_firmware(of.image.architecture, "none")
    assert firmware in (QBOOT, None)
    return Machine(
        architecture=of.image.architecture,
        accelerator=of.accelerator,
        memory_mb=of.memory_mb,
        cpus=of.bundle.settings.vm.cpus,
        firmware=None if firmware is None else QBOOT,
        kernel=KERNEL,
        initrd=INITRD,
        command_line=linux_command_line(of.image.architecture),
        trunk_fd=trunk_fd,
        monitor_fd=monitor_fd,
        tpm_fd=None,
        network=False,
    )


def seconds_to_init(machine: Machine, kernel: Path, initrd: Path) -> tuple[float, Usage]:
    files = {KERNEL: kernel, INITRD: initrd}
    command = sandboxed(machine.arguments(), files=files, network=False, devices=machine.devices, uid=new_uid())
    begun = time.monotonic()
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        pass_fds=(machine.trunk_fd, machine.monitor_fd),
        start_new_session=True,
    )
    with process:
        try:
            assert process.stdout is not None
            for line in process.stdout:  # it ends by itself: a kernel without a first process panics, and QEMU ends
                if BARE_ENDS in line:
                    return time.monotonic() - begun, usage_of(process.pid)
        finally:
            kill_group(process)
    raise SystemExit("bench vm: the bare machine did not come as far as /init")


# --- the whole


def full_boot(of: Subject) -> tuple[Times, Usage]:
    """Seconds of each phase until the first attested RPC is answered, and what QEMU used for it."""
    launcher = QemuLauncher(accelerator=of.accelerator)
    clock = Clock()
    launcher.prepare(of.bundle)  # as EnclaveManager.load does, which does all of this
    with contextlib.closing(launcher.launch(LaunchRequest(name="bench", bundle=of.bundle))) as machine:
        clock.lap(HOST)
        explain = functools.partial(machine.explain, started=False)
        with contextlib.closing(
            ControlClient(machine.control, explain=lambda problem: problem or explain())
        ) as control:
            started = until_started(machine)
            clock.lap(PID1)
            clock.divide(PID1, before=TO_PID1, seconds=started.seconds_to_fork - started.seconds_to_pid1)
            control.ready.result(SECONDS)
            clock.lap(READY)
            address = initialized(machine, control)
            clock.lap(INITIALIZE)
            first_call(address, of.policy, clock)
            return clock.times, usage_of(machine.pid)


class Clock:
    """Times what comes one after the other."""

    def __init__(self) -> None:
        self.times: Times = {}
        self._begun = time.monotonic()

    def lap(self, phase: str) -> None:
        """`phase` ends, and the next begins."""
        now = time.monotonic()
        self.times[phase] = now - self._begun
        self._begun = now

    def divide(self, phase: str, *, before: str, seconds: float) -> None:
        """Only the last `seconds` were of `phase`."""
        self.times[before] = self.times.pop(phase) - seconds
        self.times[phase] = seconds


def until_started(machine: VmEnclave) -> Started:
    until = time.monotonic() + SECONDS
    while time.monotonic() < until and not machine.wait(0):
        if machine.started is not None:
            return machine.started
        time.sleep(0.001)
    raise machine.explain(started=False)


def initialized(machine: VmEnclave, control: ControlClient) -> str:
    """Initialize the application; where its server is."""
    config = adyton.EnclaveConfig()
    config.Extensions[extensions.server_address] = "localhost"
    config.Extensions[extensions.port] = 0
    call = control_pb2.Initialize(config=config.SerializeToString(), name="bench")
    control.call(control_pb2.Request(initialize=call)).result(SECONDS)
    run = control.call(control_pb2.Request(run=control_pb2.Run(input=b"")))
    output = adyton.EnclaveOutput.FromString(run.result(SECONDS))
    return machine.address_of(output.Extensions[extensions.actual_server_port])


def first_call(address: str, policy: Policy, clock: Clock) -> None:
    with adyton.connect(address, policy=policy) as channel:
        clock.lap(CHANNEL)
        answer = TranslatorStub(channel).GetTranslation(GetTranslationRequest(input_word="asylo"))
        clock.lap(RPC)
    assert answer.translated_word == "sanctuary"


def usage_of(pid: int) -> Usage:
    """Of that process and of those that it has started."""
    pids = descendants(pid) | {pid}
    statuses = [Path(f"/proc/{each}/status").read_text() for each in pids]
    peaks = [int(line.split()[1]) for text in statuses for line in text.splitlines() if line.startswith("VmHWM:")]
    return Usage(cpu_seconds=sum(map(process_seconds, pids)), megabytes=max(peaks) / 1024)


# --- the report


def measured(of: Subject, rounds: int) -> list[Round]:
    found = []
    for _ in range(rounds):
        bare, bare_usage = bare_boot(of)
        full, full_usage = full_boot(of)
        found.append(Round(bare=bare, full=full, bare_usage=bare_usage, full_usage=full_usage))
    return found


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The median, the least and the most."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def table(found: Mapping[int, Sequence[Round]]) -> Iterator[str]:
    """A column for each size of memory."""
    yield f"| seconds | {' | '.join(f'{memory_mb} MB' for memory_mb in found)} |"
    yield "|---" * (1 + len(found)) + "|"
    columns = list(found.values())
    yield _row("bare boot, until /init", [[each.bare for each in rounds] for rounds in columns])
    for phase in columns[0][0].full:
        yield _row(phase, [[each.full[phase] for each in rounds] for rounds in columns])
    yield _row("all of these", [[sum(each.full.values()) for each in rounds] for rounds in columns])
    yield _row("beside the bare boot of its round", [[each.ratio for each in rounds] for rounds in columns])
    yield _row("CPU time of QEMU, bare boot", [[each.bare_usage.cpu_seconds for each in rounds] for rounds in columns])
    yield _row("CPU time of QEMU, the whole", [[each.full_usage.cpu_seconds for each in rounds] for rounds in columns])
    yield _row("beside the bare boot's of its round", [[each.cpu_ratio for each in rounds] for rounds in columns])
    yield _row("memory of the host's, MB", [[each.full_usage.megabytes for each in rounds] for rounds in columns], 0)


def _row(title: str, columns: Sequence[Sequence[float]], digits: int = 2) -> str:
    return f"| {' | '.join((title, *(spread(values, digits) for values in columns)))} |"


def head(of: Subject, rounds: int) -> str:
    sizes = {name: getattr(of.image, name).stat().st_size / 1e6 for name in ("kernel", "system", "application")}
    parts = ", ".join(f"{name} {size:.1f} MB" for name, size in sizes.items())
    return (
        f"{of.image.architecture}, {of.accelerator}, {os.cpu_count()} CPUs, Linux {of.image.kernel_version}; "
        f"image: {parts}.\nMedians of {rounds} rounds, and in brackets the least and the most."
    )


def goal_line(rounds: Sequence[Round]) -> str:
    reached = statistics.median(each.ratio for each in rounds)
    verdict = "met" if reached <= GOAL else "missed"
    return f"- {verdict}: the first attested RPC takes {reached:.2f} of a bare boot, the goal is {GOAL}"


def write(text: str) -> None:
    page = DOCS / "performance.md"
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{text}\n\n{END}{after}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often each machine is started")
    parser.add_argument("--write", action="store_true", help="put the table into docs/performance.md")
    arguments = parser.parse_args()
    subjects = [subject(memory_mb) for memory_mb in MEMORY_MB]
    found = {each.memory_mb: measured(each, arguments.rounds) for each in subjects}
    verdict = goal_line(found[MEMORY_MB[0]])
    text = "\n\n".join((head(subjects[0], arguments.rounds), "\n".join(table(found)), verdict))
    print(text, flush=True)
    if arguments.write:
        write(text)
    return int(verdict.startswith("- missed"))


if __name__ == "__main__":
    sys.exit(main())
