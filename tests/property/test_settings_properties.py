"""Whatever bytes enclave.toml holds: it is read, or it is a ConfigurationError."""

from __future__ import annotations

from dataclasses import fields

from hypothesis import given, settings
from hypothesis import strategies as st

from adyton.bundle.settings import ServerSettings, Settings, parse_settings
from adyton.errors import ConfigurationError

MINIMAL = b'name = "a"\napplication = "a:B"\ninclude = ["a"]\n'
FULL = MINIMAL + (
    b'[environment]\nallow = ["MODE"]\n[network]\noutbound = true\n[logging]\naccess = true\n[server]\nworkers = 2\n'
    b"max_rpc_ms = 1000\nhealth = false\n"
)
# fmt: off
TOKENS = (
    "name", "application", "include", "environment", "network", "logging", "server", "allow", "outbound", "access",
    "workers", "threads", "health", "=", "==", ".", ",", ":", "-", "_", "#", "[", "]", "[[", "]]", "{", "}", '"', "'",
    '"""', "'''", "\\", "\\u0000", "\\ud800", "\n", "\r\n", "\t", "true", "false", "0", "1", "-1", "+1", "1e9", "nan",
    "inf", "0x", "0xff", "0b1", "1_000", "9223372036854775808", "1979-05-27", "07:32:00", "1979-05-27T00:32:00Z",
    "0000-00-00", "\x00", "\x7f", "\u2028", "é",
)
# fmt: on


def _quoted(text: str) -> str:
    return '"' + "".join(f"\\U{ord(letter):08x}" for letter in text) + '"'


literals = st.one_of(
    st.integers().map(str),
    st.integers(min_value=0).map(hex),
    st.integers(4000, 6000).map(lambda digits: "7" * digits),
    st.integers(4000, 6000).map(lambda digits: "0x" + "7" * digits),
    st.floats().map(repr),
    st.sampled_from(["true", "false", "[]", "{}", '""', '["a", 1]', "{a = {b = []}}", "1979-05-27"]),
    st.text(max_size=20).map(_quoted),
)
keys = st.sampled_from(["name", "application", "include", "x", *(each.name for each in fields(ServerSettings))])
lines = st.one_of(
    st.tuples(keys, literals).map(" = ".join),
    st.sampled_from(["[server]", "[environment]", "[network]", "[[server]]", "[x.y]", "", "#"]),
)


def _settings_or_none(text: bytes) -> Settings | None:
    try:
        return parse_settings(text)
    except ConfigurationError:
        return None


def test_the_originals_are_read() -> None:
    assert _settings_or_none(MINIMAL)
    assert _settings_or_none(FULL)


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_random_bytes_are_refused(text: bytes) -> None:
    assert _settings_or_none(text) is None


@settings(max_examples=300)
@given(st.lists(st.sampled_from(TOKENS), max_size=30).map("".join))
def test_random_tokens_are_read_or_refused(text: str) -> None:
    _settings_or_none(text.encode())
    _settings_or_none(MINIMAL + text.encode())


@settings(max_examples=500)
@given(st.lists(lines, max_size=8).map("\n".join))
def test_random_lines_are_read_or_refused(text: str) -> None:
    _settings_or_none(text.encode("utf-8", "surrogatepass"))
    _settings_or_none(MINIMAL + text.encode("utf-8", "surrogatepass"))


@settings(max_examples=500)
@given(st.data())
def test_a_mutation_is_read_or_refused(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(FULL)))
    end = data.draw(st.integers(start, min(len(FULL), start + 20)))
    _settings_or_none(FULL[:start] + data.draw(st.binary(max_size=10)) + FULL[end:])


@given(st.integers(1, 200), st.sampled_from(["[", "{a=", "[{a=", "a."]))
def test_nesting_is_refused_however_deep(hundreds: int, opening: str) -> None:
    assert _settings_or_none(("a = " + opening * hundreds * 100).encode()) is None


@given(st.dictionaries(st.sampled_from([each.name for each in fields(ServerSettings)]), st.integers(-5, 2_000_000_000)))
def test_whatever_is_read_is_within_bounds(numbers: dict[str, int]) -> None:
    text = "\n".join(f"{key} = {value}" for key, value in numbers.items())
    read = _settings_or_none(MINIMAL + f"[server]\n{text}".encode())
    if read is None:
        return
    for key, value in numbers.items():
        low, high = next(each.metadata["bounds"] for each in fields(ServerSettings) if each.name == key)
        assert getattr(read.server, key) == value
        assert low <= value <= high
