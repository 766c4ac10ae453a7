"""A client of the translator in a virtual machine, with the policy that the commands print."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import command_line
import pytest
from machines import boots
from translator import translator_pb2, translator_pb2_grpc

import adyton
import adyton.aio
from adyton.atls.attestation import Attestation
from adyton.errors import ExitCode, PolicyError

TRANSLATOR = Path(__file__).parents[2] / "examples" / "translator"
WORD = translator_pb2.GetTranslationRequest(input_word="asylo")
SECONDS = 90.0

pytestmark = [*boots, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def project(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The translator, built for virtual machines."""
    folder = tmp_path_factory.mktemp("project") / "translator"
    shutil.copytree(TRANSLATOR, folder, ignore=shutil.ignore_patterns("dist", "image.lock"))
    built = command_line.adyton("build", folder, "--for", "vm")
    if built.returncode == ExitCode.UNSUPPORTED_HERE:
        pytest.skip(f"the image's packages can't be had: {built.stderr}")
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture(scope="module")
def target(project: Path) -> Iterator[str]:
    """Where it runs, in a machine."""
    with command_line.running(project, "--on", "vm") as started:
        assert started.port, started.end()
        yield f"localhost:{started.port}"


@pytest.fixture(scope="module")
def policy(project: Path, target: str) -> Path:
    """What the command prints of it, once this machine has made TPMs."""
    printed = command_line.adyton("policy", project / "dist" / "measurements.json")
    assert printed.returncode == 0, printed.stderr
    path = project / "policy.toml"
    path.write_text(printed.stdout)
    return path


def check(attestation: Attestation | None, project: Path) -> None:
    """That the record is of the machine that was built."""
    assert attestation is not None
    record = json.loads(json.dumps(attestation.record()))
    measurements = json.loads((project / "dist" / "measurements.json").read_text())
    assert (record["tee"], record["level"], record["insecurities"]) == ("tpm", "connection", [])
    assert record["tcb"].startswith("a virtual TPM, which its host controls; firmware 0x")
    assert record["rule"] == f"translator {measurements['bundle_sha256'][:12]} on tpm"


def test_a_client_with_threads_attests_the_machine(target: str, policy: Path, project: Path) -> None:
    with adyton.connect(target, policy, timeout=SECONDS) as channel:
        stub = translator_pb2_grpc.TranslatorStub(channel)
        assert stub.GetTranslation(WORD, timeout=SECONDS).translated_word == "sanctuary"
        check(channel.attestation, project)


def test_a_client_on_asyncio_attests_the_machine(target: str, policy: Path, project: Path) -> None:
    async def run() -> None:
        async with adyton.aio.connect(target, policy, timeout=SECONDS) as channel:
            stub = translator_pb2_grpc.TranslatorStub(channel)
            answer = await stub.GetTranslation(WORD, timeout=SECONDS)
            assert answer.translated_word == "sanctuary"
            check(channel.attestation, project)

    asyncio.run(run())


def test_a_policy_of_the_same_bundle_as_a_process_refuses_the_machine(
    target: str, project: Path, tmp_path: Path
) -> None:
    bundled = command_line.adyton("build", project, "-o", tmp_path)
    assert bundled.returncode == 0, bundled.stderr
    printed = command_line.adyton("policy", tmp_path / "measurements.json")
    with pytest.raises(PolicyError, match="tpm"):
        adyton.connect(target, printed.stdout.encode(), timeout=SECONDS, allow_insecure=["simulated"])
