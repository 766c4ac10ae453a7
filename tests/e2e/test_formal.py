"""formal/atls.pv proves what docs/threat-model.md says, and each part of the binding is there for a reason."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

MODEL = Path(__file__).resolve().parent.parent.parent / "formal" / "atls.pv"
PROVERIF = shutil.which("proverif")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(PROVERIF is None, reason="no ProVerif here: `opam install proverif` (2.05)"),
]

AGREEMENT = "inj-event(accepts_at_connection(k,p,n,c,a)) ==> inj-event(answers_at_connection(k,p,n,c,a))"
SECRECY = "not attacker(sent_at_connection[])"
RESULTS = {
    "not event(accepts_at_connection(k,p,n,c,a))": "false",
    "not event(accepts_at_key(k,p,n,c,a))": "false",
    AGREEMENT: "true",
    SECRECY: "true",
    "inj-event(accepts_at_key(k,p,n,c,a)) ==> inj-event(answers_at_key(k,p,n,c,a))": "false",
    "not (event(sends_at_key(s,p)) && attacker(s))": "false",
    "event(accepts_at_key(k,p,n,c,a)) ==> event(answers_at_key(k,p,n,c,a)) || event(leaks(p))": "true",
    "event(sends_at_key(s,p)) && attacker(s) ==> event(leaks(p))": "true",
    "event(accepts_at_key(k,p,n,c,a)) ==> event(answers_at_key(other,p,n,c,a))": "true",
}
"""Query → its answer. The first two: a client can accept at all. The other two that are false are the relay."""

CLIENTS_LEAF = "binding(purpose, nonce, anchor, public_of(own), claims, audience)"
SERVERS_LEAF = "binding(purpose, nonce, anchor, client, claims, audience)"
WEAKENED = {
    "the client's key is not bound": [
        (CLIENTS_LEAF, "binding(purpose, nonce, anchor, nobody, claims, audience)"),
        (SERVERS_LEAF, "binding(purpose, nonce, anchor, nobody, claims, audience)"),
    ],
    "the client's key does not sign the handshake": [("(CLIENT_VERIFY, transcript, ", "(CLIENT_VERIFY, ")],
    "the purpose is not bound": [("leaf(binding(ENROL, ", "leaf(binding(INSTANCE, ")],
    "a host chooses what the hardware signs": [("host_report_data(question)", "question")],
    "the policy asks for no measurement": [("(=good, =report_data", "(any: code, =report_data")],
}


def prove(model: str, directory: Path) -> dict[str, str]:
    """Each query's answer: true, false, or what else ProVerif has to say."""
    assert PROVERIF is not None
    path = directory / "model.pv"
    path.write_text(model)
    done = subprocess.run([PROVERIF, str(path)], capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    answers = re.findall(r"^RESULT (?!\()(.*?) (?:is (true|false)|(cannot be proved))\.$", done.stdout, re.MULTILINE)
    return {re.sub(r"_\d+\b", "", query): decided or undecided for query, decided, undecided in answers}


def only_instance_at_connection(model: str) -> str:
    """The model with no other queries than those of level `connection`, and without FLEET, which takes minutes."""
    queries = re.findall(r"^query .*?\.\n", model, re.MULTILINE | re.DOTALL)
    assert len(queries) == len(RESULTS)
    for query in (*queries[:2], *queries[4:]):
        model = model.replace(query, "", 1)
    without, found = re.subn(r"\notherwise forall [^\n]*anchor_of\(FLEET, [^\n]*\.\n", ".\n", model)
    assert found == 1
    return without


def test_a_connection_is_proved_and_a_key_falls_to_the_relay_only_if_it_leaked(tmp_path: Path) -> None:
    assert prove(MODEL.read_text(), tmp_path) == RESULTS


@pytest.mark.parametrize("weakness", WEAKENED)
def test_without_any_part_of_the_binding_there_is_an_attack(weakness: str, tmp_path: Path) -> None:
    model = only_instance_at_connection(MODEL.read_text())
    for found, replacement in WEAKENED[weakness]:
        assert found in model
        model = model.replace(found, replacement)
    assert prove(model, tmp_path) == {AGREEMENT: "false", SECRECY: "false"}
