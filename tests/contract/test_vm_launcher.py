"""The virtual machine's launcher passes the shipped conformance kit."""

from __future__ import annotations

import pytest

from adyton.testing.launchers import LauncherConformance


class TestVirtualMachine(LauncherConformance):
    @pytest.fixture
    def technology(self) -> str:
        return "vm"
