"""Every TEE's evidence as the answer to a question: what it carries, and that its label decides who verifies it."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final

import pytest
from channel_parties import answer_to, ask, binding_of, forged, judged, subjects, terms
from rule_values import EVERYTHING, fitting_table, policy_of

from adyton.atls.attestation import BindingLevel
from adyton.atls.binding import report_data
from adyton.atls.question import Terms
from adyton.errors import EvidenceError
from adyton.policy.rules import SCHEMAS
from adyton.tee.registry import TEES, tee
from adyton.testing import azure, cca, dcap, nitro, psa, simulated, snp_vendor, tpm, tpm_quotes
from adyton.testing.forgery import Case

QUESTION = ask()
EXPECTED = report_data(binding_of(QUESTION).leaf())


def _quote(offset: int, data: bytes) -> dcap.QuoteRecipe:
    return dcap.QuoteRecipe(edit_body=dcap.overwrite(offset, data))


def _tpm_quote(data: bytes) -> tpm_quotes.TpmQuoteRecipe:
    return tpm_quotes.TpmQuoteRecipe(extra_data=data)


MADE: Final[Mapping[str, Callable[[bytes], Case]]] = MappingProxyType(
    {
        "sgx": lambda data: dcap.DcapVendor().case("sgx", _quote(320, data)),
        "tdx": lambda data: dcap.DcapVendor().case("tdx", _quote(520, data)),
        "snp": lambda data: snp_vendor.SnpVendor().case(snp_vendor.SnpRecipe(report=snp_vendor.put(0x50, data))),
        "nitro": lambda data: nitro.NitroVendor().case(nitro.DocumentRecipe(edit_claims=nitro.given(user_data=data))),
        "tpm": lambda data: tpm.TpmVendor().case(tpm.TpmRecipe(quote=_tpm_quote(data))),
        "azure": lambda data: azure.AzureVendor().case(azure.AzureRecipe(quote=_tpm_quote(data))),
        "cca": lambda data: cca.CcaVendor().case(realm={10: data}),
        "psa": lambda data: psa.PsaVendor().case({10: data}),
        "simulated": lambda data: simulated.SimulatedVendor().case(simulated.EvidenceRecipe(report_data=data)),
    }
)
"""Genuine evidence of each TEE with chosen report data."""


def in_evidence(label: str, data: bytes) -> bytes:
    """What evidence of that TEE has room for: a TPM for a SHA-256, all others for the 64 bytes."""
    return hashlib.sha256(data).digest() if label in {"tpm", "azure"} else data


@functools.cache
def made(label: str, data: bytes) -> Case:
    return MADE[label](data)


@functools.cache
def accepting(label: str) -> Terms:
    """Terms on which the genuine evidence of that TEE is accepted, tightly."""
    case = made(label, in_evidence(label, EXPECTED))
    verified = case.verify_with(tee(label).verifier())
    policy = policy_of(label, fitting_table(SCHEMAS[label], verified, case.now))
    return Terms(policy=replace(policy, anchors={label: case.anchors}), allow=EVERYTHING)


def accepting_under(label: str, case: Case) -> Terms:
    """The same terms under the root of another throwaway vendor."""
    accepted = accepting(label)
    return replace(accepted, policy=replace(accepted.policy, anchors={label: case.anchors}))


def test_no_tee_is_left_out() -> None:
    assert set(MADE) == set(TEES)


@pytest.mark.parametrize("label", TEES)
def test_evidence_that_carries_the_binding_in_this_tees_way_is_believed(label: str) -> None:
    answer = forged(QUESTION, made(label, in_evidence(label, EXPECTED)).evidence)
    attestation = judged(answer, accepted=accepting(label))
    assert (attestation.appraisal.tee, attestation.level) == (label, BindingLevel.CONNECTION)


@pytest.mark.parametrize("label", TEES)
@pytest.mark.parametrize("wrong", ["another question", "zeros", "the other carrier"])
def test_evidence_that_carries_anything_else_is_not(label: str, wrong: str) -> None:
    right = in_evidence(label, EXPECTED)
    data = {
        "another question": in_evidence(label, report_data(bytes(64))),
        "zeros": bytes(len(right)),
        "the other carrier": hashlib.sha256(EXPECTED).digest().ljust(len(right), b"\0"),
    }[wrong]
    if data == right:  # SHA-256 is what a TPM should carry; a TPM that can carries the 64 bytes themselves
        data = EXPECTED[:50]
    case = made(label, data)
    assert "report_data" in subjects(forged(QUESTION, case.evidence), accepted=accepting_under(label, case))


@pytest.mark.parametrize("label", ["nitro", "tpm", "azure"])
def test_evidence_without_report_data_is_refused_where_a_tee_can_make_it(label: str) -> None:
    case = MADE[label](b"")
    found = subjects(forged(QUESTION, case.evidence), accepted=accepting_under(label, case))
    assert "report_data" in found


@pytest.mark.parametrize(("label", "of"), list(itertools.permutations(TEES, 2)))
def test_evidence_of_one_tee_is_none_of_another(label: str, of: str) -> None:
    evidence = replace(made(of, in_evidence(of, EXPECTED)).evidence, tee=label)
    with pytest.raises(EvidenceError):
        judged(forged(QUESTION, evidence), accepted=accepting(label))


@pytest.mark.parametrize("label", [label for label in TEES if label != "simulated"])
def test_a_policy_for_hardware_refuses_a_simulation_whatever_its_caller_agrees_to(label: str) -> None:
    answer = answer_to(QUESTION).SerializeToString()
    assert subjects(answer, accepted=accepting(label)) == {"tee"}
    judged(answer, accepted=terms())
