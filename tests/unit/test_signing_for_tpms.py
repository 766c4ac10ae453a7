"""What `adyton sign` approves for TPMs, how it gets into the guest, and whose approvals count there."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from swtpms import boot_of, world_in
from vtpms import needs_swtpm

from adyton.cli import sign
from adyton.cli.key_files import make_key
from adyton.errors import ConfigurationError, UnsupportedError
from adyton.host.bundles import MEASUREMENTS, Bundle, signature_path
from adyton.proto.guest import MAX_BOOT_DOCUMENT_BYTES, BootDocument, parse_boot_document
from adyton.tee.devices import find_key_source
from adyton.tee.sealing import SealPolicy
from adyton.tee.simulated.signed_code import verify_signed_code
from adyton.tee.tpm.approvals import encode_approvals, make_approvals, parse_approvals, signer_of
from adyton.tee.tpm.device import TpmDevice
from adyton.tee.tpm.sealing import SEALING_PCRS, TpmSealing
from adyton.testing.probes import PLAIN, probe_bundle

PCR0 = bytes(range(32))
WITHOUT_FIRMWARE = {"0": PCR0.hex()}
WITH_FIRMWARE = {str(index): bytes([index + 1] * 32).hex() for index in SEALING_PCRS}

Sign = Callable[[Bundle], Bundle]


@pytest.fixture
def key(tmp_path: Path) -> ec.EllipticCurvePrivateKey:
    return make_key(tmp_path / "key.pem")


@pytest.fixture
def sign_it(tmp_path: Path, key: ec.EllipticCurvePrivateKey) -> Sign:
    """`adyton sign`, of a bundle in a file that may have reference values beside it."""

    def sign_it(bundle: Bundle) -> Bundle:
        path = tmp_path / "probe.adyton"
        path.write_bytes(bundle.data)
        sign.run(argparse.Namespace(bundle=path, key=tmp_path / "key.pem", output=None))
        return Bundle.load(path)

    return sign_it


def bundle_of(version: int = 7) -> Bundle:
    return probe_bundle(PLAIN, f"[sealing]\nversion = {version}\n")


def put_measurements(folder: Path, bundle: Bundle, pcrs: Any) -> None:
    content: dict[str, Any] = bundle.measurements()
    content["reference_values"] |= {"tpm": {"pcrs": pcrs}}
    (folder / MEASUREMENTS).write_text(json.dumps(content))


def approvals_of(key: ec.EllipticCurvePrivateKey, version: int = 7) -> bytes:
    pcrs = dict.fromkeys(SEALING_PCRS, bytes(32)) | {0: PCR0}
    return encode_approvals(make_approvals(key, product=b"probe", version=version, pcrs=pcrs))


def id_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    return signer_of(key.public_key())


# --- what is approved


@pytest.mark.parametrize("pcrs", [WITHOUT_FIRMWARE, WITH_FIRMWARE], ids=["without firmware", "with firmware"])
def test_what_was_built_for_a_machine_is_approved(
    pcrs: dict[str, str],
    tmp_path: Path,
    key: ec.EllipticCurvePrivateKey,
    sign_it: Sign,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle = bundle_of()
    put_measurements(tmp_path, bundle, pcrs)
    (document,) = sign_it(bundle).tpm_approvals()
    wanted = {index: bytes.fromhex(pcrs.get(str(index), "00" * 32)) for index in SEALING_PCRS}
    expected = make_approvals(key, product=b"probe", version=7, pcrs=wanted)
    found = parse_approvals(document)
    assert replace(found, signatures=(), seal=b"") == replace(expected, signatures=(), seal=b"")
    assert f"PCR {', '.join(pcrs)}" in capsys.readouterr().out


def test_a_signature_with_approvals_is_one_of_the_code_too(tmp_path: Path, sign_it: Sign) -> None:
    put_measurements(tmp_path, bundle_of(), WITHOUT_FIRMWARE)
    signed = sign_it(bundle_of())
    assert signed.signature is not None
    assert signed.signed_code() == verify_signed_code(signed.signature)


@pytest.mark.parametrize("written", [True, False])
def test_a_bundle_for_no_machine_is_signed_and_nothing_approved(written: bool, tmp_path: Path, sign_it: Sign) -> None:
    if written:
        (tmp_path / MEASUREMENTS).write_text(json.dumps(bundle_of().measurements()))
    signed = sign_it(bundle_of(version=65535))
    assert signed.signed_code() is not None
    assert signed.tpm_approvals() == ()


def test_reference_values_of_another_bundle_are_not_approved(
    tmp_path: Path, sign_it: Sign, capsys: pytest.CaptureFixture[str]
) -> None:
    put_measurements(tmp_path, bundle_of(version=6), WITHOUT_FIRMWARE)
    assert sign_it(bundle_of()).tpm_approvals() == ()
    captured = capsys.readouterr()
    assert "is of another bundle, so nothing is approved for TPMs" in captured.err
    assert "tpm" not in captured.out


@pytest.mark.parametrize(
    ("pcrs", "message"),
    [
        ({}, None),
        ({"1": PCR0.hex()}, "PCR 0 is zero: nothing was measured"),
        ({"0": "00" * 32}, "PCR 0 is zero: nothing was measured"),
        ({"0": "ab"}, "has 32 bytes"),
        ({"0": PCR0.hex(), "16": PCR0.hex()}, "others of 1 to 15"),
        ({"0": PCR0.hex(), "-1": PCR0.hex()}, "can't be approved"),
        ({"zero": PCR0.hex()}, "holds no reference values"),
        ({"0": "no digits"}, "holds no reference values"),
        ({"0": 7}, "holds no reference values"),
        ([PCR0.hex()], "holds no reference values"),
    ],
)
def test_only_whole_reference_values_are_approved(
    pcrs: Any, message: str | None, tmp_path: Path, sign_it: Sign
) -> None:
    put_measurements(tmp_path, bundle_of(), pcrs)
    if message is None:
        assert sign_it(bundle_of()).tpm_approvals() == ()
        return
    with pytest.raises(ConfigurationError, match=message) as caught:
        sign_it(bundle_of())
    assert "--for vm" in caught.value.mend
    assert not signature_path(tmp_path / "probe.adyton").exists()


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b"7"])
def test_a_file_that_holds_no_reference_values_is_said(content: bytes, tmp_path: Path, sign_it: Sign) -> None:
    (tmp_path / MEASUREMENTS).write_bytes(content)
    with pytest.raises(ConfigurationError, match=f"{MEASUREMENTS} holds no reference values"):
        sign_it(bundle_of())


def test_the_highest_version_fits_everywhere_and_the_next_is_refused(tmp_path: Path, sign_it: Sign) -> None:
    put_measurements(tmp_path, bundle_of(1024), WITHOUT_FIRMWARE)
    approvals = sign_it(bundle_of(1024)).tpm_approvals()
    assert parse_approvals(approvals[0]).version == 1024
    log = bytes(64 * 1024)
    document = BootDocument(time_ns=0, host_name="a", event_log=log, certificates=(log,), approvals=approvals * 4)
    assert len(document.encode()) < MAX_BOOT_DOCUMENT_BYTES
    assert parse_boot_document(document.encode()) == document
    put_measurements(tmp_path, bundle_of(1025), WITHOUT_FIRMWARE)
    with pytest.raises(ConfigurationError, match=r"sealing\.version is 1025, and versions for TPMs end at 1024"):
        sign_it(bundle_of(1025))


# --- what a launcher takes from the signature


def test_a_signature_of_another_bundle_approves_nothing(tmp_path: Path, sign_it: Sign) -> None:
    put_measurements(tmp_path, bundle_of(), WITHOUT_FIRMWARE)
    signed = sign_it(bundle_of())
    assert bundle_of(6).tpm_approvals() == ()
    with pytest.raises(ConfigurationError, match="the signature is of another bundle"):
        replace(bundle_of(6), signature=signed.signature).tpm_approvals()


@pytest.mark.parametrize("tpm", [7, None, "text", {"a": 1}, [7], ["no base64"], [["YQ=="]], ["é"]])
def test_what_can_not_be_read_of_a_signature_is_said(tpm: Any, sign_it: Sign) -> None:
    signed = sign_it(bundle_of())
    assert signed.signature is not None
    changed = json.dumps(json.loads(signed.signature) | {"tpm": tpm}).encode()
    with pytest.raises(ConfigurationError, match="what the signature holds for TPMs can't be read"):
        replace(signed, signature=changed).tpm_approvals()


# --- whose approvals count in the guest


def test_only_approvals_of_signers_that_the_code_knows_count() -> None:
    mine, foreign = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    offered = [b"", b"no approvals", approvals_of(foreign), approvals_of(mine)]
    both = {SealPolicy.MEASUREMENT, SealPolicy.SIGNER}
    assert TpmSealing.believing([id_of(mine)], offered).policies == both
    for signers, approvals in (([id_of(mine)], offered[:3]), ([], offered), ([bytes(32), b""], offered)):
        assert TpmSealing.believing(signers, approvals).policies == {SealPolicy.MEASUREMENT}


def test_approvals_that_somebody_changed_count_for_nothing() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    document = bytearray(approvals_of(key))
    document[-80] ^= 1
    assert TpmSealing.believing([id_of(key)], [bytes(document)]).policies == {SealPolicy.MEASUREMENT}


def test_the_key_source_of_a_tpm_is_told_of_signers_and_approvals() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    source = find_key_source(TpmDevice(), signers=[id_of(key)], approvals=[approvals_of(key)])
    assert source is not None
    assert SealPolicy.SIGNER in source.policies


@needs_swtpm
def test_of_several_known_signers_the_first_who_approved_counts(tmp_path: Path) -> None:
    boot = boot_of("code")
    new, old, absent = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
    approvals = [
        encode_approvals(make_approvals(each, product=b"probe", version=7, pcrs=boot.values)) for each in (old, new)
    ]
    with world_in(tmp_path) as world:
        kernel = world.machine.kernel(boot)
        known = [id_of(each) for each in (absent, new, old)]
        current = TpmSealing.believing(known, approvals, kernel=kernel).current(SealPolicy.SIGNER)
        assert (current.subject, current.product, current.version) == (id_of(new), b"probe", 7)
        with pytest.raises(UnsupportedError, match="nobody whom this code knows has approved it"):
            TpmSealing.believing([id_of(absent)], approvals, kernel=kernel).current(SealPolicy.SIGNER)
