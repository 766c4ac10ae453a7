"""`adyton build`: a project's folder → bundle and reference values."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from adyton.cli.main import say
from adyton.host.bundles import Bundle


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the verb takes."""
    parser.add_argument("project", type=Path, help="folder with enclave.toml")
    parser.add_argument("-o", "--output", type=Path, help="folder to write to (default: PROJECT/dist)")
    parser.add_argument("--json", action="store_true", help="print measurements.json's content instead of the digest")


def run(arguments: argparse.Namespace) -> int:
    """Write <name>.adyton and measurements.json; print the bundle's SHA-256."""
    bundle = Bundle.build(arguments.project)
    paths = bundle.save(arguments.output or arguments.project / "dist")
    for path in paths:
        say(f"wrote {path}")
    print(json.dumps(bundle.measurements(), indent=2, sort_keys=True) if arguments.json else bundle.sha256.hex())
    return 0
