"""Private keys in files: how they are written, and which ones are read."""

from __future__ import annotations

import base64
import hashlib
import os
import resource
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from hypothesis import given
from hypothesis import strategies as st

from adyton.cli.key_files import MAX_KEY_FILE_BYTES, key_id, load_key, make_key
from adyton.errors import ConfigurationError

NO_PASSWORD = serialization.NoEncryption()
PKCS8 = serialization.PrivateFormat.PKCS8


def pem_of(
    key: PrivateKeyTypes,
    *,
    encryption: serialization.KeySerializationEncryption = NO_PASSWORD,
    form: serialization.PrivateFormat = PKCS8,
) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, form, encryption)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], Path]:
    """A file with that content, which only this user can read."""

    def written(content: bytes) -> Path:
        path = tmp_path / "a key.pem"
        path.touch(mode=0o600)
        path.write_bytes(content)
        return path

    return written


class TestAKeyThatIsMade:
    def test_is_read_again(self, tmp_path: Path) -> None:
        made = make_key(tmp_path / "key.pem")
        assert load_key(tmp_path / "key.pem").private_numbers() == made.private_numbers()

    def test_is_one_of_p256_in_pkcs8_for_this_user_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "key.pem"
        before = os.umask(0)
        try:
            make_key(path)
        finally:
            os.umask(before)
        assert path.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----\n")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert load_key(path).curve.name == "secp256r1"

    def test_is_another_each_time(self, tmp_path: Path) -> None:
        assert key_id(make_key(tmp_path / "one")) != key_id(make_key(tmp_path / "two"))

    def test_is_named_by_the_digest_of_its_public_key(self, tmp_path: Path) -> None:
        key = make_key(tmp_path / "key.pem")
        spki = key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        assert key_id(key) == hashlib.sha256(spki).hexdigest()

    @pytest.mark.parametrize("what", ["file", "folder", "dangling link"])
    def test_is_never_written_over_what_is_there(self, what: str, tmp_path: Path) -> None:
        path = tmp_path / "key.pem"
        if what == "file":
            path.write_bytes(b"mine")
        elif what == "folder":
            path.mkdir()
        else:
            path.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(ConfigurationError, match="exists already, and a key is never written over"):
            make_key(path)
        assert list(tmp_path.iterdir()) == [path]
        assert what != "file" or path.read_bytes() == b"mine"

    def test_is_one_of_several_that_are_made_at_once(self, tmp_path: Path) -> None:
        path = tmp_path / "key.pem"

        def attempt(_: int) -> str | None:
            try:
                return key_id(make_key(path))
            except ConfigurationError:
                return None

        with ThreadPoolExecutor(8) as pool:
            made = [each for each in pool.map(attempt, range(8)) if each]
        assert made == [key_id(load_key(path))]
        assert list(tmp_path.iterdir()) == [path]

    def test_leaves_nothing_where_it_can_not_be_written(self, tmp_path: Path) -> None:
        with no_file_may_grow(), pytest.raises(ConfigurationError, match=r"can't write .*: File too large"):
            make_key(tmp_path / "key.pem")
        assert list(tmp_path.iterdir()) == []

    def test_needs_a_folder_that_is_there(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match=r"can't write .*key\.pem: No such file or directory"):
            make_key(tmp_path / "nowhere" / "key.pem")


@contextmanager
def no_file_may_grow() -> Iterator[None]:
    """As on a full disk, for this process; Python ignores the signal that comes with it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class TestAKeyThatIsRead:
    def test_may_be_in_the_format_that_openssl_wrote_before_pkcs8(self, write: Callable[[bytes], Path]) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        path = write(pem_of(key, form=serialization.PrivateFormat.TraditionalOpenSSL))
        assert b"EC PRIVATE KEY" in path.read_bytes()
        assert key_id(load_key(path)) == key_id(key)

    @pytest.mark.parametrize("form", [PKCS8, serialization.PrivateFormat.TraditionalOpenSSL])
    def test_has_no_password(self, form: serialization.PrivateFormat, write: Callable[[bytes], Path]) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        path = write(pem_of(key, encryption=serialization.BestAvailableEncryption(b"word"), form=form))
        with pytest.raises(ConfigurationError, match="is protected by a password") as caught:
            load_key(path)
        assert "openssl pkey -in" in caught.value.mend

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o777])
    def test_is_nobody_elses_to_read_or_change(self, mode: int, tmp_path: Path) -> None:
        path = tmp_path / "key.pem"
        make_key(path)
        path.chmod(mode)
        with pytest.raises(ConfigurationError, match="others can read or change") as caught:
            load_key(path)
        assert "chmod 600" in caught.value.mend
        path.chmod(0o400)
        load_key(path)

    def test_is_this_users(self, tmp_path: Path) -> None:
        path = tmp_path / "key.pem"
        make_key(path)
        if os.geteuid() == 0:
            os.chown(path, 1, -1)
        else:
            path = Path("/etc/passwd")  # root's
        with pytest.raises(ConfigurationError, match="belongs to another user"):
            load_key(path)

    def test_is_in_a_regular_file(self, tmp_path: Path) -> None:
        """A pipe that nobody writes to holds nobody up."""
        os.mkfifo(tmp_path / "pipe", 0o600)
        for path in (tmp_path / "pipe", tmp_path):
            with pytest.raises(ConfigurationError, match="not a regular file"):
                load_key(path)

    @pytest.mark.parametrize(
        "make",
        [
            lambda: ec.generate_private_key(ec.SECP384R1()),
            lambda: ec.generate_private_key(ec.SECP256K1()),
            ed25519.Ed25519PrivateKey.generate,
            lambda: rsa.generate_private_key(65537, 2048),
        ],
        ids=["P-384", "secp256k1", "Ed25519", "RSA"],
    )
    def test_is_of_p256(self, make: Callable[[], PrivateKeyTypes], write: Callable[[bytes], Path]) -> None:
        with pytest.raises(ConfigurationError, match=r"holds no private key of P-256 .`adyton new-key` makes one"):
            load_key(write(pem_of(make())))

    def test_is_no_public_key(self, write: Callable[[bytes], Path]) -> None:
        public = ec.generate_private_key(ec.SECP256R1()).public_key()
        pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        with pytest.raises(ConfigurationError, match="holds no private key"):
            load_key(write(pem))

    def test_stands_within_the_bound(self, write: Callable[[bytes], Path]) -> None:
        pem = pem_of(ec.generate_private_key(ec.SECP256R1()))
        load_key(write(b"\n" * (MAX_KEY_FILE_BYTES - len(pem)) + pem))
        with pytest.raises(ConfigurationError, match="holds no private key"):
            load_key(write(b"\n" * MAX_KEY_FILE_BYTES + pem))

    def test_is_there(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match=r"can't read .*: No such file"):
            load_key(tmp_path / "none.pem")


def der_of(encryption: serialization.KeySerializationEncryption) -> bytes:
    key = ec.derive_private_key(7, ec.SECP256R1())
    return key.private_bytes(serialization.Encoding.DER, PKCS8, encryption)


@given(
    kind=st.sampled_from(["PRIVATE KEY", "ENCRYPTED PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY"]),
    encryption=st.sampled_from([NO_PASSWORD, serialization.BestAvailableEncryption(b"word")]),
    start=st.integers(0, 300),
    length=st.integers(0, 3),
    instead=st.binary(max_size=3),
)
def test_of_damaged_files_only_the_documented_error_is_raised(
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    encryption: serialization.KeySerializationEncryption,
    start: int,
    length: int,
    instead: bytes,
) -> None:
    der = der_of(encryption)
    damaged = base64.encodebytes(der[:start] + instead + der[start + length :]).decode()
    path = tmp_path_factory.getbasetemp() / "damaged.pem"
    path.touch(mode=0o600)
    path.write_text(f"-----BEGIN {kind}-----\n{damaged}-----END {kind}-----\n")
    with suppress(ConfigurationError):
        load_key(path)
