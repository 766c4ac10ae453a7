"""Enrolment: what a server accepts of a caller, what it refuses and why, and what both have afterwards."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from channel_parties import (
    CLAIMS,
    CLIENT_SHA256,
    CONFIG_SHA256,
    MEASUREMENT,
    NAMES,
    VENDOR,
    VendorDevice,
    ask,
    bound_to,
    connection,
    evidence_over,
    policy_text,
    terms,
)
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID
from vaults import make_vault

from adyton.atls.ages import EXTENDABLE_MAX_AGE_SECONDS, max_age_seconds
from adyton.atls.batch import DeviceQuotes
from adyton.atls.binding import Purpose, report_data
from adyton.atls.certificates import Issued, make_ca, open_client_ca, pem, spki
from adyton.atls.claims import parse_claims
from adyton.atls.enrolling import CHALLENGE_REQUEST, Applied, CallerIdentity, Enrolment
from adyton.atls.enrolment import Standing
from adyton.atls.identity import LocalIdentity
from adyton.atls.member import RECORD_OID, issue_member, member_label, read_member
from adyton.atls.peer import Members, Peer, Peers, peer
from adyton.atls.question import MAX_MESSAGE_BYTES, Terms
from adyton.atls.registrar import CHALLENGE_SECONDS, MAX_FAILURES, Challenges, Registrar
from adyton.bundle.settings import Settings
from adyton.enclave.application import EnclaveContext
from adyton.errors import ApplicationError, ConfigurationError, EvidenceError, PolicyError, StatusCode
from adyton.policy.document import Policy
from adyton.proto.attestation_pb2 import ChallengeRequest, ChallengeResponse, EnrolRequest, EnrolResponse
from adyton.tee.message import encode_evidence
from adyton.testing.forgery import NOW

OTHER = b"\x77" * 32
ROLE = "front-end"
SECOND = timedelta(seconds=1)


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


class Server:
    """An enclave that enrols whoever is in order, and a caller that is."""

    def __init__(self, accepts: Terms | None = None) -> None:
        self.clock = Clock()
        self.identity = LocalIdentity(names=NAMES, claims=CLAIMS, clock=self.clock)
        self.peers = Peers(clock=self.clock)
        self.registrar = Registrar(terms=accepts or terms(), identity=self.identity, peers=self.peers, clock=self.clock)
        self.registrar.mesh_port = 4433
        self.caller = CallerIdentity(role=ROLE, claims=CLAIMS, quotes=DeviceQuotes(VendorDevice()))

    @property
    def ca(self) -> Issued:
        return self.identity.current().ca

    def challenge(self, client: bytes = CLIENT_SHA256) -> bytes:
        return self.registrar.challenge(CHALLENGE_REQUEST, connection(client_sha256=client))

    def apply(self, client: bytes = CLIENT_SHA256, answer: bytes | None = None) -> Applied:
        return self.caller.apply(answer or self.challenge(client), client_sha256=client, ca=self.ca.der)

    def enrol(self, request: bytes, client: bytes = CLIENT_SHA256, **facts: Any) -> bytes:
        return self.registrar.enrol(request, connection(client_sha256=client, **facts))

    def forge(self, *, signer: ec.EllipticCurvePrivateKey | None = None, **changes: Any) -> bytes:
        """A request whose evidence and signature are over a binding that differs in one way from the right one."""
        nonce = ChallengeResponse.FromString(self.challenge()).nonce
        key = ec.generate_private_key(ec.SECP256R1())
        standing = Standing(challenge=nonce, client_sha256=CLIENT_SHA256, ca_sha256=self.ca.spki_sha256)
        right = standing.binding(role=ROLE, key=key.public_key(), claims=CLAIMS)
        wrong = replace(right, **changes)
        request = EnrolRequest(
            version=1,
            role=ROLE,
            claims=CLAIMS,
            public_key=spki(key.public_key()),
            signature=(signer or key).sign(right.encode(), ec.ECDSA(hashes.SHA256())),
            ca_sha256=self.ca.spki_sha256,
        )
        request.evidence.ParseFromString(encode_evidence(evidence_over(report_data(wrong.leaf()))))
        return request.SerializeToString()


@pytest.fixture
def server() -> Server:
    return Server()


def refused(status: StatusCode, call: Callable[[], object], words: str | None = None) -> None:
    with pytest.raises(ApplicationError, match=words) as caught:
        call()
    assert caught.value.status is status


def accepted(server: Server, client: bytes = CLIENT_SHA256) -> Enrolment:
    applied = server.apply(client)
    return applied.accept(server.enrol(applied.request, client))


def changed(request: bytes, **fields: Any) -> bytes:
    message = EnrolRequest.FromString(request)
    for name, value in fields.items():
        setattr(message, name, value)
    return message.SerializeToString()


# --- what an accepted caller has


def test_an_accepted_caller_has_an_identity_on_its_connection_and_on_no_other(server: Server) -> None:
    accepted(server)
    found = server.peers.find(CLIENT_SHA256)
    assert found is not None
    assert (found.rule, found.tee, found.measurement) == ("an enclave", "simulated", MEASUREMENT)
    assert found.insecurities == ("simulated",)
    assert found.expires_at == NOW + timedelta(hours=1)
    assert server.peers.find(OTHER) is None


def test_its_certificate_is_for_its_own_key_and_for_clients_only(server: Server) -> None:
    enrolment = accepted(server)
    certificate = enrolment.certificate
    assert certificate.public_key() == enrolment.key.public_key()
    usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usages) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert not constraints.value.ca
    record = certificate.extensions.get_extension_for_oid(RECORD_OID)
    assert not record.critical
    assert certificate.not_valid_after_utc == NOW + timedelta(hours=1)
    assert (enrolment.mesh_port, enrolment.renew_after_seconds) == (4433, 1800)


def test_no_name_of_a_member_is_a_name_of_a_server(server: Server) -> None:
    names = accepted(server).certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    label = member_label("an enclave")
    assert names.get_values_for_type(x509.DNSName) == [f"{label}.member.atls.internal"]
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [f"spiffe://atls.internal/member/{label}"]


@pytest.mark.parametrize("rule", ["front-end", "a", "x" * 63])
def test_a_rule_whose_name_is_a_dns_label_is_the_label(rule: str) -> None:
    assert member_label(rule) == rule


@pytest.mark.parametrize("rule", ["front end", "Front", "-a", "a-", "a.b", "x" * 64, "ü", "*"])
def test_any_other_rule_gets_a_label_of_its_own(rule: str) -> None:
    label = member_label(rule)
    assert label.startswith("rule-")
    assert len(label) == 37
    assert label != member_label(rule + "x")


def test_a_member_whose_certificate_our_ca_issued_is_known_by_it_until_it_ends(server: Server) -> None:
    shown = pem(accepted(server).certificate)
    members = Members(clock=server.clock)
    assert members.find(shown) is None, "no server with a mesh port has said whom to trust"
    members.trust(server.identity)
    assert members.find(shown) == server.peers.find(CLIENT_SHA256)
    server.clock.now = NOW + timedelta(hours=1) - SECOND
    assert members.find(shown) is not None
    server.clock.now = NOW + timedelta(hours=1)
    assert members.find(shown) is None


def test_a_member_is_known_after_the_ca_was_renewed(server: Server) -> None:
    members = Members(clock=server.clock)
    members.trust(server.identity)
    server.clock.now = NOW + timedelta(days=15) - SECOND
    server.identity.current()
    shown = pem(
        issue_member(
            server.ca,
            ec.generate_private_key(ec.SECP256R1()).public_key(),
            rule="r",
            record=server.identity.current().epoch + a_peer(server.clock.now).encode(),
            now=server.clock.now,
            lifetime=timedelta(hours=1),
        )
    )
    before = server.ca.certificate
    server.clock.now += timedelta(hours=13)
    server.identity.current()
    server.clock.now -= timedelta(hours=12.5)
    assert server.ca.certificate != before
    assert members.find(shown) is not None


def test_a_member_is_a_stranger_after_a_restart_and_after_a_rotation(server: Server) -> None:
    """The CA may be the same, from a sealed store; the policy by which the member was judged may not."""
    for epoch, known in ((server.identity.current().epoch, True), (bytes(16), False), (b"", False)):
        members = Members(clock=server.clock)
        members.trust(server.identity)
        certificate = issue_member(
            server.ca,
            ec.generate_private_key(ec.SECP256R1()).public_key(),
            rule="r",
            record=epoch + a_peer(NOW + timedelta(hours=1)).encode(),
            now=NOW,
            lifetime=timedelta(hours=1),
        )
        assert (members.find(pem(certificate)) is not None) == known
    before = server.identity.current().epoch
    assert server.identity.rotate().epoch != before


class MeshCall:
    """What gRPC says of the connection of a call."""

    def __init__(self, certificate: x509.Certificate, **facts: str) -> None:
        fine = {"ssl_tls_version": "TLSv1.3", "ssl_session_reused": "false"} | facts
        self._facts = {name: [value.encode()] for name, value in fine.items()}
        self._facts["x509_pem_cert"] = [pem(certificate)]

    def auth_context(self) -> Mapping[str, list[bytes]]:
        return self._facts


def test_a_members_certificate_counts_in_a_handshake_of_tls_1_3(monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = accepted(server := Server()).certificate
    members = Members(clock=server.clock)
    members.trust(server.identity)
    monkeypatch.setattr("adyton.atls.peer.MEMBERS", members)
    assert peer(MeshCall(certificate)) == members.find(pem(certificate))
    assert peer(MeshCall(certificate, ssl_tls_version="TLSv1.2")) is None
    assert peer(MeshCall(certificate, ssl_session_reused="true")) is None


def a_peer(now: datetime) -> Peer:
    return Peer(rule="forged", tee="snp", measurement=b"\x01", platform="", insecurities=(), expires_at=now)


@pytest.mark.parametrize("issuer", [open_client_ca(), make_ca(NOW)], ids=["the open client CA", "another enclave's CA"])
def test_the_record_in_a_certificate_of_another_ca_is_not_believed(server: Server, issuer: Issued) -> None:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    forged = issue_member(issuer, key, rule="forged", record=a_peer(NOW).encode(), now=NOW, lifetime=timedelta(hours=1))
    assert read_member(forged, [issuer.certificate]) is not None, "or the test could not fail"
    members = Members(clock=server.clock)
    members.trust(server.identity)
    assert members.find(pem(forged)) is None


def test_the_record_under_a_name_that_is_our_cas_is_not_believed(server: Server) -> None:
    mine = ec.generate_private_key(ec.SECP256R1())
    lookalike = Issued(key=mine, certificate=server.ca.certificate)
    forged = issue_member(
        lookalike, mine.public_key(), rule="r", record=a_peer(NOW).encode(), now=NOW, lifetime=timedelta(hours=1)
    )
    assert forged.issuer == server.ca.certificate.subject
    assert read_member(forged, [server.ca.certificate]) is None


def test_the_servers_own_certificate_is_no_members(server: Server) -> None:
    members = Members(clock=server.clock)
    members.trust(server.identity)
    assert members.find(pem(server.identity.current().leaf.certificate)) is None


def test_evidence_that_gets_old_sooner_gives_an_identity_for_less_time() -> None:
    assert max_age_seconds("tdx") == EXTENDABLE_MAX_AGE_SECONDS < max_age_seconds("snp")


def test_an_identity_ends_with_the_signed_values_that_it_rests_on() -> None:
    accepts = terms()
    ending = replace(accepts.policy, expires=NOW + timedelta(minutes=10))
    server = Server(replace(accepts, policy=ending))
    enrolment = accepted(server)
    assert enrolment.certificate.not_valid_after_utc == NOW + timedelta(minutes=10)
    assert enrolment.renew_after_seconds == 300


def test_who_enrols_again_has_its_identity_for_longer(server: Server) -> None:
    accepted(server)
    server.clock.now += timedelta(minutes=4)
    accepted(server)
    found = server.peers.find(CLIENT_SHA256)
    assert found is not None
    assert found.expires_at == NOW + timedelta(minutes=64)


# --- evidence that was made for something else


WRONG: Mapping[str, Mapping[str, Any]] = {
    "for another challenge": {"nonce": OTHER},
    "for another connection": {"client_sha256": OTHER},
    "for another server": {"peer_sha256": OTHER},
    "for no server": {"peer_sha256": b""},
    "for another key": {"anchor_sha256": OTHER},
    "for other claims": {"claims_sha256": OTHER},
    "for another role": {"audience": "back-end"},
    "for the purpose INSTANCE": {"purpose": Purpose.INSTANCE},
    "for the purpose FLEET": {"purpose": Purpose.FLEET},
    "for the purpose CA_JOIN": {"purpose": Purpose.CA_JOIN},
}


@pytest.mark.parametrize("changes", WRONG.values(), ids=WRONG)
def test_evidence_is_refused(server: Server, changes: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    refused(StatusCode.PERMISSION_DENIED, lambda: server.enrol(server.forge(**changes)))
    assert len(server.peers) == 0
    assert "report_data" in str([vars(record).get("reasons") for record in caplog.records])
    server.enrol(server.forge())  # which differs from the right one in nothing


@pytest.mark.parametrize("purpose", [Purpose.INSTANCE, Purpose.FLEET])
def test_evidence_for_enrolment_is_none_for_a_client(purpose: Purpose) -> None:
    question = ask(purpose=purpose)
    with pytest.raises(PolicyError, match="report_data"):
        question.judge(bound_to(question, purpose=Purpose.ENROL), terms(), now=NOW)
    question.judge(bound_to(question), terms(), now=NOW)


def test_a_genuine_enrolment_relayed_from_another_connection_is_refused(server: Server) -> None:
    applied = server.apply(client=OTHER)
    server.challenge(CLIENT_SHA256)
    refused(StatusCode.UNAUTHENTICATED, lambda: server.enrol(applied.request, CLIENT_SHA256))
    assert len(server.peers) == 0
    server.enrol(applied.request, OTHER)


def test_a_relay_that_makes_the_victim_sign_its_own_challenge_is_refused(server: Server) -> None:
    applied = server.caller.apply(server.challenge(CLIENT_SHA256), client_sha256=OTHER, ca=server.ca.der)
    refused(StatusCode.UNAUTHENTICATED, lambda: server.enrol(applied.request, CLIENT_SHA256))
    assert len(server.peers) == 0


def test_the_key_to_be_certified_must_have_signed_it(server: Server) -> None:
    request = server.forge(signer=ec.generate_private_key(ec.SECP256R1()))
    refused(StatusCode.UNAUTHENTICATED, lambda: server.enrol(request))


@pytest.mark.parametrize("fields", [{"role": "back-end"}, {"claims": CLAIMS + b" "}, {"signature": b""}])
def test_what_was_signed_can_not_be_changed_on_the_way(server: Server, fields: dict[str, Any]) -> None:
    request = server.apply().request
    refused(StatusCode.UNAUTHENTICATED, lambda: server.enrol(changed(request, **fields)))
    assert len(server.peers) == 0


def test_forged_evidence_is_refused(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    message = EnrolRequest.FromString(server.apply().request)
    message.evidence.data = message.evidence.data[:-1] + bytes([message.evidence.data[-1] ^ 1])
    refused(StatusCode.UNAUTHENTICATED, lambda: server.enrol(message.SerializeToString()))
    assert len(caplog.records) == 1


def test_a_batch_path_that_leads_elsewhere_is_refused(server: Server) -> None:
    message = EnrolRequest.FromString(server.apply().request)
    message.batch_path.append(b"L" + bytes(64))
    refused(StatusCode.PERMISSION_DENIED, lambda: server.enrol(message.SerializeToString()))


# --- what the policy has to say


def other_code() -> Terms:
    anchor = VENDOR.root.fingerprint(hashes.SHA256())
    text = policy_text(anchor).replace(MEASUREMENT.hex().encode(), (b"\x99" * 48).hex().encode())
    return replace(terms(), policy=Policy.parse(text))


REFUSING: Mapping[str, Callable[[], Terms]] = {
    "other code": other_code,
    "an insecurity that the server does not agree to": lambda: terms(allow=frozenset()),
    "another configuration": lambda: terms(f'config_sha256 = ["{"00" * 32}"]'),
    "a CA of the caller, which has none": lambda: terms(f'ca_sha256 = ["{"00" * 32}"]'),
}


@pytest.mark.parametrize("accepts", REFUSING.values(), ids=REFUSING)
def test_the_wire_has_the_fact_and_the_log_has_the_findings(
    accepts: Callable[[], Terms], caplog: pytest.LogCaptureFixture
) -> None:
    server = Server(accepts())
    with pytest.raises(ApplicationError) as caught:
        accepted(server)
    assert str(caught.value) == "PERMISSION_DENIED: this enclave's policy does not accept the caller"
    (record,) = caplog.records
    reasons = vars(record)["reasons"]
    assert len(reasons) > 1
    assert record.levelno == logging.WARNING
    assert len(server.peers) == 0


def test_a_pinned_configuration_is_accepted() -> None:
    accepted(Server(terms(f'config_sha256 = ["{CONFIG_SHA256.hex()}"]')))


def test_evidence_of_an_unknown_technology_is_refused(server: Server) -> None:
    message = EnrolRequest.FromString(server.apply().request)
    message.evidence.tee = "abacus"
    refused(StatusCode.PERMISSION_DENIED, lambda: server.enrol(message.SerializeToString()))


def test_stale_evidence_is_refused(server: Server) -> None:
    applied = server.apply()
    server.clock.now = NOW + timedelta(minutes=6)
    server.challenge()
    again = server.apply()
    assert applied.request != again.request
    refused(StatusCode.PERMISSION_DENIED, lambda: server.enrol(again.request))  # its device is still at NOW


# --- challenges


def test_a_challenge_is_good_once(server: Server) -> None:
    applied = server.apply()
    server.enrol(applied.request)
    refused(StatusCode.FAILED_PRECONDITION, lambda: server.enrol(applied.request), "Challenge first")


def test_a_challenge_that_failed_is_used_up_too(server: Server) -> None:
    applied = server.apply()
    refused(StatusCode.UNAUTHENTICATED, lambda: server.enrol(changed(applied.request, role="back-end")))
    refused(StatusCode.FAILED_PRECONDITION, lambda: server.enrol(applied.request))


def test_without_a_challenge_nobody_enrols(server: Server) -> None:
    made_up = ChallengeResponse(version=1, nonce=bytes(32)).SerializeToString()
    refused(StatusCode.FAILED_PRECONDITION, lambda: server.enrol(server.apply(answer=made_up).request))


def test_a_new_challenge_takes_the_place_of_the_one_before(server: Server) -> None:
    applied = server.apply()
    assert server.challenge() != server.challenge()
    refused(StatusCode.UNAUTHENTICATED, lambda: server.enrol(applied.request))


def test_a_challenge_gets_old(server: Server) -> None:
    applied = server.apply()
    server.clock.now += CHALLENGE_SECONDS * SECOND
    refused(StatusCode.FAILED_PRECONDITION, lambda: server.enrol(applied.request))


def test_a_connection_may_fail_a_few_times_only(server: Server) -> None:
    for _ in range(MAX_FAILURES):
        request = changed(server.apply().request, role="back-end")
        refused(StatusCode.UNAUTHENTICATED, lambda request=request: server.enrol(request))  # type: ignore[misc]
    refused(StatusCode.RESOURCE_EXHAUSTED, server.challenge)
    refused(StatusCode.RESOURCE_EXHAUSTED, server.challenge)
    accepted(server, OTHER)


def test_an_enrolment_makes_good_what_failed_before(server: Server) -> None:
    for _ in range(MAX_FAILURES):
        refused(StatusCode.UNAUTHENTICATED, lambda: server.enrol(changed(server.apply().request, role="back-end")))
        accepted(server)


def test_the_memory_for_challenges_is_bounded() -> None:
    challenges = Challenges(at_most=3, clock=lambda: NOW)
    first = challenges.issue(b"0")
    for number in (b"1", b"2", b"0", b"3"):
        challenges.issue(number)
    assert len(challenges) == 3
    refused(StatusCode.FAILED_PRECONDITION, lambda: challenges.take(b"1"))
    assert challenges.take(b"0") != first


# --- connections and messages that won't do


@pytest.mark.parametrize("facts", [{"tls_version": "TLSv1.2"}, {"session_reused": True}, {"client_sha256": b""}])
def test_a_connection_that_proves_nothing_is_refused(server: Server, facts: dict[str, Any]) -> None:
    wrong = connection(**facts)
    refused(StatusCode.FAILED_PRECONDITION, lambda: server.registrar.challenge(CHALLENGE_REQUEST, wrong))
    request = server.apply().request
    refused(StatusCode.FAILED_PRECONDITION, lambda: server.registrar.enrol(request, wrong))


def test_a_caller_that_attested_the_ca_before_this_one_connects_again(server: Server) -> None:
    applied = server.apply()
    server.identity.rotate()
    refused(StatusCode.ABORTED, lambda: server.enrol(applied.request), "connect again")


def test_a_caller_that_attested_another_ca_is_refused(server: Server) -> None:
    request = changed(server.apply().request, ca_sha256=OTHER)
    refused(StatusCode.ABORTED, lambda: server.enrol(request), "not this enclave's; connect again")


MALFORMED: Mapping[str, tuple[StatusCode, Mapping[str, Any]]] = {
    "another version": (StatusCode.UNIMPLEMENTED, {"version": 2}),
    "a role that is no label": (StatusCode.INVALID_ARGUMENT, {"role": "Front end"}),
    "no role": (StatusCode.INVALID_ARGUMENT, {"role": ""}),
    "claims that are too long": (StatusCode.INVALID_ARGUMENT, {"claims": bytes(8193)}),
    "no key": (StatusCode.INVALID_ARGUMENT, {"public_key": b""}),
    "a key of another kind": (
        StatusCode.INVALID_ARGUMENT,
        {
            "public_key": ed25519.Ed25519PrivateKey.generate()
            .public_key()
            .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        },
    ),
    "a key on another curve": (
        StatusCode.INVALID_ARGUMENT,
        {"public_key": spki(ec.generate_private_key(ec.SECP384R1()).public_key())},
    ),
}


@pytest.mark.parametrize(("status", "fields"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_request_is_refused(server: Server, status: StatusCode, fields: Mapping[str, Any]) -> None:
    refused(status, lambda: server.enrol(changed(server.apply().request, **fields)))
    assert len(server.peers) == 0


@pytest.mark.parametrize("junk", [b"\xff", bytes(MAX_MESSAGE_BYTES + 1)], ids=["junk", "too long"])
def test_what_is_no_request_is_refused(server: Server, junk: bytes) -> None:
    refused(StatusCode.INVALID_ARGUMENT, lambda: server.enrol(junk))
    refused(StatusCode.INVALID_ARGUMENT, lambda: server.registrar.challenge(b"\xff", connection()))


def test_a_challenge_of_another_version_is_refused(server: Server) -> None:
    request = ChallengeRequest(version=2).SerializeToString()
    refused(StatusCode.UNIMPLEMENTED, lambda: server.registrar.challenge(request, connection()))


# --- the caller's side


@pytest.mark.parametrize("role", ["", "Front", "a b", "a.b", "x" * 64, "a\n"])
def test_a_role_is_a_label(role: str) -> None:
    with pytest.raises(ConfigurationError):
        CallerIdentity(role=role, claims=CLAIMS, quotes=DeviceQuotes(VendorDevice()))


@pytest.mark.parametrize(
    "answer",
    [b"\xff", b"", ChallengeResponse(version=2, nonce=bytes(32)).SerializeToString(),
     ChallengeResponse(version=1, nonce=bytes(31)).SerializeToString()],
)  # fmt: skip
def test_a_challenge_that_is_none_is_not_answered(server: Server, answer: bytes) -> None:
    device = VendorDevice()
    caller = CallerIdentity(role=ROLE, claims=CLAIMS, quotes=DeviceQuotes(device))
    with pytest.raises(EvidenceError):
        caller.apply(answer, client_sha256=CLIENT_SHA256, ca=server.ca.der)
    assert not device.asked


def answered(server: Server) -> tuple[Applied, EnrolResponse]:
    applied = server.apply()
    return applied, EnrolResponse.FromString(server.enrol(applied.request))


def test_a_certificate_of_a_ca_that_was_not_attested_is_refused(server: Server) -> None:
    applied, answer = answered(server)
    elsewhere = make_ca(NOW)
    forged = issue_member(
        elsewhere, applied.key.public_key(), rule="r", record=b"{}", now=NOW, lifetime=timedelta(hours=1)
    )
    answer.chain[0] = forged.public_bytes(serialization.Encoding.DER)
    with pytest.raises(EvidenceError, match="CA that was attested"):
        applied.accept(answer.SerializeToString())


def test_a_certificate_for_another_key_is_refused(server: Server) -> None:
    applied, _ = answered(server)
    _, other = answered(server)
    with pytest.raises(EvidenceError, match="not for this key"):
        applied.accept(other.SerializeToString())


@pytest.mark.parametrize(
    "fields",
    [{"version": 2}, {"renew_after_seconds": 0}, {"renew_after_seconds": 3601}, {"mesh_port": 65536},
     {"ca_certificate": b"another"}],
)  # fmt: skip
def test_an_answer_that_can_not_be_is_refused(server: Server, fields: dict[str, Any]) -> None:
    applied, answer = answered(server)
    for name, value in fields.items():
        setattr(answer, name, value)
    with pytest.raises(EvidenceError):
        applied.accept(answer.SerializeToString())


def test_an_answer_without_a_certificate_is_refused(server: Server) -> None:
    applied, answer = answered(server)
    del answer.chain[:]
    with pytest.raises(EvidenceError):
        applied.accept(answer.SerializeToString())
    with pytest.raises(EvidenceError):
        applied.accept(b"\xff")


def test_the_record_of_a_peer_comes_back_from_its_bytes() -> None:
    known = Peer(
        rule='"quoted", ü', tee="snp", measurement=b"\x00\xff", platform="p", insecurities=("debug",), expires_at=NOW
    )
    assert Peer.decode(known.encode(), NOW) == known


# --- what the enclave's context gives


def context(folder: Path, *documents: bytes) -> EnclaveContext:
    settings = Settings(name="friend", application="friend:Friend", include=("friend.py",))
    return EnclaveContext(
        name="anna",
        settings=settings,
        application_directory=folder,
        data_directory=folder,
        config_sha256=CONFIG_SHA256,
        device=VendorDevice(),
        worker=None,
        keeper=None,
        request_stop=lambda _reason: None,
        reference_values=documents,
        vault=make_vault(),
    )


def test_an_enclave_enrols_with_its_own_name_and_configuration(tmp_path: Path, server: Server) -> None:
    caller = context(tmp_path).identity(role="friend")
    assert parse_claims(caller.claims) == {"v": 1, "name": "anna", "config_sha256": CONFIG_SHA256.hex()}
    applied = caller.apply(server.challenge(), client_sha256=CLIENT_SHA256, ca=server.ca.der)
    applied.accept(server.enrol(applied.request))


def test_an_enclave_without_a_device_can_not_say_what_it_is(tmp_path: Path) -> None:
    bare = replace(context(tmp_path), device=None)
    refused(StatusCode.UNIMPLEMENTED, lambda: bare.identity(role="friend"), "no device")


def test_a_document_that_a_policy_has_no_place_for_is_left_out_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = policy_text(VENDOR.root.fingerprint(hashes.SHA256()))
    (tmp_path / "friends.toml").write_bytes(text)
    assert context(tmp_path, b"{}", b"junk").policy("friends.toml").sha256 == Policy.parse(text).sha256
    assert [vars(record)["policy"] for record in caplog.records] == ["friends.toml"] * 2


def test_a_policy_that_is_not_in_the_bundle_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        context(tmp_path).policy("friends.toml")
