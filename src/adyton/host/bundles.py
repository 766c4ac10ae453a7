"""Bundles: read from a file, or built from a project's folder.

A bundle holds enclave.toml, requirements.lock, image.lock if there is one, the application's files below app/, and
below runtime/ the rooms of Adyton that run inside: they are measured with the application, whichever launcher starts
them.
"""

from __future__ import annotations

import base64
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import adyton
from adyton.bundle.archive import MAX_BYTES, bundle_sha256, encode_archive, parse_archive
from adyton.bundle.lock import LockedDistribution, parse_lock
from adyton.bundle.settings import Settings, parse_settings
from adyton.errors import BundleError, ConfigurationError
from adyton.tee.simulated.format import simulated_measurement

if TYPE_CHECKING:
    from adyton.tee.simulated.signed_code import SignedCode

SETTINGS, LOCK = "enclave.toml", "requirements.lock"
#: Reference values, beside a bundle's file.
MEASUREMENTS = "measurements.json"
#: The distribution's packages in a virtual machine's image; a project may have none.
IMAGE_LOCK = "image.lock"
#: What of the package runs inside. The rest of it is the host's.
RUNTIME_ROOMS = ("__init__.py", "aio.py", "errors.py", "proto", "bundle", "tee", "policy", "sealing", "atls", "enclave")


def runtime_lock() -> bytes:
    """The lock of what Adyton's own runtime needs inside: the least that a project's requirements.lock holds."""
    return Path(__file__).with_name(LOCK).read_bytes()


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A bundle in memory, checked to be one. `sha256` names it; `data` is the archive as it lies on disk.

    `signature` came with it and is no part of it: JSON that anybody may have written, until `signed_code` was asked.
    """

    sha256: bytes
    data: bytes
    settings: Settings
    lock: tuple[LockedDistribution, ...]
    signature: bytes | None = None

    @classmethod
    def parse(cls, data: bytes) -> Bundle:
        """Check an archive. Raises BundleError or ConfigurationError."""
        files = parse_archive(data)
        for name in (SETTINGS, LOCK):
            if name not in files:
                raise BundleError(f"the bundle has no {name}")
        return cls(
            sha256=bundle_sha256(data),
            data=data,
            settings=parse_settings(files[SETTINGS]),
            lock=parse_lock(files[LOCK]),
        )

    @classmethod
    def load(cls, path: Path) -> Bundle:
        """Read a bundle's file, and its signature if one lies beside it.

        Raises ConfigurationError if they can't be read, BundleError if it is not a bundle.
        """
        bundle, signature = cls.parse(_read(path, 2 * MAX_BYTES)), signature_path(path)
        return bundle.with_signature(signature) if os.path.lexists(signature) else bundle

    @classmethod
    def of(cls, target: Path) -> Bundle:
        """What a user points at: a project's folder is built, a file is read."""
        try:
            is_project = target.is_dir()
        except OSError as problem:
            raise ConfigurationError(f"can't read {target}: {problem.strerror}") from problem
        return cls.build(target) if is_project else cls.load(target)

    @classmethod
    def build(cls, project: Path) -> Bundle:
        """Make the bundle of a project's folder. Equal content gives equal bytes. Raises ConfigurationError."""
        settings_text = _read(project / SETTINGS, MAX_BYTES)
        settings = parse_settings(settings_text)
        files = {SETTINGS: settings_text, LOCK: _read(project / LOCK, MAX_BYTES)}
        for name, path in _application_files(project, settings):
            files[f"app/{name}"] = _read(path, MAX_BYTES)
        for name, path in _runtime_files():
            files[f"runtime/adyton/{name}"] = _read(path, MAX_BYTES)
        if (project / IMAGE_LOCK).exists():
            files[IMAGE_LOCK] = _read(project / IMAGE_LOCK, MAX_BYTES)
        try:
            bundle = cls.parse(encode_archive(files))
        except BundleError as problem:  # too many files, too long a name: the project's, not somebody's forgery
            raise ConfigurationError(f"{project} can't be a bundle: {problem.message}") from problem
        if missing := {each.name for each in parse_lock(runtime_lock())} - {each.name for each in bundle.lock}:
            raise ConfigurationError(f"{LOCK} lacks what Adyton's runtime needs: {', '.join(sorted(missing))}")
        return bundle

    def with_signature(self, path: Path) -> Bundle:
        """The same bundle, with the signature in that file. Raises ConfigurationError if it can't be read."""
        from adyton.tee.simulated.signed_code import MAX_SIGNED_CODE_BYTES  # `adyton --help` imports this module

        return replace(self, signature=_read(path, MAX_SIGNED_CODE_BYTES))

    def signed_code(self) -> SignedCode | None:
        """What its signature says, verified; None if it has none. ConfigurationError: it is none, or not of this."""
        from adyton.tee.simulated.signed_code import verify_signed_code

        if self.signature is None:
            return None
        code = verify_signed_code(self.signature)
        if code.measurement != simulated_measurement(self.sha256):
            raise ConfigurationError(
                f"the signature is of another bundle, version {code.version} of {code.product!r}",
                mend="sign this one, `adyton sign`, or remove the signature",
            )
        return code

    def tpm_approvals(self) -> tuple[bytes, ...]:
        """What its signature holds for TPMs, for the guest to verify. Raises ConfigurationError as `signed_code`."""
        if self.signature is None or self.signed_code() is None:
            return ()
        try:
            return tuple(base64.b64decode(each, validate=True) for each in json.loads(self.signature).get("tpm", []))
        except (TypeError, ValueError) as problem:
            raise ConfigurationError(
                "what the signature holds for TPMs can't be read", mend="sign again: adyton sign"
            ) from problem

    def measurements(self) -> dict[str, object]:
        """The content of measurements.json: reference values, one entry a technology that this bundle runs on."""
        return {
            "version": 1,
            "name": self.settings.name,
            "adyton": adyton.__version__,
            "bundle_sha256": self.sha256.hex(),
            "reference_values": {"simulated": {"measurement": simulated_measurement(self.sha256).hex()}},
        }

    def save(self, directory: Path, measurements: Mapping[str, object] | None = None) -> tuple[Path, Path]:
        """Write <name>.adyton and measurements.json, each whole or not at all; their paths.

        `measurements`: more than the bundle's own, where images were built from it.
        """
        text = json.dumps(measurements or self.measurements(), indent=2, sort_keys=True) + "\n"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            return (
                write_whole(directory / f"{self.settings.name}.adyton", self.data),
                write_whole(directory / MEASUREMENTS, text.encode()),
            )
        except OSError as problem:
            raise ConfigurationError(f"can't write to {directory}: {problem.strerror}") from problem


def signature_path(bundle: Path) -> Path:
    """Where the signature of a bundle's file lies: beside it, by the same name."""
    return bundle.with_suffix(".signature")


def _application_files(project: Path, settings: Settings) -> Iterator[tuple[str, Path]]:
    for included in settings.include:
        start = project / included
        if not start.exists():
            raise ConfigurationError(f"enclave.toml: 'include' has {included!r}, which does not exist in {project}")
        for path in sorted(start.rglob("*")) if start.is_dir() else [start]:
            name = path.relative_to(project)
            if any(part == "__pycache__" or part.startswith(".") for part in name.parts) or path.suffix == ".pyc":
                continue
            if path.is_symlink():
                raise ConfigurationError(f"{path} is a symbolic link; a bundle holds files")
            if path.is_file():
                yield name.as_posix(), path
            elif not path.is_dir():
                raise ConfigurationError(f"{path} is neither file nor folder")


def _runtime_files() -> Iterator[tuple[str, Path]]:
    root = Path(adyton.__file__).parent
    for room in RUNTIME_ROOMS:
        start = root / room
        for path in sorted(start.rglob("*.py")) if start.is_dir() else [start]:
            yield path.relative_to(root).as_posix(), path


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as source:
            data = source.read(limit + 1)
    except OSError as problem:
        mend = "a project that `adyton init` makes has one" if path.name in (SETTINGS, LOCK) else ""
        raise ConfigurationError(f"can't read {path}: {problem.strerror}", mend=mend) from problem
    if len(data) > limit:
        raise ConfigurationError(f"{path} is larger than {limit} bytes")
    return data


def write_whole(path: Path, data: bytes | memoryview) -> Path:
    """Write a file whole or not at all; its path. Raises OSError."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as scratch:
        try:
            scratch.write(data)
            scratch.flush()
            Path(scratch.name).chmod(0o644)
            Path(scratch.name).replace(path)
        except BaseException:
            Path(scratch.name).unlink(missing_ok=True)
            raise
    return path
