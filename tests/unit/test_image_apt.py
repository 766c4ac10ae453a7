"""The machine's apt, real, on an archive in a folder: so without a network, and without Debian's packages."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from adyton.errors import ConfigurationError, UnsupportedError
from adyton.host.image import apt
from adyton.host.image.apt import PACKAGES, fetch, resolve
from adyton.host.image.architecture import ARCHITECTURES
from adyton.host.image.cache import Cache
from adyton.host.image.lock import LockedPackage
from adyton.host.image.locking import choose_lock, relock

pytestmark = pytest.mark.skipif(shutil.which("apt-get") is None, reason="this machine has no apt")

X86 = ARCHITECTURES["x86_64"]
KERNEL = "linux-image-6.12.7+deb12-cloud-amd64"


class Archive:
    """A folder that is apt's only source. A package's file holds its name and version."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.cache, self.said = folder / "archive", Cache(folder / "cache"), list[str]()
        self._paragraphs: dict[tuple[str, str], str] = {}
        self.folder.mkdir()
        self._sources = folder / "sources.list"
        self.move_to(f"file:{self.folder}")
        (folder / "apt.conf").write_text(
            f'Dir::Etc::sourcelist "{folder}/sources.list";\nDir::Etc::sourceparts "/dev/null";\n'
            'Acquire::http::Proxy "DIRECT";\n'
        )
        patch.setenv("APT_CONFIG", str(folder / "apt.conf"))

    def move_to(self, uri: str) -> None:
        """Let this be what apt takes for the archive."""
        self._sources.write_text(f"deb [trusted=yes] {uri} ./\n")

    def put(self, name: str, version: str = "1.0-1", depends: str = "") -> LockedPackage:
        content = f"{name} {version}".encode()
        file = self.folder / f"{name}_{version}_amd64.deb"
        file.write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        fields = {"Package": name, "Version": version, "Architecture": "amd64", "Filename": f"./{file.name}"}
        fields |= {"Depends": depends} if depends else {}
        fields |= {"Size": str(len(content)), "SHA256": digest, "Description": "x"}
        self._paragraphs[name, version] = "".join(f"{key}: {value}\n" for key, value in fields.items())
        self._publish()
        return LockedPackage(name=name, version=version, sha256=digest, size=len(content))

    def take(self, name: str, version: str = "1.0-1") -> None:
        del self._paragraphs[name, version]
        self._publish()

    def _publish(self) -> None:
        (self.folder / "Packages").write_text("\n".join(self._paragraphs.values()))

    def put_all(self) -> list[LockedPackage]:
        self.put(X86.kernel, depends=f"{KERNEL} (= 1.0-1), other")
        return [self.put(name) for name in (*PACKAGES, KERNEL)]

    def fetch(self, *packages: LockedPackage) -> dict[str, bytes]:
        found = fetch(packages, X86, self.cache, self.said.append)
        return {name: path.read_bytes() for name, path in found.items()}


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    return Archive(tmp_path, monkeypatch)


def test_the_index_says_which_packages_an_image_is_made_of_now(archive: Archive) -> None:
    whole = archive.put_all()
    assert resolve(X86, archive.cache) == tuple(sorted(whole))
    newer = archive.put("libc6", "1:1.0-2+deb12u1")
    assert newer in resolve(X86, archive.cache)


def test_an_index_of_another_debian_is_refused_by_what_it_lacks(archive: Archive) -> None:
    archive.put("libc6")
    with pytest.raises(UnsupportedError, match="Debian 12") as problem:
        resolve(X86, archive.cache)
    assert "Debian 12" in problem.value.mend


def test_packages_are_fetched_once(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = archive.put("one"), archive.put("two", "1:2~x")
    wanted = {"one": b"one 1.0-1", "two": b"two 1:2~x"}
    assert archive.fetch(one, two) == wanted
    monkeypatch.setenv("PATH", "/nowhere")
    assert archive.fetch(one, two) == wanted
    assert len(archive.said) == 1


def test_a_damaged_package_in_the_cache_is_fetched_again(archive: Archive) -> None:
    one, two = archive.put("one"), archive.put("two")
    archive.fetch(one, two)
    archive.cache.path(one.sha256).unlink()
    archive.cache.path(one.sha256).write_bytes(b"odd")
    assert archive.fetch(one, two)["one"] == b"one 1.0-1"
    assert "1 Debian packages" in archive.said[-1]


def test_an_older_version_is_taken_as_long_as_the_archive_has_it(archive: Archive) -> None:
    older = archive.put("one", "1.0-1")
    archive.put("one", "2.0-1")
    assert archive.fetch(older) == {"one": b"one 1.0-1"}


def test_a_version_that_the_archive_no_longer_has_is_named_with_what_mends_it(archive: Archive) -> None:
    older = archive.put("one", "1.0-1")
    archive.put("one", "2.0-1")
    archive.take("one", "1.0-1")
    with pytest.raises(UnsupportedError, match=r"no longer has one 1\.0-1 for amd64") as problem:
        archive.fetch(older)
    assert "adyton build --for vm --relock" in problem.value.mend


def test_a_lock_of_another_digest_than_the_archives_is_refused(archive: Archive) -> None:
    one = dataclasses.replace(archive.put("one"), sha256="00" * 32)
    with pytest.raises(ConfigurationError, match="another digest of one"):
        archive.fetch(one)


def test_a_file_that_is_not_what_the_index_says_is_refused(archive: Archive) -> None:
    one = archive.put("one")
    (archive.folder / "one_1.0-1_amd64.deb").write_bytes(b"one 1.0-2")
    with pytest.raises(UnsupportedError):
        archive.fetch(one)
    assert archive.cache.find(one.sha256) is None


def test_a_machine_without_apt_is_told_where_images_are_built(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UnsupportedError, match="no apt-get here") as problem:
        resolve(X86, archive.cache)
    assert "Debian 12" in problem.value.mend


def test_the_machines_lock_is_made_once_and_kept_until_it_is_made_anew(archive: Archive) -> None:
    archive.put_all()
    lock = choose_lock({}, [X86], archive.cache, archive.said.append)
    newer, said = archive.put("libc6", "2.0-1"), list(archive.said)
    assert choose_lock({}, [X86], archive.cache, archive.said.append) == lock
    assert archive.said == said
    assert newer in relock([X86], archive.cache, archive.said.append).packages["x86_64"]
    assert newer in choose_lock({}, [X86], archive.cache, archive.said.append).packages["x86_64"]


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """It takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def test_without_a_network_no_package_is_blamed(archive: Archive, listener: socket.socket) -> None:
    one = archive.put("one")
    archive.move_to(f"http://127.0.0.1:{listener.getsockname()[1]}")
    listener.close()
    for ask in (lambda: resolve(X86, archive.cache), lambda: archive.fetch(one)):
        with pytest.raises(UnsupportedError, match=r"package index can't be reached: http://127\.0\.0\.1") as problem:
            ask()
        assert "refused" in problem.value.message
        assert problem.value.mend == "is there a network?"


def test_an_archive_that_hangs_is_given_up(
    archive: Archive, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apt, "STALL_SECONDS", 1)
    archive.move_to(f"http://127.0.0.1:{listener.getsockname()[1]}")
    began = time.monotonic()
    with pytest.raises(UnsupportedError, match=r"can't be reached: .*Connection (failed|timed out)"):
        resolve(X86, archive.cache)
    assert time.monotonic() - began < 25


def test_an_apt_that_can_not_be_run_is_said(archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "apt-get").write_text("")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(UnsupportedError, match="apt-get can't be run: Permission denied"):
        resolve(X86, archive.cache)


def test_what_apt_needs_meanwhile_lies_in_the_cache(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    archive.put_all()
    assert resolve(X86, archive.cache)


@pytest.mark.parametrize("kept", [{}, {"other": "x"}, {"text": "odd"}, {"text": "\ud800"}])
def test_a_damaged_lock_of_the_machine_is_made_anew(archive: Archive, kept: dict[str, str]) -> None:
    archive.put_all()
    archive.cache.note({"lock": "this machine's"}, kept)
    assert "x86_64" in choose_lock({}, [X86], archive.cache, archive.said.append).packages
