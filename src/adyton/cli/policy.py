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
    parser.add_argument(
        "--simulated-root", type=Path, metavar="FILE", help="PEM of a simulation's root (default: this machine's)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the policy, and say on standard error what it still lacks."""
    from adyton.cli.evidence_files import read_file
    from adyton.policy.reference_values import MAX_MEASUREMENTS_BYTES, policy_for

    measurements = read_file(arguments.measurements, at_most=MAX_MEASUREMENTS_BYTES)
    source, anchor = _simulated_root(arguments.simulated_root)
    policy = policy_for(measurements, {"simulated": anchor} if anchor else {})
    if anchor and anchor.hex() in policy:
        print_line(f"# The simulation's anchor is that of {source}.")
    elif "simulated = []" in policy:
        say(f"no anchor for the simulation: {source}; until there is one the policy accepts no evidence of it")
    print(policy, end="")
    return 0


def _simulated_root(path: Path | None) -> tuple[str, bytes | None]:
    """Whose root it is, and the SHA-256 of its certificate; or why there is none."""
    from adyton.tee.simulated.root_file import ROOT_FILE_NAME, default_directory

    if path is not None:
        return str(path), _certificate_sha256(path)
    try:
        path = default_directory() / ROOT_FILE_NAME
    except LaunchError as problem:
        return problem.message, None
    if not path.is_file():
        return "this machine has none yet; `adyton run` makes it", None
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
