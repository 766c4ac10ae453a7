#!/usr/bin/env python3
"""The developer's one door: `python3 dev.py demo`, `python3 dev.py test`.

Standard library only. The first call makes a virtual environment in .venv from requirements/dev.lock, by hash; later
calls find it and need no network. Safe to run twice, and by two people at once.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
LOCK = ROOT / "requirements" / "dev.lock"
RUNTIME_LOCK = ROOT / "src" / "adyton" / "host" / "requirements.lock"
PYTHON = VENV / "bin" / "python"


def say(text: str) -> None:
    print(text, flush=True)


def fail(text: str, code: int = 2) -> None:
    print(f"dev.py: {text}", file=sys.stderr, flush=True)
    raise SystemExit(code)


@contextmanager
def step(title: str) -> Iterator[None]:
    """Print what begins and how long it took: on one line of a terminal, on two plain lines elsewhere."""
    terminal = sys.stdout.isatty()
    print(f"  … {title}", end="" if terminal else "\n", flush=True)
    begun = time.monotonic()
    yield
    print(f"{chr(13) if terminal else ''}  ✓ {title} ({time.monotonic() - begun:.1f} s)", flush=True)


def run_quietly(*command: str | Path) -> None:
    """Run a command; show what it printed only if it failed."""
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        sys.stdout.write("\n" + done.stdout)
        fail(f"`{' '.join(map(str, command))}` failed with exit code {done.returncode}", 1)


def set_up() -> None:
    """Make .venv what the lock file says, unless it is already."""
    if sys.version_info < (3, 11):
        fail(f"Python 3.11 or later is needed; this is {sys.version.split()[0]}. Debian, Ubuntu: apt install python3")
    packages = digest(LOCK.read_bytes(), f"{sys.version}{ROOT}".encode())
    package = digest((ROOT / "pyproject.toml").read_bytes())
    with (ROOT / ".venv.lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        if stamped("packages") != packages:
            say("Setting up .venv (once)")
            shutil.rmtree(VENV, ignore_errors=True)
            with step("virtual environment"):
                make_venv()
            with step("packages, by hash, from requirements/dev.lock"):
                run_quietly(PYTHON, "-m", "pip", "install", "--quiet", "--require-hashes", "-r", LOCK)
            stamp("packages", packages)
        if stamped("package") != package:
            with step("adyton itself"):
                options = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation")
                run_quietly(PYTHON, "-m", "pip", "install", *options, "-e", ROOT)
            stamp("package", package)


def digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def stamped(what: str) -> str:
    file = VENV / f"adyton-{what}"
    return file.read_text() if file.is_file() else ""


def stamp(what: str, value: str) -> None:
    (VENV / f"adyton-{what}").write_text(value)


def make_venv() -> None:
    try:
        import ensurepip  # noqa: F401  Debian ships venv without it
        import venv  # noqa: F401
    except ImportError:
        fail("python3 can't make a virtual environment here. Debian, Ubuntu: apt install python3-venv")
    run_quietly(sys.executable, "-m", "venv", VENV)


PROGRAMS = {
    "bwrap": "bubblewrap",
    "qemu-system-aarch64": "qemu-system-arm",
    "qemu-system-x86_64": "qemu-system-x86",
    "swtpm": "swtpm",
    "/usr/share/ovmf/OVMF.fd": "ovmf",
}
"""What some tests run or read, and the package of Debian and Ubuntu that has it; without it, those are skipped."""


def install_programs() -> None:
    """Install them where that is allowed, and otherwise say the line that does."""
    missing = [each for program, each in PROGRAMS.items() if not shutil.which(program) and not Path(program).exists()]
    if not missing:
        return
    names = " ".join(missing)
    line = f"apt-get update && apt-get install --yes --no-install-recommends {names}"
    if os.geteuid() == 0 and shutil.which("apt-get"):
        with step(f"{names}, from the distribution"):
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            done = subprocess.run(["sh", "-c", line], check=False, **quiet)  # type: ignore[call-overload]
        if done.returncode == 0:
            return
    say(f"  - not installed, so that the tests that need it are skipped: {names}; as root: {line}")


def tool(*arguments: str | Path) -> int:
    return subprocess.run([PYTHON, *arguments], cwd=ROOT, check=False).returncode


def check() -> int:
    """Everything that reads the code without running it."""
    checks: list[tuple[str, tuple[str, ...]]] = [
        ("ruff check", ("-m", "ruff", "check", "--quiet")),
        ("ruff format", ("-m", "ruff", "format", "--quiet", "--check")),
        ("mypy --strict", ("-m", "mypy", "--no-error-summary")),
        ("floors (import-linter)", ("-c", "from importlinter.cli import lint_imports_command as c; c()", "--no-cache")),
        ("generated code is current", ("tools/generate_protos.py", "--check")),
    ]
    failed = 0
    for title, command in checks:
        with step(title):
            done = subprocess.run(
                [PYTHON, *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
            )
        if done.returncode:
            failed += 1
            say(f"{done.stdout}\n  ✗ {title}")
    return failed


def test(arguments: argparse.Namespace) -> int:
    set_up()
    install_programs()
    say("Checks")
    failed = check()
    say("Tests")
    selection = ["-m", "not slow"] if arguments.fast else []
    code = run_tests(*selection, *arguments.rest)
    if failed:
        fail(f"{failed} of the checks above failed", 1)
    return code


MOST_TRIED_AGAIN = 5


def run_tests(*options: str) -> int:
    """Two at a time. A few that fail run once more, alone: real processes on a busy machine may miss a deadline.

    They are named at the end whatever comes of it, for one that fails now and then may have found something.
    """
    with tempfile.TemporaryDirectory(prefix="adyton-tests-") as cache:
        pytest = ("-m", "pytest", "-q", "-o", f"cache_dir={cache}", *options)
        code = tool(*pytest, "-n", "2", "--dist", "worksteal")
        record = Path(cache, "v/cache/lastfailed")
        failed = list(json.loads(record.read_text())) if code == 1 and record.is_file() else []
        if not 0 < len(failed) <= MOST_TRIED_AGAIN:
            return code
        say(f"Tests that failed, alone: {len(failed)}")
        code = tool(*pytest, "-p", "no:xdist", "--last-failed")
    say("\n  ".join(("These failed among the others; look at them even if they passed alone:", *failed)))
    return code


def guards(arguments: argparse.Namespace) -> int:
    set_up()
    return tool("tools/guards.py", *arguments.labels)


TRUSTED = "*/adyton/tee/*/format.py,*/adyton/tee/*/verify.py,*/adyton/policy/*"
"""What a client must trust: every branch of it is taken by the unit and property tests."""


def coverage(_: argparse.Namespace) -> int:
    set_up()
    pytest = ("-m", "pytest", "-q", "-p", "no:xdist", "tests/unit", "tests/property")
    code = tool("-m", "coverage", "run", "--data-file=build/coverage", *pytest)
    report = ("--data-file=build/coverage", "--show-missing", "--skip-covered", "--fail-under=100")
    return code or tool("-m", "coverage", "report", *report, f"--include={TRUSTED}")


BENCHMARKS = ("evidence", "channel", "sealing", "vm")


def bench(arguments: argparse.Namespace) -> int:
    set_up()
    which = (arguments.which,) if arguments.which else BENCHMARKS
    return max(tool(f"benchmarks/{each}.py", *arguments.rest) for each in which)


def setup(_: argparse.Namespace) -> int:
    set_up()
    return 0


def demo(arguments: argparse.Namespace) -> int:
    set_up()
    if "vm" in arguments.rest:
        install_programs()
    return tool("examples/translator/demo.py", *arguments.rest)


def lock(arguments: argparse.Namespace) -> int:
    """Make the lock files anew from the .in files, with uv, in a virtual environment of its own."""
    set_up()
    scratch = ROOT / "build" / "lock-venv"
    run_quietly(sys.executable, "-m", "venv", scratch)
    run_quietly(scratch / "bin" / "python", "-m", "pip", "install", "--quiet", "uv")
    locks = {"runtime": RUNTIME_LOCK, "build": LOCK.with_name("build.lock"), "dev": LOCK}
    for name, output in locks.items():
        with step(str(output.relative_to(ROOT))):
            options = ("--universal", "--python-version", "3.11", "--generate-hashes", "--no-annotate", "--no-header")
            upgrade = ("--upgrade",) if arguments.upgrade else ()
            source = ROOT / "requirements" / f"{name}.in"
            run_quietly(scratch / "bin" / "uv", "pip", "compile", "-q", *options, *upgrade, "-o", output, source)
    shutil.copy(RUNTIME_LOCK, ROOT / "examples/translator/requirements.lock")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="dev.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)

    def verb(name: str, text: str, action: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=text)
        made.set_defaults(action=action)
        return made

    verb("demo", "the translator in an enclave, step by step", demo)
    testing = verb("test", "every check and every test", test)
    testing.add_argument("--fast", action="store_true", help="leave out the tests marked slow")
    guarding = verb("guards", "take out each guard of the verifiers: does a forgery notice?", guards)
    guarding.add_argument("labels", nargs="*", metavar="LABEL", help="of a TEE; all of them if none is named")
    verb("coverage", "every branch of what a client must trust, by the unit and property tests", coverage)
    benching = verb(
        "bench", "verifiers and sealing beside bare libraries, the channel beside TLS, a VM beside a bare boot", bench
    )
    benching.add_argument("which", nargs="?", choices=BENCHMARKS, help="all, if none is named")
    verb("setup", "only make .venv", setup)
    locking = verb("lock", "make the lock files anew", lock)
    locking.add_argument("--upgrade", action="store_true", help="take newer versions")
    arguments, rest = parser.parse_known_args()
    if rest and arguments.verb not in ("test", "demo", "bench"):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    arguments.rest = rest
    os.chdir(ROOT)
    code: int = arguments.action(arguments)
    return code


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
