"""`adyton build`: a project's folder → bundle, images for the technologies that need one, and reference values."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from adyton.cli.main import say
from adyton.cli.sources import build_bundle
from adyton.errors import ConfigurationError
from adyton.host.bundles import Bundle, signature_path

_TECHNOLOGIES = ("nitro", "sev-snp", "tdx", "vm")
#: Option → the technologies of which one has to be asked for, or the option would do nothing.
_NEEDED_BY = {"arch": _TECHNOLOGIES, "firmware": ("sev-snp", "tdx"), "kernel": ("nitro",), "relock": _TECHNOLOGIES}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the verb takes."""
    parser.add_argument("project", type=Path, help="folder with enclave.toml")
    parser.add_argument("-o", "--output", type=Path, help="folder to write to (default: PROJECT/dist)")
    parser.add_argument("--json", action="store_true", help="print measurements.json's content instead of the digest")
    parser.add_argument(
        "--for",
        dest="technologies",
        action="append",
        default=[],
        choices=_TECHNOLOGIES,
        help="write the image for this technology too, and its reference values; may be repeated",
    )
    parser.add_argument("--arch", choices=["aarch64", "x86_64"], help="of images (default: this machine's)")
    parser.add_argument("--firmware", type=Path, metavar="FILE", help=_FIRMWARE_HELP)
    parser.add_argument("--kernel", type=Path, metavar="FILE", help=_KERNEL_HELP)
    parser.add_argument("--relock", action="store_true", help="write image.lock anew, from the distribution's index")


_FIRMWARE_HELP = "OVMF's build for SEV-SNP or TDX, which the reference values depend on"
_KERNEL_HELP = "for Nitro: AWS's kernel; Debian's can't find Nitro's devices"


def run(arguments: argparse.Namespace) -> int:
    """Write <name>.adyton, measurements.json and the images; print the bundle's SHA-256."""
    _check_options(arguments)
    output = arguments.output or arguments.project / "dist"
    if arguments.technologies:
        from adyton.cli.building_images import build_with_images  # not above: `adyton --help` imports this module

        bundle, measurements = build_with_images(arguments, output)
    else:
        bundle = build_bundle(arguments.project)
        measurements = bundle.measurements()
    written = bundle.save(output, measurements)
    for path in written:
        say(f"wrote {path}")
    _check_signature(written[0])
    print(json.dumps(measurements, indent=2, sort_keys=True) if arguments.json else bundle.sha256.hex())
    return 0


def _check_signature(bundle: Path) -> None:
    """Of a signature beside it that no longer fits, whoever builds shall know before it is run."""
    try:
        Bundle.load(bundle).signed_code()
    except ConfigurationError as problem:
        say(f"{signature_path(bundle)} is still there, and `adyton run` refuses it: {problem}")


def _check_options(arguments: argparse.Namespace) -> None:
    for option, technologies in _NEEDED_BY.items():
        if getattr(arguments, option) and not set(technologies) & set(arguments.technologies):
            raise ConfigurationError(
                f"--{option} does nothing without --for", mend=f"one of: {', '.join(technologies)}"
            )
