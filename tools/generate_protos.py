"""Make the *_pb2 files from the .proto files: of the package, of the examples, and of the tests.

`python tools/generate_protos.py` writes them; `--check` says whether the committed ones are what it would write.
"""

from __future__ import annotations

import argparse
import importlib.resources
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("enclave", "grpc_application", "control", "evidence", "attestation", "keeper", "secrets", "key_release")
OWN = [f"adyton/proto/{name}.proto" for name in NAMES]
#: (folder that imports start from, .proto files below it, whether services are in them)
SOURCES: list[tuple[str, list[str], bool]] = [
    ("src", OWN, False),
    ("examples/translator", ["translator/translator.proto"], True),
    ("examples/secure_translator/client", ["translation_client/translation_client.proto"], False),
    ("src/adyton/testing/project", ["probe/probe.proto"], True),
]


def generate(folder: str, protos: list[str], services: bool, out: Path) -> None:
    well_known = importlib.resources.files("grpc_tools") / "_proto"
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / folder}", f"-I{well_known}"]
    if folder != "src":
        command.append(f"-I{ROOT / 'src'}")
    command += [f"--python_out={out}", f"--mypy_out=quiet:{out}"]
    if services:
        command += [f"--grpc_python_out={out}", f"--mypy_grpc_out=quiet:{out}"]
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    subprocess.run([*command, *protos], check=True, env=environment, cwd=ROOT)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a committed file differs")
    check: bool = parser.parse_args().check
    stale = []
    for folder, protos, services in SOURCES:
        if not (ROOT / folder).is_dir():
            continue
        with tempfile.TemporaryDirectory() as scratch:
            out = Path(scratch) if check else ROOT / folder
            generate(folder, protos, services, out)
            if check:
                made = (path for path in out.rglob("*") if path.is_file())
                stale += [
                    f"{folder}/{path.relative_to(out)}"
                    for path in made
                    if not (target := ROOT / folder / path.relative_to(out)).is_file()
                    or target.read_bytes() != path.read_bytes()
                ]
    for name in stale:
        print(f"{name} is not what its .proto says: run `python tools/generate_protos.py`")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
