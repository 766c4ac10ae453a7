"""What `adyton build --for` adds: the lock of the image's packages, the images, and their reference values."""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path

import adyton
from adyton.cli.main import say
from adyton.errors import ConfigurationError, UnsupportedError
from adyton.host.bundles import IMAGE_LOCK, Bundle
from adyton.host.image.architecture import ARCHITECTURES
from adyton.host.image.cache import Cache, default_cache
from adyton.host.image.image import Image, build_image
from adyton.host.image.locking import relock
from adyton.host.image.measurements import (
    NITRO_COMMAND_LINE,
    Measured,
    measure_nitro,
    measure_snp,
    measure_tdx,
    with_measured,
)
from adyton.host.image.reference.nitro import eif_metadata, write_eif
from adyton.host.launch.qemu.confidential import SEV_SNP, TDX
from adyton.host.launch.qemu.launcher import QemuLauncher
from adyton.host.launch.qemu.machine import linux_command_line


def build_with_images(arguments: argparse.Namespace, output: Path) -> tuple[Bundle, dict[str, object]]:
    """Lock, build the bundle, then an image for each technology; the bundle and all reference values."""
    if arguments.relock or not (arguments.project / IMAGE_LOCK).exists():
        lock = relock(ARCHITECTURES.values(), Cache(default_cache()), say)
        _write(arguments.project / IMAGE_LOCK, lock.encode())
        say(f"{IMAGE_LOCK} is part of the bundle, whose digest is another with it: keep it with the project")
    bundle = Bundle.build(arguments.project)
    image = build_image(bundle, architecture=arguments.arch, say=say)
    measurements = bundle.measurements()
    for technology in dict.fromkeys(arguments.technologies):
        measured = _BUILDERS[technology](arguments, bundle, image, output)
        measurements = with_measured(measurements, measured)
        for each in measured.lacking:
            say(f"{technology}: not computed: {each}")
    return bundle, measurements


def _vm(_: argparse.Namespace, bundle: Bundle, image: Image, output: Path) -> Measured:
    command_line = linux_command_line(image.architecture)
    _save(output / f"{bundle.settings.name}.{image.architecture}", image, command_line)
    starting = QemuLauncher(architecture=image.architecture)
    starting.anchors()  # made now, so that a policy for this machine can name it
    return starting.measure(bundle, say)


def _snp(arguments: argparse.Namespace, bundle: Bundle, image: Image, output: Path) -> Measured:
    firmware = _given(arguments.firmware, "--firmware") if arguments.firmware else SEV_SNP.find_firmware()
    command_line = linux_command_line(image.architecture)
    _save(output / f"{bundle.settings.name}.{image.architecture}", image, command_line)
    return measure_snp(image, bundle.settings.vm, command_line=command_line, firmware=firmware)


def _tdx(arguments: argparse.Namespace, bundle: Bundle, image: Image, output: Path) -> Measured:
    firmware = _given(arguments.firmware, "--firmware") if arguments.firmware else TDX.find_firmware()
    command_line = linux_command_line(image.architecture)
    _save(output / f"{bundle.settings.name}.{image.architecture}", image, command_line)
    return measure_tdx(image, bundle.settings.vm, command_line=command_line, firmware=firmware)


def _nitro(arguments: argparse.Namespace, bundle: Bundle, image: Image, output: Path) -> Measured:
    if arguments.kernel is None:
        raise UnsupportedError(
            "a Nitro enclave needs AWS's kernel", mend="give it with --kernel FILE: a bzImage, on aarch64 an Image"
        )
    kernel = _read(_given(arguments.kernel, "--kernel"))
    ramdisks = (_read(image.system), _read(image.application))
    metadata = eif_metadata(
        name=bundle.settings.name,
        version=bundle.sha256.hex()[:12],
        tool_version=adyton.__version__,
        kernel_version="unknown",
    )
    eif = io.BytesIO()
    write_eif(eif, kernel=kernel, command_line=NITRO_COMMAND_LINE, ramdisks=ramdisks, metadata=metadata)
    _write(output / f"{bundle.settings.name}.eif", eif.getbuffer())
    return measure_nitro(kernel=kernel, command_line=NITRO_COMMAND_LINE, ramdisks=ramdisks)


_BUILDERS: dict[str, Callable[[argparse.Namespace, Bundle, Image, Path], Measured]] = {
    "nitro": _nitro,
    "sev-snp": _snp,
    "tdx": _tdx,
    "vm": _vm,
}


def _given(path: Path, option: str) -> Path:
    if not path.is_file():
        raise ConfigurationError(f"{option}: {path} is no file")
    return path


def _save(folder: Path, image: Image, command_line: str) -> None:
    """The three files that a hypervisor takes: kernel, initrd, command-line."""
    _write(folder / "kernel", _read(image.kernel))
    _write(folder / "initrd", _read(image.system) + _read(image.application))
    _write(folder / "command-line", command_line.encode() + b"\n")


def _write(path: Path, data: bytes | memoryview) -> None:
    """Whole or not at all."""
    scratch = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_bytes(data)
        scratch.replace(path)
    except OSError as problem:
        scratch.unlink(missing_ok=True)
        raise ConfigurationError(f"can't write {path}: {problem.strerror}") from problem
    say(f"wrote {path}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as problem:
        raise ConfigurationError(f"can't read {path}: {problem.strerror}") from problem
