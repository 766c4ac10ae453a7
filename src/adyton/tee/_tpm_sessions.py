"""Policy sessions with a TPM 2.0, salted to one of its keys (TCG TPM 2.0 Library, part 1, sections 17 to 19 and 21).

Who reads along between this process and the TPM learns no secret that it answers, and who changes what is said in the
session is found out. Not so who has put a key of his own in the place of the TPM's: nothing here proves whose it is.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from adyton.errors import EvidenceError, UnsealError, UnsupportedError
from adyton.tee._binary import Reader
from adyton.tee._tpm_commands import OWNER, SHA256, encode_selection, flushed, sized
from adyton.tee._tpm_policies import COORDINATE_BYTES, Approval, Policy, decode_point, encode_point, name_of, pcr_policy
from adyton.tee._tpm_transport import (
    RC_AUTH_FAIL,
    RC_BAD_AUTH,
    RC_COMMAND_CODE,
    RC_PCR_CHANGED,
    RC_POLICY_FAIL,
    RC_VALUE,
    RESPONSE_BYTES,
    TpmTransport,
    check_response_code,
    is_error,
)

NONCE_BYTES: Final = 32

_RH_NULL: Final = 0x40000007
_POLICY_SESSION: Final = 1
_AES_128_CFB: Final = struct.pack(">HHH", 0x0006, 128, 0x0043)
_AES_BYTES: Final = 16
_CONTINUE: Final = 0x01
_ENCRYPT: Final = 0x40


class _Command(enum.IntEnum):
    LOAD_EXTERNAL = 0x167
    POLICY_AUTHORIZE = 0x16A
    POLICY_OR = 0x171
    START_AUTH_SESSION = 0x176
    VERIFY_SIGNATURE = 0x177
    POLICY_PCR = 0x17F


class PolicySession:
    """An open session, whose policy `opened_session` has filled in."""

    def __init__(self, transport: TpmTransport, key_handle: int, key_point: bytes) -> None:
        self._transport = transport
        ours, salt, secret = _salted(key_point)
        parameters = sized(ours) + sized(secret) + bytes([_POLICY_SESSION]) + _AES_128_CFB + struct.pack(">H", SHA256)
        response = transport.execute(_Command.START_AUTH_SESSION, key_handle, _RH_NULL, parameters=parameters)
        self.handle = response.number(4, "handle")
        self._theirs = response.prefixed(2, "nonce", at_most=NONCE_BYTES)
        self._key = _kdf_a(salt, b"ATH", self._theirs, ours, NONCE_BYTES)

    def execute(
        self, command: enum.IntEnum, handles: tuple[int, ...], names: bytes, parameters: bytes, *, secret: bool = False
    ) -> bytes:
        """The parameters of the response to a command on handles of those names, by the session's policy.

        `secret`: there is one, a TPM2B; it is encrypted on its way, and its content is returned. `UnsealError` if PCRs
        have changed since the session was opened; `UnsupportedError` if the TPM does not know the command. What
        somebody changed on its way is an `EvidenceError`.
        """
        ours, attributes = os.urandom(NONCE_BYTES), bytes([_CONTINUE | (_ENCRYPT if secret else 0)])
        digest = hashlib.sha256(struct.pack(">I", command) + names + parameters).digest()
        mac = self._mac(digest + ours + self._theirs + attributes)
        authorization = struct.pack(">I", self.handle) + sized(ours) + attributes + sized(mac)
        response_code, response = self._transport.attempt_authorized(command, handles, authorization, parameters)
        _check_authorized(command.name, response_code)
        answered = response.prefixed(4, "parameters", at_most=RESPONSE_BYTES)
        self._check_answered(struct.pack(">II", 0, command) + answered, response, ours)
        if not secret:
            return answered
        reader = Reader(answered, "the TPM's response", order="big")
        return self._decrypted(reader.prefixed(2, "secret", at_most=RESPONSE_BYTES), ours)

    def _check_answered(self, answered: bytes, response: Reader, ours: bytes) -> None:
        self._theirs = response.prefixed(2, "nonce", at_most=NONCE_BYTES)
        attributes, found = response.take(1, "attributes"), response.prefixed(2, "HMAC", at_most=NONCE_BYTES)
        response.end()
        wanted = self._mac(hashlib.sha256(answered).digest() + self._theirs + ours + attributes)
        if not hmac.compare_digest(found, wanted):
            raise EvidenceError("somebody changed what the TPM answered: its HMAC is wrong")

    def _mac(self, data: bytes) -> bytes:
        return hmac.digest(self._key, data, "sha256")

    def _decrypted(self, encrypted: bytes, ours: bytes) -> bytes:
        material = _kdf_a(self._key, b"CFB", self._theirs, ours, 2 * _AES_BYTES)
        cipher = Cipher(algorithms.AES128(material[:_AES_BYTES]), CFB(material[_AES_BYTES:]))
        return cipher.decryptor().update(encrypted)


@contextmanager
def opened_session(
    transport: TpmTransport, key_handle: int, key_point: bytes, policy: Policy
) -> Iterator[PolicySession]:
    """A session that satisfies the policy unless PCRs change, flushed at the end. `UnsealError` if they are others.

    It is salted to a loaded key of P-256 that decrypts; `key_point` is its x and y (64 bytes).
    """
    session = PolicySession(transport, key_handle, key_point)
    with flushed(transport, session.handle):
        parameters = sized(policy.pcr_digest) + encode_selection(policy.pcrs)
        response_code, _ = transport.attempt(_Command.POLICY_PCR, (session.handle,), parameters, password=False)
        if is_error(response_code, RC_VALUE):
            listed = ", ".join(map(str, policy.pcrs))
            raise UnsealError(f"the measurement is another: the PCRs {listed} have not the values that let in")
        check_response_code(_Command.POLICY_PCR.name, response_code)
        if policy.approval is not None:
            _authorize(transport, session, policy.approval, pcr_policy(policy.pcrs, policy.pcr_digest))
        if policy.label:
            branches = struct.pack(">I", len(policy.branches)) + b"".join(map(sized, policy.branches))
            transport.execute(_Command.POLICY_OR, session.handle, parameters=branches)
        yield session


def _authorize(transport: TpmTransport, session: PolicySession, approval: Approval, approved: bytes) -> None:
    """Put the signer's name in the place of the PCRs that it has approved."""
    parameters = sized(b"") + sized(approval.signer) + struct.pack(">I", OWNER)
    handle = transport.execute(_Command.LOAD_EXTERNAL, parameters=parameters).number(4, "handle")
    with flushed(transport, handle):
        signed = hashlib.sha256(approved + approval.reference).digest()
        r, s = approval.signature[:COORDINATE_BYTES], approval.signature[COORDINATE_BYTES:]
        signature = bytes.fromhex("0018000b") + sized(r) + sized(s)
        ticket = transport.execute(_Command.VERIFY_SIGNATURE, handle, parameters=sized(signed) + signature).rest()
    parameters = sized(approved) + sized(approval.reference) + sized(name_of(approval.signer)) + ticket
    transport.execute(_Command.POLICY_AUTHORIZE, session.handle, parameters=parameters)


def _check_authorized(command: str, response_code: int) -> None:
    if is_error(response_code, RC_POLICY_FAIL) or response_code == RC_PCR_CHANGED:
        raise UnsealError("the measurement changed: PCRs were extended meanwhile")
    if response_code == RC_COMMAND_CODE:
        raise UnsupportedError(f"this machine's TPM has no command {command}")
    if is_error(response_code, RC_AUTH_FAIL) or is_error(response_code, RC_BAD_AUTH):
        raise EvidenceError(f"{command} was changed on its way to the TPM, or another process was first")
    check_response_code(command, response_code)


def _salted(key_point: bytes) -> tuple[bytes, bytes, bytes]:
    """A nonce, a salt, and the TPMS_ECC_POINT from which only that key's owner gets the salt (part 1, C.6.1)."""
    try:
        theirs = decode_point(key_point)
    except ValueError as error:
        raise EvidenceError("the TPM's storage key is not a point of P-256") from error
    ours = ec.generate_private_key(ec.SECP256R1())
    point = encode_point(ours.public_key())
    x, y = point[:COORDINATE_BYTES], point[COORDINATE_BYTES:]
    shared = ours.exchange(ec.ECDH(), theirs)
    salt = hashlib.sha256(struct.pack(">I", 1) + shared + b"SECRET\0" + x + key_point[:COORDINATE_BYTES]).digest()
    return os.urandom(NONCE_BYTES), salt, sized(x) + sized(y)


def _kdf_a(key: bytes, label: bytes, newer: bytes, older: bytes, size: int) -> bytes:
    """KDFa (part 1, section 11.4.10.2) with SHA-256, for up to 32 bytes."""
    message = struct.pack(">I", 1) + label + b"\0" + newer + older + struct.pack(">I", 8 * size)
    return hmac.digest(key, message, "sha256")[:size]
