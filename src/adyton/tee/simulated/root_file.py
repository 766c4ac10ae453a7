"""The file that holds a root of this machine's own: private key and certificate, made on first use, then only read.

The simulation has one; so has whatever else this machine vouches for by itself, with a name and certificate of its own.

The file appears whole or not at all: it is written under another name, flushed, and linked to its own. Of several
processes that do so at once the first link wins, and all of them read the winner's.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from adyton.errors import LaunchError
from adyton.tee.simulated.certificates import make_root

ROOT_FILE_NAME: Final = "root.pem"
_MAX_FILE_BYTES: Final = 64 * 1024
_WHAT: Final = "the simulation root"

CertificateMaker = Callable[[ec.EllipticCurvePrivateKey, datetime], x509.Certificate]
"""Makes the self-signed certificate of a new root's key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedRoot:
    """The key (a secret only by name: any process of this user can read it) and its self-signed certificate."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate


def default_directory() -> Path:
    """`$XDG_DATA_HOME/adyton/simulated`."""
    return data_directory("simulated", _WHAT)


def data_directory(name: str, what: str) -> Path:
    """`$XDG_DATA_HOME/adyton/{name}`; a relative or empty XDG_DATA_HOME does not count, as that standard says.

    `what` is what shall be kept there, for the `LaunchError` if there is no such place.
    """
    data_home = Path(os.environ.get("XDG_DATA_HOME", ""))
    if not data_home.is_absolute():
        with contextlib.suppress(RuntimeError):
            data_home = Path.home() / ".local" / "share"
    if not data_home.is_absolute():
        raise LaunchError(f"there is no place for {what}", mend="set HOME or XDG_DATA_HOME")
    return data_home / "adyton" / name


def load_or_make_root(directory: Path, now: datetime) -> SimulatedRoot:
    """The simulation root that `directory` holds; as `keep_root`."""
    return keep_root(directory, now, what=_WHAT, new_pem=_new_root_pem)


def _new_root_pem(now: datetime) -> bytes:
    return new_root_pem(make_root, now)


def keep_root(directory: Path, now: datetime, *, what: str, new_pem: Callable[[datetime], bytes]) -> SimulatedRoot:
    """The root that `directory` holds, made (`new_root_pem`) if there is none. `what`: how messages name it.

    A failure is a `LaunchError` with a way to mend it.
    """
    path = directory / ROOT_FILE_NAME
    try:
        if not path.exists():
            _make(path, lambda: new_pem(now))
        content = _read_private(path, what)
    except OSError as error:
        mend = "set XDG_DATA_HOME to a writable directory on a local file system with space left"
        raise LaunchError(f"{what} can't be kept in {directory}: {error.strerror}", mend=mend) from error
    root = _parse(f"{what} {path}", content)
    _check_dates(f"{what} {path}", root.certificate, now)
    return root


def _make(path: Path, new_pem: Callable[[], bytes]) -> None:
    """Make a root at `path`; if another process was first, leave that one's."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=".root-", dir=path.parent)  # mode 0600
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(new_pem())
            file.flush()
            os.fsync(descriptor)  # or a crash could leave the name of a file without its content
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(temporary)
    finally:
        temporary.unlink(missing_ok=True)


def new_root_pem(make_certificate: CertificateMaker, now: datetime) -> bytes:
    """A new key of P-256 and its certificate, as the file holds them."""
    key = ec.generate_private_key(ec.SECP256R1())
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return key_pem + make_certificate(key, now).public_bytes(serialization.Encoding.PEM)


def _read_private(path: Path, what: str) -> bytes:
    """The file's content, if it is a regular file that only this user can open; looked at after it was opened."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # non-blocking: it may be a pipe
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise LaunchError(f"{what} {path} is not a regular file", mend="remove it")
        if status.st_uid != os.geteuid():
            raise LaunchError(f"{what} {path} belongs to another user", mend="remove it, or chown it")
        if status.st_mode & 0o077:
            raise LaunchError(
                f"{what} {path} can be read by others",
                mend="remove it if others may have read it; a new one will be made. If not: chmod 600",
            )
        return os.read(descriptor, _MAX_FILE_BYTES)
    finally:
        os.close(descriptor)


def _parse(root: str, content: bytes) -> SimulatedRoot:
    try:
        key = serialization.load_pem_private_key(content, password=None)
        certificate = x509.load_pem_x509_certificate(content)
        if isinstance(key, ec.EllipticCurvePrivateKey) and key.public_key() == certificate.public_key():
            return SimulatedRoot(key=key, certificate=certificate)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        pass  # the same to the reader as a pair that does not belong together
    raise LaunchError(f"{root} does not parse", mend="remove it; a new one will be made")


def _check_dates(root: str, certificate: x509.Certificate, now: datetime) -> None:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begin <= now <= end:
        message = f"{root} is valid from {begin} to {end}, and now it is {now}"
        raise LaunchError(message, mend="set the clock, or remove the file; a new one will be made")
