"""Whatever bytes enclave.toml holds: it is read, or it is a ConfigurationError. And what [access] says obeys logic."""

from __future__ import annotations

from dataclasses import fields
from datetime import UTC, datetime

from hypothesis import given, settings
from hypothesis import strategies as st

from adyton.atls.access import appraise_caller
from adyton.atls.peer import Peer
from adyton.bundle.access import AllOf, AnyOf, Attribute, Condition, Expectation, Not, Word
from adyton.bundle.settings import ServerSettings, Settings, parse_settings
from adyton.errors import ConfigurationError

MINIMAL = b'name = "a"\napplication = "a:B"\ninclude = ["a"]\n'
FULL = MINIMAL + (
    b'[environment]\nallow = ["MODE"]\n[network]\noutbound = true\n[logging]\naccess = true\n[server]\nworkers = 2\n'
    b"max_rpc_ms = 1000\nhealth = false\n"
    b'[access]\npolicy = "a"\nallow_insecure = ["simulated"]\ndefault = "enrolled"\n[access.methods]\n'
    b'"/a.B/C" = "nobody"\n"/a.B/*" = { any = [{ rule = "r" }, { not = { measurement = "11" } }] }\n'
)
# fmt: off
TOKENS = (
    "name", "application", "include", "environment", "network", "logging", "server", "allow", "outbound", "access",
    "workers", "threads", "health", "policy", "default", "methods", "anyone", "rule", "all", "not", '"/a.B/C"',
    "=", "==", ".", ",", ":", "-", "_", "#", "[", "]", "[[", "]]", "{", "}", '"', "'",
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
    st.sampled_from(
        ["[server]", "[environment]", "[network]", "[[server]]", "[access]", "[access.methods]", "[x.y]", "", "#"]
    ),
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


# --- [access]

TEXTS = ("", "a", "b", "r1", "snp", "11", "anyone", "enrolled", "nobody", "/a.B/C", "/a.B/*", "a/p", "simulated", "\n")
KEYS = ("policy", "allow_insecure", "default", "methods", "rule", "tee", "measurement", "platform", "all", "any", "not")
leaves = st.sampled_from(TEXTS) | st.text(max_size=4) | st.booleans() | st.integers() | st.floats()
trees = st.recursive(
    leaves,
    lambda below: (
        st.lists(below, max_size=4) | st.dictionaries(st.sampled_from((*KEYS, *TEXTS)), below, min_size=1, max_size=3)
    ),
    max_leaves=40,
)
Tree = str | bool | int | float | list["Tree"] | dict[str, "Tree"]

names = st.sampled_from(["rule", "tee", "measurement", "platform"])
values = st.sampled_from(["a", "b"])
attributes = st.builds(
    lambda name, value: Attribute(name=name, wanted=value.encode() if name == "measurement" else value), names, values
)
conditions: st.SearchStrategy[Condition] = st.recursive(
    attributes,
    lambda below: (
        st.builds(Not, part=below)
        | st.builds(AllOf, parts=st.lists(below, min_size=1, max_size=3).map(tuple))
        | st.builds(AnyOf, parts=st.lists(below, min_size=1, max_size=3).map(tuple))
    ),
    max_leaves=8,
).filter(lambda condition: _depth(condition) <= 8)
callers = st.builds(
    Peer,
    rule=values,
    tee=values,
    measurement=values.map(str.encode),
    platform=values,
    insecurities=st.just(()),
    expires_at=st.just(datetime(2026, 7, 1, tzinfo=UTC)),
)


def _toml(tree: Tree) -> str:
    if isinstance(tree, dict):
        return "{" + ", ".join(f"{_quoted(key)} = {_toml(value)}" for key, value in tree.items()) + "}"
    if isinstance(tree, list):
        return "[" + ", ".join(map(_toml, tree)) + "]"
    return _quoted(tree) if isinstance(tree, str) else str(tree).lower()


def _parts(condition: Condition) -> tuple[Condition, ...]:
    if isinstance(condition, Attribute):
        return ()
    return (condition.part,) if isinstance(condition, Not) else condition.parts


def _depth(condition: Condition) -> int:
    return 1 + max(map(_depth, _parts(condition)), default=0)


def _tree(condition: Condition) -> Tree:
    match condition:
        case Attribute(name=name, wanted=wanted):
            return {name: wanted.hex() if isinstance(wanted, bytes) else wanted}
        case Not(part=part):
            return {"not": _tree(part)}
        case AllOf(parts=parts):
            return {"all": [_tree(part) for part in parts]}
        case AnyOf(parts=parts):
            return {"any": [_tree(part) for part in parts]}


def _meets(caller: Peer | None, expectation: Expectation) -> bool:
    return not appraise_caller(expectation, caller)


@settings(max_examples=500)
@given(
    trees, st.sampled_from(["access = {}", "[access]\npolicy = 'a'\ndefault = {}", "[access.methods]\n'/a.B/C' = {}"])
)
def test_any_tree_below_access_is_read_or_refused(tree: Tree, place: str) -> None:
    read = _settings_or_none(MINIMAL + place.format(_toml(tree)).encode("utf-8", "surrogatepass"))
    asks = read is not None and {read.access.default, *dict(read.access.methods).values()} - {Word.ANYONE, Word.NOBODY}
    assert not asks or (read is not None and read.access.policy is not None)


@given(conditions)
def test_a_condition_is_read_as_it_is_written(condition: Condition) -> None:
    read = _settings_or_none(MINIMAL + f"[access]\npolicy = 'a'\ndefault = {_toml(_tree(condition))}".encode())
    assert read is not None
    assert read.access.default == condition


@given(callers, conditions)
def test_not_is_met_by_the_enrolled_callers_that_do_not_meet_its_part(caller: Peer, condition: Condition) -> None:
    assert _meets(caller, Not(part=condition)) is not _meets(caller, condition)
    assert _meets(caller, Not(part=Not(part=condition))) is _meets(caller, condition)


@given(callers, st.lists(conditions, min_size=1, max_size=4).map(tuple))
def test_all_and_any_are_what_they_say(caller: Peer, parts: tuple[Condition, ...]) -> None:
    met = [_meets(caller, part) for part in parts]
    assert _meets(caller, AllOf(parts=parts)) is all(met)
    assert _meets(caller, AnyOf(parts=parts)) is any(met)


@given(callers, attributes)
def test_an_attribute_is_met_by_the_callers_that_have_it(caller: Peer, attribute: Attribute) -> None:
    assert _meets(caller, attribute) is (getattr(caller, attribute.name) == attribute.wanted)


@given(conditions | st.sampled_from(Word))
def test_a_caller_without_an_identity_is_let_in_by_anyone_and_nothing_else(expectation: Expectation) -> None:
    assert _meets(None, expectation) is (expectation is Word.ANYONE)


@given(callers, conditions | st.sampled_from(Word))
def test_whoever_is_refused_hears_why_in_one_line_each(caller: Peer, expectation: Expectation) -> None:
    assert all(why and why.isprintable() for why in appraise_caller(expectation, caller))
