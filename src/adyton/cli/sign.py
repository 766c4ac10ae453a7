"""`adyton sign`: the holder of a key says that a bundle is a version of a product. Data sealed for the signer needs it.

The signature is a file of its own, JSON, beside the bundle: it is no part of what is measured. Where measurements.json
says what a TPM measures of the bundle's machine, the signer approves that too.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from adyton.cli.main import say
from adyton.errors import ConfigurationError
from adyton.host.bundles import MEASUREMENTS, Bundle, signature_path, write_whole

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

    from adyton.bundle.settings import SealingSettings

_BUILD: Final = "`adyton build` it again, with `--for vm`"


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
    pcrs = _read_pcrs(arguments.bundle.with_name(MEASUREMENTS), bundle)
    _write(output, _sign(bundle, key, pcrs), sparing=(arguments.bundle, arguments.key))
    say(f"wrote {output}")
    settings = bundle.settings
    if missing := _missing_effect(settings.sealing, key_id(key)):
        say(f"warning: {missing}")
    record = {"signer": key_id(key), "product": settings.name, "version": settings.sealing.version}
    if pcrs:
        record["tpm"] = f"PCR {', '.join(map(str, sorted(pcrs)))}"
    print_record(record, as_json=False)
    return 0


def _missing_effect(sealing: SealingSettings, signer: str) -> str:
    """Why what the enclave seals is not for this signer; an empty string if it is."""
    if sealing.source != "tee":
        return f"sealing.source is {sealing.source!r} in enclave.toml: that source decides, and no signature"
    known = signer in sealing.signers
    if sealing.policy != "signer":
        effect = "only opens what the signer's code has sealed before" if known else "changes nothing"
        return (
            f"sealing.policy is {sealing.policy!r} in enclave.toml: what the enclave seals is for this very code, and "
            f'the signature {effect} (policy = "signer" and signers = ["{signer}"] under [sealing], then '
            "`adyton build` and sign again)"
        )
    if not known:
        return (
            f"{signer} is not in sealing.signers of enclave.toml, so this signature does not count (add it there, "
            "then `adyton build` and sign again; or sign with another --key)"
        )
    return ""


def _load(path: Path) -> Bundle:
    with contextlib.suppress(OSError):  # reading it says what is wrong
        if path.is_dir():
            raise ConfigurationError(f"{path} is a folder", mend="`adyton build` it, and sign the bundle")
    return Bundle.load(path)


def _read_pcrs(path: Path, bundle: Bundle) -> Mapping[int, bytes]:
    """What a TPM has measured when the bundle's machine runs, as `adyton build --for vm` computed it; else nothing."""
    try:
        content = json.loads(path.read_bytes())
        if content["bundle_sha256"] != bundle.sha256.hex():
            say(f"{path} is of another bundle, so nothing is approved for TPMs ({_BUILD})")
            return {}
        pcrs = content["reference_values"].get("tpm", {}).get("pcrs", {})
        return {int(index): bytes.fromhex(value) for index, value in pcrs.items()}
    except FileNotFoundError:
        return {}
    except OSError as problem:
        raise ConfigurationError(f"can't read {path}: {problem.strerror}") from problem
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as problem:
        raise ConfigurationError(f"{path} holds no reference values", mend=_BUILD) from problem


def _sign(bundle: Bundle, key: ec.EllipticCurvePrivateKey, pcrs: Mapping[int, bytes]) -> bytes:
    """The file's content: signed code, and approvals for TPMs."""
    from adyton.tee.simulated.format import simulated_measurement
    from adyton.tee.simulated.signed_code import sign_code

    document = sign_code(
        key,
        product=bundle.settings.name,
        version=bundle.settings.sealing.version,
        measurement=simulated_measurement(bundle.sha256),
    )
    if pcrs:
        document["tpm"] = [base64.b64encode(_approve(bundle, key, pcrs)).decode()]
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()


def _approve(bundle: Bundle, key: ec.EllipticCurvePrivateKey, pcrs: Mapping[int, bytes]) -> bytes:
    """The approvals of these PCRs. What is not measured without firmware stays zero."""
    from adyton.tee.tpm.approvals import MAX_APPROVED_VERSION, encode_approvals, make_approvals
    from adyton.tee.tpm.sealing import SEALING_PCRS

    product, version = bundle.settings.name.encode(), bundle.settings.sealing.version
    if version > MAX_APPROVED_VERSION:
        raise ConfigurationError(
            f"sealing.version is {version}, and versions for TPMs end at {MAX_APPROVED_VERSION}",
            mend="start again at 1, under another name",
        )
    unmeasured = dict.fromkeys(SEALING_PCRS, bytes(32))
    try:
        return encode_approvals(make_approvals(key, product=product, version=version, pcrs={**unmeasured, **pcrs}))
    except ValueError as problem:
        raise ConfigurationError(f"{MEASUREMENTS} can't be approved: {problem}", mend=_BUILD) from problem


def _write(path: Path, content: bytes, *, sparing: tuple[Path, ...]) -> None:
    """Over an older signature, if there is one, but not over what was read."""
    try:
        for each in sparing:
            if path.exists() and path.samefile(each):
                raise ConfigurationError(f"the signature would be written over {each}", mend="give another -o")
        write_whole(path, content)
    except OSError as problem:
        raise ConfigurationError(f"can't write {path}: {problem.strerror}") from problem
