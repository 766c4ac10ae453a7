"""What an enclave is to its clients: its CA, the certificate of its server, and the claims. Made inside, kept inside.

The CA's key is the enclave's name for as long as it lives, and where it can be kept, for as long as its code does:
certificates are renewed with it, and another key is an order of the owner's (`rotate`).

The keys are one set for all server processes of an enclave, since a client may probe one process and be served by the
next. `LocalIdentity` makes and renews them; `Identity` is what they are at one moment.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

from cryptography.hazmat.primitives.asymmetric import ec

from adyton.atls.certificates import CA_LIFETIME, Issued, issue_leaf, make_ca, pem

EPOCH_BYTES: Final = 16
LEAF_LIFETIME: Final = timedelta(hours=24)
_KEPT_LEAVES: Final = 64
"""For a month: a client asks again about the certificate that its connection began with, however long ago."""

Clock = Callable[[], datetime]


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The enclave's keys and certificates at one moment.

    `leaves` has the one to be shown first; the others were shown before, and clients that have pinned one of them may
    still ask about it. `renew_at` is when there will be others. `epoch` (16 random bytes) is of this start of the
    enclave and of this CA: what it says of its callers ends with it, though the CA may not.
    """

    leaves: tuple[Issued, ...]
    claims: bytes
    renew_at: datetime
    epoch: bytes

    @property
    def leaf(self) -> Issued:
        """What new connections are shown."""
        return self.leaves[0]

    @property
    def ca(self) -> Issued:
        """The CA as it is now."""
        assert self.leaf.issuer is not None
        return self.leaf.issuer

    def find(self, spki_sha256: bytes) -> Issued | None:
        """The leaf of that key, if it is one of ours."""
        return next((leaf for leaf in self.leaves if leaf.spki_sha256 == spki_sha256), None)


class IdentitySource(Protocol):
    """Where a server has its identity from."""

    def current(self) -> Identity:
        """The identity as it is now. May block for a moment; safe in threads."""


class RotatingIdentity(IdentitySource, Protocol):
    """One that can be told to begin anew."""

    def rotate(self) -> Identity:
        """From now on with another CA, of another key; clients that knew the last one attest again."""


class KeptCa(Protocol):
    """What outlives the enclave, of its identity."""

    def load(self) -> Issued | None:
        """The CA that was saved last."""

    def save(self, ca: Issued) -> None:
        """Kept for good when this returns."""


class LocalIdentity:
    """Makes an identity and renews it: the leaf at half its life, and the CA's certificate at half of its own.

    `kept`: where the CA is kept beyond the enclave's life; None: it is not.
    """

    def __init__(
        self,
        *,
        names: tuple[str, ...],
        claims: bytes,
        leaf_lifetime: timedelta = LEAF_LIFETIME,
        clock: Clock = lambda: datetime.now(UTC),
        kept: KeptCa | None = None,
    ) -> None:
        self._names = names
        self._claims = claims
        self._leaf_lifetime = leaf_lifetime
        self._clock = clock
        self._kept = kept
        self._guard = threading.Lock()
        self._epoch = os.urandom(EPOCH_BYTES)
        now = clock()
        ca = kept.load() if kept else None
        self._current = self._renewed(self._ca(ca, now), (), now)

    def current(self) -> Identity:
        """As IdentitySource says."""
        now = self._clock()
        with self._guard:
            if now >= self._current.renew_at:
                self._current = self._renewed(self._ca(self._current.ca, now), self._current.leaves, now)
            return self._current

    def rotate(self) -> Identity:
        """From now on with another CA, of another key. Clients that knew the last one's certificate attest again.

        Leaves of the last one are known no more. Raises what keeping the CA raises; then all is as it was.
        """
        now = self._clock()
        with self._guard:
            ca, self._epoch = self._save(make_ca(now)), os.urandom(EPOCH_BYTES)
            self._current = self._renewed(ca, (), now)
            return self._current

    def _ca(self, ca: Issued | None, now: datetime) -> Issued:
        """That CA while it is young, else one of the same key; a new one if there is none."""
        if ca is not None and ca.certificate.not_valid_before_utc <= now < _renew_ca_at(ca):
            return ca
        return self._save(make_ca(now, ca.key if ca else None))

    def _save(self, ca: Issued) -> Issued:
        if self._kept is not None:
            self._kept.save(ca)
        return ca

    def _renewed(self, ca: Issued, before: tuple[Issued, ...], now: datetime) -> Identity:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = issue_leaf(ca, key.public_key(), self._names, now, self._leaf_lifetime)
        leaf = Issued(key=key, certificate=certificate, issuer=ca)
        return Identity(
            leaves=(leaf, *before)[:_KEPT_LEAVES],
            epoch=self._epoch,
            claims=self._claims,
            renew_at=now + self._leaf_lifetime / 2,
        )


def _renew_ca_at(ca: Issued) -> datetime:
    return ca.certificate.not_valid_after_utc - CA_LIFETIME / 2


def chain_pem(identity: Identity) -> bytes:
    """The certificates that a server shows: its leaf, and the CA for those who know only that."""
    return pem(identity.leaf.certificate) + pem(identity.ca.certificate)
