"""`adyton export-ca`: the CA of an enclave that a policy accepts, as a file for clients that can't attest."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from adyton.cli.connection import add_connection_arguments, attest, read_wanted
from adyton.cli.main import say
from adyton.cli.verdict import print_record
from adyton.errors import ConfigurationError

_WARNING = """\
a client that trusts this file knows less than one that attests:
  whoever gets hold of the key of the server's certificate can read and change what it sends (level "key");
  it attests once, now: what becomes of the enclave later, it does not learn;
  the CA ends with the enclave, unless that has a state folder, and its certificate after 30 days at the latest. Then
  export it again."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the verb takes."""
    parser.add_argument("target", metavar="HOST:PORT", help="the enclave's attested port")
    add_connection_arguments(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="where to write it, as PEM")
    parser.add_argument("--force", action="store_true", help="write over an existing file")


def run(arguments: argparse.Namespace) -> int:
    """Attest, write the file, and print what names the CA and until when it is valid."""
    from adyton.atls.certificates import parse_certificate, pem, spki_sha256

    attestation = attest(read_wanted(arguments), bind_ca=True)
    certificate, key = parse_certificate(attestation.anchor_certificate)
    _write(arguments.output, pem(certificate), replace=arguments.force)
    say(f"wrote {arguments.output}\n{_WARNING}")
    record = {"ca_sha256": spki_sha256(key).hex(), "valid_until": certificate.not_valid_after_utc.isoformat()}
    print_record(record, as_json=False)
    return 0


def _write(path: Path, content: bytes, *, replace: bool) -> None:
    """The file appears whole or not at all, readable for all."""
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as scratch:
            written = Path(scratch.name)
            try:
                scratch.write(content)
                scratch.flush()
                os.fsync(scratch.fileno())
                written.chmod(0o644)
                if replace:
                    written.replace(path)
                else:
                    path.hardlink_to(written)  # which fails if there is a file already
            finally:
                written.unlink(missing_ok=True)
    except FileExistsError:
        raise ConfigurationError(f"{path} exists already", mend="--force writes over it") from None
    except OSError as problem:
        raise ConfigurationError(f"can't write {path}: {problem.strerror}") from problem
