"""Every launcher passes the shipped conformance kit."""

from __future__ import annotations

import pytest

from adyton.host.launch import registry
from adyton.host.launch.namespaces import why_no_namespaces
from adyton.host.launch.process import ProcessLauncher
from adyton.testing.launchers import LauncherConformance


class WithoutNamespaces(ProcessLauncher):
    def __init__(self) -> None:
        super().__init__(namespaces=False)


class WithNamespaces(ProcessLauncher):
    def __init__(self) -> None:
        super().__init__(namespaces=True)


class TestProcess(LauncherConformance):
    @pytest.fixture
    def technology(self, monkeypatch: pytest.MonkeyPatch) -> str:
        monkeypatch.setitem(registry.LAUNCHERS, "under-test", f"{__name__}:WithoutNamespaces")
        return "under-test"


@pytest.mark.skipif(bool(why_no_namespaces()), reason=why_no_namespaces())
class TestProcessInNamespaces(LauncherConformance):
    @pytest.fixture
    def technology(self, monkeypatch: pytest.MonkeyPatch) -> str:
        monkeypatch.setitem(registry.LAUNCHERS, "under-test", f"{__name__}:WithNamespaces")
        return "under-test"
