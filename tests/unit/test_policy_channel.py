"""The [channel] table of a policy: what it may hold, and what it has against a connection."""

from __future__ import annotations

from pathlib import Path

import pytest

from adyton.errors import ConfigurationError, Finding
from adyton.policy.channel import KEYS, MAX_DIGESTS, ChannelRule
from adyton.policy.document import Policy

ONE, TWO, OTHER = b"\x11" * 32, b"\x22" * 32, b"\x33" * 32


def parse(text: str) -> ChannelRule:
    return Policy.parse(f"version = 1\n{text}".encode()).channel


def found(rule: ChannelRule, config: bytes = ONE, ca: bytes | None = None) -> list[Finding]:
    return list(rule.findings(config_sha256=config, ca_sha256=ca))


def test_a_policy_without_the_table_asks_for_nothing() -> None:
    for text in ("", "[channel]"):
        assert parse(text) == ChannelRule() == ChannelRule(config_sha256=None, ca_sha256=None)
    assert found(ChannelRule()) == []
    assert found(ChannelRule(), ca=OTHER) == []


def test_the_tables_digests_are_read() -> None:
    rule = parse(f'[channel]\nconfig_sha256 = ["{ONE.hex()}", "{TWO.hex()}"]\nca_sha256 = ["{OTHER.hex()}"]')
    assert rule == ChannelRule(config_sha256=frozenset({ONE, TWO}), ca_sha256=frozenset({OTHER}))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("channel = 3", "channel must be a table (write [channel])"),
        ("[[channel]]", "channel must be a table (write [channel])"),
        ("[channel]\nport = 1", "channel has the unknown key 'port' (known: config_sha256, ca_sha256)"),
        ("[channel]\nz = 1\na = 1", "channel has the unknown key 'a' (known: config_sha256, ca_sha256)"),
        ("[channel]\nConfig_sha256 = []", "channel has the unknown key 'Config_sha256'"),
    ],
)
def test_another_form_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse(text)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("[]", "must be a list of 1 to 1024 SHA-256 digests"),
        ('"any"', "must be a list of 1 to 1024 SHA-256 digests"),
        (f'"{ONE.hex()}"', "must be a list of 1 to 1024 SHA-256 digests"),
        ("true", "must be a list of 1 to 1024 SHA-256 digests"),
        ("{}", "must be a list of 1 to 1024 SHA-256 digests"),
        (str([ONE.hex()] * (MAX_DIGESTS + 1)), "must be a list of 1 to 1024 SHA-256 digests"),
        (f'["{ONE.hex()}", "11"]', "[1] must be a string of 32 bytes"),
        ('[""]', "[0] must be a string of 32 bytes"),
        ("[7]", "[0] must be a string of 32 bytes"),
        (f'["{"AB" * 32}"]', "[0] must be a string of 32 bytes"),
        (f'["{"1" * 63}"]', "[0] must be a string of 32 bytes"),
        (f'["{"11" * 48}"]', "[0] must be a string of 32 bytes"),
        ('[{ signed = "x" }]', "[0] must be a string of 32 bytes"),
    ],
)
def test_what_is_no_list_of_digests_is_refused(key: str, value: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse(f"[channel]\n{key} = {value}")
    assert caught.value.message.startswith(f"channel.{key}{said if said[0] == '[' else ' ' + said}")


def test_as_many_digests_as_are_allowed_are_read() -> None:
    rule = parse(f"[channel]\nca_sha256 = {[f'{index:064x}' for index in range(MAX_DIGESTS)]}")
    assert rule.ca_sha256 is not None
    assert len(rule.ca_sha256) == MAX_DIGESTS


def test_a_connection_with_one_of_the_digests_is_fine() -> None:
    rule = ChannelRule(config_sha256=frozenset({ONE, TWO}), ca_sha256=frozenset({OTHER}))
    assert found(rule, ONE, OTHER) == found(rule, TWO, OTHER) == []


def test_another_configuration_is_found_with_what_was_wanted() -> None:
    (finding,) = found(ChannelRule(config_sha256=frozenset({TWO, ONE})), OTHER)
    assert finding == Finding(
        rule="",
        subject="channel.config_sha256",
        got=OTHER.hex(),
        wanted=f"{ONE.hex()} or {TWO.hex()}",
        mend="the host runs the enclave with another configuration; list this one if it is acceptable",
    )


def test_another_ca_is_found_with_what_was_wanted() -> None:
    (finding,) = found(ChannelRule(ca_sha256=frozenset({TWO})), ca=OTHER)
    assert str(finding) == (
        f"channel.ca_sha256 is {OTHER.hex()}, wanted is {TWO.hex()} (it is another enclave of this code, or was "
        "started anew; list its CA if you know that it is yours)"
    )


def test_evidence_that_names_no_ca_is_found_where_one_is_wanted() -> None:
    (finding,) = found(ChannelRule(ca_sha256=frozenset({TWO})), ca=None)
    assert (finding.subject, finding.got) == ("channel.ca_sha256", "not said")


def test_a_rule_that_accepts_nothing_accepts_nothing() -> None:
    findings = found(ChannelRule(config_sha256=frozenset(), ca_sha256=frozenset()), ONE, TWO)
    assert [(finding.subject, finding.wanted) for finding in findings] == [
        ("channel.config_sha256", "nothing at all"),
        ("channel.ca_sha256", "nothing at all"),
    ]


def test_digests_of_other_lengths_never_match() -> None:
    rule = ChannelRule(config_sha256=frozenset({ONE}), ca_sha256=frozenset({ONE}))
    assert len(found(rule, b"", b"")) == len(found(rule, ONE[:-1], ONE + b"\0")) == 2


def test_a_policys_digest_covers_the_table() -> None:
    assert Policy.parse(b"version = 1\n[channel]\n").sha256 != Policy.parse(b"version = 1\n").sha256


def test_the_page_about_policies_has_every_key_and_no_other() -> None:
    page = (Path(__file__).parent.parent.parent / "docs" / "policy.md").read_text()
    section = page.partition("\n## The connection\n")[2].partition("\n## ")[0]
    rows = [line.split("|") for line in section.splitlines() if line.startswith("| `")]
    assert [cells[1].strip(" `") for cells in rows] == list(KEYS)
    assert all(f"1 to {MAX_DIGESTS} digests of 32 bytes" in cells[2] for cells in rows)
