"""What is remembered of KVM: read as the answer of a file that anybody may have spoilt."""

from __future__ import annotations

import dataclasses
import platform
from pathlib import Path

import pytest

from adyton.host.image.image import Image
from adyton.host.launch.qemu import accelerator

IMAGE = Image(
    architecture=platform.machine(),
    bundle_sha256=bytes(32),
    kernel=Path("kernel"),
    system=Path("system"),
    application=Path("application"),
    kernel_version="6.1",
)


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where it is remembered; with a /dev/kvm that boots, as far as this module is told."""
    path = tmp_path / "cache" / "accelerator"
    monkeypatch.setattr(accelerator, "_memory", lambda: path)
    monkeypatch.setattr(accelerator, "why_closed", lambda _: "")
    monkeypatch.setattr(accelerator, "_boots", lambda _: True)
    return path


def test_it_is_tried_once(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert accelerator.known_accelerator() == "KVM is tried at the first start"
    assert accelerator.choose_accelerator(IMAGE) == "kvm"
    monkeypatch.setattr(accelerator, "_boots", lambda _: False)
    assert accelerator.choose_accelerator(IMAGE) == "kvm"
    assert accelerator.known_accelerator() == "KVM boots a kernel"
    assert [each.name for each in memory.parent.iterdir()] == ["accelerator"]


@pytest.mark.parametrize("rubbish", [b"", b"\xff\xfe", b"xen", b"kv"], ids=ascii)
def test_what_is_no_answer_is_not_believed(memory: Path, rubbish: bytes) -> None:
    memory.parent.mkdir()
    memory.write_bytes(rubbish)
    assert accelerator.known_accelerator() == "KVM is tried at the first start"
    assert accelerator.choose_accelerator(IMAGE) == "kvm"
    assert memory.read_text() == "kvm"


def test_a_memory_that_can_not_be_kept_is_tried_again(memory: Path) -> None:
    memory.mkdir(parents=True)  # in its way
    assert accelerator.choose_accelerator(IMAGE) == "kvm"
    assert [each.name for each in memory.parent.iterdir()] == ["accelerator"]


def test_another_processors_kernel_is_emulated(memory: Path) -> None:
    assert accelerator.choose_accelerator(dataclasses.replace(IMAGE, architecture="other")) == "tcg"
    assert not memory.exists()
