"""Expectations of callers: what [access] of enclave.toml may say, and who meets it."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from adyton.atls.access import agreed_insecurities, appraise_caller, check_against_policy
from adyton.atls.peer import Peer
from adyton.bundle.access import (
    ATTESTATION_PREFIX,
    MAX_DEPTH,
    MAX_NODES,
    AccessSettings,
    AllOf,
    AnyOf,
    Attribute,
    Condition,
    Expectation,
    Not,
    Word,
)
from adyton.bundle.settings import parse_settings
from adyton.errors import ConfigurationError
from adyton.policy.document import Policy
from adyton.policy.insecurity import Insecurity
from adyton.proto import attestation_pb2

HEAD = 'name = "a"\napplication = "a:B"\ninclude = ["a", "clients.toml", "policies"]\n[access]\n'
POLICY = 'policy = "clients.toml"\n'
METHOD = "/examples.grpc_server.Translator/GetTranslation"

RULE = Attribute(name="rule", wanted="front end")
SNP = Attribute(name="tee", wanted="snp")
MEASURED = Attribute(name="measurement", wanted=b"\x11" * 48)
MACHINE = Attribute(name="platform", wanted="0123")
OTHER_RULE = Attribute(name="rule", wanted="back end")
OTHER_TEE = Attribute(name="tee", wanted="tdx")

CALLER = Peer(
    rule="front end",
    tee="snp",
    measurement=b"\x11" * 48,
    platform="0123",
    insecurities=(),
    expires_at=datetime(2026, 7, 1, tzinfo=UTC),
)


def read(text: str) -> AccessSettings:
    return parse_settings((HEAD + text).encode()).access


def refusal(text: str) -> str:
    with pytest.raises(ConfigurationError, match=r"^enclave\.toml: ") as caught:
        read(text)
    return str(caught.value)


def nested(depth: int) -> str:
    """A table of that depth."""
    return "{ not = " * (depth - 1) + '{ tee = "snp" }' + " }" * (depth - 1)


# --- what is read


def test_without_the_table_everything_is_for_anyone_and_nobody_can_enrol() -> None:
    settings = AccessSettings(policy=None, allow_insecure=(), default=Word.ANYONE, methods=())
    assert read("") == settings
    assert parse_settings(HEAD.removesuffix("[access]\n").encode()).access == settings


def test_every_key_is_read() -> None:
    access = read(
        f'{POLICY}allow_insecure = ["simulated", "out-of-date"]\ndefault = "nobody"\n[access.methods]\n'
        f'"{METHOD}" = "enrolled"\n"/a.B/*" = "anyone"\n"/B/C" = {{ rule = "front end" }}'
    )
    assert access == AccessSettings(
        policy="clients.toml",
        allow_insecure=("simulated", "out-of-date"),
        default=Word.NOBODY,
        methods=((METHOD, Word.ENROLLED), ("/a.B/*", Word.ANYONE), ("/B/C", RULE)),
    )


@pytest.mark.parametrize(
    ("text", "expectation"),
    [
        ('"anyone"', Word.ANYONE),
        ('"enrolled"', Word.ENROLLED),
        ('"nobody"', Word.NOBODY),
        ('{ rule = "front end" }', RULE),
        ('{ tee = "snp" }', SNP),
        (f'{{ measurement = "{"11" * 48}" }}', MEASURED),
        ('{ platform = "0123" }', MACHINE),
        ('{ not = { tee = "snp" } }', Not(part=SNP)),
        ('{ all = [{ tee = "snp" }] }', AllOf(parts=(SNP,))),
        (
            '{ any = [{ rule = "front end" }, { all = [{ tee = "snp" }, { not = { platform = "0123" } }] }] }',
            AnyOf(parts=(RULE, AllOf(parts=(SNP, Not(part=MACHINE))))),
        ),
    ],
)
def test_an_expectation_is_read(text: str, expectation: Expectation) -> None:
    assert read(f"{POLICY}default = {text}").default == expectation
    assert read(f'{POLICY}[access.methods]\n"{METHOD}" = {text}').methods == ((METHOD, expectation),)


@pytest.mark.parametrize("path", ["clients.toml", "policies/clients.toml", "policies/deep/c.toml", "a/x"])
def test_a_policy_lies_below_what_is_included(path: str) -> None:
    assert read(f'policy = "{path}"').policy == path


def test_nobody_and_anyone_need_no_policy() -> None:
    access = read(f'default = "nobody"\n[access.methods]\n"{METHOD}" = "anyone"')
    assert (access.policy, access.default) == (None, Word.NOBODY)


def test_the_pages_example_is_read() -> None:
    page = (Path(__file__).parents[2] / "docs" / "enclave-toml.md").read_text()
    (example,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    access = parse_settings(f'name = "a"\napplication = "a:B"\n{example}'.encode()).access
    assert (access.policy, access.default, len(access.methods)) == ("clients.policy.toml", Word.NOBODY, 3)


# --- what is refused


@pytest.mark.parametrize("path", ["policy.toml", "policie/c.toml", "policies2/c.toml", "clients.toml2", "A/x"])
def test_a_policy_outside_the_bundle_is_refused(path: str) -> None:
    assert f"'access.policy' is '{path}', which is not in the bundle" in refusal(f'policy = "{path}"')


@pytest.mark.parametrize(
    "value", ['""', '"/etc/p"', '"a/../../p"', '"../a/p"', '"a/./p"', '"a//p"', '"a/"', '"a/.hidden"', "1", "[]", "{}"]
)
def test_a_policy_is_a_path_in_the_bundle(value: str) -> None:
    assert "'access.policy' should be the path of a file in the bundle" in refusal(f"policy = {value}")


@pytest.mark.parametrize("key", ["polcy", "rules", "mesh"])
def test_an_unknown_key_is_refused(key: str) -> None:
    assert f"unknown key 'access.{key}' (known: policy, allow_insecure, default, methods)" in refusal(f"{key} = 1")


@pytest.mark.parametrize("value", ["1", "true", '"simulated"', "[1]", "{}"])
def test_insecurities_are_a_list_of_strings(value: str) -> None:
    assert "'access.allow_insecure' should be a list of strings" in refusal(f"{POLICY}allow_insecure = {value}")


@pytest.mark.parametrize("word", ["", "Simulated", "simulated ", "a_b", "-a", "a-", "*", "simulated\\n"])
def test_an_insecurity_is_a_word(word: str) -> None:
    assert "'access.allow_insecure' has " in refusal(f'{POLICY}allow_insecure = ["debug", "{word}"]')


# fmt: off
NO_METHODS = (
    "", "*", "/", "/*", "/*/*", "a.B/C", "/a.B", "/a.B/", "/a.B/C/", "/a.B/C/D", "/a..B/C", "/.a/C", "/a./C", "/a.B/C*",
    "/a.*/C", "/a.B/**", "/a B/C", "/a-b.C/D", "/1a/C", "/a/1", "/à.B/C", " /a.B/C", "/a.B/C ", "/a.B/C\\n", "//C",
)
# fmt: on


@pytest.mark.parametrize("method", NO_METHODS)
def test_what_is_no_method_is_refused(method: str) -> None:
    why = refusal(f'[access.methods]\n"{method}" = "anyone"')
    assert "'access.methods' has " in why
    assert "which is no method ('/package.Service/Method', or '/package.Service/*'" in why


@pytest.mark.parametrize("method", ["Attest", "Enrol", "*"])
def test_the_methods_by_which_callers_enrol_are_not_the_authors_to_close(method: str) -> None:
    why = refusal(f'[access.methods]\n"{ATTESTATION_PREFIX}{method}" = "nobody"')
    assert "it is always anyone's to call" in why


def test_the_attestation_service_is_the_one_that_is_meant() -> None:
    (service,) = attestation_pb2.DESCRIPTOR.services_by_name.values()
    assert f"/{service.full_name}/" == ATTESTATION_PREFIX


@pytest.mark.parametrize("value", ['"anyone"', "1", "[]", '[["/a.B/C", "anyone"]]'])
def test_methods_are_a_table(value: str) -> None:
    assert "'access.methods' should be a table" in refusal(f"methods = {value}")


WRONG = {
    '"everyone"': "should be one of the words anyone, enrolled, nobody, or a table",
    '"Anyone"': "should be one of the words",
    '""': "should be one of the words",
    "1": "should be a table of exactly one key (one of rule, tee, measurement, platform, all, any, not)",
    "true": "should be a table of exactly one key",
    "[]": "should be a table of exactly one key",
    '["anyone"]': "should be a table of exactly one key",
    "{}": "should be a table of exactly one key",
    '{ rule = "a", tee = "snp" }': "should be a table of exactly one key",
    '{ role = "a" }': "unknown key 'role' in 'access.default' (known: rule,",
    "{ rule = 1 }": "'access.default.rule' should be a line of text",
    '{ rule = "" }': "'access.default.rule' should be a line of text",
    '{ tee = "a\\nb" }': "'access.default.tee' should be a line of text",
    "{ platform = [] }": "'access.default.platform' should be a line of text",
    "{ measurement = 11 }": "'access.default.measurement' should be 1 to 64 bytes in lower-case hexadecimal",
    '{ measurement = "" }': "'access.default.measurement' should be 1 to 64 bytes",
    '{ measurement = "1" }': "'access.default.measurement' should be 1 to 64 bytes",
    '{ measurement = "AA" }': "'access.default.measurement' should be 1 to 64 bytes",
    '{ measurement = "11 11" }': "'access.default.measurement' should be 1 to 64 bytes",
    f'{{ measurement = "{"11" * 65}" }}': "'access.default.measurement' should be 1 to 64 bytes",
    "{ all = [] }": "'access.default.all' should be a list of one expectation or more",
    "{ any = [] }": "'access.default.any' should be a list of one expectation or more",
    '{ any = { tee = "snp" } }': "'access.default.any' should be a list of one expectation or more",
    '{ any = "enrolled" }': "'access.default.any' should be a list of one expectation or more",
    "{ not = [] }": "'access.default.not' should be a table of exactly one key",
    '{ not = [{ tee = "snp" }] }': "'access.default.not' should be a table of exactly one key",
    '{ all = [{ tee = "snp" }, { not = { rol = "x" } }] }': "unknown key 'rol' in 'access.default.all[1].not'",
}


@pytest.mark.parametrize("value", WRONG)
def test_what_is_no_expectation_is_refused_and_named(value: str) -> None:
    assert WRONG[value] in refusal(f"{POLICY}default = {value}")
    why = WRONG[value].replace("access.default", f"access.methods.{METHOD}")
    assert why in refusal(f'{POLICY}[access.methods]\n"{METHOD}" = {value}')


@pytest.mark.parametrize("word", Word)
@pytest.mark.parametrize("table", ['{{ not = "{}" }}', '{{ all = ["{}"] }}', '{{ any = [{{ tee = "snp" }}, "{}"] }}'])
def test_a_word_stands_alone(word: str, table: str) -> None:
    assert "should be a table of exactly one key" in refusal(f"{POLICY}default = {table.format(word)}")


def test_expectations_nest_so_deep_and_no_deeper() -> None:
    assert isinstance(read(f"{POLICY}default = {nested(MAX_DEPTH)}").default, Not)
    assert f"is nested more than {MAX_DEPTH} deep" in refusal(f"{POLICY}default = {nested(MAX_DEPTH + 1)}")


def test_an_expectation_has_so_many_parts_and_no_more() -> None:
    def wide(nodes: int) -> str:
        return "{ any = [" + ", ".join(['{ tee = "snp" }'] * (nodes - 1)) + "] }"

    assert isinstance(read(f"{POLICY}default = {wide(MAX_NODES)}").default, AnyOf)
    assert f"'access.default' has more than {MAX_NODES} parts" in refusal(f"{POLICY}default = {wide(MAX_NODES + 1)}")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('allow_insecure = ["simulated"]', "allow_insecure"),
        ('default = "enrolled"', "default"),
        ('default = { not = { tee = "snp" } }', "default"),
        (f'[access.methods]\n"/a.B/*" = "anyone"\n"{METHOD}" = "enrolled"', f"methods.{METHOD}"),
    ],
)
def test_what_asks_for_enrolment_needs_a_policy(text: str, key: str) -> None:
    assert f"'access.{key}' without 'access.policy', so nobody can enrol" in refusal(text)


def test_an_expectation_of_no_parts_can_not_be_made() -> None:
    for kind in (AllOf, AnyOf):
        with pytest.raises(ValueError, match="no parts"):
            kind(parts=())


# --- who meets it

MET: list[Condition] = [
    *(RULE, SNP, MEASURED, MACHINE),
    Not(part=OTHER_RULE),
    AllOf(parts=(RULE, SNP, MEASURED, MACHINE)),
    AnyOf(parts=(OTHER_RULE, SNP)),
    AnyOf(parts=(OTHER_RULE, AllOf(parts=(SNP, Not(part=OTHER_TEE))))),
    Not(part=AllOf(parts=(RULE, OTHER_TEE))),
    Not(part=Not(part=RULE)),
]
NOT_MET: list[tuple[Condition, str]] = [
    (OTHER_RULE, "it has rule 'front end', wanted is rule 'back end'"),
    (OTHER_TEE, "it has tee 'snp', wanted is tee 'tdx'"),
    (Attribute(name="measurement", wanted=b"\x22"), f"it has measurement {'11' * 48}, wanted is measurement 22"),
    (Attribute(name="platform", wanted="4567"), "it has platform '0123', wanted is platform '4567'"),
    (Not(part=RULE), "it has rule 'front end', wanted is not rule 'front end'"),
    (AllOf(parts=(RULE, OTHER_TEE)), "it has tee 'snp', wanted is tee 'tdx'"),
    (
        Not(part=AnyOf(parts=(OTHER_RULE, SNP))),
        "it has (rule 'back end' or tee 'snp'), wanted is not (rule 'back end' or tee 'snp')",
    ),
    (
        Not(part=AllOf(parts=(RULE, SNP))),
        "it has (rule 'front end' and tee 'snp'), wanted is not (rule 'front end' and tee 'snp')",
    ),
]


def test_anyone_is_met_by_anyone() -> None:
    assert appraise_caller(Word.ANYONE, CALLER) == ()
    assert appraise_caller(Word.ANYONE, None) == ()


def test_nobody_is_met_by_nobody() -> None:
    assert appraise_caller(Word.NOBODY, CALLER) == ("nobody may call it",)
    assert appraise_caller(Word.NOBODY, None) == ("nobody may call it",)


def test_enrolled_is_met_by_whoever_has_enrolled() -> None:
    assert appraise_caller(Word.ENROLLED, CALLER) == ()
    assert appraise_caller(Word.ENROLLED, None) == ("the caller is not enrolled",)


@pytest.mark.parametrize("condition", MET, ids=str)
def test_a_condition_that_the_caller_meets(condition: Condition) -> None:
    assert appraise_caller(condition, CALLER) == ()


@pytest.mark.parametrize(("condition", "why"), NOT_MET, ids=str)
def test_a_condition_that_the_caller_does_not_meet(condition: Condition, why: str) -> None:
    assert appraise_caller(condition, CALLER) == (why,)


@pytest.mark.parametrize("condition", [*MET, *(condition for condition, _ in NOT_MET)], ids=str)
def test_a_caller_without_an_identity_meets_no_condition(condition: Condition) -> None:
    assert appraise_caller(condition, None) == ("the caller is not enrolled",)


def test_everything_that_stands_against_a_caller_is_said() -> None:
    for kind in (AllOf, AnyOf):
        assert len(appraise_caller(kind(parts=(OTHER_RULE, OTHER_TEE)), CALLER)) == 2


# --- what only the policy can tell


def policy() -> Policy:
    return Policy.parse(
        f'version = 1\n[[simulated]]\nname = "tests"\nmeasurement = ["{"11" * 48}"]\nmax_age_seconds = 60\n'.encode()
    )


@pytest.mark.parametrize(
    "expectation",
    [*Word, Attribute(name="rule", wanted="tests"), Attribute(name="tee", wanted="simulated"), MACHINE, MEASURED],
    ids=str,
)
def test_expectations_that_fit_the_policy_are_taken(expectation: Expectation) -> None:
    check_against_policy(AccessSettings(default=expectation, methods=((METHOD, expectation),)), policy())


@pytest.mark.parametrize("wrong", [Attribute(name="rule", wanted="test"), SNP], ids=str)
def test_a_rule_or_tee_that_the_policy_does_not_have_is_refused_wherever_it_stands(wrong: Attribute) -> None:
    good = Attribute(name="rule", wanted="tests")
    for each in (wrong, Not(part=wrong), AllOf(parts=(good, wrong)), AnyOf(parts=(Not(part=good), Not(part=wrong)))):
        with pytest.raises(ConfigurationError, match=f"'access.default' has {wrong}, not in the policy"):
            check_against_policy(AccessSettings(default=each), policy())
        with pytest.raises(ConfigurationError, match=f"'access.methods.{METHOD}' has {wrong}"):
            check_against_policy(AccessSettings(methods=(("/a.B/C", good), (METHOD, each))), policy())


def test_known_insecurities_are_agreed_to() -> None:
    access = AccessSettings(allow_insecure=tuple(Insecurity))
    assert agreed_insecurities(access) == tuple(Insecurity)
    assert agreed_insecurities(AccessSettings()) == ()


def test_every_insecurity_can_be_written() -> None:
    words = ", ".join(f'"{word}"' for word in Insecurity)
    assert read(f"{POLICY}allow_insecure = [{words}]").allow_insecure == tuple(Insecurity)


def test_an_unknown_insecurity_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"'access\.allow_insecure' has the unknown 'simulatd'"):
        agreed_insecurities(AccessSettings(allow_insecure=("debug", "simulatd")))
