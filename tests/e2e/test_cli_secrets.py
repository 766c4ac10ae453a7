"""`adyton secrets`, as an owner types it: what is sent, what is said, and what is refused before anything is sent."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import keeping
import pytest
from command_line import ALLOW, COMMAND, SIMULATED, adyton, running, simulated_policy
from cryptography import x509
from observing import children_of, eventually
from owners import SECRET, told, write_keeping_project

from adyton.cli.key_files import load_key
from adyton.errors import ExitCode

VALUE = SECRET.decode()
NOTE = "note: this enclave has no state folder, so its secrets end with it (adyton run --state DIR)\n"
LINE_FEED = "note: the value ends with a line feed, and it is sent as it is\n"
NOT_AN_OWNER = "adyton secrets: PERMISSION_DENIED: this key is not one of the enclave's owners\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Owned:
    """An enclave, and its owner's files."""

    target: str
    project: Path
    policy: Path
    key: Path

    @property
    def words(self) -> tuple[str | Path, ...]:
        return ("--policy", self.policy, *ALLOW, "--key", self.key)

    def order(self, order: str, *words: str | Path, value: str = "") -> subprocess.CompletedProcess[str]:
        return adyton("secrets", order, self.target, *words, *self.words, input=value)

    def told(self, name: str) -> bytes:
        return told(self.target, self.policy, name)

    @property
    def attested(self) -> str:
        """What is said on standard error of the enclave."""
        measurement = re.search(r'measurement = \["([0-9a-f]+)', self.policy.read_text())
        rule = re.search(r'name = "(.*)"', self.policy.read_text())
        assert measurement is not None
        assert rule is not None
        return f"{SIMULATED}{self.target} is attested: simulated {measurement[1]}, rule {rule[1]!r}\n"


def new_key(path: Path) -> Path:
    assert adyton("new-key", path).returncode == 0
    return path


@contextlib.contextmanager
def owned(folder: Path, *words: str | Path) -> Iterator[Owned]:
    """An enclave of the project in that folder, which is made if it is not there."""
    project, key, policy = folder / "project", folder / "owner.pem", folder / "policy.toml"
    if not project.exists():
        write_keeping_project(project, load_key(new_key(key)))
        policy.write_text(simulated_policy(project))
    with running(project, *words) as server:
        assert server.port, server.end()
        yield Owned(target=f"localhost:{server.port}", project=project, policy=policy, key=key)


@pytest.fixture(scope="module")
def enclave(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Owned]:
    with owned(tmp_path_factory.mktemp("owned")) as made:
        yield made


def test_put_rotate_and_list(enclave: Owned, tmp_path: Path) -> None:
    put = enclave.order("put", "db-password", value=VALUE)
    assert put.returncode == 0
    assert put.stderr == enclave.attested + NOTE
    assert re.fullmatch(r"db-password  version 1  20\d\d-\d\d-\d\dT[0-9:]{8}\+00:00\n", put.stdout)
    assert enclave.told("db-password") == VALUE.encode()

    (tmp_path / "value").write_bytes(bytes(range(256)) + b"\n")
    rotated = enclave.order("rotate", "db-password", "--from", tmp_path / "value")
    assert (rotated.returncode, rotated.stderr) == (0, LINE_FEED + enclave.attested + NOTE)
    assert "version 2" in rotated.stdout
    assert enclave.told("db-password") == bytes(range(256)) + b"\n"

    enclave.order("put", "a", "--from", "-", value=VALUE)
    listed = enclave.order("list")
    assert [line.split()[:3] for line in listed.stdout.splitlines()] == [
        ["a", "version", "1"],
        ["db-password", "version", "2"],
    ]
    document = json.loads(enclave.order("list", "--json").stdout)
    assert document["durable"] is False
    assert [sorted(each) for each in document["secrets"]] == [["changed_at", "name", "version"]] * 2
    assert VALUE not in put.stdout + put.stderr + listed.stdout


def test_a_value_that_is_typed_is_not_shown(enclave: Owned) -> None:
    terminal, inner = pty.openpty()
    command = [*COMMAND, "secrets", "put", enclave.target, "typed", *enclave.words]
    with subprocess.Popen(command, stdin=inner, stdout=inner, stderr=inner, start_new_session=True) as process:
        os.close(inner)
        shown = b""
        while b"value: " not in shown:
            shown += os.read(terminal, 1024)
        os.write(terminal, VALUE.encode() + b"\n")
        with contextlib.suppress(OSError):  # how the end of a terminal is read
            while more := os.read(terminal, 1024):
                shown += more
    os.close(terminal)
    assert (process.returncode, b"typed  version 1" in shown) == (0, True), shown
    assert VALUE.encode() not in shown
    assert enclave.told("typed") == VALUE.encode()


def test_the_enclaves_own_refusals(enclave: Owned) -> None:
    enclave.order("put", "there", value="x")
    again = enclave.order("put", "there", value="y")
    assert (again.returncode, again.stdout) == (ExitCode.FAILED, "")
    assert again.stderr.endswith("adyton secrets: ALREADY_EXISTS: the secret 'there' is there: rotate it\n")
    missing = enclave.order("rotate", "missing", value="y")
    assert missing.stderr.endswith("adyton secrets: NOT_FOUND: there is no secret 'missing' to rotate\n")
    assert enclave.told("there") == b"x"


@pytest.mark.parametrize("order", [("put", "mine"), ("list",), ("rotate-identity",)])
def test_a_key_that_is_no_owners(enclave: Owned, tmp_path: Path, order: tuple[str, ...]) -> None:
    words = ("--policy", enclave.policy, *ALLOW, "--key", new_key(tmp_path / "mine.pem"))
    done = adyton("secrets", order[0], enclave.target, *order[1:], *words, input="x")
    assert (done.returncode, done.stdout) == (ExitCode.FAILED, "")
    assert done.stderr.endswith(NOT_AN_OWNER)
    assert enclave.told("mine") == keeping.NOTHING


def test_nothing_of_grpcs_is_left_for_the_exit(enclave: Owned, tmp_path: Path) -> None:
    """As of `adyton call`: it could hang the process."""
    script = """if True:
        import gc, sys
        gc.disable()
        from adyton.cli.main import main
        code = main(["secrets", *sys.argv[1:]])
        import grpc
        left = [each for each in gc.get_objects() if issubclass(type(each), grpc.Call | grpc.Channel)]
        sys.exit(repr(left) if left else code)
    """
    words = [str(each) for each in (enclave.target, "--policy", enclave.policy, *ALLOW, "--key")]
    for key, code in ((enclave.key, 0), (new_key(tmp_path / "mine.pem"), ExitCode.FAILED)):
        command = [sys.executable, "-c", script, "list", *words, str(key)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, "object at" in done.stderr) == (code, False), done.stderr


@pytest.mark.parametrize(
    ("words", "value", "said"),
    [
        ((), "", "a secret has 1 to 65536 bytes; nothing was sent"),
        ((), "x" * 65537, "a secret has 1 to 65536 bytes; nothing was sent"),
        (("--from", "/nowhere/at/all"), "", "can't read the value: No such file or directory"),
        (("--from", "/"), "", "can't read the value: Is a directory"),
        (("--key", "/nowhere/at/all"), "x", "can't read /nowhere/at/all: No such file or directory"),
    ],
    ids=["empty", "too long", "no file", "a folder", "no key"],
)
def test_what_can_not_be_sent_is_said_before_anything_is(
    enclave: Owned, words: tuple[str, ...], value: str, said: str
) -> None:
    done = adyton("secrets", "put", "localhost:1", "name", *enclave.words, *words, input=value)
    assert (done.returncode, done.stdout, said in done.stderr) == (ExitCode.USAGE, "", True)


def test_an_enclave_of_other_code_gets_nothing(enclave: Owned, tmp_path: Path) -> None:
    """It would take any order, and tell."""
    project = write_keeping_project(tmp_path / "evil", load_key(enclave.key), application="Listening")
    with running(project) as evil:
        done = adyton("secrets", "put", f"localhost:{evil.port}", "a", *enclave.words, input=VALUE)
        assert (done.returncode, done.stdout) == (ExitCode.POLICY_REFUSED, "")
        assert "measurement" in done.stderr
        assert "is attested" not in done.stderr


def test_an_enclave_without_owners_says_how_to_have_some(enclave: Owned, tmp_path: Path) -> None:
    project, policy = write_keeping_project(tmp_path / "unowned"), tmp_path / "policy.toml"
    policy.write_text(simulated_policy(project))
    with running(project) as server:
        words = ("--policy", policy, *ALLOW, "--key", enclave.key)
        done = adyton("secrets", "list", f"localhost:{server.port}", *words)
    assert done.returncode == ExitCode.FAILED
    assert "UNIMPLEMENTED: Method not found! (an enclave takes orders if its enclave.toml has secrets.owners)" in (
        done.stderr
    )


def test_after_kill_9_all_is_as_it_was_until_the_owner_rotates(tmp_path: Path) -> None:
    """The CA that clients have, too."""
    state, authorities = tmp_path / "state", [tmp_path / f"{number}.pem" for number in range(4)]
    project, key, policy = tmp_path / "project", new_key(tmp_path / "owner.pem"), tmp_path / "policy.toml"
    write_keeping_project(project, load_key(key))
    policy.write_text(simulated_policy(project))

    def export(enclave: Owned, path: Path) -> None:
        assert adyton("export-ca", enclave.target, "--policy", policy, *ALLOW, "-o", path).returncode == 0

    with running(project, "--state", state) as server:
        first = Owned(target=f"localhost:{server.port}", project=project, policy=policy, key=key)
        assert NOTE not in first.order("put", "db-password", value=VALUE).stderr
        export(first, authorities[0])
        for child in children_of(server.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        eventually(lambda: server.process.poll() is not None, 20)
        assert server.end(None)[0] != 0
    with owned(tmp_path, "--state", state) as second:
        assert second.told("db-password") == VALUE.encode()
        export(second, authorities[1])
        rotated = second.order("rotate-identity", "-o", authorities[2])
        assert (rotated.returncode, rotated.stderr) == (0, f"{second.attested}wrote {authorities[2]}\n")
    with owned(tmp_path, "--state", state) as third:
        export(third, authorities[3])
    loaded = [x509.load_pem_x509_certificate(path.read_bytes()) for path in authorities]
    assert [loaded.index(each) for each in loaded] == [0, 0, 2, 2]
    keys = [each.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest for each in loaded]
    assert keys[0] != keys[2]


def test_the_key_of_the_new_ca_is_printed_also_where_its_file_can_not_be_written(tmp_path: Path) -> None:
    with owned(tmp_path) as enclave:
        done = enclave.order("rotate-identity", "-o", tmp_path / "nowhere" / "ca.pem")
    assert done.returncode == ExitCode.USAGE
    assert re.fullmatch(r"ca_sha256    [0-9a-f]{64}\nvalid_until  \S+\n", done.stdout)
    assert "the CA is another one all the same: `adyton export-ca` writes it" in done.stderr
