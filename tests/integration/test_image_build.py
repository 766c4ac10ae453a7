"""Images of a real project out of Debian's real packages: what is in them, that they stay the same, that they boot.

The first run fetches some 100 MB, later ones nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from image_pieces import IMAGE_CACHE, read_cpio

from adyton.bundle.archive import encode_archive, parse_archive
from adyton.errors import BundleError, UnsupportedError
from adyton.host.bundles import Bundle
from adyton.host.image.architecture import host_architecture
from adyton.host.image.image import Image, build_image

RELEASE = Path("/etc/os-release")
pytestmark = [
    pytest.mark.skipif(
        not RELEASE.exists() or 'VERSION_ID="12"' not in RELEASE.read_text() or shutil.which("apt-get") is None,
        reason="images are built on Debian 12",
    ),
    pytest.mark.timeout(600),
]

HERE = host_architecture().name
TRANSLATOR = Path(__file__).parents[2] / "examples" / "translator"
MOST_BYTES = 70 * 1024 * 1024
PID1 = "runtime/adyton/enclave/guest/pid1.py"
IMPORTS = (
    "grpc, cryptography, google.protobuf, cbor2, dcap_qvl, ssl, sqlite3, ctypes, asyncio, lzma, bz2, uuid, zoneinfo"
)
PROBE = f"""
import ctypes, os, sys, traceback

def main(began):
    sys.path.append("/enclave/bundle/app")  # which only the enclave's own process has
    try:
        import {IMPORTS}
        from cryptography.hazmat.primitives.asymmetric import ec
        ec.generate_private_key(ec.SECP256R1())
        import translator.application
        import adyton.enclave.process_entry
        from importlib.metadata import version
        answer = sqlite3.connect(":memory:").execute("select 6*7").fetchone()
        print("probe:", os.getpid(), version("grpcio"), answer, flush=True)
        print("cached:", adyton.__cached__, grpc.__file__, flush=True)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    ctypes.CDLL(None).reboot(0x4321FEDC)
"""


def with_files(bundle: Bundle, files: dict[str, bytes]) -> Bundle:
    return Bundle.parse(encode_archive({**parse_archive(bundle.data), **files}))


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.build(TRANSLATOR)


@pytest.fixture(scope="module")
def image(bundle: Bundle) -> Image:
    return build_image(bundle, architecture=HERE, cache=IMAGE_CACHE, say=print)


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A folder that everyone may look at, with a cache of all that was fetched and nothing that was built."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        for part in ("files", "notes", "scratch"):
            (Path(folder) / "cache" / part).mkdir(parents=True)
        for path in (*IMAGE_CACHE.glob("files/*"), *IMAGE_CACHE.glob("notes/*")):
            copy = Path(folder) / "cache" / path.parent.name / path.name
            with contextlib.suppress(FileNotFoundError):  # another test's, gone again
                shutil.copy(path, copy)
            if path.parent.name == "notes" and {"system", "application"} & json.loads(path.read_bytes()).keys():
                copy.unlink()
        yield Path(folder)


def test_the_parts_are_what_their_digests_say_and_small(image: Image, tmp_path: Path) -> None:
    parts = {name: getattr(image, name).read_bytes() for name in ("kernel", "system", "application")}
    assert image.digests() == {name: hashlib.sha256(data).digest() for name, data in parts.items()}
    assert len(parts["system"]) + len(parts["application"]) < MOST_BYTES
    assert all(len(parts[name]) % 512 == 0 for name in ("system", "application"))
    image.write_initrd(tmp_path / "initrd")
    assert (tmp_path / "initrd").read_bytes() == parts["system"] + parts["application"]
    assert image.kernel_version.startswith("6.12.")


def test_the_system_has_what_starts_and_no_source(image: Image) -> None:
    entries = read_cpio(image.system.read_bytes())
    assert entries["init"].mode == 0o100755
    assert entries["init"].content.startswith(b"#!/usr/bin/python3.11 -I")
    assert entries["usr/bin/python3.11"].mode == 0o100755
    for folder in ("proc", "sys", "dev", "run", "tmp", "enclave/data"):
        assert entries[folder].mode == 0o040755
    assert not [name for name in entries if name.endswith((".py", ".h", ".a", ".pyi")) or "/share/" in name]
    order = entries["lib/modules/adyton/order"].content.decode().splitlines()
    assert "virtio_net: failover net_failover" in order
    assert {line.partition(":")[0] for line in order} == {
        name.rpartition("/")[2].removesuffix(".ko") for name in entries if name.endswith(".ko")
    }


def test_the_application_is_the_bundle_with_bytecode_of_no_date(image: Image, bundle: Bundle) -> None:
    entries = read_cpio(image.application.read_bytes())
    files = {name.removeprefix("enclave/bundle/"): entry.content for name, entry in entries.items() if entry.content}
    written = {name: content for name, content in files.items() if "__pycache__" not in name}
    assert written == {name: content for name, content in parse_archive(bundle.data).items() if content}
    bytecode = [content for name, content in files.items() if name.endswith(".cpython-311.pyc")]
    assert len(bytecode) == len([name for name in parse_archive(bundle.data) if name.endswith(".py")])
    assert {content[4:8] for content in bytecode} == {b"\x01\0\0\0"}  # PEP 552: by hash, unchecked


def test_the_second_time_nothing_is_fetched_or_built(
    image: Image, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("sys.executable", "/nowhere")
    said: list[str] = []
    assert build_image(bundle, architecture=HERE, cache=IMAGE_CACHE, say=said.append) == image
    assert said == []


def test_a_part_that_was_damaged_is_built_again_without_a_network(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = with_files(bundle, {"app/translator/dictionary.toml": b"[words]\n"})
    before = build_image(changed, architecture=HERE, cache=IMAGE_CACHE)
    whole = before.application.read_bytes()
    before.application.unlink()
    before.application.write_bytes(whole[:-1] + b"x")
    monkeypatch.setenv("PATH", "/nowhere")
    said: list[str] = []
    assert build_image(changed, architecture=HERE, cache=IMAGE_CACHE, say=said.append) == before
    assert said == ["building the application"]
    assert before.application.read_bytes() == whole
    before.application.unlink()


def test_a_changed_bundle_takes_less_than_four_seconds_of_work(image: Image, bundle: Bundle) -> None:
    changed = with_files(bundle, {"app/translator/dictionary.toml": os.urandom(16).hex().encode()})
    before = cpu_seconds()
    other = build_image(changed, architecture=HERE, cache=IMAGE_CACHE)
    assert cpu_seconds() - before < 4
    assert other.system == image.system
    assert other.application != image.application
    other.application.unlink()


def test_a_file_that_does_not_compile_is_in_the_image_without_bytecode(bundle: Bundle) -> None:
    broken = {"syntax": b"def", "null": b"a = '\0'", "encoding": b"\xff", "deep": b"(" * 100_000, "empty": b""}
    files = {f"app/translator/{name}.py": source for name, source in broken.items()}
    odd = build_image(with_files(bundle, files), architecture=HERE, cache=IMAGE_CACHE)
    entries = read_cpio(odd.application.read_bytes())
    odd.application.unlink()
    assert {f"enclave/bundle/{name}" for name in files} <= entries.keys()
    compiled = {name.rpartition("/")[2].partition(".")[0] for name in entries if name.endswith(".pyc")}
    assert broken.keys() & compiled == {"empty"}


def cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


SCRIPT = """
import json, os, sys
from pathlib import Path
from adyton.host.bundles import Bundle
from adyton.host.image.image import build_image
bundle = Bundle.load(Path(sys.argv[1]))
os.setuid(int(sys.argv[4]))  # only now: the interpreter may lie where others can't look
image = build_image(bundle, architecture=sys.argv[2], cache=Path(sys.argv[3]))
print(json.dumps({name: digest.hex() for name, digest in image.digests().items()}))
"""


@pytest.mark.parametrize(
    "user",
    [
        os.getuid(),
        pytest.param(65534, marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root can be someone else")),
    ],
    ids=["the same user", "another user"],
)
@pytest.mark.slow
def test_equal_bundles_are_equal_images_whoever_builds_them_wherever_and_when(
    image: Image, bundle: Bundle, elsewhere: Path, user: int
) -> None:
    (elsewhere / "bundle").write_bytes(bundle.data)
    for path in (elsewhere / "cache", *(elsewhere / "cache").rglob("*")):
        os.chown(path, user, -1)
    environment = {"HOME": "/nonexistent", "TZ": "Pacific/Apia", "LANG": "tr_TR.UTF-8", "PYTHONHASHSEED": "4711"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(elsewhere / "bundle"), HERE, str(elsewhere / "cache"), str(user)],
        env={**environment, "PATH": "/nowhere", "PYTHONDONTWRITEBYTECODE": "1"},
        cwd="/",
        umask=0o077,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {name: digest.hex() for name, digest in image.digests().items()}


def test_a_bundle_that_is_not_what_its_digest_says_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="its SHA-256 differs"):
        build_image(dataclasses.replace(bundle, sha256=bytes(32)), architecture=HERE, cache=tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_architecture_that_nobody_builds_for_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="riscv64"):
        build_image(bundle, architecture="riscv64", cache=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["x86_64", "aarch64"])
def test_an_image_boots_and_all_that_a_server_needs_can_be_imported(
    bundle: Bundle, architecture: str, tmp_path: Path
) -> None:
    if shutil.which(f"qemu-system-{architecture}") is None:
        pytest.skip(f"this machine has no qemu-system-{architecture}")
    files = {PID1: PROBE.encode(), "runtime/adyton/enclave/guest/__init__.py": b""}
    probed = build_image(with_files(bundle, files), architecture=architecture, cache=IMAGE_CACHE, say=print)
    probed.write_initrd(tmp_path / "initrd")
    console = boot(probed, tmp_path / "initrd")
    assert "probe: 1 1." in console, console
    assert "(42,)" in console, console
    assert "cached: /enclave/bundle/runtime/adyton/__pycache__/__init__.cpython-311.pyc" in console, console
    assert "site-packages/grpc/__init__.pyc" in console, console
    probed.application.unlink()


MACHINES = {
    "x86_64": ("-M", "q35,smm=off,graphics=off,usb=off", "-cpu", "max,-la57", "-bios", "/usr/share/qemu/qboot.rom"),
    "aarch64": ("-M", "virt,gic-version=3", "-cpu", "cortex-a72"),
}


def boot(image: Image, initrd: Path) -> str:
    terminal = {"x86_64": "ttyS0", "aarch64": "ttyAMA0"}[image.architecture]
    command = [f"qemu-system-{image.architecture}", *MACHINES[image.architecture], "-accel", "tcg", "-m", "512"]
    command += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"]
    command += ["-kernel", str(image.kernel), "-initrd", str(initrd)]
    command += ["-append", f"console={terminal} panic=-1 cryptomgr.notests=1 loglevel=5"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.slow
def test_the_application_is_the_same_on_every_architecture(bundle: Bundle) -> None:
    images = [build_image(bundle, architecture=each, cache=IMAGE_CACHE, say=print) for each in ("x86_64", "aarch64")]
    assert images[0].application == images[1].application
    assert images[0].system != images[1].system
