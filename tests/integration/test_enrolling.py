"""Callers that enrol with real servers of both kinds, over real connections, and come again by the mesh port."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from concurrent import futures
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from channel_parties import CLAIMS, KINDS, MEASUREMENT, NAMES, SlowHardware, adding, policy_text, slow_device
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from adyton.atls.aio_connector import AioConnector
from adyton.atls.attester import Attester
from adyton.atls.batch import BatchedQuotes, DeviceQuotes
from adyton.atls.certificates import DEFAULT_AUDIENCE, issue_open_client, key_pem, open_client_ca, pem
from adyton.atls.channel import AttestedChannel
from adyton.atls.connect import connector
from adyton.atls.connector import ATTEST, BlockingConnector, Connector
from adyton.atls.enrolling import CHALLENGE, CHALLENGE_REQUEST, ENROL, CallerIdentity
from adyton.atls.identity import LocalIdentity
from adyton.atls.member import issue_member, member_label
from adyton.atls.membership import Membership, join
from adyton.atls.peer import MEMBERS, peer
from adyton.atls.question import Terms
from adyton.atls.registrar import Registrar
from adyton.bundle.access import AccessSettings, Word
from adyton.bundle.settings import ServerSettings, Settings
from adyton.enclave.serving import Listen, Serving
from adyton.errors import ConfigurationError, EvidenceError, PolicyError, UnsupportedError
from adyton.policy.document import Policy
from adyton.policy.insecurity import Insecurity
from adyton.proto.attestation_pb2 import AttestRequest
from adyton.tee.simulated.device import SimulatedDevice

WHO, SECRET = "/tests.Who/Who", "/tests.Who/Secret"
SIMULATED = frozenset({Insecurity.SIMULATED})


def _who(request: bytes, context: Any) -> bytes:
    found = peer(context)
    return b"nobody" if found is None else found.rule.encode()


class Parties:
    """A server that lets the enrolled call SECRET, and what callers need to reach it."""

    def __init__(self, device: SimulatedDevice, hardware: SlowHardware) -> None:
        self.anchor = hardware.root.fingerprint(hashes.SHA256())
        self.policy = policy_text(self.anchor)
        self.quotes = DeviceQuotes(device)
        self.identity = LocalIdentity(names=NAMES, claims=CLAIMS)
        self.ports = {"attested": 0, "plain_tls": 0, "mesh": 0}
        self.server: Serving | None = None

    def caller(self) -> CallerIdentity:
        return CallerIdentity(role="front-end", claims=CLAIMS, quotes=self.quotes)

    def address(self, port: str = "attested") -> str:
        return f"127.0.0.1:{self.ports[port]}"

    def connector(self, *, caller: CallerIdentity | None = None, **options: Any) -> Connector:
        address = options.pop("address", self.address())
        return connector(address, self.policy, allow_insecure=["simulated"], identity=caller, **options)

    def start(self, kind: str, *, accepts: bytes | None, mesh: bool = True) -> None:
        """On the ports that it had before, if there was a server before."""
        access = AccessSettings(policy="callers.toml", methods=((SECRET, Word.ENROLLED),))
        limits = ServerSettings(mesh=mesh, plain_tls=True)
        settings = Settings(name="parties", application="p:P", include=("p",), server=limits, access=access)
        registrar = None
        if accepts is not None:
            registrar = Registrar(terms=Terms(policy=Policy.parse(accepts), allow=SIMULATED), identity=self.identity)
        quotes = BatchedQuotes(self.quotes)
        made = Attester(identity=self.identity, quotes=quotes, names=frozenset(NAMES), registrar=registrar)
        listen = Listen(address="127.0.0.1", ports=self.ports, shared=False)
        add = adding("tests.Who", {"Who": _who, "Secret": _who}, kind=kind)
        self.server = KINDS[kind](settings, add, (), listen, made)
        self.ports = dict(self.server.ports)

    def stop(self) -> None:
        assert self.server is not None
        self.server.stop(0)


@contextlib.contextmanager
def parties(
    folder: Path, kind: str = "threads", *, enrols: bool = True, mesh: bool = True, code: bytes = MEASUREMENT
) -> Iterator[Parties]:
    """A running server; `code` is the measurement that it accepts of its callers."""
    with slow_device(folder, 0) as (device, hardware):
        made = Parties(device, hardware)
        accepts = made.policy.replace(MEASUREMENT.hex().encode(), code.hex().encode()) if enrols else None
        made.start(kind, accepts=accepts, mesh=mesh)
        try:
            yield made
        finally:
            made.stop()


def call(channel: grpc.Channel, method: str, request: bytes = b"") -> bytes:
    rpc: Any = channel.unary_unary(method)
    answer: bytes = rpc(request, timeout=10)
    return answer


def status_of(channel: grpc.Channel, method: str, request: bytes = b"") -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, method, request)
    failed: Any = caught.value
    code: grpc.StatusCode = failed.code()
    return code


@pytest.mark.parametrize("kind", KINDS)
def test_a_caller_that_enrols_is_known_on_its_connection_and_a_stranger_on_his_is_not(
    tmp_path: Path, kind: str
) -> None:
    with parties(tmp_path, kind) as made:
        enrolled = BlockingConnector(made.connector(caller=made.caller())).open(10)
        stranger = BlockingConnector(made.connector()).open(10)
        with enrolled.channel as ours, stranger.channel as theirs:
            assert call(ours, SECRET) == call(ours, WHO) == b"an enclave"
            assert call(theirs, WHO) == b"nobody"
            assert status_of(theirs, SECRET) is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize("kind", KINDS)
def test_a_caller_on_asyncio_enrols_and_renews_on_the_same_connection(tmp_path: Path, kind: str) -> None:
    async def converse(made: Parties) -> None:
        opener = AioConnector(made.connector(caller=made.caller()))
        session = await opener.open(10)
        try:
            secret: Any = session.channel.unary_unary(SECRET)
            assert await secret(b"", timeout=10) == b"an enclave"
            before, attested = session.renew_at, session.attestation
            await asyncio.sleep(0.01)
            await opener.renew(session, 10)
            assert session.renew_at > before
            assert session.attestation is not attested
            assert await secret(b"", timeout=10) == b"an enclave"
        finally:
            await session.channel.close()

    with parties(tmp_path, kind) as made:
        asyncio.run(converse(made))


@pytest.mark.parametrize("kind", KINDS)
def test_a_channel_enrols_again_on_each_new_connection(tmp_path: Path, kind: str) -> None:
    with (
        parties(tmp_path, kind) as made,
        AttestedChannel(BlockingConnector(made.connector(caller=made.caller()))) as channel,
    ):
        assert call(channel, SECRET) == b"an enclave"
        made.stop()
        made.start(kind, accepts=made.policy)
        assert call(channel, SECRET) == b"an enclave"


def test_a_caller_renews_when_half_of_its_identitys_time_is_over(tmp_path: Path) -> None:
    with parties(tmp_path) as made:
        opener = BlockingConnector(made.connector(caller=made.caller()))
        enrolled, alone = opener.open(10), BlockingConnector(made.connector()).open(10)
        assert 1700 < alone.renew_at - enrolled.renew_at < 1900
        opener.renew(enrolled, 10)
        with enrolled.channel as channel, alone.channel:
            assert call(channel, SECRET) == b"an enclave"


def test_a_server_without_a_policy_for_callers_says_so(tmp_path: Path) -> None:
    with (
        parties(tmp_path, enrols=False) as made,
        pytest.raises(PolicyError, match=r"enrols nobody: its enclave.toml has no access.policy"),
    ):
        BlockingConnector(made.connector(caller=made.caller())).open(10)


@pytest.mark.parametrize("kind", KINDS)
def test_a_caller_of_other_code_is_refused_with_the_fact_and_the_findings_stay_inside(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "adyton.enrolment")
    with parties(tmp_path, kind, code=b"\x99" * 48) as made:
        with pytest.raises(PolicyError) as caught:
            BlockingConnector(made.connector(caller=made.caller())).open(10)
        assert caught.value.message.endswith("this enclave's policy does not accept the caller")
        assert MEASUREMENT.hex() not in str(caught.value)
        (record,) = (each for each in caplog.records if each.name == "adyton.enrolment")
        assert MEASUREMENT.hex() in str(vars(record)["reasons"])


def test_an_enrolment_relayed_from_its_connection_to_another_one_is_refused(tmp_path: Path) -> None:
    with parties(tmp_path) as made:
        victims, attackers = (BlockingConnector(made.connector()).open(10) for _ in range(2))
        with victims.channel as genuine, attackers.channel as hostile:
            ca = made.identity.current().ca.der
            theirs = call(hostile, CHALLENGE, CHALLENGE_REQUEST)
            relayed = made.caller().apply(theirs, client_sha256=victims.question.client_sha256, ca=ca).request
            assert status_of(hostile, ENROL, relayed) is grpc.StatusCode.UNAUTHENTICATED
            assert call(hostile, WHO) == b"nobody"
            ours = call(genuine, CHALLENGE, CHALLENGE_REQUEST)
            right = made.caller().apply(ours, client_sha256=victims.question.client_sha256, ca=ca).request
            assert status_of(hostile, ENROL, right) is grpc.StatusCode.FAILED_PRECONDITION
            call(genuine, ENROL, right)
            assert call(genuine, WHO) == b"an enclave"
            assert call(hostile, WHO) == b"nobody"


def test_nobody_enrols_on_a_connection_without_a_clients_key(tmp_path: Path) -> None:
    with parties(tmp_path) as made:
        root = pem(made.identity.current().ca.certificate)
        credentials = grpc.ssl_channel_credentials(root)
        named = [("grpc.ssl_target_name_override", DEFAULT_AUDIENCE)]
        with grpc.secure_channel(made.address("plain_tls"), credentials, named) as channel:
            assert call(channel, WHO) == b"nobody"
            assert status_of(channel, CHALLENGE, CHALLENGE_REQUEST) is grpc.StatusCode.FAILED_PRECONDITION


def test_who_enrols_asks_for_the_level_of_its_connection(tmp_path: Path) -> None:
    with parties(tmp_path) as made, pytest.raises(ConfigurationError, match="level is connection"):
        made.connector(caller=made.caller(), level="key")


# --- the mesh port


@pytest.mark.parametrize("kind", KINDS)
def test_a_member_comes_again_by_the_mesh_port_over_an_ordinary_channel(tmp_path: Path, kind: str) -> None:
    with parties(tmp_path, kind) as made:
        member = join(made.address(), made.policy, allow_insecure=["simulated"], identity=made.caller())
        for _ in range(2):
            with member.channel() as channel:
                assert call(channel, SECRET) == b"an enclave"
        member.renew()
        with member.channel(made.address("mesh")) as channel:
            assert call(channel, WHO) == b"an enclave"


def test_a_membership_needs_an_identity_and_a_mesh_port(tmp_path: Path) -> None:
    with parties(tmp_path, mesh=False) as made:
        with pytest.raises(ConfigurationError, match="must attest itself"):
            Membership(made.connector())
        member = Membership(made.connector(caller=made.caller()))
        with pytest.raises(UnsupportedError, match="no mesh port"):
            member.channel()


def mutual(made: Parties, port: str, key: ec.EllipticCurvePrivateKey, certificate: Any) -> grpc.Channel:
    root = pem(made.identity.current().ca.certificate)
    credentials = grpc.ssl_channel_credentials(root, key_pem(key), pem(certificate))
    return grpc.secure_channel(made.address(port), credentials, [("grpc.ssl_target_name_override", DEFAULT_AUDIENCE)])


def test_each_port_takes_certificates_of_its_own_ca_only(tmp_path: Path) -> None:
    with parties(tmp_path) as made:
        enrolment = BlockingConnector(made.connector(caller=made.caller())).join(10)
        anybody = ec.generate_private_key(ec.SECP256R1())
        with mutual(made, "mesh", anybody, issue_open_client(anybody)) as channel:
            assert status_of(channel, WHO) is grpc.StatusCode.UNAVAILABLE
        with mutual(made, "attested", enrolment.key, enrolment.certificate) as channel:
            assert status_of(channel, WHO) is grpc.StatusCode.UNAVAILABLE
        with mutual(made, "attested", anybody, issue_open_client(anybody)) as channel:
            assert call(channel, WHO) == b"nobody"
        with mutual(made, "mesh", enrolment.key, enrolment.certificate) as channel:
            assert call(channel, WHO) == b"an enclave"


def test_a_members_certificate_that_has_ended_is_refused(tmp_path: Path) -> None:
    with parties(tmp_path) as made:
        enrolment = BlockingConnector(made.connector(caller=made.caller())).join(10)
        now = datetime.now(UTC) - timedelta(hours=1)
        lifetime = timedelta(minutes=59)
        ended = issue_member(
            made.identity.current().ca, enrolment.key.public_key(), rule="r", record=b"{}", now=now, lifetime=lifetime
        )
        with mutual(made, "mesh", enrolment.key, ended) as channel:
            assert status_of(channel, WHO) is grpc.StatusCode.UNAVAILABLE


def test_an_identity_in_a_certificate_that_anybody_can_make_counts_for_nothing(tmp_path: Path) -> None:
    with parties(tmp_path) as made:
        enrolment = BlockingConnector(made.connector(caller=made.caller())).join(10)
        shown = MEMBERS.find(pem(enrolment.certificate))
        assert shown is not None
        forged = issue_open_client_with(shown.encode(), enrolment.key)
        with mutual(made, "attested", enrolment.key, forged) as channel:
            assert call(channel, WHO) == b"nobody"


def issue_open_client_with(record: bytes, key: ec.EllipticCurvePrivateKey) -> Any:
    now, lifetime = datetime.now(UTC), timedelta(hours=1)
    return issue_member(open_client_ca(), key.public_key(), rule="r", record=record, now=now, lifetime=lifetime)


# --- a member that turns hostile


@contextlib.contextmanager
def posing(key: ec.EllipticCurvePrivateKey, certificate: Any, made: Parties) -> Iterator[str]:
    """A member that passes itself off as the server, and forwards Attest to the server's plain TLS port."""
    root = pem(made.identity.current().ca.certificate)
    to_server = grpc.secure_channel(
        made.address("plain_tls"),
        grpc.ssl_channel_credentials(root),
        [("grpc.ssl_target_name_override", DEFAULT_AUDIENCE)],
    )

    def forward(request: bytes, context: Any) -> bytes:
        message = AttestRequest.FromString(request)
        message.pinned_sha256 = made.identity.current().leaf.spki_sha256
        try:
            return call(to_server, ATTEST, message.SerializeToString())
        except grpc.RpcError as error:
            refused: Any = error
            context.abort(refused.code(), refused.details())
            raise AssertionError from error

    server = grpc.server(futures.ThreadPoolExecutor(2))
    handlers: dict[str, Any] = {"Attest": grpc.unary_unary_rpc_method_handler(forward)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("adyton.atls.Attestation", handlers),))
    credentials = grpc.ssl_server_credentials([(key_pem(key), pem(certificate))])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()
        to_server.close()


def test_a_member_can_not_pose_as_the_server_whose_ca_a_client_pins(tmp_path: Path) -> None:
    with parties(tmp_path) as made:
        current = made.identity.current()
        enrolment = BlockingConnector(made.connector(caller=made.caller())).join(10)
        pinned = made.policy.replace(
            b"[channel]", f'[channel]\nca_sha256 = ["{current.ca.spki_sha256.hex()}"]'.encode()
        )
        honest = connector(made.address("plain_tls"), pinned, allow_insecure=["simulated"], level="key")
        BlockingConnector(honest).open(10).channel.close()
        its_own_name = f"{member_label('an enclave')}.member.atls.internal"
        with posing(enrolment.key, enrolment.certificate, made) as address:
            for name, words in (
                (DEFAULT_AUDIENCE, "a certificate for another name"),
                (its_own_name, "not a name of this server"),
            ):
                victim = connector(address, pinned, allow_insecure=["simulated"], level="key", server_name=name)
                with pytest.raises(EvidenceError, match=words):
                    BlockingConnector(victim).open(10)


def test_a_member_can_not_pose_as_the_server_on_the_mesh(tmp_path: Path) -> None:
    with parties(tmp_path) as made:
        hostile = BlockingConnector(made.connector(caller=made.caller())).join(10)
        member = join(made.address(), made.policy, allow_insecure=["simulated"], identity=made.caller())
        with posing(hostile.key, hostile.certificate, made) as address, member.channel(address) as channel:
            assert status_of(channel, ATTEST) is grpc.StatusCode.UNAVAILABLE
