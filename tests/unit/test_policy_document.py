"""A policy's file: what it may hold, and that nothing else gets through."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from adyton.errors import ConfigurationError
from adyton.policy.constraints import Anything, NotOlderThan, OneOf
from adyton.policy.document import MAX_POLICY_BYTES, Policy
from adyton.policy.rules import SCHEMAS
from adyton.tee.registry import TEES, tee

MEASUREMENT = "ab" * 48
SIMULATED = f"""
[[simulated]]
name = "laptop"
measurement = ["{MEASUREMENT}"]
max_age_seconds = 300
"""


def parse(text: str, **arguments: Any) -> Policy:
    return Policy.parse(f"version = 1\n{text}".encode(), **arguments)


def test_a_policy_is_what_its_file_says() -> None:
    text = f'version = 1\n[anchors]\nsimulated = ["{"cd" * 32}"]\n{SIMULATED}'.encode()
    policy = Policy.parse(text)
    (rule,) = policy.rules
    assert (rule.name, rule.schema.tee, rule.hardware) == ("laptop", "simulated", None)
    assert rule.constraints["measurement"] == OneOf(frozenset({bytes.fromhex(MEASUREMENT)}))
    limit = rule.constraints["max_age_seconds"]
    assert isinstance(limit, NotOlderThan)
    assert limit.limit.total_seconds() == 300
    assert policy.anchors_for("simulated") == {b"\xcd" * 32}
    assert policy.sha256 == hashlib.sha256(text).digest()
    assert policy.rules_for("simulated") == (rule,)
    assert policy.rules_for("snp") == ()


def test_an_empty_policy_has_no_rules() -> None:
    assert parse("").rules == ()


def test_every_known_tee_has_a_schema_and_its_own_anchors() -> None:
    assert set(SCHEMAS) == set(TEES)
    for label in TEES:
        assert parse("").anchors_for(label) == tee(label).anchors()


def test_an_empty_list_of_anchors_trusts_nothing_not_the_vendor() -> None:
    assert parse("[anchors]\nsnp = []\n").anchors_for("snp") == frozenset()


def test_any_is_written_out() -> None:
    text = SIMULATED.replace(f'["{MEASUREMENT}"]', '"any"').replace("300", '"any"')
    (rule,) = parse(text).rules
    assert all(isinstance(constraint, Anything) for constraint in rule.constraints.values())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[simulated]", "not valid TOML"),
        ("x = " + "[" * 5000, "not valid TOML"),
        ("[[snp]]\n" + "a." * 3000 + "a = 1", "not valid TOML: nested too deeply"),
        ("nonsense = 1", "unknown keys: 'nonsense'"),
        ("[[sgx2]]\nname = 'x'", "unknown keys: 'sgx2'"),
        ("simulated = 3", "simulated must be up to 256 tables"),
        ("simulated = [1]", "simulated must be up to 256 tables"),
        ("[simulated]", "simulated must be up to 256 tables"),
        ("[[simulated]]\n" * 257, "simulated must be up to 256 tables"),
        ("anchors = 3", "anchors must be a table of lists"),
        ("[anchors]\nsgx2 = []", "anchors must be a table of lists"),
        ("[anchors]\nsgx = 'x'", "anchors.sgx must be a list"),
        ("[anchors]\nsgx = ['abcd']", "anchors.sgx[0] must be a string of 32 bytes"),
        (SIMULATED + SIMULATED, "two rules have the name 'laptop'"),
        (SIMULATED.replace('name = "laptop"', ""), "a rule for simulated lacks a name"),
        (SIMULATED.replace('"laptop"', "7"), "lacks a name"),
        (SIMULATED.replace('"laptop"', '""'), "lacks a name"),
        (SIMULATED.replace('"laptop"', '"a\\u001bb"'), "lacks a name"),
        (SIMULATED.replace('"laptop"', f'"{"n" * 101}"'), "lacks a name"),
        (SIMULATED + "debug = true", "rule 'laptop' has unknown keys: 'debug'"),
        (SIMULATED.replace("max_age_seconds = 300", ""), "rule 'laptop' lacks max_age_seconds"),
        (SIMULATED.replace("300", "-1"), "max_age_seconds must be a whole number"),
        (SIMULATED.replace("300", "true"), "max_age_seconds must be a whole number"),
        (SIMULATED.replace("300", "3.5"), "max_age_seconds must be a whole number"),
        (SIMULATED.replace("300", "3155760001"), "max_age_seconds must be a whole number"),
        (SIMULATED.replace(f'["{MEASUREMENT}"]', f'"{MEASUREMENT}"'), 'must be a list of up to 1024 values, or "any"'),
        (SIMULATED.replace(f'"{MEASUREMENT}"', '"any"'), "measurement[0] must be a string of 48 bytes"),
        (SIMULATED.replace(MEASUREMENT, MEASUREMENT.upper()), "in lower-case hexadecimal"),
        (SIMULATED.replace(MEASUREMENT, MEASUREMENT[:-2]), "must be a string of 48 bytes"),
        (SIMULATED.replace(MEASUREMENT, MEASUREMENT[:-1] + "\\n"), "must be a string of 48 bytes"),
        (SIMULATED.replace(f'"{MEASUREMENT}"', "1"), "must be a string of 48 bytes"),
        (SIMULATED.replace(f'"{MEASUREMENT}"', f'"{MEASUREMENT}",' * 1025), "must be a list of up to 1024"),
    ],
)
def test_what_is_not_exactly_a_policy_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse(text)
    assert said in caught.value.message


@pytest.mark.parametrize("content", [b"", b"version = 2", b"version = '1'", b"version = true\n[[simulated]]\n"])
def test_a_file_of_another_version_is_refused(content: bytes) -> None:
    with pytest.raises(ConfigurationError, match="no version that is known"):
        Policy.parse(content)


@pytest.mark.parametrize("content", [b"\xff", b"version = 1\nversion = 1", b"x = 1" + b"0" * 5000])
def test_bytes_that_are_no_toml_are_refused(content: bytes) -> None:
    with pytest.raises(ConfigurationError, match="not valid TOML"):
        Policy.parse(content)


def test_a_file_that_is_too_large_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="1048576 are allowed"):
        Policy.parse(b"#" * (MAX_POLICY_BYTES + 1))


SNP = """
measurement = "any"
products = ["Genoa"]
min_tcb = "any"
platforms = "any"
"""
SNP_RULE = f'[[snp]]\nname = "cloud"{SNP}'


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("products", '"any"', "products must be a list of up to 1024 values"),
        ("products", '["Rome"]', "products[0] must be one of Milan, Genoa, Turin"),
        ("min_tcb", "{}", 'min_tcb must be a table of some of fmc, bootloader, tee, snp, microcode, or "any"'),
        ("min_tcb", "{ ucode = 3 }", "min_tcb must be a table of some of"),
        ("min_tcb", "{ snp = 256 }", "min_tcb.snp must be a whole number from 0 to 255"),
        ("min_tcb", "3", "min_tcb must be a table"),
        ("vmpl", "[4]", "vmpl[0] must be a whole number from 0 to 3"),
        ("vmpl", '"any"', "vmpl must be a list"),
        ("debug", "1", "debug must be true or false"),
        ("alias_check", '"any"', "alias_check must be true or false"),
        ("vlek_providers", "[1]", "vlek_providers[0] must be a string"),
        ("vlek_providers", '{ sign = "x" }', "vlek_providers must be a list"),
        ("min_guest_svn", "4294967296", "min_guest_svn must be a whole number"),
    ],
)
def test_each_kind_of_value_is_checked(key: str, value: str, said: str) -> None:
    kept = "\n".join(line for line in SNP_RULE.splitlines() if not line.startswith(f"{key} ="))
    with pytest.raises(ConfigurationError) as caught:
        parse(f"{kept}\n{key} = {value}")
    assert said in caught.value.message


@pytest.mark.parametrize(
    ("pcrs", "said"),
    [
        ("3", "pcrs must be a table of registers"),
        ("{}", "must name registers from 0 to 31"),
        ('{ "0" = "any", "1" = "any" }', "pcrs lacks 2"),
        ('{ "0" = "any", "1" = "any", "2" = "any", "32" = "any" }', "must name registers from 0 to 31"),
        ('{ "00" = "any", "1" = "any", "2" = "any" }', "must name registers from 0 to 31"),
        ('{ "0" = "any", "1" = "any", "2" = "any", others = "none" }', "pcrs.others must be one of any, zero"),
        ('{ "0" = [1], "1" = "any", "2" = "any" }', "pcrs.0[0] must be a string of 48 bytes"),
        ('{ "0" = "all", "1" = "any", "2" = "any" }', "pcrs.0 must be a list"),
    ],
)
def test_registers_are_checked(pcrs: str, said: str) -> None:
    rule = f'[[nitro]]\nname = "n"\npcrs = {pcrs}\nplatforms = "any"\nmax_age_seconds = "any"'
    with pytest.raises(ConfigurationError) as caught:
        parse(rule)
    assert said in caught.value.message


@pytest.mark.parametrize(
    ("events", "said"),
    [
        ("3", "pcr_events must be a table of registers from 0 to 23"),
        ('{ "24" = [] }', "pcr_events must be a table of registers from 0 to 23"),
        ('{ others = "any" }', "pcr_events must be a table of registers from 0 to 23"),
        ('{ "4" = ["ab"] }', "pcr_events.4[0] must be a string of 32 bytes"),
        ('{ "4" = { sign = "x" } }', "pcr_events.4 must be a list"),
    ],
)
def test_events_are_checked(events: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse(f'[[tpm]]\nname = "t"\npcrs = {{ "4" = "any" }}\nplatforms = "any"\npcr_events = {events}')
    assert said in caught.value.message


AZURE = '[[azure]]\nname = "az"\npcrs = { "4" = "any" }\n'


def test_a_rule_for_azure_has_the_hardwares_keys_in_a_table() -> None:
    (rule,) = parse(f"{AZURE}[azure.snp]{SNP}").rules
    assert rule.hardware is not None
    assert (rule.hardware.name, rule.hardware.schema.tee) == ("az", "snp")
    assert set(rule.hardware.constraints) == {field.key for field in SCHEMAS["snp"].fields}


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ("", "needs exactly one of the tables snp, tdx"),
        (f"tdx = 3\n[azure.snp]{SNP}", "rule 'az' has unknown keys: 'tdx'"),
        (f"[azure.tdx]{SNP}", "unknown keys: 'measurement', 'min_tcb', 'products'"),
        ("snp = 3", "needs exactly one of the tables snp, tdx"),
        (f"[azure.snp]{SNP}[azure.tdx]{SNP}", "needs exactly one of the tables snp, tdx"),
        (f'[azure.snp]{SNP}name = "mine"', "snp has a name of its own"),
        (f"[azure.snp]{SNP}[azure.sgx]", "unknown keys: 'sgx'"),
        ('[azure.snp]\nmeasurement = "any"', "rule 'az' lacks products"),
    ],
)
def test_a_rule_for_azure_needs_exactly_one_hardware(tables: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse(AZURE + tables)
    assert said in caught.value.message
