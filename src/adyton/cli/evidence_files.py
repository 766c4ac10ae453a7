"""Evidence and endorsements from files: what they hold decides what they are, not how they are called."""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from adyton.cli.main import say
from adyton.cli.tree import one_line
from adyton.errors import ConfigurationError, EvidenceError
from adyton.tee._event_log import parse_event_log
from adyton.tee._x509 import load_certificate, load_crl, load_public_key
from adyton.tee.evidence import (
    MAX_ENDORSEMENT_BYTES,
    MAX_ENDORSEMENTS,
    Endorsement,
    EndorsementKind,
    Evidence,
)
from adyton.tee.message import decode_evidence
from adyton.tee.recognise import recognise

STANDARD_INPUT: Final = "-"
MAX_FILE_BYTES: Final = 17 * 1024 * 1024
"""As much as a message with all the endorsements that it may have."""
MAX_COLLATERAL_FILES: Final = 256
SYMMETRIC_KEY_SUFFIX: Final = ".key"

_HEX: Final = re.compile(rb"(?:[0-9A-Fa-f]{2})+")
_BASE64: Final = re.compile(rb"[A-Za-z0-9+/_-]+={0,2}")
_URL_SAFE: Final = bytes.maketrans(b"-_", b"+/")
_COLLATERAL_FIELDS: Final = frozenset({"tcb_info", "qe_identity", "pck_crl", "root_ca_crl"})


def read_file(path: str | Path, *, at_most: int) -> bytes:
    """The bytes of a file; `ConfigurationError` if there are none to be had, or more than that."""
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            os.set_blocking(file.fileno(), True)
            content = file.read(at_most + 1)
    except OSError as problem:
        raise ConfigurationError(f"can't read {path}: {problem.strerror}") from problem
    return _bounded(content, str(path), at_most)


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a FIFO that nobody writes to is empty, and holds nobody up


def _read_standard_input(*, at_most: int) -> bytes:
    if sys.stdin is None:  # closed by the caller; descriptor 0 may by now be something else
        raise ConfigurationError("standard input is closed")
    try:
        content = sys.stdin.buffer.read(at_most + 1)
    except OSError as problem:
        raise ConfigurationError(f"can't read standard input: {problem.strerror}") from problem
    return _bounded(content, "standard input", at_most)


def _bounded(content: bytes, source: str, at_most: int) -> bytes:
    if len(content) > at_most:
        raise ConfigurationError(f"{source} is larger than {at_most} bytes")
    return content


def load_evidence(source: str, label: str | None) -> Evidence:
    """The evidence in a file or, for "-", on standard input: a message, or a TEE's own format; as it is or as text.

    The label is in the message, or recognised from the bytes; `label` overrules both. `EvidenceError`: it is none.
    """
    if source == STANDARD_INPUT:
        return parse_evidence_file(_read_standard_input(at_most=MAX_FILE_BYTES), label)
    return parse_evidence_file(read_file(source, at_most=MAX_FILE_BYTES), label)


def parse_evidence_file(content: bytes, label: str | None) -> Evidence:
    """The same, of the file's bytes."""
    data = _without_text(content)
    if message := _message(data):
        return replace(message, tee=label or message.tee)
    return Evidence(tee=label or recognise(data), data=data)


def _without_text(content: bytes) -> bytes:
    """What hexadecimal or base64 text stands for; other bytes as they are."""
    text = b"".join(content.split())
    if _HEX.fullmatch(text):
        return bytes.fromhex(text.decode())
    if _BASE64.fullmatch(text):
        digits = text.rstrip(b"=").translate(_URL_SAFE)
        with contextlib.suppress(binascii.Error):
            return base64.b64decode(digits + b"=" * (-len(digits) % 4), validate=True)
    return content


def _message(data: bytes) -> Evidence | None:
    """The evidence of a message; other bytes may parse as one too, but have neither a label nor data."""
    try:
        evidence = decode_evidence(data)
    except EvidenceError:
        return None
    return evidence if evidence.tee and evidence.data else None


def load_endorsements(directory: Path) -> tuple[Endorsement, ...]:
    """What the files of a folder hold; `ConfigurationError` if it can't be read or holds too much.

    A file that is no endorsement is left out, with a word about it on standard error. Folders in it stay closed.
    """
    try:
        paths = sorted(directory.iterdir())
    except OSError as problem:
        raise ConfigurationError(f"can't read {directory}: {problem.strerror}") from problem
    if len(paths) > MAX_COLLATERAL_FILES:
        raise ConfigurationError(f"{directory} holds more than {MAX_COLLATERAL_FILES} files")
    found: dict[Endorsement, None] = {}
    for path in paths:
        try:
            found |= dict.fromkeys(_load_file(path))
        except (ConfigurationError, EvidenceError) as problem:
            say(one_line(f"left out {path}: {problem.message}"))
    return tuple(found)


def staple(evidence: Evidence, endorsements: tuple[Endorsement, ...]) -> Evidence:
    """The evidence with these endorsements too, each once; `ConfigurationError` if they are more than are allowed."""
    together = tuple(dict.fromkeys((*evidence.endorsements, *endorsements)))
    if len(together) > MAX_ENDORSEMENTS:
        raise ConfigurationError(f"{len(together)} endorsements; {MAX_ENDORSEMENTS} are allowed")
    return replace(evidence, endorsements=together)


def _load_file(path: Path) -> list[Endorsement]:
    if not path.is_file():
        raise ConfigurationError("it is no file")
    return parse_endorsements(read_file(path, at_most=MAX_ENDORSEMENT_BYTES), path.suffix)


def parse_endorsements(data: bytes, suffix: str) -> list[Endorsement]:
    """The endorsements in a file's bytes, of which PEM may have several; `EvidenceError` if it holds something else.

    `suffix` is the end of the file's name: any bytes can be a symmetric key, so that one is called by it.
    """
    if _is_dcap_collateral(data):  # which has PEM inside
        return [Endorsement(kind=EndorsementKind.DCAP_COLLATERAL, data=data)]
    if contents := list(_pem_contents(data)):
        return [_of_der(der) for der in contents]
    if suffix == SYMMETRIC_KEY_SUFFIX:
        return [Endorsement(kind=EndorsementKind.SYMMETRIC_KEY, data=data)]
    return [_of_der(data) if data.startswith(b"\x30") else _event_log(data)]


def _pem_contents(data: bytes) -> Iterator[bytes]:
    """What is between each pair of BEGIN and END (RFC 7468)."""
    lines: list[bytes] | None = None
    for line in data.splitlines():
        if line.startswith(b"-----BEGIN "):
            lines = []
        elif line.startswith(b"-----END ") and lines is not None:
            yield _base64(b"".join(lines))
            lines = None
        elif lines is not None:
            lines.append(line.strip())


def _base64(text: bytes) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise EvidenceError("what it has between BEGIN and END is no base64") from error


def _of_der(der: bytes) -> Endorsement:
    for kind, load in _DER_KINDS.items():
        try:
            load(der)
        except EvidenceError:
            continue
        return Endorsement(kind=kind, data=der)
    raise EvidenceError("it holds neither a certificate, nor a revocation list, nor a public key")


_DER_KINDS: Final[Mapping[EndorsementKind, Callable[[bytes], object]]] = {
    EndorsementKind.CERTIFICATE: partial(load_certificate, what="it", serial_zero=True),
    EndorsementKind.CRL: partial(load_crl, what="it"),
    EndorsementKind.PUBLIC_KEY: partial(load_public_key, what="it"),
}


def _is_dcap_collateral(data: bytes) -> bool:
    if not data.lstrip().startswith(b"{"):
        return False
    try:
        return set(json.loads(data)) >= _COLLATERAL_FIELDS
    except (ValueError, RecursionError):
        return False


def _event_log(data: bytes) -> Endorsement:
    try:
        parse_event_log(data)
    except EvidenceError as error:
        raise EvidenceError(f"it is no endorsement; read as an event log, {error.message}") from error
    return Endorsement(kind=EndorsementKind.EVENT_LOG, data=data)
