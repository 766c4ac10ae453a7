"""Conformance kit for sources of sealing keys: what every `adyton.tee.sealing.KeySource` promises.

    class TestMine(KeySourceConformance):
        policies = frozenset({SealPolicy.MEASUREMENT})

        @pytest.fixture
        def world(self) -> SealingWorld:
            return MyWorld()

A world is one machine of that TEE (or one service that has keys), on which enclaves are started.
"""

# ruff: noqa: D102  a test's name is its sentence

from __future__ import annotations

import contextlib
import threading
from dataclasses import replace
from typing import ClassVar, Protocol

import pytest

from adyton.errors import AdytonError, RollbackError, SealedDataError, UnsealError, UnsupportedError
from adyton.sealing.sealer import Sealer
from adyton.tee.sealing import (
    KEY_BYTES,
    LABEL_BYTES,
    MAX_REQUEST_BYTES,
    MAX_SUBJECT_BYTES,
    REGISTER_BYTES,
    KeySource,
    SealingKey,
    SealPolicy,
)

LABEL = bytes(range(LABEL_BYTES))
VALUES = bytes(REGISTER_BYTES), b"\xff" * REGISTER_BYTES


class SealingWorld(Protocol):
    """One machine, and the code that is started on it."""

    def source(self, *, code: str = "a", signer: str = "s", version: int = 1, tcb: int = 1) -> KeySource:
        """An enclave's source of keys: of that code, signed by that signer as that version, on updated hardware.

        Equal arguments are the same enclave started again. `tcb` is how often hardware and firmware were updated; a
        source that can't have older hardware again may ignore a lower number after a higher one. A source outside
        refuses all code but "a".
        """

    def elsewhere(self) -> SealingWorld:
        """Another machine of the same kind, or another service."""


class KeySourceConformance:
    """Inherit, name the policies, and give the fixture `world`."""

    #: What the source has keys for.
    policies: ClassVar[frozenset[SealPolicy]]
    #: Whether the world can go back to hardware of an older security version.
    can_downgrade: ClassVar[bool] = True
    #: Whether it has something that remembers.
    has_registers: ClassVar[bool] = False

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run what takes a policy with each that the source has."""
        if "policy" in metafunc.fixturenames:
            metafunc.parametrize("policy", sorted(self.policies), ids=lambda policy: policy.name.lower())

    def test_it_has_a_policy_and_says_no_to_the_others(self, world: SealingWorld) -> None:
        source = world.source()
        assert source.policies == self.policies
        for policy in set(SealPolicy) - source.policies:
            with pytest.raises(UnsupportedError):
                source.new_key(policy)
            with pytest.raises(UnsupportedError):
                source.current(policy)

    def test_a_key_has_its_shape(self, world: SealingWorld, policy: SealPolicy) -> None:
        made = world.source().new_key(policy)
        assert len(made.key) == KEY_BYTES
        assert 1 <= len(made.binding.subject) <= MAX_SUBJECT_BYTES
        assert 1 <= len(made.request) <= MAX_REQUEST_BYTES
        assert made.binding.policy is policy
        assert made.binding == world.source().current(policy)
        assert made.tcb.isprintable()
        assert made.key not in made.request
        assert (made.binding.version > 0) == (policy is SealPolicy.SIGNER)

    def test_the_same_code_gets_the_key_again(self, world: SealingWorld, policy: SealPolicy) -> None:
        made = world.source().new_key(policy)
        assert _again(world.source(), made) == made.key

    def test_another_measurement_is_refused_by_name(self, world: SealingWorld) -> None:
        if SealPolicy.MEASUREMENT not in self.policies:
            return
        made = world.source().new_key(SealPolicy.MEASUREMENT)
        other = world.source(code="b")
        with pytest.raises(UnsealError, match="measurement"):
            _again(other, made)
        assert other.new_key(SealPolicy.MEASUREMENT).key != made.key

    def test_other_code_gets_nothing_from_outside(self, world: SealingWorld) -> None:
        if SealPolicy.EXTERNAL not in self.policies:
            return
        made = world.source().new_key(SealPolicy.EXTERNAL)
        with pytest.raises(UnsealError):
            _again(world.source(code="b"), made)

    def test_a_signers_later_code_gets_the_key(self, world: SealingWorld) -> None:
        if SealPolicy.SIGNER not in self.policies:
            return
        made = world.source(version=2).new_key(SealPolicy.SIGNER)
        assert made.binding.version == 2
        assert _again(world.source(code="b", version=2), made) == made.key
        assert _again(world.source(code="c", version=3), made) == made.key

    def test_a_signers_earlier_code_is_refused_by_name(self, world: SealingWorld) -> None:
        if SealPolicy.SIGNER not in self.policies:
            return
        made = world.source(version=2).new_key(SealPolicy.SIGNER)
        with pytest.raises(UnsealError, match="version"):
            _again(world.source(code="b", version=1), made)

    def test_another_signer_is_refused_by_name(self, world: SealingWorld) -> None:
        if SealPolicy.SIGNER not in self.policies:
            return
        made = world.source().new_key(SealPolicy.SIGNER)
        with pytest.raises(UnsealError, match="signer"):
            _again(world.source(signer="t"), made)
        assert world.source(signer="t").new_key(SealPolicy.SIGNER).key != made.key

    def test_an_update_of_the_hardware_loses_nothing(self, world: SealingWorld, policy: SealPolicy) -> None:
        made = world.source(tcb=1).new_key(policy)
        assert _again(world.source(tcb=2), made) == made.key
        newer = world.source(tcb=2).new_key(policy)
        assert _again(world.source(tcb=3), newer) == newer.key

    def test_older_hardware_gets_no_newer_key(self, world: SealingWorld, policy: SealPolicy) -> None:
        if not self.can_downgrade or policy is SealPolicy.EXTERNAL:
            return
        made = world.source(tcb=2).new_key(policy)
        with pytest.raises(UnsealError):
            _again(world.source(tcb=1), made)

    def test_another_machine_gets_another_key_or_none(self, world: SealingWorld, policy: SealPolicy) -> None:
        made = world.source().new_key(policy)
        assert _attempt(world.elsewhere().source(), made) != made.key

    def test_another_binding_is_another_key_or_none(self, world: SealingWorld, policy: SealPolicy) -> None:
        source = world.source(version=2)
        made = source.new_key(policy)
        changed = [
            replace(made.binding, subject=bytes(len(made.binding.subject))),
            replace(made.binding, product=made.binding.product + b"x"),
            replace(made.binding, policy=SealPolicy(made.binding.policy % len(SealPolicy) + 1)),
            replace(made.binding, version=made.binding.version - 1 if made.binding.version else 1),
        ]
        for binding in changed:
            assert _attempt(source, replace(made, binding=binding)) != made.key

    def test_a_request_of_another_kind_is_refused(self, world: SealingWorld, policy: SealPolicy) -> None:
        source = world.source()
        made = source.new_key(policy)
        for request in (b"", b"\xff" + made.request[1:], made.request[:-1], made.request + b"\0", bytes(5)):
            with pytest.raises((SealedDataError, UnsealError)):
                source.same_key(made.binding, request)

    def test_a_changed_request_gives_no_unknown_error(self, world: SealingWorld, policy: SealPolicy) -> None:
        source = world.source()
        made = source.new_key(policy)
        for place in range(0, len(made.request), max(1, len(made.request) // 16)):
            changed = bytearray(made.request)
            changed[place] ^= 0x01
            _attempt(source, replace(made, request=bytes(changed)))  # another key or a documented error

    def test_threads_do_not_disturb_each_other(self, world: SealingWorld, policy: SealPolicy) -> None:
        source = world.source()
        made = source.new_key(policy)
        wrong: list[object] = []

        def ask() -> None:
            wrong.extend(got for _ in range(5) if (got := _attempt(source, made)) != made.key)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []

    def test_what_is_sealed_is_unsealed_after_each_update(self, world: SealingWorld, policy: SealPolicy) -> None:
        sealed = Sealer(world.source(tcb=1), policy=policy).seal(b"secret", context=b"c")
        updated = Sealer(world.source(tcb=2), policy=policy)
        assert updated.unseal(sealed, context=b"c") == b"secret"
        again = updated.reseal(sealed, context=b"c")
        assert Sealer(world.source(tcb=3), policy=policy).unseal(again, context=b"c") == b"secret"

    def test_a_register_remembers(self, world: SealingWorld, policy: SealPolicy) -> None:
        source = world.source()
        register = source.register(source.current(policy), LABEL)
        assert (register is not None) == self.has_registers
        if register is None:
            return
        assert register.read() is None
        for before, value in zip((None, *VALUES), VALUES, strict=False):
            register.write(value, after=before)
            again = world.source()
            found = again.register(again.current(policy), LABEL)
            assert found is not None
            assert found.read() == value
        other = source.register(source.current(policy), LABEL[::-1])
        assert other is not None
        assert other.read() is None

    def test_of_two_writers_after_one_value_one_succeeds(self, world: SealingWorld, policy: SealPolicy) -> None:
        first, second = (source.register(source.current(policy), LABEL) for source in (world.source(), world.source()))
        if first is None or second is None:
            return
        first.write(VALUES[0], after=None)
        for wrong in (None, VALUES[1]):
            with pytest.raises(RollbackError):
                second.write(VALUES[1], after=wrong)
        assert second.read() == VALUES[0]
        second.write(VALUES[1], after=VALUES[0])
        with pytest.raises(RollbackError):
            first.write(VALUES[0], after=VALUES[0])
        assert first.read() == VALUES[1]

    def test_a_register_is_not_for_other_code(self, world: SealingWorld) -> None:
        if SealPolicy.MEASUREMENT not in self.policies:
            return
        source, other = world.source(), world.source(code="b")
        binding = source.current(SealPolicy.MEASUREMENT)
        register = source.register(binding, LABEL)
        assert (register is not None) == self.has_registers
        if register is None:
            return
        register.write(VALUES[0], after=None)
        with contextlib.suppress(AdytonError):
            theirs = other.register(binding, LABEL)
            assert theirs is not None
            theirs.write(VALUES[1], after=VALUES[0])
        assert register.read() == VALUES[0]

    def test_a_register_survives_an_update(self, world: SealingWorld, policy: SealPolicy) -> None:
        source = world.source(tcb=1)
        register = source.register(source.current(policy), LABEL)
        assert (register is not None) == self.has_registers
        if register is None:
            return
        register.write(VALUES[1], after=None)
        updated = world.source(tcb=2)
        found = updated.register(updated.current(policy), LABEL)
        assert found is not None
        assert found.read() == VALUES[1]


def _again(source: KeySource, made: SealingKey) -> bytes:
    return source.same_key(made.binding, made.request)


def _attempt(source: KeySource, made: SealingKey) -> bytes | None:
    """The key that it gives, or None if it refuses as documented."""
    try:
        return _again(source, made)
    except (UnsealError, SealedDataError, UnsupportedError):
        return None
