"""requirements.lock: exact versions, digests, markers, and what of it is installed."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import adyton
from adyton.bundle.lock import MAX_LOCK_BYTES, LockedDistribution, find_mismatches, parse_lock
from adyton.errors import ConfigurationError

A, B = "a" * 64, "0123456789abcdef" * 4
HASH = f"--hash=sha256:{A}"
OWN_LOCK = Path(adyton.__file__).parent / "host" / "requirements.lock"


def locked(name: str, version: str, *sha256: str, wanted: bool = True) -> LockedDistribution:
    return LockedDistribution(name=name, version=version, wanted=wanted, sha256=sha256 or (A,))


def parse(text: str) -> tuple[LockedDistribution, ...]:
    return parse_lock(text.encode())


def refusal(text: str) -> str:
    with pytest.raises(ConfigurationError, match=r"^requirements\.lock") as caught:
        parse(text)
    return str(caught.value)


# --- what is taken


def test_a_line_has_a_name_a_version_and_digests() -> None:
    text = f"grpcio==1.85.1 \\\n    --hash=sha256:{A} \\\n    --hash=sha256:{B}\n"
    assert parse(text) == (locked("grpcio", "1.85.1", A, B),)


def test_a_lock_may_be_empty() -> None:
    assert parse("") == parse("\n\n# nothing\n   \n") == ()


@pytest.mark.parametrize(
    ("written", "name", "version"),
    [
        ("Typing_Extensions.X==4.0", "typing-extensions-x", "4.0"),
        ("a == 1.0.post1", "a", "1.0.post1"),
        ("a==1!2.0rc1+local.7", "a", "1!2.0rc1+local.7"),
        ("a (==1.0)", "a", "1.0"),
        ("a[extra,other]==1.0", "a", "1.0"),
        ("a==1.0 ;", "a", "1.0"),
    ],
)
def test_names_are_written_in_one_way_and_versions_as_they_are(written: str, name: str, version: str) -> None:
    text = written.rstrip(" ;")
    assert parse(f"{text} {HASH}") == (locked(name, version),)


@pytest.mark.parametrize(
    ("marker", "holds"),
    [
        ("sys_platform == 'linux'", sys.platform == "linux"),
        ("sys_platform == 'win32'", False),
        ("python_version >= '3.11'", True),
        ("python_version < '3.11'", False),
        ("python_full_version >= '3.11' and sys_platform != 'win32'", True),
        ("(sys_platform == 'win32' or python_version >= '3.11') and os_name == 'posix'", True),
        (f"implementation_name == '{sys.implementation.name}'", True),
        ("extra == 'test'", False),
    ],
)
def test_a_marker_says_whether_a_line_is_wanted(marker: str, holds: bool) -> None:
    assert parse(f"a==1.0 ; {marker} \\\n {HASH}") == (locked("a", "1.0", wanted=holds),)


def test_markers_are_those_of_the_environment_that_is_asked_for() -> None:
    text = f"a==1 ; platform_machine == 'vax' {HASH}\nb==1 ; python_version < '3' {HASH}\nc==1 {HASH}\n".encode()
    vax = {"platform_machine": "vax", "python_version": "2.7"}
    assert [each.name for each in parse_lock(text, vax) if each.wanted] == ["a", "b", "c"]
    assert [each.name for each in parse_lock(text) if each.wanted] == ["c"]


def test_one_distribution_may_have_a_line_for_each_marker() -> None:
    text = f"a==1.0 ; python_version < '3.11' {HASH}\na==2.0 ; python_version >= '3.11' {HASH}\n"
    assert parse(text) == (locked("a", "1.0", wanted=False), locked("a", "2.0"))


def test_comments_are_left_out() -> None:
    text = f"# made by a tool\na==1 {HASH} # why\n    # via b\n#b==1\nc==1 \\\n  {HASH}\n    # via\n    #   d\n"
    assert [each.name for each in parse(text)] == ["a", "c"]


def test_a_comment_does_not_continue_though_it_ends_in_a_backslash() -> None:
    assert parse(f"# via x \\\na==1 {HASH}\n  # via y \\\nb==1 {HASH}\n") == (locked("a", "1"), locked("b", "1"))


def test_lines_may_end_as_on_another_system() -> None:
    assert parse(f"a==1 \\\r\n    {HASH}\r\nb==1 {HASH}\r\n") == (locked("a", "1"), locked("b", "1"))


def test_tabs_are_spaces() -> None:
    text = f"a==1\t;\tsys_platform != 'win32'\t{HASH}\t--hash=sha256:{B}\t# why\nb==1 \\\n\t{HASH}\n"
    assert parse(text) == (locked("a", "1", A, B), locked("b", "1"))


def test_the_last_line_may_be_continued_by_nothing() -> None:
    assert parse(f"a==1 {HASH} \\") == (locked("a", "1"),)


def test_the_lock_of_adyton_itself_is_read() -> None:
    text = OWN_LOCK.read_text()
    lock = {each.name: each for each in parse(text)}
    assert {"cryptography", "grpcio", "protobuf"} <= lock.keys()
    assert sum(len(each.sha256) for each in lock.values()) == text.count("--hash=")
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for each in lock.values() for digest in each.sha256)


# --- what is refused


@pytest.mark.parametrize(
    "requirement",
    ["a", "a>=1", "a<=1", "a~=1.0", "a!=1", "a===1", "a==1.*", "a==1,==2", "a==1,>0", "a @ https://example.com/a.whl",
     "a @ file:///a.whl", "a ; sys_platform == 'linux'"],
)  # fmt: skip
def test_a_line_without_one_exact_version_is_refused(requirement: str) -> None:
    assert "a needs one exact version (name==1.2.3)" in refusal(f"b==1 {HASH}\n{requirement} {HASH}\n")


def test_a_line_without_a_digest_is_refused() -> None:
    why = refusal(f"a==1 {HASH}\nb==1\n")
    assert "b has no digest (write the lock with `uv pip compile --universal --generate-hashes`)" in why


def test_a_digest_in_a_comment_is_no_digest() -> None:
    assert "a has no digest" in refusal(f"a==1 # {HASH}")
    assert "a has no digest" in refusal(f"a==1 \\\n  # {HASH}")


def test_a_comment_that_would_take_in_the_next_line_is_refused() -> None:
    assert "can't read" in refusal(f"a==1 {HASH} # why \\\nb==1 {HASH}\n")


@pytest.mark.parametrize(
    "line",
    [
        f"a==1 --hash=sha512:{A}{A}",
        f"a==1 --hash=md5:{A[:32]}",
        f"a==1 --hash=sha256:{A[1:]}",
        f"a==1 --hash=sha256:{A}a",
        f"a==1 --hash=sha256:{A}#why",
        f"a==1 --hash=sha256:{A};sys_platform=='win32'",
        f"a==1 {HASH} ; sys_platform == 'win32'",
        f"a{HASH}==1 {HASH}",
        f"a==1#why {HASH}",
        f"a==1 \\ \n {HASH}",
        f"a==1 --hash=sha256:{A.upper()}",
        f"a==1 {HASH} --hash=sha512:{A}{A}",
        f"a= =1 {HASH}",
        f"a==one {HASH}",
        f"==1 {HASH}",
        f"-a==1 {HASH}",
        f"é==1 {HASH}",
        f"-r other.txt {HASH}",
        "-e .",
        "--index-url https://example.com",
        "https://example.com/a.whl",
        HASH,
        f"a==1 ; sys_platform {HASH}",
        f"a==1 ; nothing == 'x' {HASH}",
        f"a==1 ; os_name ~= 'posix' {HASH}",
        f"a==1 ; 'x' in extras {HASH}",
        f"a==1 ; {'(' * 20_000}os_name == 'posix'{')' * 20_000} {HASH}",
    ],
    ids=lambda line: line[:40],
)
def test_what_is_no_pinned_requirement_is_refused(line: str) -> None:
    assert "can't read" in refusal(line)


def test_what_is_not_utf_8_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"requirements\.lock is not UTF-8"):
        parse_lock(b"a==1 \xff")


def test_a_lock_that_is_too_long_is_refused() -> None:
    assert parse_lock(b"\n" * MAX_LOCK_BYTES) == ()
    with pytest.raises(ConfigurationError, match="larger than 4194304 bytes"):
        parse_lock(b"\n" * (MAX_LOCK_BYTES + 1))


# fmt: off
PIECES = (
    "a", "b-c", "==", "===", ">=", "~=", "1", "1.0", ".*", ",", ";", "@", "#", "\\", "(", ")", "[", "]", "'", '"',
    "and", "or", "not", "in", "sys_platform", "python_version", "extra", "extras", "os_name", "'3.11'", "'linux'", HASH,
    "--hash=sha256:", "https://x", "-r", " ", "\n", "\r", "\u2028", "\x1c", "\0", "é",
)
# fmt: on


@settings(max_examples=500)
@given(st.lists(st.sampled_from(PIECES), max_size=25).map("".join) | st.text(max_size=60))
def test_any_text_is_read_or_a_configuration_error(text: str) -> None:
    for each in (text, f"a==1 ; {text} {HASH}", f"a==1 {text} {HASH}"):
        try:
            lock = parse_lock(each.encode("utf-8", "surrogatepass"))
        except ConfigurationError:
            continue
        assert all(entry.sha256 and entry.version for entry in lock)


@given(st.binary(max_size=100))
def test_any_bytes_are_read_or_a_configuration_error(text: bytes) -> None:
    with suppress(ConfigurationError):
        parse_lock(text)


# --- what is installed


def test_nothing_is_missing_where_all_versions_are_the_locked_ones() -> None:
    lock = (locked("a", "1.0"), locked("b", "2.0"))
    assert find_mismatches(lock, {"a": "1.0", "b": "2.0", "c": "3"}.get) == []


def test_every_mismatch_is_found_and_named() -> None:
    lock = (locked("a", "1.0"), locked("b", "2.0"), locked("c", "3.0"))
    findings = find_mismatches(lock, {"a": "1.1", "c": "3.0"}.get)
    assert findings == ["a 1.1, locked is 1.0", "b is not installed, locked is 2.0"]


def test_what_is_not_wanted_may_be_missing_or_another() -> None:
    lock = (locked("a", "1.0", wanted=False), locked("b", "1.0", wanted=False))
    assert find_mismatches(lock, {"b": "2.0"}.get) == []


def test_two_lines_that_both_hold_can_not_both_be_installed() -> None:
    lock = parse(f"a==1 {HASH}\na==2 {HASH}\n")
    assert find_mismatches(lock, {"a": "2"}.get) == ["a 2, locked is 1"]


def test_what_these_tests_run_with_is_what_adyton_is_locked_to() -> None:
    assert find_mismatches(parse_lock(OWN_LOCK.read_bytes()), importlib.metadata.version) == []


def test_versions_are_compared_as_versions() -> None:
    lock = parse_lock(f"certs==2024.02.02 --hash=sha256:{'0' * 64}".encode())
    assert find_mismatches(lock, lambda _: "2024.2.2") == []
    assert find_mismatches(lock, lambda _: "2024.2.3") == ["certs 2024.2.3, locked is 2024.02.02"]
