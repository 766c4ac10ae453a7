"""The enclave's CA in a sealed store: a restart of the same code keeps its name."""

from __future__ import annotations

from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from adyton.atls.certificates import Issued
from adyton.errors import SealedDataError
from adyton.sealing.store import SealedStore

_NAME: Final = "ca"
_DER, _PKCS8 = serialization.Encoding.DER, serialization.PrivateFormat.PKCS8


class StoredCa:
    """A `KeptCa`."""

    def __init__(self, store: SealedStore) -> None:
        self._store = store

    def load(self) -> Issued | None:
        """As KeptCa says."""
        kept = self._store.get(_NAME)
        if kept is None:
            return None
        length = int.from_bytes(kept[:2])
        key = serialization.load_der_private_key(kept[2 : 2 + length], password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise SealedDataError("what was kept as the enclave's CA is none")
        return Issued(key=key, certificate=x509.load_der_x509_certificate(kept[2 + length :]))

    def save(self, ca: Issued) -> None:
        """As KeptCa says."""
        key = ca.key.private_bytes(_DER, _PKCS8, serialization.NoEncryption())
        self._store.put(_NAME, len(key).to_bytes(2) + key + ca.der)
