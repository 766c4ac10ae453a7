"""The virtual machine's launcher passes the shipped conformance kit."""

from __future__ import annotations

import pytest
from machines import boots

from adyton.testing.launchers import LauncherConformance

pytestmark = boots


class TestVirtualMachine(LauncherConformance):
    @pytest.fixture
    def technology(self) -> str:
        return "vm"
