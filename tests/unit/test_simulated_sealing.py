"""The simulation's sealing keys: the conformance kit, its hardware's refusals, and a hardware that misbehaves."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from simulated_machine import SimulatedMachine

from adyton.errors import ConfigurationError, KeyUnavailableError, LaunchError, UnsupportedError
from adyton.tee.sealing import SealPolicy
from adyton.tee.simulated.platform import SimulatedPlatform
from adyton.tee.simulated.root_file import load_or_make_root
from adyton.tee.simulated.sealing import SimulatedSealing
from adyton.tee.simulated.sealing_format import HEAD, Answer
from adyton.tee.simulated.sealing_platform import serve_sealing
from adyton.tee.simulated.signed_code import sign_code, verify_signed_code
from adyton.testing.sealers import KeySourceConformance

MEASUREMENT = hashlib.sha384(b"a").digest()


class TestSimulation(KeySourceConformance):
    """All of the kit."""

    policies = frozenset({SealPolicy.MEASUREMENT, SealPolicy.SIGNER})
    has_registers = True

    @pytest.fixture
    def world(self, tmp_path: Path) -> Iterator[SimulatedMachine]:
        with SimulatedMachine(tmp_path) as machine:
            yield machine


def test_unsigned_code_has_keys_of_its_measurement_only(tmp_path: Path) -> None:
    inside, outside = socket.socketpair()
    with inside, outside:
        hardware = SimulatedPlatform.open(tmp_path).sealing(MEASUREMENT)
        threading.Thread(target=serve_sealing, args=(hardware, outside), daemon=True).start()
        source = SimulatedSealing(inside)
        assert source.new_key(SealPolicy.MEASUREMENT).key
        with pytest.raises(UnsupportedError, match=r"no signer \(sign the bundle: adyton sign\)"):
            source.new_key(SealPolicy.SIGNER)


def test_a_signature_of_other_code_is_not_taken(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    signed = sign_code(key, product="p", version=1, measurement=hashlib.sha384(b"b").digest())
    with pytest.raises(LaunchError, match="the signed code is of the measurement"):
        SimulatedPlatform.open(tmp_path).sealing(MEASUREMENT, signed=verify_signed_code(json.dumps(signed).encode()))


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"product": "q"},
        {"measurement": "00" * 48},
        {"signature": "00" * 70},
        {"signature": ""},
        {"version": 0},
        {"version": True},
        {"version": 1 << 32},
        {"version": "1"},
        {"product": ""},
        {"product": "p" * 65},
        {"product": 7},
        {"measurement": "00"},
        {"measurement": None},
        {"signer": "00"},
    ],
    ids=str,
)
def test_a_changed_signature_is_refused(change: dict[str, object]) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    signed = sign_code(key, product="p", version=1, measurement=MEASUREMENT)
    assert verify_signed_code(json.dumps(signed).encode()).version == 1
    with pytest.raises(ConfigurationError):
        verify_signed_code(json.dumps(signed | change).encode())


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"\xff", b'"x"', b"{" * 10_000, b" " * 20_000])
def test_what_is_no_signature_is_refused(data: bytes) -> None:
    with pytest.raises(ConfigurationError):
        verify_signed_code(data)


def test_only_keys_of_p256_sign() -> None:
    with pytest.raises(ValueError, match="P-256"):
        sign_code(ec.generate_private_key(ec.SECP384R1()), product="p", version=1, measurement=MEASUREMENT)


@contextmanager
def _hardware(answer: Callable[[socket.socket], None]) -> Iterator[SimulatedSealing]:
    inside, outside = socket.socketpair()

    def serve() -> None:
        with outside:
            outside.recv(1000)
            answer(outside)

    threading.Thread(target=serve, daemon=True).start()
    with inside:
        yield SimulatedSealing(inside)


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"\0",
        HEAD.pack(Answer.OK, 0),
        HEAD.pack(Answer.OK, 10) + bytes(10),
        HEAD.pack(Answer.OK, 60_000) + bytes(60_000),
        HEAD.pack(Answer.OK, 57) + bytes(56) + b"\xff",
        HEAD.pack(Answer.FAILED, 3) + b"\xff\xfe\xfd",
        HEAD.pack(77, 0),
    ],
)
def test_hardware_that_answers_nonsense_is_unavailable(reply: bytes) -> None:
    with _hardware(lambda connection: connection.sendall(reply)) as source, pytest.raises(KeyUnavailableError):
        source.current(SealPolicy.MEASUREMENT)


def test_a_key_of_another_size_is_no_key() -> None:
    def answer(connection: socket.socket) -> None:
        connection.sendall(HEAD.pack(Answer.OK, 57) + bytes(57))
        connection.recv(1000)
        connection.sendall(HEAD.pack(Answer.OK, 31) + bytes(31))

    with _hardware(answer) as source, pytest.raises(KeyUnavailableError, match="31 bytes for a key"):
        source.new_key(SealPolicy.MEASUREMENT)


def test_a_register_that_can_not_be_written_says_so(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    (tmp_path / "file").write_bytes(b"")
    platform = SimulatedPlatform(load_or_make_root(tmp_path, now), registers=tmp_path / "file" / "below")
    inside, outside = socket.socketpair()
    with inside, outside:
        threading.Thread(target=serve_sealing, args=(platform.sealing(MEASUREMENT), outside), daemon=True).start()
        source = SimulatedSealing(inside)
        register = source.register(source.current(SealPolicy.MEASUREMENT), bytes(32))
        with pytest.raises(KeyUnavailableError, match="NotADirectoryError"):
            register.write(bytes(32), after=None)
        with pytest.raises(ValueError, match="32 bytes"):
            register.write(b"", after=None)


def test_a_platform_without_a_folder_remembers_in_memory(tmp_path: Path) -> None:
    platform = SimulatedPlatform(load_or_make_root(tmp_path, datetime.now(UTC)))
    inside, outside = socket.socketpair()
    with inside, outside:
        threading.Thread(target=serve_sealing, args=(platform.sealing(MEASUREMENT), outside), daemon=True).start()
        source = SimulatedSealing(inside)
        register = source.register(source.current(SealPolicy.MEASUREMENT), bytes(32))
        register.write(b"v" * 32, after=None)
        assert register.read() == b"v" * 32
    assert sorted(path.name for path in tmp_path.iterdir()) == ["root.pem"]
