"""`adyton sign`: the holder of a key says that a bundle is a version of a product. Data sealed for the signer needs it.

The signature is a file of its own, JSON, beside the bundle: it is no part of what is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from adyton.cli.main import say
from adyton.errors import ConfigurationError
from adyton.host.bundles import Bundle, signature_path, write_whole

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the verb takes."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="a bundle that `adyton build` wrote")
    parser.add_argument("--key", type=Path, required=True, metavar="FILE", help="as `adyton new-key` wrote it")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="default: BUNDLE's name, ending in .signature"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the signature; print the signer's id, the product and its version."""
    from adyton.cli.key_files import key_id, load_key  # not above: `adyton --help` imports this module
    from adyton.cli.verdict import print_record

    key, bundle = load_key(arguments.key), _load(arguments.bundle)
    output = arguments.output or signature_path(arguments.bundle)
    _write(output, _sign(bundle, key), sparing=(arguments.bundle, arguments.key))
    say(f"wrote {output}")
    settings = bundle.settings
    record = {"signer": key_id(key), "product": settings.name, "version": settings.sealing.version}
    print_record(record, as_json=False)
    return 0


def _load(path: Path) -> Bundle:
    with contextlib.suppress(OSError):  # reading it says what is wrong
        if path.is_dir():
            raise ConfigurationError(f"{path} is a folder", mend="`adyton build` it, and sign the bundle")
    return Bundle.load(path)


def _sign(bundle: Bundle, key: ec.EllipticCurvePrivateKey) -> bytes:
    """The file's content: signed code, and room for more keys."""
    from adyton.tee.simulated.format import simulated_measurement
    from adyton.tee.simulated.signed_code import sign_code

    document = sign_code(
        key,
        product=bundle.settings.name,
        version=bundle.settings.sealing.version,
        measurement=simulated_measurement(bundle.sha256),
    )
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()


def _write(path: Path, content: bytes, *, sparing: tuple[Path, ...]) -> None:
    """Over an older signature, if there is one, but not over what was read."""
    try:
        for each in sparing:
            if path.exists() and path.samefile(each):
                raise ConfigurationError(f"the signature would be written over {each}", mend="give another -o")
        write_whole(path, content)
    except OSError as problem:
        raise ConfigurationError(f"can't write {path}: {problem.strerror}") from problem
