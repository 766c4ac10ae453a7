"""Sealing in virtual machines: what their TPM keeps for the code that was booted, and from whom it keeps it."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from command_line import adyton
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from machines import LOAD_SECONDS, QEMU, boots, needs_ovmf, nothing_left, process_of
from vm_parties import tells_the_guest

from adyton.errors import AdytonError, ApplicationError, EnclaveDiedError, StatusCode
from adyton.host.bundles import Bundle
from adyton.host.launch.qemu import disk
from adyton.host.launch.qemu.launcher import QemuLauncher
from adyton.host.manager import EnclaveClient, EnclaveManager
from adyton.sealing.header import MAGIC, NONCE_BYTES
from adyton.tee.tpm.approvals import signer_of
from adyton.testing.probes import answer, command, server_config, write_probe_project

pytestmark = [*boots, pytest.mark.timeout(240)]

SECRET = "a word that only this code may read"
SETTINGS = "[vm]\nstate_mb = 16\n"
JOURNAL = bytes.fromhex("377f0682 002de218")
"""How SQLite's write-ahead log begins. Without it the file is that of some time before."""
COUNTING = '''
"""A server that counts its starts in a store, and seals words."""

import adyton
from adyton.atls.certificates import spki_sha256
from probe import probe_pb2


class Counting(adyton.GrpcApplication):
    def initialize(self, config):
        behaviour = config.Extensions[probe_pb2.behaviour]
        self.count = self.count_this_start() if behaviour == "count" else None
        super().initialize(config)

    def count_this_start(self):
        self.usage = self.context.store("usage")
        with self.usage.transaction() as change:
            change["starts"] = change.get("starts", b"") + b"."
        return len(self.usage["starts"])

    def add_servicers(self, server):
        pass

    def _attester(self, identity, quotes):
        self.identity = identity
        return super()._attester(identity, quotes)

    def run(self, input):
        output = super().run(input)
        verb, _, argument = input.Extensions[probe_pb2.command].partition(" ")
        actions = {
            "ca": lambda: spki_sha256(self.identity.current().ca.certificate.public_key()).hex(),
            "close": lambda: str(self.usage.close()),
            "count": lambda: str(self.count),
            "protected": lambda: str(self.usage.protected),
            "reseal": lambda: self.reseal(argument),
            "seal": lambda: adyton.seal(argument.encode()).hex(),
            "store": lambda: str(self.count_this_start()),
            "unseal": lambda: adyton.unseal(bytes.fromhex(argument)).decode(),
        }
        output.Extensions[probe_pb2.answer] = actions[verb]()
        return output

    def reseal(self, sealed):
        self.usage.reseal()
        return adyton.reseal(bytes.fromhex(sealed)).hex()
'''


def counting_bundle(folder: Path, *, settings: str = SETTINGS, more: str = "") -> Bundle:
    """The bundle of an enclave that counts its starts. `more` is more of its code."""
    folder.mkdir()
    project = write_probe_project(folder, "probe.counting:Counting", settings)
    (project / "probe" / "counting.py").write_text(COUNTING + more)
    return Bundle.build(project)


def boot(
    manager: EnclaveManager, bundle: Bundle, state: Path | None, *, name: str = "probe", behaviour: str = "count"
) -> EnclaveClient:
    """Start it; unless its host says otherwise ("nothing"), it counts that first."""
    config = server_config(behaviour=behaviour)
    return manager.load(name, bundle, config, on="vm", state=state, timeout_seconds=LOAD_SECONDS)


def ask(enclave: EnclaveClient, words: str) -> str:
    return answer(enclave.enter_and_run(command(words), timeout_seconds=30))


def kill(enclave: EnclaveClient) -> None:
    """Kill QEMU, as a power cut would end a machine."""
    os.kill(process_of(QEMU), signal.SIGKILL)
    with pytest.raises(EnclaveDiedError):
        enclave.enter_and_run(command("count"), timeout_seconds=60)
    with pytest.raises(EnclaveDiedError):
        enclave.destroy()


def refusal(manager: EnclaveManager, bundle: Bundle, state: Path) -> AdytonError:
    """Why it does not start. Then nothing of it runs."""
    with pytest.raises(AdytonError) as caught:
        boot(manager, bundle, state)
    assert manager.get("probe") is None
    return caught.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """What is left of an enclave that was started twice, and what it said of itself.

    `before` is a copy of the state folder after its first start, which closed its store and ended in order; `after` the
    folder after its second, in which it was killed: the last writes are in SQLite's journal.
    """

    bundle: Bundle
    before: Path
    after: Path
    sealed: str
    ca: str


@pytest.fixture(scope="module")
def life(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Life:
    folder = tmp_path_factory.mktemp("life")
    bundle, state = counting_bundle(folder / "project"), folder / "state"
    with EnclaveManager() as manager:
        first = boot(manager, bundle, state)
        assert (ask(first, "count"), ask(first, "protected")) == ("1", "True")
        sealed, ca = ask(first, f"seal {SECRET}"), ask(first, "ca")
        ask(first, "close")
        first.destroy()
        shutil.copytree(state, folder / "before")
        second = boot(manager, bundle, state)
        assert (ask(second, "count"), ask(second, "ca")) == ("2", ca)
        kill(second)
    return Life(bundle=bundle, before=folder / "before", after=state, sealed=sealed, ca=ca)


@pytest.fixture(autouse=True)
def _nothing_stays(life: Life, runtime_directory: Path) -> Iterator[None]:
    with nothing_left(runtime_directory):
        yield


@pytest.fixture
def state(life: Life, tmp_path: Path) -> Path:
    """The test's own copy of the folder as the second start has left it, with the same TPM."""
    return shutil.copytree(life.after, tmp_path / "state")


# --- what it is for


def test_stores_secrets_and_the_ca_outlive_power_off_and_a_kill(
    manager: EnclaveManager, life: Life, state: Path
) -> None:
    third = boot(manager, life.bundle, state)
    assert ask(third, "count") == "3"
    assert ask(third, "ca") == life.ca
    assert ask(third, f"unseal {life.sealed}") == SECRET


def test_without_a_state_folder_it_seals_for_its_own_life_only(manager: EnclaveManager, life: Life) -> None:
    enclave = boot(manager, life.bundle, None, behaviour="nothing")
    assert ask(enclave, f"unseal {ask(enclave, f'seal {SECRET}')}") == SECRET
    with pytest.raises(ApplicationError, match="this enclave has no state folder"):
        ask(enclave, "store")
    assert ask(enclave, "ca") != life.ca
    with pytest.raises(ApplicationError, match="the TPM is another than that which sealed the data"):
        ask(enclave, f"unseal {life.sealed}")


# --- what the host can do to the folder


def test_an_older_disk_is_refused(manager: EnclaveManager, life: Life, state: Path) -> None:
    newest = (state / disk.NAME).read_bytes()
    shutil.copy(life.before / disk.NAME, state / disk.NAME)
    problem = refusal(manager, life.bundle, state)
    assert problem.status is StatusCode.DATA_LOSS
    assert "the store is not the one that was written last: this file is older" in problem.message
    (state / disk.NAME).write_bytes(newest)
    assert ask(boot(manager, life.bundle, state), "count") == "3"


def test_an_older_disk_with_the_tpm_of_that_time_is_not_noticed(
    manager: EnclaveManager, life: Life, state: Path
) -> None:
    """The TPM of a plain virtual machine is a program of its host's: who turns both back turns time back.

    Only hardware that the host can't copy would notice. This says that the gap is there, and is meant to fail the day
    that it is closed.
    """
    shutil.rmtree(state)
    shutil.copytree(life.before, state)
    assert ask(boot(manager, life.bundle, state), "count") == "2"


@pytest.mark.parametrize(
    ("at", "marked", "message"),
    [
        ("before", MAGIC, "the sealed data was changed"),
        ("after", JOURNAL, "the store is not the one that was written last: this file is older"),
        ("after", b"SQLite format 3\0", "file is not a database"),
    ],
    ids=["a sealed key", "the journal", "the file"],
)
def test_an_edited_disk_is_refused(
    manager: EnclaveManager, life: Life, tmp_path: Path, at: str, marked: bytes, message: str
) -> None:
    state = shutil.copytree(getattr(life, at), tmp_path / "state")
    content = bytearray((state / disk.NAME).read_bytes())
    edit(content, marked)
    (state / disk.NAME).write_bytes(content)
    problem = refusal(manager, life.bundle, state)
    assert problem.status is StatusCode.DATA_LOSS
    assert message in problem.message


def edit(content: bytearray, marked: bytes) -> None:
    """Change a byte of everything that begins so: of sealed data the first of the ciphertext, of a file the first."""
    found = content.find(marked)
    assert found >= 0
    while found >= 0:
        header = int.from_bytes(content[found + len(MAGIC) :][:4], "big") + NONCE_BYTES if marked == MAGIC else 0
        content[found + header] ^= 0xFF
        found = content.find(marked, found + 1)


# --- other code


def test_other_code_gets_nothing_and_has_a_ca_of_its_own(
    manager: EnclaveManager, life: Life, state: Path, tmp_path: Path
) -> None:
    other = counting_bundle(tmp_path / "other", more="#")
    problem = refusal(manager, other, state)
    assert problem.status is StatusCode.PERMISSION_DENIED
    assert "the measurement is another than the data was sealed for: PCR 0 changed" in problem.message
    stranger = boot(manager, other, state, behaviour="nothing")
    assert ask(stranger, "ca") != life.ca
    with pytest.raises(ApplicationError, match=r"the measurement is another .* PCR 0 changed"):
        ask(stranger, f"unseal {life.sealed}")
    stranger.destroy()
    again = boot(manager, life.bundle, state)
    assert (ask(again, "count"), ask(again, "ca")) == ("3", life.ca)


# --- the next version of the signer's code


@dataclass(frozen=True, slots=True, kw_only=True)
class Signer:
    """A key in a file, and the folder with what it signs."""

    folder: Path
    key: Path
    id: str

    @classmethod
    def make(cls, folder: Path) -> Signer:
        folder.mkdir()
        key = ec.generate_private_key(ec.SECP256R1())
        encoding, no_password = serialization.Encoding.PEM, serialization.NoEncryption()
        path = folder / "key.pem"
        path.touch(mode=0o600)
        path.write_bytes(key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, no_password))
        return cls(folder=folder, key=path, id=signer_of(key.public_key()).hex())

    def release(self, version: int, *, machine: str = SETTINGS) -> Bundle:
        """That version of the code, which takes this signer's word; not signed."""
        settings = f'{machine}[sealing]\npolicy = "signer"\nsigners = ["{self.id}"]\nversion = {version}\n'
        return counting_bundle(self.folder / f"version {version}", settings=settings)

    def sign(self, bundle: Bundle) -> Bundle:
        """The same with the signature that `adyton sign` writes of it."""
        file, _ = bundle.save(self.folder / bundle.sha256.hex(), QemuLauncher().measurements(bundle))
        done = adyton("sign", file, "--key", self.key)
        assert done.returncode == 0, done.stderr
        assert "PCR 0" in done.stdout
        return Bundle.load(file)


def test_an_update_opens_what_its_signer_signed_and_closes_it_to_the_version_before(
    manager: EnclaveManager, tmp_path: Path
) -> None:
    signer, stranger = Signer.make(tmp_path / "signer"), Signer.make(tmp_path / "stranger")
    state, first, second = tmp_path / "state", signer.release(1), signer.release(2)
    enclave = boot(manager, signer.sign(first), state)
    ca, sealed = ask(enclave, "ca"), ask(enclave, f"seal {SECRET}")
    enclave.destroy()
    for bundle in (second, stranger.sign(second)):
        assert "nobody whom this code knows has approved it" in refusal(manager, bundle, state).message
    with pytest.MonkeyPatch.context() as patch:
        tells_the_guest(patch, approvals=signer.sign(first).tpm_approvals())
        assert "none of the 1 approvals is for the PCRs" in refusal(manager, second, state).message
    enclave = boot(manager, signer.sign(second), state)
    assert (ask(enclave, "count"), ask(enclave, "ca")) == ("2", ca)
    resealed = ask(enclave, f"reseal {sealed}")
    assert ask(enclave, f"unseal {resealed}") == SECRET
    enclave.destroy()
    refused = refusal(manager, signer.sign(first), state)
    assert refused.status is StatusCode.PERMISSION_DENIED
    assert "the version is 1; the data was sealed for 2 or later" in refused.message


@needs_ovmf
def test_a_signer_approves_what_firmware_will_measure(manager: EnclaveManager, tmp_path: Path) -> None:
    signer = Signer.make(tmp_path / "signer")
    bundle = signer.sign(signer.release(1, machine=f'{SETTINGS}firmware = "ovmf"\n'))
    assert ask(boot(manager, bundle, tmp_path / "state"), "count") == "1"
