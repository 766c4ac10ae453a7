"""What an enclave keeps: sealing by enclave.toml, stores of its own, and secrets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from simulated_machine import SimulatedMachine
from vaults import SETTINGS, make_vault

import adyton
from adyton.bundle.settings import SealingSettings
from adyton.enclave import vault as vaults
from adyton.enclave.kept_ca import StoredCa
from adyton.enclave.vault import Vault
from adyton.errors import ApplicationError, DeadlineError, StatusCode, StorageError, UnsealError, UnsupportedError
from adyton.sealing.sealer import Sealer
from adyton.sealing.secrets import MAX_SECRET_BYTES, MAX_SECRETS, KeptSecrets, Secrets
from adyton.tee.sealing import SealPolicy


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[SimulatedMachine]:
    with SimulatedMachine(tmp_path / "machine") as machine:
        yield machine


def test_outside_of_an_enclave_nothing_is_sealed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vaults, "_current", None)
    for call in (adyton.seal, adyton.unseal, adyton.reseal):
        with pytest.raises(UnsupportedError, match="only code inside an enclave"):
            call(b"x")


def test_inside_it_is_sealed_as_enclave_toml_says(machine: SimulatedMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    signed = SealingSettings(policy="signer", signers=(machine.signer("s").hex(),))
    signer = replace(SETTINGS, sealing=replace(signed, version=2, min_version=2))
    monkeypatch.setattr(vaults, "_current", None)
    vaults.enter(make_vault(machine.source(version=1), settings=replace(SETTINGS, sealing=signed)))
    old = adyton.seal(b"x", context=b"c")
    vaults.enter(make_vault(machine.source(code="b", version=2), settings=signer))
    with pytest.raises(UnsealError, match="sealed by version 1; this enclave takes 2 or later"):
        adyton.unseal(old, context=b"c")
    new = adyton.seal(b"y", context=b"c")
    assert adyton.unseal(adyton.reseal(new, context=b"c"), context=b"c") == b"y"
    vaults.enter(make_vault(machine.source(code="b")))
    for sealed in (old, new):
        with pytest.raises(UnsealError, match="none that this code knows"):
            adyton.unseal(sealed, context=b"c")


def test_hardware_without_a_key_is_said_once_and_clearly() -> None:
    with pytest.raises(UnsupportedError, match="no sealing key"):
        _ = make_vault().sealer


def test_a_store_needs_a_state_folder_and_a_name_of_its_own(machine: SimulatedMachine, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"no state folder.*--state"):
        make_vault(machine.source()).store("s")
    vault = make_vault(machine.source(), state_directory=tmp_path)
    with pytest.raises(ValueError, match="Adyton's own"):
        vault.store("adyton-secrets")
    with vault.store("s") as store:
        store.put("a", b"1")
    assert [path.name for path in tmp_path.glob("*.store")] == ["s.store"]


def test_other_code_begins_with_a_ca_and_secrets_of_its_own(machine: SimulatedMachine, tmp_path: Path) -> None:
    known = None
    for code in ("a", "b", "a"):
        vault = make_vault(machine.source(code=code), state_directory=tmp_path)
        with vault.own_store("identity") as store:
            known = store.get("code")
            assert known in (None, code.encode())
            store.put("code", code.encode())
    assert known == b"a"


def test_the_ca_comes_back_from_its_store(machine: SimulatedMachine, tmp_path: Path) -> None:
    from adyton.atls.certificates import make_ca
    from adyton.testing.forgery import NOW

    ca = make_ca(NOW)
    with make_vault(machine.source(), state_directory=tmp_path).own_store("identity") as store:
        assert StoredCa(store).load() is None
        StoredCa(store).save(ca)
    with make_vault(machine.source(), state_directory=tmp_path).own_store("identity") as store:
        loaded = StoredCa(store).load()
    assert loaded is not None
    assert (loaded.spki_sha256, loaded.certificate) == (ca.spki_sha256, ca.certificate)
    assert isinstance(loaded.key, ec.EllipticCurvePrivateKey)


def test_secrets_outlive_the_enclave_in_a_store_only(machine: SimulatedMachine, tmp_path: Path) -> None:
    for folder, there in ((tmp_path, True), (None, False)):
        vault = make_vault(machine.source(), state_directory=folder)
        assert vault.kept_secrets.durable == there
        vault.kept_secrets.put("db", b"1", replace=False)
        assert vault.secrets["db"] == b"1"
        if folder:
            vault.kept_secrets.close()
        again = make_vault(machine.source(), state_directory=folder)
        assert ("db" in again.secrets) == there


def test_secrets_are_a_mapping_that_prints_nothing() -> None:
    kept = KeptSecrets(None)
    kept.put("b", b"two", replace=False)
    kept.put("a", b"one", replace=False)
    secrets = Secrets(kept)
    assert (list(secrets), len(secrets), secrets["a"], secrets.get("c")) == (["a", "b"], 2, b"one", None)
    assert repr(secrets) == "<Secrets: 2>"
    with pytest.raises(KeyError):
        secrets["c"]
    assert secrets.wait("a", 1) == b"one"
    with pytest.raises(DeadlineError, match="'c' was not sent"):
        secrets.wait("c", 0.01)


def test_a_secret_is_put_once_and_rotated_after_that() -> None:
    kept = KeptSecrets(None)
    with pytest.raises(ApplicationError) as missing:
        kept.put("a", b"", replace=True)
    assert missing.value.status is StatusCode.NOT_FOUND
    assert kept.put("a", b"1", replace=False).version == 1
    with pytest.raises(ApplicationError) as there:
        kept.put("a", b"2", replace=False)
    assert there.value.status is StatusCode.ALREADY_EXISTS
    assert kept.put("a", b"3", replace=True).version == 2
    assert (kept.secret("a"), [(each.name, each.version) for each in kept.infos()]) == (b"3", [("a", 2)])


def test_secrets_are_bounded() -> None:
    kept = KeptSecrets(None)
    for name, value in (("", b""), ("n" * 1025, b""), ("a\nb", b""), ("n", bytes(MAX_SECRET_BYTES + 1))):
        with pytest.raises(ApplicationError) as refused:
            kept.put(name, value, replace=False)
        assert refused.value.status is StatusCode.INVALID_ARGUMENT
    for number in range(MAX_SECRETS):
        kept.put(str(number), b"", replace=False)
    with pytest.raises(ApplicationError) as full:
        kept.put("n", b"", replace=False)
    assert full.value.status is StatusCode.RESOURCE_EXHAUSTED


def test_sealing_by_an_unsigned_enclave_for_its_signer_is_refused(tmp_path: Path) -> None:
    import socket
    import threading

    from adyton.tee.simulated.platform import SimulatedPlatform
    from adyton.tee.simulated.sealing import SimulatedSealing
    from adyton.tee.simulated.sealing_platform import serve_sealing

    inside, outside = socket.socketpair()
    with inside, outside:
        hardware = SimulatedPlatform.open(tmp_path).sealing(bytes(48))
        threading.Thread(target=serve_sealing, args=(hardware, outside), daemon=True).start()
        settings = replace(SETTINGS, sealing=SealingSettings(policy="signer"))
        vault = make_vault(SimulatedSealing(inside), settings=settings)
        with pytest.raises(UnsupportedError, match="adyton sign"):
            _ = vault.sealer


def test_code_that_somebody_else_signed_seals_nothing(machine: SimulatedMachine) -> None:
    """Anybody can sign the same code; what it seals for its signer would be his."""
    settings = replace(SETTINGS, sealing=SealingSettings(policy="signer", signers=(machine.signer("s").hex(),)))
    assert make_vault(machine.source(signer="s"), settings=settings).sealer.policy is SealPolicy.SIGNER
    with pytest.raises(UnsealError, match="none that this code knows"):
        _ = make_vault(machine.source(signer="t"), settings=settings).sealer


def test_what_other_code_sealed_for_a_signer_is_not_believed_under_measurement(machine: SimulatedMachine) -> None:
    """A host signs this code and code of its own with one key; both get that signer's keys."""
    forged = Sealer(machine.source(code="evil", signer="host"), policy=SealPolicy.SIGNER).seal(b"forged", context=b"c")
    vault = make_vault(machine.source(signer="host"))
    for call in (vault.sealer.unseal, vault.sealer.reseal):
        with pytest.raises(UnsealError, match="none that this code knows"):
            call(forged, context=b"c")


def test_an_update_closes_its_own_stores_to_the_code_before(machine: SimulatedMachine, tmp_path: Path) -> None:
    def vault(version: int, least: int = 1) -> Vault:
        sealing = SealingSettings(
            policy="signer", signers=(machine.signer("s").hex(),), version=version, min_version=least
        )
        source = machine.source(code=str(version), version=version)
        return make_vault(source, state_directory=tmp_path, settings=replace(SETTINGS, sealing=sealing))

    for version in (1, 2):
        with vault(version).own_store("identity") as store:
            assert store.get("ca") == (None if version == 1 else b"1")
            store.put("ca", str(version).encode())
    with pytest.raises(UnsealError, match="version"):
        vault(1).own_store("identity")
    with vault(3, least=2).own_store("identity") as store:
        assert store.get("ca") is None  # version 1 was broken, and knew that key


def test_contexts_of_adytons_own_are_not_the_applications(machine: SimulatedMachine) -> None:
    vaults.enter(make_vault(machine.source()))
    for call in (adyton.seal, adyton.unseal, adyton.reseal):
        with pytest.raises(ValueError, match="Adyton's own"):
            call(b"", context=b"adyton store v1 e/s")
