"""`adyton new-key`: a signer's or an owner's private key in a file, and the id that names its holder."""

from __future__ import annotations

import argparse
from pathlib import Path

from adyton.cli.main import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the verb takes."""
    parser.add_argument("file", type=Path, metavar="FILE", help="where to write it, as PEM; never over another file")
    parser.add_argument("--show", action="store_true", help="make none, print the id of the key that FILE holds")


def run(arguments: argparse.Namespace) -> int:
    """Print the key's id: SHA-256 of the public key's SPKI DER."""
    from adyton.cli.key_files import key_id, load_key, make_key  # not above: `adyton --help` imports this module

    if arguments.show:
        key = load_key(arguments.file)
    else:
        key = make_key(arguments.file)
        say(f"wrote {arguments.file}: whoever has it can speak for you, and nobody can make it again")
    print(key_id(key))
    return 0
