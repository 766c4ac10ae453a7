"""Private keys of signers and owners, each in a file: PEM, PKCS #8, P-256, that only its user can read.

No password protects them. What names a key, wherever a signer or an owner is named, is its id: the SHA-256 of the
public key's SPKI DER, in hexadecimal.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from adyton.atls.certificates import spki_sha256
from adyton.errors import ConfigurationError

MAX_KEY_FILE_BYTES: Final = 64 * 1024


def key_id(key: ec.EllipticCurvePrivateKey) -> str:
    """What names the key's holder, 64 hexadecimal digits."""
    return spki_sha256(key.public_key()).hex()


def make_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """A new key, and its file, of mode 0600, whole or not at all.

    `ConfigurationError`: there is a file of that name already, or it can't be written.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    try:
        _write_new(path, pem)
    except FileExistsError:
        raise ConfigurationError(
            f"{path} exists already, and a key is never written over", mend="--show prints the id of the key in it"
        ) from None
    except OSError as problem:
        raise ConfigurationError(f"can't write {path}: {problem.strerror}") from problem
    return key


def _write_new(path: Path, content: bytes) -> None:
    """On the disk when this returns: what is signed or sealed next may need this key for as long as it is kept."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)  # mode 0600
        try:
            with os.fdopen(descriptor, "wb") as scratch:
                scratch.write(content)
                scratch.flush()
                os.fsync(descriptor)
            path.hardlink_to(name)  # which fails if there is a file already
        finally:
            Path(name).unlink()
        os.fsync(folder)
    finally:
        os.close(folder)


def load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The key in a file that `make_key` or another program wrote.

    `ConfigurationError`: there is none, or others can read it, or it needs a password.
    """
    try:
        content = _read_private(path)
    except OSError as problem:
        raise ConfigurationError(f"can't read {path}: {problem.strerror}") from problem
    try:
        key = serialization.load_pem_private_key(content, password=None)
    except TypeError:
        raise ConfigurationError(
            f"the key in {path} is protected by a password, which is not asked for",
            mend=f"`openssl pkey -in {path} -out FILE` writes one without; then chmod 600",
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ConfigurationError(f"{path} holds no private key of P-256", mend="`adyton new-key` makes one")
    return key


def _read_private(path: Path) -> bytes:
    """The file's content, if it is a regular file that only this user can open; looked at after it was opened."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # non-blocking: it may be a pipe
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigurationError(f"{path} is not a regular file")
        if status.st_uid != os.geteuid():
            raise ConfigurationError(f"{path} belongs to another user", mend="have a key of your own, or chown it")
        if status.st_mode & 0o077:
            raise ConfigurationError(
                f"others can read or change {path}",
                mend="chmod 600, or make another key if they may have read it",
            )
        return os.read(descriptor, MAX_KEY_FILE_BYTES)
    finally:
        os.close(descriptor)
