"""What must hold for every TEE's parser and verifier: subclass `TeeConformance`, and pytest collects its tests.

class TestSnp(TeeConformance):
    label = "snp"
    forgeries = snp.FORGERIES

    def genuine(self) -> Case:
        return snp.SnpVendor().case()
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import FrozenInstanceError, replace
from typing import ClassVar, Final

from adyton.errors import EvidenceError
from adyton.tee.evidence import (
    MAX_ENDORSEMENT_BYTES,
    MAX_ENDORSEMENTS,
    MAX_EVIDENCE_BYTES,
    Endorsement,
    EndorsementKind,
    VerifiedEvidence,
)
from adyton.tee.registry import Tee, tee
from adyton.tee.steps import Trace
from adyton.testing.forgery import Case, Forgery, fields_of

FLIPS: Final = 400
"""How many bytes of the evidence, evenly spread, get a bit flipped."""
HOSTILE_SECONDS: Final = 1.0


class TeeConformance:
    """Tests of one TEE, without its hardware."""

    label: ClassVar[str]
    forgeries: ClassVar[Mapping[str, Forgery]]

    def genuine(self) -> Case:
        """Evidence that the verifier must believe."""
        raise NotImplementedError

    @property
    def _tee(self) -> Tee:
        return tee(self.label)

    def _verify(self, case: Case, trace: Trace | None = None) -> VerifiedEvidence:
        return case.verify_with(self._tee.verifier(), trace)

    def _refusal(self, case: Case) -> str | None:
        """What the verifier says against the case, or None if it believes it. Anything but `EvidenceError` escapes."""
        try:
            self._verify(case)
        except EvidenceError as error:
            return error.message
        return None

    def _same_or_refused(self, cases: Iterator[tuple[str, Case]]) -> None:
        genuine = fields_of(self._verify(self.genuine()))
        for name, case in cases:
            try:
                verified = self._verify(case)
            except EvidenceError:
                continue
            assert fields_of(verified) == genuine, f"{name} changed what the evidence says"

    def test_genuine_evidence_is_believed_step_by_step(self) -> None:
        """And the result says what every result must."""
        trace = Trace()
        case = self.genuine()
        verified = self._verify(case, trace)
        assert tuple(trace.begun) == self._tee.steps()
        assert verified.tee == self.label
        assert verified.measurement
        assert verified.tcb.isprintable()
        assert verified.platform.isprintable()
        assert len(verified.evidence_sha256) == 32
        assert verified.anchor_sha256 in case.anchors

    def test_a_result_can_not_be_changed(self) -> None:
        """What was verified stays what was verified."""
        verified = self._verify(self.genuine())
        try:
            verified.measurement = b""  # type: ignore[misc]
        except (FrozenInstanceError, AttributeError):
            return
        raise AssertionError("the result can be changed")

    def test_every_step_names_what_it_is_for(self) -> None:
        """Titles differ, and each step has a section of a specification."""
        steps = self._tee.steps()
        assert len({step.title for step in steps}) == len(steps) > 1
        assert all(step.title and step.reference for step in steps)

    def test_every_forgery_is_refused_for_what_is_wrong(self) -> None:
        """Each by the guard that it was made for."""
        assert self.forgeries
        said = {name: (self._refusal(forgery.make()), forgery.refusal) for name, forgery in self.forgeries.items()}
        assert {name: pair for name, pair in said.items() if pair[0] is None or pair[1] not in pair[0]} == {}

    def test_the_label_sizes_and_anchors_are_checked_first(self) -> None:
        """Before anything of the evidence is looked at."""
        case = self.genuine()
        big = Endorsement(kind=EndorsementKind.EVENT_LOG, data=bytes(MAX_ENDORSEMENT_BYTES + 1))
        many = (Endorsement(kind=EndorsementKind.CRL, data=b""),) * (MAX_ENDORSEMENTS + 1)
        wrong = {
            "labelled": replace(case, evidence=replace(case.evidence, tee="another")),
            "no anchors": replace(case, anchors=frozenset()),
            "are allowed": replace(case, evidence=replace(case.evidence, data=bytes(MAX_EVIDENCE_BYTES + 1))),
            "endorsements; ": replace(case, evidence=replace(case.evidence, endorsements=many)),
            "an endorsement of more": replace(case, evidence=replace(case.evidence, endorsements=(big,))),
        }
        for said, changed in wrong.items():
            assert said in (self._refusal(changed) or "believed")

    def test_another_anchor_is_not_enough(self) -> None:
        """Evidence is genuine under its own root only."""
        assert self._refusal(replace(self.genuine(), anchors=frozenset({bytes(32), b"\xff" * 32})))

    def test_a_time_without_zone_is_the_callers_mistake(self) -> None:
        """It is no word about the evidence."""
        case = self.genuine()
        try:
            self._verify(replace(case, now=case.now.replace(tzinfo=None)))
        except ValueError:
            return
        raise AssertionError("a naive time was taken")

    def test_evidence_cut_short_anywhere_is_refused(self) -> None:
        """At every byte, or at as many places as there is time for."""
        case = self.genuine()
        for length in range(0, len(case.evidence.data), max(1, len(case.evidence.data) // FLIPS)):
            cut = replace(case, evidence=replace(case.evidence, data=case.evidence.data[:length]))
            assert self._refusal(cut), f"cut after {length} bytes"

    def test_a_byte_after_the_end_is_refused(self) -> None:
        """Other than zero; formats that are padded allow zeros."""
        case = self.genuine()
        assert self._refusal(replace(case, evidence=replace(case.evidence, data=case.evidence.data + b"\x01")))

    def test_no_flipped_bit_changes_what_evidence_says(self) -> None:
        """It is refused, or it was in a place that nobody signs and nobody reads."""
        self._same_or_refused(self._flipped(self.genuine()))

    def _flipped(self, case: Case) -> Iterator[tuple[str, Case]]:
        data = case.evidence.data
        for index in range(0, len(data), max(1, len(data) // FLIPS)):
            flipped = bytearray(data)
            flipped[index] ^= 1 << index % 8
            yield (
                f"bit {index % 8} of byte {index}",
                replace(case, evidence=replace(case.evidence, data=bytes(flipped))),
            )

    def test_missing_or_damaged_endorsements_change_nothing_but_the_verdict(self) -> None:
        """Each left out, emptied, cut, and flipped in a few places."""
        self._same_or_refused(self._damaged(self.genuine()))

    def _damaged(self, case: Case) -> Iterator[tuple[str, Case]]:
        stapled = case.evidence.endorsements
        for index, endorsement in enumerate(stapled):
            before, after = stapled[:index], stapled[index + 1 :]
            for name, data in _damages(endorsement.data):
                changed = (*before, replace(endorsement, data=data), *after)
                yield (
                    f"endorsement {index} {name}",
                    replace(case, evidence=replace(case.evidence, endorsements=changed)),
                )

    def test_no_input_takes_long(self) -> None:
        """The largest that is allowed, of the kinds that parsers choke on."""
        case = self.genuine()
        for data in _hostile(case.evidence.data):
            begun = time.perf_counter()
            self._refusal(replace(case, evidence=replace(case.evidence, data=data)))
            assert time.perf_counter() - begun < HOSTILE_SECONDS


def _damages(data: bytes) -> Iterator[tuple[str, bytes]]:
    yield "emptied", b""
    yield "cut", data[: len(data) // 2]
    yield "with a byte more", data + b"\x01"
    for index in range(0, len(data), max(1, len(data) // 16)):
        flipped = bytearray(data)
        flipped[index] ^= 1 << index % 8
        yield f"with a bit flipped in byte {index}", bytes(flipped)


def _hostile(genuine: bytes) -> Iterator[bytes]:
    for byte in (b"\x00", b"\xff", b"[", b"{", b"\x81", b"\xa0", b"\xbf", b"\xd2", b"\x30"):
        yield byte * MAX_EVIDENCE_BYTES
    yield genuine.ljust(MAX_EVIDENCE_BYTES, b"\x00")
    yield (genuine * (MAX_EVIDENCE_BYTES // len(genuine) + 1))[:MAX_EVIDENCE_BYTES]
    yield b"\x9a\x00\x00\xff\x00".ljust(MAX_EVIDENCE_BYTES, b"\xa0")
