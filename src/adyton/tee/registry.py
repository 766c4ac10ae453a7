"""Evidence label → TEE: the one place that knows all TEEs, and imports none of them until it is asked to."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from adyton.errors import UnsupportedError
from adyton.tee.evidence import Verifier
from adyton.tee.steps import Step

Mark = Literal["hardware-run", "emulated", "vector-verified", "simulation"]
"""How far a TEE's support has been shown to work; each mark is earned by a test that anyone can run."""

_LABEL_SHOWN_CHARACTERS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Tee:
    """One TEE. What needs its code is a method, and imports that code when called.

    `module` is its package; `name` is what its functions are called by: `parse_snp` in `format`, `verify_snp` in
    `verify`.
    """

    label: str
    title: str
    mark: Mark
    module: str
    name: str

    def verifier(self) -> Verifier:
        """Decides whether evidence is genuine."""
        verify: Verifier = getattr(self._import("verify"), f"verify_{self.name}")
        return verify

    def parser(self) -> Callable[[bytes], Any]:
        """Bytes → a frozen dataclass, or `EvidenceError`."""
        parse: Callable[[bytes], Any] = getattr(self._import("format"), f"parse_{self.name}")
        return parse

    def steps(self) -> tuple[Step, ...]:
        """The steps that the verifier goes through, in order."""
        steps: tuple[Step, ...] = self._import("verify").STEPS
        return steps

    def anchors(self) -> frozenset[bytes]:
        """The vendor's pinned roots, as SHA-256; empty where whoever relies on the evidence must name their own."""
        anchors: frozenset[bytes] = self._import("verify").ANCHORS
        return anchors

    def _import(self, part: str) -> Any:
        return importlib.import_module(f"adyton.tee.{self.module}.{part}")


def _tee(label: str, title: str, mark: Mark) -> Tee:
    name = label.replace("-", "_")
    return Tee(label=label, title=title, mark=mark, module=name, name=name)


TEES: Mapping[str, Tee] = MappingProxyType(
    {
        known.label: known
        for known in (
            _tee("sgx", "Intel SGX", "vector-verified"),
            _tee("tdx", "Intel TDX", "vector-verified"),
            _tee("snp", "AMD SEV-SNP", "vector-verified"),
            _tee("nitro", "AWS Nitro Enclaves", "vector-verified"),
            _tee("tpm", "TPM 2.0", "emulated"),
            _tee("azure", "Azure confidential VM (SEV-SNP or TDX with a vTPM)", "vector-verified"),
            _tee("cca", "Arm CCA", "vector-verified"),
            _tee("psa", "Arm PSA (TrustZone)", "vector-verified"),
            _tee("simulated", "simulation", "simulation"),
        )
    }
)
"""All that this build can verify, by the label that evidence carries on the wire."""


def tee(label: str) -> Tee:
    """The TEE of that label, which may come from the wire. Another label is an `UnsupportedError` that lists all."""
    try:
        return TEES[label]
    except KeyError:
        shown = label[:_LABEL_SHOWN_CHARACTERS]
        raise UnsupportedError(f"no verifier for evidence of {shown!r}; known are: {', '.join(sorted(TEES))}") from None
