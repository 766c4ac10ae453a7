"""`adyton export-ca`: the CA of an enclave that a policy accepts, as a file for clients that can't attest."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adyton.bundle.names import is_dns_name
from adyton.cli.connection import add_connection_arguments, attest, read_wanted
from adyton.cli.main import say
from adyton.cli.tree import one_line
from adyton.cli.verdict import print_record
from adyton.errors import ConfigurationError

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

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

    session = attest(read_wanted(arguments), bind_ca=True)
    certificate, key = parse_certificate(session.attestation.anchor_certificate)
    _write(arguments.output, pem(certificate), replace=arguments.force)
    say(f"wrote {arguments.output}\n{_WARNING}")
    _say_where(arguments.target, _names(parse_certificate(session.question.pinned)[0]))
    record = {"ca_sha256": spki_sha256(key).hex(), "valid_until": certificate.not_valid_after_utc.isoformat()}
    print_record(record, as_json=False)
    return 0


def _names(certificate: Certificate) -> list[str]:
    """Whom a client that looks at names takes the server for."""
    from cryptography import x509

    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        return []
    return names.get_values_for_type(x509.DNSName)


def _say_where(target: str, names: Sequence[str]) -> None:
    """What such a client has to connect to, and under which name."""
    from adyton.atls.dial import Target

    say(one_line(f"the server's certificate is for {', '.join(names) or 'no name'}"))
    host = Target.parse(target).host
    if host and host.lower() not in map(str.lower, names):
        add = f'add names = ["{host}"] under [server] in enclave.toml, or ' if is_dns_name(host) else ""
        say(f"{host} is none of its names: {add}clients must override the name")
    say(f"{target} asks clients for a certificate: they need the port that plain_tls = true under [server] opens")


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
