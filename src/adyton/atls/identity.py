"""What an enclave is to its clients: its CA, the certificate of its server, and the claims. Made inside, kept inside.

The keys are one set for all server processes of an enclave, since a client may probe one process and be served by the
next. `LocalIdentity` makes and renews them; `Identity` is what they are at one moment.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

from cryptography.hazmat.primitives.asymmetric import ec

from adyton.atls.certificates import CA_LIFETIME, Issued, issue_leaf, make_ca, pem

LEAF_LIFETIME: Final = timedelta(hours=24)
_KEPT_LEAVES: Final = 64
"""For a month: a client asks again about the certificate that its connection began with, however long ago."""

Clock = Callable[[], datetime]


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The enclave's keys and certificates at one moment.

    `leaves` has the one to be shown first; the others were shown before, and clients that have pinned one of them may
    still ask about it. `renew_at` is when there will be others.
    """

    leaves: tuple[Issued, ...]
    claims: bytes
    renew_at: datetime

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


class LocalIdentity:
    """Makes an identity and renews it: the leaf at half its life, and the CA at half of its own."""

    def __init__(
        self,
        *,
        names: tuple[str, ...],
        claims: bytes,
        leaf_lifetime: timedelta = LEAF_LIFETIME,
        clock: Clock = lambda: datetime.now(UTC),
    ) -> None:
        self._names = names
        self._claims = claims
        self._leaf_lifetime = leaf_lifetime
        self._clock = clock
        self._guard = threading.Lock()
        now = clock()
        self._ca_renew_at = now + CA_LIFETIME / 2
        self._current = self._renewed(make_ca(now), (), now)

    def current(self) -> Identity:
        """As IdentitySource says."""
        now = self._clock()
        with self._guard:
            if now >= self._current.renew_at:
                ca = self._current.ca
                if now >= self._ca_renew_at:
                    ca, self._ca_renew_at = make_ca(now), now + CA_LIFETIME / 2
                self._current = self._renewed(ca, self._current.leaves, now)
            return self._current

    def _renewed(self, ca: Issued, before: tuple[Issued, ...], now: datetime) -> Identity:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = issue_leaf(ca, key.public_key(), self._names, now, self._leaf_lifetime)
        leaf = Issued(key=key, certificate=certificate, issuer=ca)
        return Identity(
            leaves=(leaf, *before)[:_KEPT_LEAVES],
            claims=self._claims,
            renew_at=now + self._leaf_lifetime / 2,
        )


def chain_pem(identity: Identity) -> bytes:
    """The certificates that a server shows: its leaf, and the CA for those who know only that."""
    return pem(identity.leaf.certificate) + pem(identity.ca.certificate)
