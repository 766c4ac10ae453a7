"""What a TPM will say of a launch without firmware: the document, PCR 0, and the log that gives it."""

from __future__ import annotations

import hashlib

import pytest

from adyton.host.image.reference.hcrtm import event_log, launch_document
from adyton.tee._event_log import EV_NO_ACTION, authenticated, confirmed, parse_event_log, replay
from adyton.tee.tpm.launch import HCRTM_EVENT, parse_launch, pcr0

DIGESTS = {name: hashlib.sha256(name.encode()).digest() for name in ("application", "kernel", "system")}
DOCUMENT = launch_document(DIGESTS, "console=ttyS0 é")


def test_the_document_names_the_files_and_the_command_line() -> None:
    command_line = hashlib.sha256(b"console=ttyS0 \xc3\xa9").digest()
    assert dict(parse_launch(DOCUMENT)) == {**DIGESTS, "command-line": command_line}


def test_nothing_but_the_command_line_is_the_command_line() -> None:
    with pytest.raises(ValueError, match="the command line is a string"):
        launch_document({"command-line": bytes(32)}, "")


def test_pcr_0_is_extended_from_locality_4() -> None:
    assert pcr0(DOCUMENT) == hashlib.sha256(bytes(31) + b"\x04" + hashlib.sha256(DOCUMENT).digest()).digest()


def test_the_log_gives_pcr_0_and_no_other() -> None:
    log = parse_event_log(event_log(DOCUMENT))
    assert log.banks == ("sha256",)
    assert replay(log, "sha256") == {0: pcr0(DOCUMENT)}
    assert [event.event_type for event in log.events] == [EV_NO_ACTION, HCRTM_EVENT]


def test_the_document_is_confirmed_by_pcr_0() -> None:
    log = parse_event_log(event_log(DOCUMENT))
    (event,) = confirmed(log, {"sha256": {0: pcr0(DOCUMENT)}})[0]
    assert authenticated(event)
    assert (event.event_type, event.data) == (0x80000010, DOCUMENT)


def test_the_log_of_another_launch_confirms_nothing() -> None:
    other = launch_document(DIGESTS, "console=ttyS0")
    assert confirmed(parse_event_log(event_log(other)), {"sha256": {0: pcr0(DOCUMENT)}}) == {}
