"""What a machine has booted, by name: whose word is believed for it, and what a policy can demand of it."""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import pytest
from rule_values import policy_of

from adyton.errors import ConfigurationError, Finding, PolicyError
from adyton.policy.appraisal import appraise
from adyton.tee._event_log import EV_NO_ACTION, parse_event_log, replay
from adyton.tee.registry import tee
from adyton.tee.tpm.launch import (
    APPLICATION_EVENT,
    HCRTM_EVENT,
    TAGGED_EVENT,
    encode_launch,
    launched,
)
from adyton.testing.forgery import NOW
from adyton.testing.tpm import TpmRecipe, TpmVendor
from adyton.testing.tpm_quotes import EV_ACTION, Measurement, TpmQuoteRecipe, agile_log

VENDOR = TpmVendor()
PARTS = {name: hashlib.sha256(name.encode()).digest() for name in ("command-line", "kernel", "system")}
DOCUMENT = encode_launch(PARTS)
OTHER = encode_launch(PARTS | {"kernel": hashlib.sha256(b"another").digest()})
LAUNCH = (0, HCRTM_EVENT, DOCUMENT)


def tagged(label: bytes, number: int = 0x8F3B22EC) -> Measurement:
    """As Linux has it in its log, where the digest is of something else."""
    return (9, TAGGED_EVENT, struct.pack("<II", number, len(label) + 1) + label + b"\0")


KERNEL = (4, APPLICATION_EVENT, b"where the image was")
OPTIONS = tagged(b"LOADED_IMAGE::LoadOptions")
INITRD = tagged(b"Linux initrd")


def sha256(measurement: Measurement) -> bytes:
    return hashlib.sha256(measurement[2]).digest()


def log_of(*measurements: Measurement, locality: bytes = b"\x04") -> bytes:
    return agile_log([(0, EV_NO_ACTION, b"StartupLocality\0" + locality), *measurements], ("sha256",))


def quoted(true_log: bytes, told: bytes | None = None) -> Any:
    """The verified quote of a machine that has measured what the one log says, with the log that is told."""
    pcrs = {index: bytes(32) for index in range(24)} | dict(replay(parse_event_log(true_log), "sha256"))
    logs = (true_log if told is None else told,)
    recipe = TpmQuoteRecipe(pcrs={"sha256": pcrs}, logs=tuple(log for log in logs if log))
    return VENDOR.case(TpmRecipe(quote=recipe)).verify_with(tee("tpm").verifier())


def parts_of(verified: Any) -> dict[str, bytes]:
    return dict(launched(verified.quote.pcrs["sha256"], verified.quote.events))


def against(verified: Any, launch: Any) -> tuple[Finding, ...]:
    """What a policy that demands nothing but this launch has against the machine."""
    rule = {"pcrs": {"0": "any", "others": "any"}, "platforms": "any", "launch": launch}
    try:
        appraise(verified, policy_of("tpm", rule), now=NOW, report_data=None)
    except PolicyError as error:
        return error.findings
    return ()


def test_the_launcher_is_believed() -> None:
    assert parts_of(quoted(log_of(LAUNCH))) == PARTS


def test_without_a_launcher_firmware_and_linux_are() -> None:
    found = parts_of(quoted(log_of((0, 8, b"firmware"), KERNEL, OPTIONS, INITRD, locality=b"\0")))
    assert found == {"command-line": sha256(OPTIONS), "initrd": sha256(INITRD), "kernel": sha256(KERNEL)}


@pytest.mark.parametrize(
    ("true", "told"),
    [
        (log_of(LAUNCH), log_of(LAUNCH).replace(DOCUMENT, OTHER)),
        (log_of(LAUNCH), log_of((0, HCRTM_EVENT, OTHER))),
        (log_of(LAUNCH), b""),
        (log_of(LAUNCH, (0, HCRTM_EVENT, OTHER)), None),
        (log_of((0, HCRTM_EVENT, OTHER), LAUNCH), None),
        (log_of((0, EV_ACTION, OTHER), LAUNCH), None),
        (log_of(LAUNCH, (0, EV_ACTION, b"by the guest")), None),
        (log_of(LAUNCH, (0, EV_ACTION, b"by the guest")), log_of(LAUNCH)),
        (log_of((1, HCRTM_EVENT, DOCUMENT)), None),
        (log_of((0, EV_ACTION, DOCUMENT)), None),
        (log_of(LAUNCH, locality=b"\0"), None),
        (log_of(LAUNCH, locality=b"\x03"), None),
        (log_of((0, HCRTM_EVENT, DOCUMENT[:-1])), None),
    ],
    ids=[
        "data that was not measured",
        "the log of another launch",
        "no log",
        "another document after it",
        "another document before it",
        "another document before it, under another type",
        "more after it",
        "more after it that is not told",
        "in another register",
        "under another type",
        "by firmware",
        "by firmware in locality 3",
        "no document",
    ],
)
def test_a_launch_that_was_not_measured_as_a_launcher_does_is_none(true: bytes, told: bytes | None) -> None:
    verified = quoted(true, told)
    assert parts_of(verified) == {}
    assert [finding.subject for finding in against(verified, {"kernel": "any"})] == ["launch"]


@pytest.mark.parametrize(
    ("measurements", "left"),
    [
        ((KERNEL, KERNEL, OPTIONS, INITRD), {"command-line", "initrd"}),
        ((KERNEL, OPTIONS, INITRD, INITRD), {"command-line", "kernel"}),
        ((KERNEL, OPTIONS, OPTIONS, INITRD), {"initrd", "kernel"}),
        ((KERNEL, OPTIONS, tagged(b"Linux initrd, nearly")), {"command-line", "kernel"}),
        (((5, *KERNEL[1:]), OPTIONS, (8, *INITRD[1:])), {"command-line"}),
        (((4, TAGGED_EVENT, KERNEL[2]), (9, APPLICATION_EVENT, INITRD[2])), set()),
    ],
    ids=["two kernels", "two initrds", "two command lines", "another label", "other registers", "other types"],
)
def test_what_firmware_measured_twice_or_elsewhere_is_no_part(
    measurements: tuple[Measurement, ...], left: set[str]
) -> None:
    assert parts_of(quoted(log_of(*measurements, locality=b"\0"))).keys() == left


def test_a_digest_of_another_bank_is_no_part() -> None:
    measurements = [KERNEL]
    log = agile_log(measurements, ("sha1",))
    events = {4: parse_event_log(log).events}
    assert launched({}, events) == {}


def listed(**changes: Any) -> dict[str, Any]:
    return {name: [digest.hex()] for name, digest in PARTS.items()} | changes


@pytest.mark.parametrize(
    ("launch", "got"),
    [
        (listed(), None),
        (listed(kernel="any"), None),
        ({}, None),
        (listed(kernel=[bytes(32).hex()]), f"kernel={PARTS['kernel'].hex()}"),
        (listed(kernel=[]), f"kernel={PARTS['kernel'].hex()}"),
        (listed(initrd="any"), "initrd=missing"),
        ({"kernel": "any", "system": "any"}, f"command-line={PARTS['command-line'].hex()}"),
    ],
    ids=["listed", "any", "empty table", "another digest", "empty list", "a part that lacks", "a part too many"],
)
def test_a_policy_names_every_part_or_none(launch: dict[str, Any], got: str | None) -> None:
    assert [finding.got for finding in against(quoted(log_of(LAUNCH)), launch)] == ([got] if got else [])


@pytest.mark.parametrize("digest", [hashlib.sha256(b"extra").digest(), bytes(32)], ids=["a digest", "zeros"])
def test_a_part_that_the_policy_does_not_name_must_be_absent(digest: bytes) -> None:
    launch = (0, HCRTM_EVENT, encode_launch(PARTS | {"extra": digest}))
    (finding,) = against(quoted(log_of(launch)), listed())
    assert (finding.subject, finding.got, finding.wanted) == ("launch", f"extra={digest.hex()}", "extra=absent")


def test_an_empty_table_demands_nothing_of_a_machine_that_nobody_measured() -> None:
    assert against(quoted(log_of(locality=b"\0")), {}) == ()


@pytest.mark.parametrize(
    "launch",
    ["any", [], 1, {"kernel": "some"}, {"kernel": PARTS["kernel"].hex()}, {"kernel": ["00"]}, {"kernel": {}}],
    ids=str,
)
def test_what_is_no_table_of_lists_is_an_error(launch: Any) -> None:
    with pytest.raises(ConfigurationError, match="launch"):
        against(quoted(log_of(LAUNCH)), launch)
