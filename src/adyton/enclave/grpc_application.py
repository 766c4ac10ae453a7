"""A TrustedApplication that is a gRPC server: the author overrides one method.

It serves the attested channel (ATLS): a client that asks gets evidence that is bound to its very connection.
"""

from __future__ import annotations

import ipaddress
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from adyton.atls.allowance import Allowance
from adyton.atls.attester import Attester
from adyton.atls.batch import BatchedQuotes, DeviceQuotes
from adyton.atls.certificates import DEFAULT_AUDIENCE
from adyton.atls.claims import encode_claims
from adyton.atls.identity import IdentitySource, KeptCa, LocalIdentity, RotatingIdentity
from adyton.bundle.settings import Settings
from adyton.enclave.application import TrustedApplication
from adyton.enclave.ports import ATTESTED, PORTS, Numbers, open_ports
from adyton.enclave.serving import AioServing, Listen, Serving, ThreadedServing, probe_bind
from adyton.errors import ApplicationError, StatusCode, UnsupportedError
from adyton.proto import grpc_application_pb2 as extensions
from adyton.proto.enclave_pb2 import EnclaveConfig, EnclaveFinal, EnclaveInput, EnclaveOutput
from adyton.tee.devices import Device

if TYPE_CHECKING:
    from adyton.atls.registrar import Registrar
    from adyton.enclave.secrets_service import SecretsService

_log = logging.getLogger(__name__)

MAX_WORKERS = 256
MAX_TIME_MS = 10 * 365 * 24 * 3600 * 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerPlan:
    """What the host asked for, checked."""

    address: str
    ports: Numbers
    workers: int
    lifetime_seconds: float
    grace_seconds: float


def read_plan(config: EnclaveConfig, settings: Settings) -> ServerPlan:
    """Check the server's part of the host's configuration. Raises INVALID_ARGUMENT and names the extension."""
    if not config.HasExtension(extensions.server_address):
        raise _invalid("Expected the extension adyton.server_address on EnclaveConfig")
    if not config.HasExtension(extensions.port):
        raise _invalid("Expected the extension adyton.port on EnclaveConfig")
    workers = config.Extensions[extensions.workers] if config.HasExtension(extensions.workers) else None
    for port in set(PORTS) - set(open_ports(settings.server)):
        if config.Extensions[port.asked]:
            raise _invalid(f"the extension adyton.{port.asked.name} is set, and enclave.toml has no server.{port.name}")
    return ServerPlan(
        address=_ip_address(config.Extensions[extensions.server_address]),
        ports={
            port.name: _within(port.asked.name, config.Extensions[port.asked], 0, 65535)
            for port in open_ports(settings.server)
        },
        workers=settings.server.workers if workers is None else _within("workers", workers, 1, MAX_WORKERS),
        lifetime_seconds=_milliseconds(config, extensions.server_max_lifetime_ms),
        grace_seconds=_milliseconds(config, extensions.shutdown_grace_ms),
    )


def _milliseconds(config: EnclaveConfig, extension: Any) -> float:
    return _within(extension.name, config.Extensions[extension], 0, MAX_TIME_MS) / 1000


def _within(name: str, value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise _invalid(f"the extension adyton.{name} is {value}; it may be {low} to {high}")
    return value


def _ip_address(address: str) -> str:
    if address == "localhost":
        try:
            probe_bind("127.0.0.1", 0).close()
        except OSError:
            return "::1"
        return "127.0.0.1"
    try:
        parsed = ipaddress.ip_address(address.removeprefix("[").removesuffix("]"))
    except ValueError:
        raise _invalid(f"the extension adyton.server_address is {address[:80]!r}, which is no IP address") from None
    return str(parsed)


def _invalid(message: str) -> ApplicationError:
    return ApplicationError(StatusCode.INVALID_ARGUMENT, message)


def _serves_nothing(application: TrustedApplication) -> ApplicationError:
    return _invalid(
        f"{type(application).__name__} does not override add_servicers(self, server), "
        "which calls the generated add_…Servicer_to_server(…, server)"
    )


class _GrpcApplicationBase(TrustedApplication):
    """The life of the server, whichever kind it is."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._serving: Serving | None = None
        self._plan: ServerPlan | None = None
        self._lifetime: threading.Timer | None = None
        self._stopped = False

    def interceptors(self) -> Sequence[Any]:
        """Override to put server interceptors (of the server's kind) around the servicers, outermost first."""
        return ()

    def initialize(self, config: EnclaveConfig) -> None:
        """Build and start the server, once. INVALID_ARGUMENT, ALREADY_EXISTS or INTERNAL if it can't."""
        plan = read_plan(config, self.context.settings)
        with self._guard:
            if self._serving is not None:
                raise ApplicationError(StatusCode.ALREADY_EXISTS, "Server is already started")
            self._serving = self._start(plan, config)
            self._plan = plan
        if plan.lifetime_seconds and self.context.worker is None:
            self._lifetime = threading.Timer(plan.lifetime_seconds, self._outlive)
            self._lifetime.daemon = True
            self._lifetime.start()
        _log.info("server started", extra={"port": self._serving.ports[ATTESTED.name], "workers": plan.workers})

    def run(self, input: EnclaveInput) -> EnclaveOutput:  # noqa: ARG002
        """Answer the ports that the server listens on."""
        output = EnclaveOutput()
        assert self._serving is not None
        for port in open_ports(self.context.settings.server):
            output.Extensions[port.answered] = self._serving.ports[port.name]
        return output

    def finalize(self, final: EnclaveFinal) -> None:  # noqa: ARG002
        """Refuse new RPCs, give those in flight their grace, and stop."""
        if self._lifetime is not None:
            self._lifetime.cancel()
        self._stop()

    def _stop(self) -> None:
        with self._guard:
            if self._serving is None or self._plan is None or self._stopped:
                return
            self._stopped = True
            _log.info("Server shutting down")
            self._serving.stop(self._plan.grace_seconds)

    def _outlive(self) -> None:
        try:
            self._stop()
        finally:
            self.context.request_stop("the server's maximum lifetime is over")

    def _start(self, plan: ServerPlan, config: EnclaveConfig) -> Serving:
        listen = Listen(address=plan.address, ports=plan.ports, shared=self.context.worker is not None)
        if self.context.keeper is not None:
            client = self.context.keeper
            return self._serve(listen, self._attester(client, BatchedQuotes(client)), self._secrets_service(client))
        quotes = BatchedQuotes(DeviceQuotes(self._device()))
        identity = LocalIdentity(names=self._names(), claims=self._claims(), kept=self._kept_ca())
        if plan.workers > 1:
            from adyton.enclave.keeper import Keeper
            from adyton.enclave.workers import WorkerPool

            keeper = Keeper(identity, quotes, self.context.vault)
            return WorkerPool(self.context, config, keeper=keeper, listen=listen, workers=plan.workers)
        return self._serve(listen, self._attester(identity, quotes), self._secrets_service(identity))

    def _kept_ca(self) -> KeptCa | None:
        """Where the CA outlives the enclave: where there is a state folder, and a sealing key for what is in it."""
        if not self.context.vault.keeps:
            return None
        from adyton.enclave.kept_ca import StoredCa  # not above: most enclaves keep nothing

        try:
            return StoredCa(self.context.vault.own_store("identity"))
        except UnsupportedError as problem:
            _log.warning("the enclave's CA is not kept: %s", problem)
            return None

    def _device(self) -> Device:
        if self.context.device is None:
            raise ApplicationError(StatusCode.UNIMPLEMENTED, "this enclave has no device that makes evidence")
        return self.context.device

    def _names(self) -> tuple[str, ...]:
        return (DEFAULT_AUDIENCE, *self.context.settings.server.names)

    def _claims(self) -> bytes:
        return encode_claims(name=self.context.name, config_sha256=self.context.config_sha256)

    def _attester(self, identity: IdentitySource, quotes: BatchedQuotes) -> Attester:
        return Attester(
            identity=identity,
            quotes=quotes,
            names=frozenset(self._names()),
            registrar=self._registrar(identity),
            allowance=Allowance(),
        )

    def _registrar(self, identity: IdentitySource) -> Registrar | None:
        access = self.context.settings.access
        if access.policy is None:
            return None
        # Not above: a server at which nobody enrols verifies no evidence, and starts sooner without what that takes.
        from adyton.atls.access import agreed_insecurities, check_against_policy
        from adyton.atls.question import Terms
        from adyton.atls.registrar import Registrar

        policy = self.context.policy(access.policy)
        check_against_policy(access, policy)
        return Registrar(terms=Terms(policy=policy, allow=frozenset(agreed_insecurities(access))), identity=identity)

    def _secrets_service(self, identity: RotatingIdentity) -> SecretsService | None:
        context, owners = self.context, self.context.settings.secrets.owners
        if not owners:
            return None
        from adyton.enclave.secrets_service import SecretsService  # not above: most enclaves have no owners

        return SecretsService(
            owners=owners, identity=identity, keeper=lambda: context.keeper or context.vault.kept_secrets
        )

    def _serve(self, listen: Listen, attester: Attester, secrets: SecretsService | None) -> Serving:
        raise NotImplementedError


class GrpcApplication(_GrpcApplicationBase):
    """A gRPC server with threads. Override `add_servicers`, and nothing else if you need nothing else.

    With several workers each process has its own instance, and calls `initialize`, `add_servicers` and `finalize` of
    its own; the enclave's first process only looks after them, and answers `run`.
    """

    def add_servicers(self, server: grpc.Server) -> None:  # noqa: ARG002
        """Add your generated servicers: `add_TranslatorServicer_to_server(Translator(), server)`."""
        raise _serves_nothing(self)

    def _serve(self, listen: Listen, attester: Attester, secrets: SecretsService | None) -> Serving:
        return ThreadedServing(
            self.context.settings, self.add_servicers, self.interceptors(), listen, attester, secrets
        )


class AioGrpcApplication(_GrpcApplicationBase):
    """A gRPC server on asyncio. Override `add_servicers`; the rest is as in GrpcApplication."""

    def add_servicers(self, server: grpc.aio.Server) -> None:  # noqa: ARG002
        """Add your generated servicers, whose methods are coroutines. Called on the event loop."""
        raise _serves_nothing(self)

    def _serve(self, listen: Listen, attester: Attester, secrets: SecretsService | None) -> Serving:
        return AioServing(self.context.settings, self.add_servicers, self.interceptors(), listen, attester, secrets)
