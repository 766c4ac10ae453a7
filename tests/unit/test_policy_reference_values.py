"""What `adyton build` measured → a policy that accepts that and nothing else."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest

from adyton.errors import ConfigurationError
from adyton.policy.document import Policy
from adyton.policy.reference_values import MAX_MEASUREMENTS_BYTES, policy_for
from adyton.policy.rules import SCHEMAS

HASH = "ab" * 48
BUNDLE: dict[str, Any] = {
    "version": 1,
    "name": "translator",
    "adyton": "0.1.0",
    "bundle_sha256": "cd" * 32,
    "reference_values": {"simulated": {"measurement": HASH}},
}


def made(values: Any = None, **changed: Any) -> str:
    document = BUNDLE | ({} if values is None else {"reference_values": values}) | changed
    return policy_for(json.dumps(document).encode(), {"simulated": b"\xef" * 32})


def test_the_policy_of_a_bundle_holds_its_measurement_and_the_anchor() -> None:
    assert tomllib.loads(made()) == {
        "version": 1,
        "anchors": {"simulated": ["ef" * 32]},
        "simulated": [{"name": "translator cdcdcdcdcdcd on simulated", "measurement": [HASH], "max_age_seconds": 300}],
    }
    assert made().startswith(f"# Accepts translator, the bundle with SHA-256 {'cd' * 32}, and nothing else.\n")


def test_without_an_anchor_the_policy_trusts_none() -> None:
    text = policy_for(json.dumps(BUNDLE).encode(), {})
    assert Policy.parse(text.encode()).anchors_for("simulated") == frozenset()


def test_no_anchors_are_written_for_a_tee_whose_vendor_has_a_root() -> None:
    assert "anchors" not in tomllib.loads(made({"snp": {"measurement": HASH}}))


# Of Nitro and TPMs registers must be measured, and of Azure the hardware.
@pytest.mark.parametrize("label", sorted(set(SCHEMAS) - {"azure", "nitro", "tpm"}))
def test_every_technology_has_a_policy_that_denies_what_was_not_measured(label: str) -> None:
    (rule,) = tomllib.loads(made({label: {}}))[label]
    required = {field.key for field in SCHEMAS[label].fields if field.default is None}
    assert required | {"name"} == set(rule)
    assert [] in rule.values()


def test_values_stand_alone_in_lists_and_in_tables() -> None:
    text = made(
        {
            "tdx": {"mrtd": HASH, "rtmr0": [HASH, "ef" * 48], "td_attributes": 0x10000000},
            "nitro": {"pcrs": {"0": HASH, "1": [HASH], "2": HASH, "others": "any"}},
        }
    )
    rules = tomllib.loads(text)
    assert rules["tdx"][0]["mrtd"] == [HASH]
    assert rules["tdx"][0]["rtmr0"] == [HASH, "ef" * 48]
    assert rules["tdx"][0]["td_attributes"] == [0x10000000]
    assert rules["nitro"][0]["pcrs"] == {"0": [HASH], "1": [HASH], "2": [HASH], "others": "any"}


@pytest.mark.parametrize(
    ("measurements", "said"),
    [
        (b"", "not JSON of version 1"),
        (b"[]", "not JSON of version 1"),
        (b"[" * 100_000, "not JSON of version 1"),
        (b"\xff", "not JSON of version 1"),
        (b" " * (MAX_MEASUREMENTS_BYTES + 1), "more than 1048576 bytes"),
        (BUNDLE | {"version": 2}, "not JSON of version 1"),
        (BUNDLE | {"version": True}, "not JSON of version 1"),
        (BUNDLE | {"name": "a\nb"}, "not JSON of version 1"),
        (BUNDLE | {"name": 7}, "not JSON of version 1"),
        (BUNDLE | {"bundle_sha256": "CD" * 32}, "not JSON of version 1"),
        (BUNDLE | {"reference_values": []}, "not JSON of version 1"),
        (BUNDLE | {"reference_values": {"snp": []}}, "not JSON of version 1"),
        (BUNDLE | {"reference_values": {"abacus": {}}}, "technologies that are not known: abacus"),
        (BUNDLE | {"reference_values": {"snp": {"mrtd": HASH}}}, "measurements for snp that no rule knows: mrtd"),
        (BUNDLE | {"reference_values": {"snp": {"measurement": "ab"}}}, "measurement[0] must be a string of 48 bytes"),
        (BUNDLE | {"reference_values": {"snp": {"measurement": {"a": "b"}}}}, "measurement must be a list"),
        (BUNDLE | {"reference_values": {"snp": {"measurement": None}}}, "not valid TOML"),
        (BUNDLE | {"reference_values": {"nitro": {"pcrs": {"0": HASH}}}}, "pcrs lacks 1, 2"),
        (BUNDLE | {"reference_values": {"azure": {}}}, "needs exactly one of the tables snp, tdx"),
    ],
)
def test_what_are_no_measurements_is_refused(measurements: bytes | dict[str, Any], said: str) -> None:
    data = measurements if isinstance(measurements, bytes) else json.dumps(measurements).encode()
    with pytest.raises(ConfigurationError) as caught:
        policy_for(data, {})
    assert said in caught.value.message
