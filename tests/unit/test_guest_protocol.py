"""What a launcher and a guest say to each other beside the control protocol: neither believes the other."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adyton.errors import ControlProtocolError
from adyton.proto.guest import (
    MAX_BOOT_DOCUMENT_BYTES,
    MAX_REPORT_BYTES,
    BootDocument,
    Ended,
    Started,
    encode_report,
    parse_boot_document,
    parse_report,
)

DOCUMENT = BootDocument(
    time_ns=1, host_name="enclave", event_log=b"log", certificates=(b"leaf", b"root"), approvals=(b"approved",)
)
FIELDS = json.loads(DOCUMENT.encode())
ENDED = json.loads(encode_report(Ended(status=3, out_of_memory=False)))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(
    time_ns=st.integers(0, (1 << 63) - 1),
    host_name=st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?", fullmatch=True),
    event_log=st.binary(),
    certificates=st.lists(st.binary()).map(tuple),
    approvals=st.lists(st.binary()).map(tuple),
)
def test_a_boot_document_says_what_was_put_into_it(
    time_ns: int, host_name: str, event_log: bytes, certificates: tuple[bytes, ...], approvals: tuple[bytes, ...]
) -> None:
    document = BootDocument(
        time_ns=time_ns, host_name=host_name, event_log=event_log, certificates=certificates, approvals=approvals
    )
    assert parse_boot_document(document.encode()) == document


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("time_ns", -1),
        ("time_ns", 1 << 63),
        ("time_ns", 1.5),
        ("time_ns", True),
        ("time_ns", None),
        ("host_name", ""),
        ("host_name", "-a"),
        ("host_name", "a\nb"),
        ("host_name", "a" * 64),
        ("host_name", "enclave\n"),
        ("host_name", 7),
        ("event_log", "not base64!"),
        ("event_log", None),
        ("event_log", "bG9n\n"),
        ("certificates", None),
        ("certificates", [7]),
        ("certificates", ["?"]),
        ("certificates", 7),
        ("approvals", None),
        ("approvals", [7]),
        ("approvals", ["?"]),
    ],
)
def test_a_boot_document_with_a_wrong_field_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ControlProtocolError, match="the boot document is not one"):
        parse_boot_document(json.dumps(FIELDS | {field: value}).encode())


@pytest.mark.parametrize("field", FIELDS)
def test_a_boot_document_without_a_field_is_refused(field: str) -> None:
    fields = {name: value for name, value in FIELDS.items() if name != field}
    with pytest.raises(ControlProtocolError, match="the boot document is not one"):
        parse_boot_document(json.dumps(fields).encode())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[]", "no JSON object"),
        (b"7", "no JSON object"),
        (b"[" * 100_000, "not JSON"),
        (b" " * (MAX_BOOT_DOCUMENT_BYTES - 1) + b"{}", "not JSON of at most 1048576 bytes"),
    ],
    ids=["empty", "not UTF-8", "list", "number", "deep", "long"],
)
def test_what_is_no_boot_document_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ControlProtocolError, match=message):
        parse_boot_document(data)


@given(JSON)
def test_any_json_is_a_boot_document_or_an_error_of_the_protocol(value: object) -> None:
    with pytest.raises(ControlProtocolError):
        parse_boot_document(json.dumps(value).encode())


@pytest.mark.parametrize(
    "report",
    [
        Started(seconds_to_pid1=1.25, seconds_to_fork=2, pcr0="ab" * 32),
        Ended(status=0, out_of_memory=False),
        Ended(status=-9, out_of_memory=True),
    ],
)
def test_a_report_is_one_line(report: Started | Ended) -> None:
    line = encode_report(report)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert len(line) < MAX_REPORT_BYTES
    assert parse_report(line) == report


@pytest.mark.parametrize(
    "change",
    [
        {"event": "other"},
        {"event": "started"},
        {"event": None},
        {"status": "3"},
        {"status": True},
        {"status": 256},
        {"status": -256},
        {"out_of_memory": 1},
        {"out_of_memory": None},
    ],
)
def test_a_report_with_a_wrong_field_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ControlProtocolError, match="the guest's report is not one"):
        parse_report(json.dumps(ENDED | change).encode())


@pytest.mark.parametrize("seconds", ["-1", "NaN", "Infinity", "true", "null", '"1"', "1" + "0" * 400])
def test_a_time_that_is_none_is_refused(seconds: str) -> None:
    line = f'{{"event": "started", "seconds_to_pid1": {seconds}, "seconds_to_fork": 1}}'
    with pytest.raises(ControlProtocolError, match="the guest's report is not one"):
        parse_report(line.encode())


@pytest.mark.parametrize("line", [b"", b"\n", b"{", b" " * MAX_REPORT_BYTES + b"{}", b"[]\n"])
def test_what_is_no_report_is_refused(line: bytes) -> None:
    with pytest.raises(ControlProtocolError, match="the guest's report"):
        parse_report(line)


@given(JSON)
def test_any_json_is_a_report_or_an_error_of_the_protocol(value: object) -> None:
    with pytest.raises(ControlProtocolError):
        parse_report(json.dumps(value).encode())
