"""The keys and certificates of an enclave over time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from adyton.atls.certificates import BACKDATED, CA_LIFETIME, Issued, key_pem, pem
from adyton.atls.identity import LEAF_LIFETIME, Identity, KeptCa, LocalIdentity, chain_pem
from adyton.errors import StorageError
from adyton.testing.forgery import NOW

NAMES = ("atls.internal", "b.example")
SECOND = timedelta(seconds=1)


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


def made(clock: Clock, leaf_lifetime: timedelta = LEAF_LIFETIME, kept: KeptCa | None = None) -> LocalIdentity:
    return LocalIdentity(names=NAMES, claims=b"claims", clock=clock, leaf_lifetime=leaf_lifetime, kept=kept)


def ends(issued: Issued) -> datetime:
    return issued.certificate.not_valid_after_utc


def test_it_begins_with_a_leaf_under_a_ca_of_its_own() -> None:
    identity = made(Clock()).current()
    assert identity.claims == b"claims"
    assert identity.leaves == (identity.leaf,)
    assert identity.leaf.issuer == identity.ca
    assert identity.leaf.key.public_key() == identity.leaf.certificate.public_key()
    assert identity.ca.key.public_key() == identity.ca.certificate.public_key()
    identity.leaf.certificate.verify_directly_issued_by(identity.ca.certificate)
    assert (ends(identity.leaf), ends(identity.ca)) == (NOW + LEAF_LIFETIME, NOW + CA_LIFETIME)
    assert identity.leaf.certificate.not_valid_before_utc == NOW - BACKDATED
    names = identity.leaf.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == list(NAMES)


def test_two_enclaves_share_no_key() -> None:
    first, second = (made(Clock()).current() for _ in range(2))
    assert len({each.spki_sha256 for each in (first.leaf, first.ca, second.leaf, second.ca)}) == 4


def test_a_leaf_is_another_at_half_its_life_and_not_before() -> None:
    clock = Clock()
    source = made(clock)
    first = source.current()
    assert first.renew_at == NOW + LEAF_LIFETIME / 2
    clock.now = first.renew_at - SECOND
    assert source.current() is first
    clock.now = first.renew_at
    second = source.current()
    assert second.leaf.spki_sha256 != first.leaf.spki_sha256
    assert second.leaf.issuer is first.ca
    assert second.leaves == (second.leaf, first.leaf)
    assert second.renew_at == clock.now + LEAF_LIFETIME / 2
    assert source.current() is second


def test_the_leaves_of_a_month_are_known_and_older_ones_are_not() -> None:
    # A client asks again about the certificate that its connection began with, for as long as that lasts.
    clock = Clock()
    source = made(clock)
    shown = [source.current().leaf]
    for _ in range(70):
        clock.now += LEAF_LIFETIME / 2
        shown.append(source.current().leaf)
    identity = source.current()
    assert identity.leaves == tuple(reversed(shown[-64:]))
    assert [identity.find(leaf.spki_sha256) for leaf in shown] == [None] * 7 + shown[-64:]
    assert identity.find(b"") is None
    assert identity.find(identity.ca.spki_sha256) is None


def test_a_cas_certificate_is_another_at_half_its_life_and_its_key_the_same() -> None:
    clock = Clock()
    source = made(clock)
    first_ca = source.current().ca
    clock.now = NOW + CA_LIFETIME / 2 - SECOND
    last = source.current()
    assert last.ca is first_ca
    clock.now += LEAF_LIFETIME / 2
    identity = source.current()
    assert identity.ca.spki_sha256 == first_ca.spki_sha256
    assert identity.ca.certificate != first_ca.certificate
    identity.leaf.certificate.verify_directly_issued_by(first_ca.certificate)  # for those who have pinned that
    assert [leaf.issuer for leaf in identity.leaves] == [identity.ca, first_ca, first_ca]
    assert ends(identity.ca) == clock.now + CA_LIFETIME
    for leaf in identity.leaves:
        assert leaf.issuer is not None
        leaf.certificate.verify_directly_issued_by(leaf.issuer.certificate)


def test_after_a_long_sleep_everything_is_new_and_valid() -> None:
    clock = Clock()
    source = made(clock)
    asleep = source.current()
    clock.now += 3 * CA_LIFETIME
    identity = source.current()
    assert identity.ca is not asleep.ca
    assert (ends(identity.leaf), ends(identity.ca)) == (clock.now + LEAF_LIFETIME, clock.now + CA_LIFETIME)


def test_what_is_shown_is_valid_at_any_hour_of_a_year() -> None:
    clock = Clock()
    source = made(clock, timedelta(days=9))
    for _ in range(365):
        clock.now += timedelta(hours=24)
        identity = source.current()
        for shown in (identity.leaf, identity.ca):
            assert shown.certificate.not_valid_before_utc < clock.now < ends(shown)
        assert ends(identity.leaf) <= ends(identity.ca)


def test_many_threads_get_one_renewal() -> None:
    clock = Clock()
    source = made(clock)
    clock.now += LEAF_LIFETIME
    with ThreadPoolExecutor(32) as pool:
        seen: list[Identity] = list(pool.map(lambda _: source.current(), range(200)))
    assert len({id(identity) for identity in seen}) == 1
    assert len(seen[0].leaves) == 2


def test_the_clock_is_that_of_the_machine_unless_another_is_given() -> None:
    identity = LocalIdentity(names=NAMES, claims=b"").current()
    assert abs(identity.renew_at - LEAF_LIFETIME / 2 - datetime.now(UTC)) < timedelta(minutes=1)


def test_grpc_gets_the_key_and_the_chain_in_pem() -> None:
    identity = made(Clock()).current()
    assert chain_pem(identity) == pem(identity.leaf.certificate) + pem(identity.ca.certificate)
    assert x509.load_pem_x509_certificates(chain_pem(identity)) == [identity.leaf.certificate, identity.ca.certificate]
    key = load_pem_private_key(key_pem(identity.leaf.key), None)
    assert key.public_key() == identity.leaf.certificate.public_key()


def test_a_rotation_is_another_key_and_forgets_the_leaves() -> None:
    source = made(Clock())
    before = source.current()
    after = source.rotate()
    assert source.current() is after
    assert after.ca.spki_sha256 != before.ca.spki_sha256
    assert after.leaves == (after.leaf,)
    assert after.find(before.leaf.spki_sha256) is None


class Kept:
    """Keeps a CA in memory, or fails to."""

    def __init__(self) -> None:
        self.ca: Issued | None = None
        self.full = False

    def load(self) -> Issued | None:
        return self.ca

    def save(self, ca: Issued) -> None:
        if self.full:
            raise StorageError("full")
        self.ca = ca


def test_a_kept_ca_is_the_same_after_a_restart() -> None:
    clock, kept = Clock(), Kept()
    first = made(clock, kept=kept).current()
    clock.now += timedelta(days=1)
    second = made(clock, kept=kept).current()
    assert second.ca.certificate == first.ca.certificate
    assert second.leaf.spki_sha256 != first.leaf.spki_sha256
    clock.now += CA_LIFETIME
    third = made(clock, kept=kept).current()
    assert (third.ca.spki_sha256, ends(third.ca)) == (first.ca.spki_sha256, clock.now + CA_LIFETIME)
    rotated = made(clock, kept=kept).rotate()
    assert made(clock, kept=kept).current().ca.spki_sha256 == rotated.ca.spki_sha256 != first.ca.spki_sha256


def test_a_rotation_that_can_not_be_kept_does_not_happen() -> None:
    clock, kept = Clock(), Kept()
    source = made(clock, kept=kept)
    before = source.current()
    kept.full = True
    with pytest.raises(StorageError):
        source.rotate()
    assert source.current() is before


def test_a_kept_ca_of_the_future_is_made_anew_with_its_key() -> None:
    clock, kept = Clock(), Kept()
    first = made(clock, kept=kept).current()
    clock.now -= timedelta(days=30)  # the host's clock
    second = made(clock, kept=kept).current()
    assert second.ca.spki_sha256 == first.ca.spki_sha256
    assert second.ca.certificate.not_valid_before_utc < clock.now
