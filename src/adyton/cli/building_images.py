"""What `adyton build --for` adds: the lock of the image's packages, the images, and their reference values."""

from __future__ import annotations

import argparse
import functools
import io
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import adyton
from adyton.cli.main import say
from adyton.cli.sources import build_bundle
from adyton.errors import ConfigurationError, UnsupportedError
from adyton.host.bundles import IMAGE_LOCK, Bundle, write_whole
from adyton.host.image.architecture import ARCHITECTURES, find_architecture
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
from adyton.host.launch.qemu.confidential import SEV_SNP, TDX, Confidential
from adyton.host.launch.qemu.launcher import QemuLauncher
from adyton.host.launch.qemu.machine import linux_command_line


@dataclass(frozen=True, slots=True, kw_only=True)
class _Order:
    """What is measured and written. `files`: by technology, the kernel or firmware of those that need one."""

    bundle: Bundle
    image: Image
    files: Mapping[str, Path]
    output: Path


def build_with_images(arguments: argparse.Namespace, output: Path) -> tuple[Bundle, dict[str, object]]:
    """Lock, build the bundle, then an image for each technology; the bundle and all reference values.

    What is given is looked at before anything is fetched or written, and images are written once all are measured.
    """
    technologies = tuple(dict.fromkeys(arguments.technologies))
    architecture = find_architecture(arguments.arch or platform.machine()).name
    files = {each: _FILES[each](arguments, architecture) for each in technologies if each in _FILES}
    _check_output(output)
    bundle = _locked_bundle(arguments)
    image = build_image(bundle, architecture=architecture, say=say)
    order = _Order(bundle=bundle, image=image, files=files, output=output)
    measurements = bundle.measurements()
    for technology in technologies:
        measured = _MEASURES[technology](order)
        measurements = with_measured(measurements, measured)
        for each in measured.lacking:
            say(f"{technology}: not computed: {each}")
    for save in dict.fromkeys(_SAVES[each] for each in technologies):
        save(order)
    return bundle, measurements


def _check_output(output: Path) -> None:
    try:
        wrong = output.exists() and not output.is_dir()
    except OSError as problem:
        raise ConfigurationError(f"can't write to {output}: {problem.strerror}") from problem
    if wrong:
        raise ConfigurationError(f"can't write to {output}: it is no folder")


def _locked_bundle(arguments: argparse.Namespace) -> Bundle:
    """The project's bundle, with its image.lock, which is written if there is none or another is wanted."""
    bundle = build_bundle(arguments.project)
    if not arguments.relock and (arguments.project / IMAGE_LOCK).exists():
        return bundle
    lock = relock(ARCHITECTURES.values(), Cache(default_cache()), say)
    _write(arguments.project / IMAGE_LOCK, lock.encode())
    say(f"{IMAGE_LOCK} is part of the bundle, whose digest is another with it: keep it with the project")
    return Bundle.build(arguments.project)


def _find_kernel(arguments: argparse.Namespace, _: str) -> Path:
    if arguments.kernel is None:
        raise UnsupportedError(
            "a Nitro enclave needs AWS's kernel", mend="give it with --kernel FILE: a bzImage, on aarch64 an Image"
        )
    return _given(arguments.kernel, "--kernel")


def _find_firmware(arguments: argparse.Namespace, architecture: str, confidential: Confidential) -> Path:
    if architecture != "x86_64":
        raise ConfigurationError(f"{confidential.title} is x86_64's, not {architecture}'s", mend="add --arch x86_64")
    return _given(arguments.firmware, "--firmware") if arguments.firmware else confidential.find_firmware()


def _measure_vm(order: _Order) -> Measured:
    starting = QemuLauncher(architecture=order.image.architecture)
    starting.anchors()  # made now, so that a policy for this machine can name it
    return starting.measure(order.bundle, say)


def _measure_snp(order: _Order) -> Measured:
    return measure_snp(
        order.image,
        order.bundle.settings.vm,
        command_line=linux_command_line(order.image.architecture),
        firmware=order.files["sev-snp"],
    )


def _measure_tdx(order: _Order) -> Measured:
    return measure_tdx(
        order.image,
        order.bundle.settings.vm,
        command_line=linux_command_line(order.image.architecture),
        firmware=order.files["tdx"],
    )


def _measure_nitro(order: _Order) -> Measured:
    return measure_nitro(
        kernel=_read(order.files["nitro"]), command_line=NITRO_COMMAND_LINE, ramdisks=_ramdisks(order.image)
    )


def _save_linux(order: _Order) -> None:
    """The three files that a hypervisor takes: kernel, initrd, command-line."""
    folder = order.output / f"{order.bundle.settings.name}.{order.image.architecture}"
    _write(folder / "kernel", _read(order.image.kernel))
    _write(folder / "initrd", b"".join(_ramdisks(order.image)))
    _write(folder / "command-line", linux_command_line(order.image.architecture).encode() + b"\n")


def _save_eif(order: _Order) -> None:
    metadata = eif_metadata(
        name=order.bundle.settings.name,
        version=order.bundle.sha256.hex()[:12],
        tool_version=adyton.__version__,
        kernel_version="unknown",
    )
    eif = io.BytesIO()
    write_eif(
        eif,
        kernel=_read(order.files["nitro"]),
        command_line=NITRO_COMMAND_LINE,
        ramdisks=_ramdisks(order.image),
        metadata=metadata,
    )
    _write(order.output / f"{order.bundle.settings.name}.eif", eif.getbuffer())


_FILES: dict[str, Callable[[argparse.Namespace, str], Path]] = {
    "nitro": _find_kernel,
    "sev-snp": functools.partial(_find_firmware, confidential=SEV_SNP),
    "tdx": functools.partial(_find_firmware, confidential=TDX),
}
_MEASURES: dict[str, Callable[[_Order], Measured]] = {
    "nitro": _measure_nitro,
    "sev-snp": _measure_snp,
    "tdx": _measure_tdx,
    "vm": _measure_vm,
}
_SAVES: dict[str, Callable[[_Order], None]] = {
    "nitro": _save_eif,
    "sev-snp": _save_linux,
    "tdx": _save_linux,
    "vm": _save_linux,
}


def _given(path: Path, option: str) -> Path:
    """`path`, which is a file that can be read."""
    try:
        if not path.is_file():
            raise ConfigurationError(f"{option}: {path} is no file")
        path.open("rb").close()
    except OSError as problem:
        raise ConfigurationError(f"{option}: can't read {path}: {problem.strerror}") from problem
    return path


def _ramdisks(image: Image) -> tuple[bytes, bytes]:
    return _read(image.system), _read(image.application)


def _write(path: Path, data: bytes | memoryview) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)
    except OSError as problem:
        raise ConfigurationError(f"can't write {path}: {problem.strerror}") from problem
    say(f"wrote {path}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as problem:
        raise ConfigurationError(f"can't read {path}: {problem.strerror}") from problem
