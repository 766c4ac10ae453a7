"""Seal and unseal: what only the code (or the signer's code) that a key is bound to can read again.

The key comes from the TEE or from outside (`KeySource`), once for each context; so what a call costs is the cipher.
AES-256-GCM-SIV, for a host may copy a running machine with its random numbers, and a nonce that two copies use must
not cost more than the fact that two secrets were equal.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Collection
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV

from adyton.errors import SealedDataError, UnsealError
from adyton.sealing.header import MAX_CONTEXT_BYTES, NONCE_BYTES, SALT_BYTES, Header, parse_header, split_header
from adyton.tee.sealing import Binding, KeySource, SealPolicy

MAX_SECRET_BYTES: Final = 64 * 1024 * 1024
"""What one call seals; a stream is for SealedFile."""
_KEPT: Final = 256
"""How many contexts have their cipher at hand."""


class Sealer:
    """Seals under one policy of a source; unseals whatever the source still has the key of. Safe in threads.

    `policy`: None is EXTERNAL where the source is outside, else MEASUREMENT. `min_version`: data that was sealed for a
    lower version of a signer's code is refused, for whoever broke that version may have made it. `signers`: who may
    have signed this code under SIGNER, and code whose data is unsealed; None asks nothing. Anybody can sign this code,
    would get what it seals for its signer, and could make it believe what code of his own has sealed.
    """

    def __init__(
        self,
        source: KeySource,
        *,
        policy: SealPolicy | None = None,
        min_version: int = 0,
        signers: Collection[bytes] | None = None,
    ) -> None:
        self._source = source
        self._policy = policy or _default_policy(source)
        self._signers = signers
        if self._policy is SealPolicy.SIGNER:
            self._check_signer(source.current(SealPolicy.SIGNER))
        self._min_version = min_version
        self._guard = threading.Lock()
        self._writers: dict[bytes, tuple[bytes, AESGCMSIV]] = {}
        self._readers: dict[bytes, tuple[bytes, AESGCMSIV]] = {}

    @property
    def source(self) -> KeySource:
        """Where the keys come from."""
        return self._source

    @property
    def policy(self) -> SealPolicy:
        """What new data is sealed for."""
        return self._policy

    def seal(self, secret: bytes, *, context: bytes = b"") -> bytes:
        """`secret` (up to 64 MiB), sealed. `context` (up to 1024 bytes, not secret) must be given again to unseal it.

        ValueError for sizes; UnsupportedError if this TEE has no sealing key, or none for this policy;
        KeyUnavailableError if it does not give one now.
        """
        if len(secret) > MAX_SECRET_BYTES:
            raise ValueError(f"a secret has {MAX_SECRET_BYTES} bytes at most; SealedFile is for more")
        header, cipher = self._writers.get(context) or self._new_writer(context)
        nonce = os.urandom(NONCE_BYTES)
        return header + nonce + cipher.encrypt(nonce, secret, None)

    def unseal(self, sealed: bytes, *, context: bytes = b"") -> bytes:
        """The secret in what `seal` made.

        UnsealError, which names the field, for data of other code, another context or newer hardware; SealedDataError
        for data that somebody changed; KeyUnavailableError if the source does not answer now.
        """
        header, length = split_header(sealed)
        for_context, cipher = self._readers.get(header) or self._new_reader(header)
        if for_context != context:
            raise UnsealError(f"the data was sealed for the context {for_context[:80]!r}, not {context[:80]!r}")
        nonce = sealed[length : length + NONCE_BYTES]
        try:
            return cipher.decrypt(nonce, sealed[length + NONCE_BYTES :], None)
        except InvalidTag:
            raise SealedDataError("the sealed data was changed, or sealed on another machine") from None

    def reseal(self, sealed: bytes, *, context: bytes = b"") -> bytes:
        """The same secret, sealed for this version of the code and at the present security version of the hardware.

        For after an update: of the code (policy SIGNER: what is resealed is closed to earlier versions), of the
        hardware, or of the policy. Raises as `unseal` and `seal`.
        """
        return self.seal_anew(self.unseal(sealed, context=context), context=context)

    def seal_anew(self, secret: bytes, *, context: bytes = b"") -> bytes:
        """As `seal`, with a key that is asked for now: of the present version of the code and of the hardware."""
        with self._guard:
            self._writers.pop(context, None)
        return self.seal(secret, context=context)

    def _new_writer(self, context: bytes) -> tuple[bytes, AESGCMSIV]:
        if len(context) > MAX_CONTEXT_BYTES:
            raise ValueError(f"a context has {MAX_CONTEXT_BYTES} bytes at most, not {len(context)}")
        made = self._source.new_key(self._policy)
        header = Header(
            source=self._source.name,
            binding=made.binding,
            request=made.request,
            tcb=made.tcb,
            salt=os.urandom(SALT_BYTES),
            context=bytes(context),
        )
        encoded, cipher = header.encode(), header.cipher(made.key)
        self._remember(self._readers, encoded, (header.context, cipher))
        return self._remember(self._writers, header.context, (encoded, cipher))

    def _new_reader(self, encoded: bytes) -> tuple[bytes, AESGCMSIV]:
        header = parse_header(encoded)
        if header.source != self._source.name:
            raise UnsealError(
                f"the data's key is from the source {header.source!r}, this enclave's {self._source.name!r}"
            )
        if header.binding.policy is SealPolicy.SIGNER:
            self._check_signer(header.binding)
            if header.binding.version < self._min_version:
                found, least = header.binding.version, self._min_version
                raise UnsealError(f"the data was sealed by version {found}; this enclave takes {least} or later")
        key = self._source.same_key(header.binding, header.request)
        return self._remember(self._readers, encoded, (header.context, header.cipher(key)))

    def _check_signer(self, binding: Binding) -> None:
        """Whose code this is, or whose data: under any policy, for anybody can sign this code, and code of his own."""
        if self._signers is not None and binding.subject not in self._signers:
            signer = binding.subject.hex()
            raise UnsealError(f"the signer {signer} is none that this code knows", mend="enclave.toml: sealing.signers")

    def _remember(
        self, known: dict[bytes, tuple[bytes, AESGCMSIV]], name: bytes, value: tuple[bytes, AESGCMSIV]
    ) -> tuple[bytes, AESGCMSIV]:
        with self._guard:
            if len(known) >= _KEPT:
                known.clear()
            known[name] = value
        return value


def _default_policy(source: KeySource) -> SealPolicy:
    return SealPolicy.EXTERNAL if SealPolicy.EXTERNAL in source.policies else SealPolicy.MEASUREMENT
