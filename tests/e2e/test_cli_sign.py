"""`adyton new-key`, `adyton sign`, and what becomes of a signature when its bundle is built anew or run."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from command_line import adyton, running
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from adyton.errors import ConfigurationError, ExitCode
from adyton.host.bundles import Bundle
from adyton.tee.simulated.format import simulated_measurement
from adyton.tee.simulated.signed_code import MAX_SIGNED_CODE_BYTES, SignedCode, sign_code, verify_signed_code
from adyton.testing.probes import SERVER, write_probe_project


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A project, its bundle, and its signer's key."""

    project: Path
    bundle: Path
    key: Path

    @property
    def signature(self) -> Path:
        return self.bundle.with_name("probe.signature")

    @property
    def id(self) -> str:
        key = serialization.load_pem_private_key(self.key.read_bytes(), None)
        spki = key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return hashlib.sha256(spki).hexdigest()

    @property
    def code(self) -> SignedCode:
        """What the signature beside the bundle should say."""
        measurement = simulated_measurement(hashlib.sha256(self.bundle.read_bytes()).digest())
        return SignedCode(signer=bytes.fromhex(self.id), product="probe", version=7, measurement=measurement)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all of a release, by the commands that a user would type."""
    folder = tmp_path_factory.mktemp("a release")
    (folder / "project").mkdir()
    signer = adyton("new-key", folder / "signer.pem").stdout.strip()
    settings = f'[sealing]\nversion = 7\npolicy = "signer"\nsigners = ["{signer}"]\n'
    done = adyton("build", write_probe_project(folder / "project", SERVER, settings))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def release(made: Path, tmp_path: Path) -> Release:
    """A release of the test's own, not signed yet."""
    folder = shutil.copytree(made, tmp_path / "my release")
    project = folder / "project"
    return Release(project=project, bundle=project / "dist" / "probe.adyton", key=folder / "signer.pem")


@pytest.fixture
def signed(release: Release) -> Release:
    done = adyton("sign", release.bundle, "--key", release.key)
    assert done.returncode == 0, done.stderr
    return release


def change(release: Release) -> None:
    """An update of the code."""
    (release.project / "probe" / "new.py").write_text("# new\n")


def refused(message: str, *words: str | Path, code: ExitCode = ExitCode.USAGE) -> None:
    done = adyton(*words)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


class TestNewKey:
    def test_prints_the_id_and_nothing_of_the_key(self, tmp_path: Path) -> None:
        path = tmp_path / "signer.pem"
        done = adyton("new-key", path)
        assert done.returncode == 0, done.stderr
        assert re.fullmatch(r"[0-9a-f]{64}\n", done.stdout)
        assert f"wrote {path}" in done.stderr
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        body = path.read_text().splitlines()[1]
        assert body not in done.stdout + done.stderr
        assert adyton("new-key", "--show", path).stdout == done.stdout

    def test_never_writes_over_a_file(self, release: Release) -> None:
        before = release.key.read_bytes()
        refused("exists already, and a key is never written over (--show prints", "new-key", release.key)
        assert release.key.read_bytes() == before

    def test_says_where_it_can_not_write(self, tmp_path: Path) -> None:
        refused("can't write", "new-key", tmp_path / "nowhere" / "key.pem")
        refused("can't write", "new-key", tmp_path / ("x" * 300))

    def test_shows_no_key_where_there_is_none(self, tmp_path: Path) -> None:
        refused("can't read", "new-key", "--show", tmp_path / "none.pem")
        assert not (tmp_path / "none.pem").exists()


class TestSign:
    def test_writes_beside_the_bundle_what_the_bundle_says_of_itself(self, release: Release) -> None:
        before = release.bundle.read_bytes()
        done = adyton("sign", release.bundle, "--key", release.key)
        assert done.returncode == 0, done.stderr
        assert dict(line.split() for line in done.stdout.splitlines()) == {
            "signer": release.id,
            "product": "probe",
            "version": "7",
        }
        assert done.stderr == f"wrote {release.signature}\n"
        assert verify_signed_code(release.signature.read_bytes()) == release.code
        assert release.bundle.read_bytes() == before

    def test_writes_where_it_is_told(self, release: Release, tmp_path: Path) -> None:
        done = adyton("sign", release.bundle, "--key", release.key, "-o", tmp_path / "mine")
        assert done.returncode == 0, done.stderr
        assert verify_signed_code((tmp_path / "mine").read_bytes()) == release.code
        assert not release.signature.exists()

    @pytest.mark.parametrize("before", [b"", b"{}", b"no signature"])
    def test_writes_over_an_older_signature(self, before: bytes, release: Release) -> None:
        release.signature.write_bytes(before)
        assert adyton("sign", release.bundle, "--key", release.key).returncode == 0
        assert verify_signed_code(release.signature.read_bytes()) == release.code

    def test_writes_over_neither_bundle_nor_key(self, release: Release) -> None:
        (link := release.key.with_name("link")).hardlink_to(release.key)
        before = release.bundle.read_bytes(), release.key.read_bytes()
        for path in (release.bundle, release.key, link):
            refused("the signature would be written over", "sign", release.bundle, "--key", release.key, "-o", path)
        assert (release.bundle.read_bytes(), release.key.read_bytes()) == before

    def test_says_where_it_can_not_write(self, release: Release) -> None:
        for path in (release.project / "nowhere" / "s", release.project, "x" * 300):
            refused("can't write", "sign", release.bundle, "--key", release.key, "-o", path)

    def test_takes_a_bundle_and_no_project(self, release: Release, tmp_path: Path) -> None:
        refused("is a folder (`adyton build` it, and sign the bundle)", "sign", release.project, "--key", release.key)
        refused("can't read", "sign", tmp_path / "none.adyton", "--key", release.key)
        refused("can't read", "sign", "x" * 300, "--key", release.key)
        (tmp_path / "no.adyton").write_bytes(b"no bundle")
        words = ("sign", tmp_path / "no.adyton", "--key", release.key)
        refused("the bundle can't be read", *words, code=ExitCode.NOT_GENUINE)

    def test_takes_no_key_that_others_can_read(self, release: Release) -> None:
        release.key.chmod(0o644)
        self.refuses_the_key("others can read or change", release)
        refused("(chmod 600", "new-key", "--show", release.key)

    def test_takes_no_key_with_a_password(self, release: Release) -> None:
        encryption = serialization.BestAvailableEncryption(b"word")
        self.put(release, ec.generate_private_key(ec.SECP256R1()), encryption)
        self.refuses_the_key("is protected by a password, which is not asked for (`openssl pkey", release)

    def test_takes_no_key_of_another_curve(self, release: Release) -> None:
        self.put(release, ec.generate_private_key(ec.SECP384R1()), serialization.NoEncryption())
        self.refuses_the_key("holds no private key of P-256 (`adyton new-key` makes one)", release)

    def test_needs_a_key(self, release: Release) -> None:
        refused("--key", "sign", release.bundle)
        release.key.unlink()
        self.refuses_the_key("can't read", release)

    @staticmethod
    def put(
        release: Release, key: ec.EllipticCurvePrivateKey, encryption: serialization.KeySerializationEncryption
    ) -> None:
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
        release.key.write_bytes(pem)

    @staticmethod
    def refuses_the_key(message: str, release: Release) -> None:
        refused(message, "sign", release.bundle, "--key", release.key)
        assert not release.signature.exists()


OTHER = "0" * 64
WITHOUT_EFFECT = {
    "none is asked for": ("version = 7", "and the signature changes nothing (policy = "),
    "only what was sealed before": ('signers = ["{id}"]', "and the signature only opens what the signer's code has"),
    "another signer's": (f'policy = "signer"\nsigners = ["{OTHER}"]', "{id} is not in sealing.signers of enclave.toml"),
    "a service decides": (
        'source = "release"\nrelease.policy = "probe/servers.py"',
        "sealing.source is 'release' in enclave.toml: that source decides, and no signature",
    ),
}


class TestASignatureWithoutEffect:
    @pytest.mark.parametrize("why", WITHOUT_EFFECT)
    def test_is_made_with_a_warning(self, why: str, release: Release) -> None:
        sealing, said = (text.replace("{id}", release.id) for text in WITHOUT_EFFECT[why])
        settings = release.project / "enclave.toml"
        settings.write_text(f"{settings.read_text().partition('[sealing]')[0]}[sealing]\n{sealing}\n")
        assert adyton("build", release.project).returncode == 0
        done = adyton("sign", release.bundle, "--key", release.key)
        assert done.returncode == 0, done.stderr
        wrote, warning = done.stderr.splitlines()
        assert wrote == f"wrote {release.signature}"
        assert warning.startswith("warning: ")
        assert said in warning
        assert Bundle.load(release.bundle).signed_code() is not None

    def test_counts_after_what_the_warning_says_was_done(self, release: Release) -> None:
        settings = release.project / "enclave.toml"
        with_signer = settings.read_text()
        settings.write_text(with_signer.partition("[sealing]")[0])
        assert adyton("build", release.project).returncode == 0
        warned = adyton("sign", release.bundle, "--key", release.key).stderr
        found = re.search(r'\((policy = "signer") and (signers = \["[0-9a-f]{64}"\]) under \[sealing\], then', warned)
        assert found is not None, warned
        settings.write_text("\n".join((settings.read_text(), "[sealing]", *found.groups(), "")))
        assert adyton("build", release.project).returncode == 0
        assert "warning" not in adyton("sign", release.bundle, "--key", release.key).stderr


class TestABundle:
    def test_has_the_signature_that_lies_beside_its_file(self, signed: Release) -> None:
        bundle = Bundle.of(signed.bundle)
        assert bundle.signature == signed.signature.read_bytes()
        assert bundle.signed_code() == signed.code
        assert bundle.sha256 == Bundle.of(signed.project).sha256

    def test_has_none_without_one(self, release: Release) -> None:
        for target in (release.bundle, release.project):
            assert Bundle.of(target).signature is None
            assert Bundle.of(target).signed_code() is None

    def test_of_a_project_has_only_the_one_that_is_given(self, signed: Release) -> None:
        assert Bundle.of(signed.project).signature is None
        assert Bundle.of(signed.project).with_signature(signed.signature).signed_code() == signed.code

    def test_takes_a_document_that_has_more_than_the_signature(self, signed: Release) -> None:
        document = json.loads(signed.signature.read_bytes()) | {"more": ["of", {"others": None}]}
        signed.signature.write_text(json.dumps(document))
        assert Bundle.load(signed.bundle).signed_code() == signed.code

    def test_takes_a_document_up_to_the_bound(self, signed: Release) -> None:
        content = signed.signature.read_bytes()
        signed.signature.write_bytes(content.ljust(MAX_SIGNED_CODE_BYTES))
        assert Bundle.load(signed.bundle).signed_code() == signed.code
        signed.signature.write_bytes(content.ljust(MAX_SIGNED_CODE_BYTES + 1))
        with pytest.raises(ConfigurationError, match=f"larger than {MAX_SIGNED_CODE_BYTES} bytes"):
            Bundle.load(signed.bundle)

    def test_whose_signature_can_not_be_read_is_not_taken_for_one_without(self, release: Release) -> None:
        release.signature.symlink_to("nowhere")
        with pytest.raises(ConfigurationError, match=r"can't read .*probe\.signature"):
            Bundle.load(release.bundle)


class TestBuild:
    def test_says_that_a_signature_is_of_what_was_there_before(self, signed: Release) -> None:
        before = signed.signature.read_bytes()
        change(signed)
        done = adyton("build", signed.project)
        assert done.returncode == 0, done.stderr
        assert f"{signed.signature} is still there, and `adyton run` refuses it: the signature is of" in done.stderr
        assert "another bundle, version 7 of 'probe' (sign this one, `adyton sign`" in done.stderr
        assert signed.signature.read_bytes() == before

    def test_says_so_of_what_is_no_signature(self, release: Release) -> None:
        release.signature.write_text("no signature")
        done = adyton("build", release.project)
        assert done.returncode == 0, done.stderr
        assert "`adyton run` refuses it: this is no signature of code" in done.stderr

    def test_says_nothing_of_a_signature_that_still_fits_nor_without_one(self, signed: Release) -> None:
        assert "signature" not in adyton("build", signed.project).stderr
        signed.signature.unlink()
        change(signed)
        assert "signature" not in adyton("build", signed.project).stderr


def flip(content: bytes) -> bytes:
    """The last digit of the signature is another."""
    document: dict[str, Any] = json.loads(content)
    text = document["signature"]
    return json.dumps(document | {"signature": text[:-1] + ("0" if text[-1] != "0" else "1")}).encode()


def raise_version(content: bytes) -> bytes:
    return json.dumps(json.loads(content) | {"version": 8}).encode()


def sign_another(_: bytes) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    return json.dumps(sign_code(key, product="other\x1b", version=3, measurement=bytes(48))).encode()


FORGERIES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "flipped": (flip, "the signature of the code is not its signer's (sign it again)"),
    "of a later version": (raise_version, "the signature of the code is not its signer's"),
    "of another bundle": (sign_another, r"the signature is of another bundle, version 3 of 'other\x1b'"),
    "empty": (lambda _: b"", "this is no signature of code"),
    "an empty object": (lambda _: b"{}", "this is no signature of code"),
    "too long": (lambda content: content.ljust(MAX_SIGNED_CODE_BYTES + 1), f"than {MAX_SIGNED_CODE_BYTES} bytes"),
}


class TestRun:
    def test_takes_the_signature_beside_a_bundle(self, signed: Release) -> None:
        with running(signed.bundle) as server:
            assert server.first_line.startswith("Server started")
            assert server.end()[0] == 0

    def test_takes_the_one_that_it_is_given(self, signed: Release, tmp_path: Path) -> None:
        """For a project's folder, and instead of the one beside a bundle."""
        mine = signed.signature.rename(tmp_path / "mine")
        signed.signature.write_text("no signature")
        for target in (signed.project, signed.bundle):
            with running(target, "--signature", mine) as server:
                assert server.first_line.startswith("Server started")
                assert server.end()[0] == 0

    @pytest.mark.parametrize("forgery", FORGERIES)
    def test_refuses_any_other(self, forgery: str, signed: Release, tmp_path: Path) -> None:
        forge, message = FORGERIES[forgery]
        content = forge(signed.signature.read_bytes())
        (tmp_path / "forged").write_bytes(content)
        refused(message, "run", signed.project, "--signature", tmp_path / "forged")
        signed.signature.write_bytes(content)
        refused(message, "run", signed.bundle)

    def test_refuses_the_signature_of_the_code_before_an_update(self, signed: Release) -> None:
        change(signed)
        refused("the signature is of another bundle", "run", signed.project, "--signature", signed.signature)
        assert adyton("build", signed.project).returncode == 0
        refused("the signature is of another bundle", "run", signed.bundle)
        assert adyton("sign", signed.bundle, "--key", signed.key).returncode == 0
        with running(signed.bundle) as server:
            assert server.end()[0] == 0

    def test_refuses_it_before_it_makes_an_image(self, signed: Release) -> None:
        change(signed)
        words = ("run", signed.project, "--on", "vm", "--signature", signed.signature)
        refused("the signature is of another bundle", *words)

    def test_refuses_to_go_without_the_one_that_it_is_given(self, release: Release, tmp_path: Path) -> None:
        refused("can't read", "run", release.bundle, "--signature", tmp_path / "none")
