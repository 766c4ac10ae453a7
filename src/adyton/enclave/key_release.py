r"""An enclave that gives other enclaves of its owner their sealing keys: it serves adyton.KeyRelease/Key.

For enclaves whose hardware has no sealing key, or whose data outlives their code and their machine. Both sides attest
each other: a caller enrols under `[access] policy` of this enclave's bundle, and attests this enclave by a policy in
its own. Whoever is accepted by one rule gets the keys of that rule, and no others:

    key = HKDF-SHA256(master key, info = "adyton key release v1 key\0" || request)

    request of 85 bytes, big endian, no padding; neither secret nor trusted

    version    1   1
    master     4   number of the master key: 1, there is one
    service   16   random, made with the master key; names this service
    rule      32   SHA-256("adyton key release v1 rule\0" || the rule's name)
    nonce     32   random, so each new key is another

    subject = SHA-256("adyton key release v1 subject\0" || service || the rule's name)
"""

from __future__ import annotations

import hashlib
import os
import struct
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn, Self

import grpc
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from google.protobuf.message import DecodeError

from adyton.atls.peer import peer
from adyton.enclave.grpc_application import GrpcApplication, read_plan
from adyton.errors import ApplicationError, ConfigurationError, SealedDataError, StatusCode
from adyton.proto.enclave_pb2 import EnclaveConfig
from adyton.proto.key_release_pb2 import KeyReleaseReply, KeyReleaseRequest
from adyton.proto.messages import parse_message
from adyton.sealing.store import SealedStore
from adyton.tee.sealing import KEY_BYTES

SERVICE: Final = "adyton.KeyRelease"
STORE: Final = "master-keys"
SERVICE_BYTES: Final = 16

_VERSION: Final = 1
_MASTER: Final = 1
_REQUEST: Final = struct.Struct(f">BI{SERVICE_BYTES}s32s32s")
_DOMAIN: Final = b"adyton key release v1 "
_CODES: Final = {
    StatusCode.INVALID_ARGUMENT: grpc.StatusCode.INVALID_ARGUMENT,
    StatusCode.PERMISSION_DENIED: grpc.StatusCode.PERMISSION_DENIED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MasterKey:
    """What all keys of one service come from. `service` (16 bytes) is public, `master` (32 bytes) never leaves it."""

    service: bytes
    master: bytes = field(repr=False)

    @classmethod
    def kept_in(cls, store: SealedStore) -> Self:
        """The store's, made where the store is empty. SealedDataError for a store of something else."""
        if not len(store):
            with store.transaction() as change:
                change["service"], change[f"master {_MASTER}"] = os.urandom(SERVICE_BYTES), os.urandom(KEY_BYTES)
        service, master = store.get("service") or b"", store.get(f"master {_MASTER}") or b""
        if (len(service), len(master)) != (SERVICE_BYTES, KEY_BYTES):
            raise SealedDataError("the store of master keys holds something else")
        return cls(service=service, master=master)

    def new_key(self, rule: str) -> KeyReleaseReply:
        """A fresh key for callers that this rule accepts."""
        request = _REQUEST.pack(_VERSION, _MASTER, self.service, _digest(b"rule", rule.encode()), os.urandom(32))
        return self._reply(rule, request)

    def same_key(self, rule: str, request: bytes) -> KeyReleaseReply:
        """The key of that request, for callers of the rule that it was made for.

        ApplicationError: INVALID_ARGUMENT for what is no request, PERMISSION_DENIED, naming the field, for one of
        another service, another of its master keys or another rule.
        """
        if len(request) != _REQUEST.size or request[0] != _VERSION:
            raise _refused(StatusCode.INVALID_ARGUMENT, "the request is none of a key-release enclave's")
        _, master, service, of_rule, _ = _REQUEST.unpack(request)
        if service != self.service:
            raise _refused(
                StatusCode.PERMISSION_DENIED,
                f"service: the key is one of {service.hex()}, and this is {self.service.hex()}; has it lost its state?",
            )
        if master != _MASTER:
            raise _refused(StatusCode.PERMISSION_DENIED, f"master key: there is no number {master}")
        if of_rule != _digest(b"rule", rule.encode()):
            raise _refused(StatusCode.PERMISSION_DENIED, f"rule: the key is for another than {rule!r}")
        return self._reply(rule, request)

    def _reply(self, rule: str, request: bytes) -> KeyReleaseReply:
        info = _DOMAIN + b"key\0" + request
        key = HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=None, info=info).derive(self.master)
        subject = _digest(b"subject", self.service + rule.encode())
        return KeyReleaseReply(key=key, request=request, subject=subject)


class KeyReleaseApplication(GrpcApplication):
    """The whole application: name it in enclave.toml, and its callers' rules in the policy of `[access]`.

        application = "adyton.enclave.key_release:KeyReleaseApplication"
        include = ["callers.policy.toml"]

        [access]
        policy = "callers.policy.toml"

    A rule is a family of keys, and its name is theirs for good: under another name it has other keys, and what was
    sealed under the first is closed until a rule has that name again. One application with all its versions is one
    rule; two applications are two rules. Evidence that two rules accept gets the keys of the first. Signed reference
    values let new versions in without another measurement of this enclave.

    The master key is in its own state folder, sealed to its own hardware. Who loses that folder, or updates this
    enclave without `[sealing] policy = "signer"`, has lost what the keys sealed. There is one master key, for good.
    """

    _keys: MasterKey

    def initialize(self, config: EnclaveConfig) -> None:
        """Find or make the master key, and serve.

        FAILED_PRECONDITION without a state folder, ConfigurationError where nobody could enrol or several processes
        were to serve; UnsealError and others as `SealedStore.open`.
        """
        settings = self.context.settings
        if settings.access.policy is None:
            raise ConfigurationError("nobody could ask for a key: enclave.toml has no access.policy")
        if read_plan(config, settings).workers > 1:
            raise ConfigurationError("a key-release enclave has one server process: server.workers is 1")
        if not self.context.vault.keeps:
            raise ApplicationError(
                StatusCode.FAILED_PRECONDITION,
                "keys that end with this enclave would lose what they seal: give it a state folder, --state DIR",
            )
        with self.context.store(STORE) as store:
            if 0 < store.sealed_version < settings.sealing.version:
                store.reseal()  # an update closes it to the code before
            self._keys = MasterKey.kept_in(store)
        super().initialize(config)

    def add_servicers(self, server: grpc.Server) -> None:
        """The one method; override to add others."""
        methods: dict[str, Any] = {"Key": grpc.unary_unary_rpc_method_handler(self._key)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))

    def _key(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            return self._answer(data, context).SerializeToString()
        except ApplicationError as problem:
            _abort(context, problem)

    def _answer(self, data: bytes, context: Any) -> KeyReleaseReply:
        caller = peer(context)
        if caller is None:
            raise _refused(StatusCode.PERMISSION_DENIED, "only an enclave that has enrolled here gets keys")
        try:
            asked = parse_message(KeyReleaseRequest, data)
        except DecodeError as problem:
            raise _refused(StatusCode.INVALID_ARGUMENT, "not a KeyReleaseRequest") from problem
        if asked.HasField("request"):
            return self._keys.same_key(caller.rule, asked.request)
        return self._keys.new_key(caller.rule)


def _abort(context: grpc.ServicerContext, problem: ApplicationError) -> NoReturn:
    context.abort(_CODES[problem.status], problem.message)


def _digest(use: bytes, content: bytes) -> bytes:
    return hashlib.sha256(_DOMAIN + use + b"\0" + content).digest()


def _refused(status: StatusCode, message: str) -> ApplicationError:
    return ApplicationError(status, message)
