"""Label → genuine and forged evidence of that TEE, for whoever does the same with all of them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Final

from adyton.testing.forgery import Case, Forgery

_VENDORS: Final[Mapping[str, tuple[str, str]]] = {
    "sgx": ("dcap", "DcapVendor"),
    "tdx": ("dcap", "DcapVendor"),
    "snp": ("snp", "SnpVendor"),
    "nitro": ("nitro", "NitroVendor"),
    "tpm": ("tpm", "TpmVendor"),
    "azure": ("azure", "AzureVendor"),
    "cca": ("cca", "CcaVendor"),
    "psa": ("psa", "PsaVendor"),
    "simulated": ("simulated", "SimulatedVendor"),
}
_FORGERIES: Final[Mapping[str, tuple[str, str]]] = {
    "sgx": ("dcap_forgeries", "SGX_FORGERIES"),
    "tdx": ("dcap_forgeries", "TDX_FORGERIES"),
}


def genuine(label: str) -> Case:
    """Evidence that the TEE's verifier believes, under a vendor of our own."""
    module, name = _VENDORS[label]
    vendor = _attribute(module, name)()
    case: Case = vendor.case(label) if module == "dcap" else vendor.case()
    return case


def forgeries(label: str) -> Mapping[str, Forgery]:
    """Evidence that it refuses, by what is wrong."""
    found: Mapping[str, Forgery] = _attribute(*_FORGERIES.get(label, (label, "FORGERIES")))
    return found


def _attribute(module: str, name: str) -> Any:
    return getattr(importlib.import_module(f"adyton.testing.{module}"), name)
