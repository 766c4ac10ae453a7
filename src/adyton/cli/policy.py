"""`adyton policy`: measurements.json → a policy that accepts evidence of that bundle, and of nothing else."""

from __future__ import annotations

import argparse
import platform
from pathlib import Path

from adyton.cli.main import say
from adyton.cli.tree import print_line
from adyton.errors import ConfigurationError, LaunchError

_MAX_ROOT_BYTES = 64 * 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the verb takes."""
    parser.add_argument("measurements", type=Path, metavar="measurements.json", help="as `adyton build` wrote it")
    for name, what in _WHOSE.items():
        option = f"--{name}-root"
        parser.add_argument(option, type=Path, metavar="FILE", help=f"PEM of {what}'s root (default: this machine's)")


#: TEEs whose root each machine makes for itself, by the name of the folder that holds it.
_WHOSE = {"simulated": "the simulation", "vtpm": "the virtual TPM"}
_MADE_BY = {"simulated": "run", "vtpm": "run --on vm"}
_LABELS = {"simulated": "simulated", "vtpm": "tpm"}


def run(arguments: argparse.Namespace) -> int:
    """Print the policy, and say on standard error what it still lacks."""
    from adyton.cli.evidence_files import read_file
    from adyton.policy.reference_values import MAX_MEASUREMENTS_BYTES, policy_for

    measurements = read_file(arguments.measurements, at_most=MAX_MEASUREMENTS_BYTES)
    roots = {name: _root(name, getattr(arguments, f"{name}_root")) for name in _WHOSE}
    anchors = {_LABELS[name]: anchor for name, (_, anchor) in roots.items() if anchor}
    policy = policy_for(measurements, anchors)
    for name, (source, anchor) in roots.items():
        if anchor and anchor.hex() in policy:
            print_line(f"# {_WHOSE[name].capitalize()}'s anchor is that of {source}.")
        elif f"{_LABELS[name]} = []" in policy:
            say(f"no anchor for {_WHOSE[name]}: {source}; until there is one the policy accepts no evidence of it")
    print(policy, end="")
    return 0


def _root(name: str, path: Path | None) -> tuple[str, bytes | None]:
    """Whose root it is, and the SHA-256 of its certificate; or why there is none."""
    from adyton.tee.simulated.root_file import ROOT_FILE_NAME, data_directory

    if path is not None:
        return str(path), _certificate_sha256(path)
    try:
        path = data_directory(name, f"the root of {_WHOSE[name]}") / ROOT_FILE_NAME
    except LaunchError as problem:
        return problem.message, None
    if not path.is_file():
        return f"this machine has none yet; `adyton {_MADE_BY[name]}` makes it", None
    return f"this machine, {platform.node()}", _certificate_sha256(path)


def _certificate_sha256(path: Path) -> bytes:
    """Of the certificate's DER; a key in the same file is not looked at."""
    from cryptography import x509

    from adyton.cli.evidence_files import read_file
    from adyton.tee._x509 import MALFORMED, certificate_sha256

    try:
        return certificate_sha256(x509.load_pem_x509_certificate(read_file(path, at_most=_MAX_ROOT_BYTES)))
    except MALFORMED as problem:
        raise ConfigurationError(f"{path} holds no certificate in PEM") from problem
