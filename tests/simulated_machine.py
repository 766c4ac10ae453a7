"""One machine of the simulation, on which enclaves ask for sealing keys; a SealingWorld."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import threading
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from adyton.tee.sealing import SealPolicy
from adyton.tee.simulated.platform import SimulatedPlatform
from adyton.tee.simulated.sealing import SimulatedSealing
from adyton.tee.simulated.sealing_platform import serve_sealing
from adyton.tee.simulated.signed_code import sign_code, verify_signed_code


class SimulatedMachine(contextlib.ExitStack):
    """A platform with its root and registers in a folder, and signers by name."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._directory = directory
        self._platform = SimulatedPlatform.open(directory)
        self._signers: dict[str, ec.EllipticCurvePrivateKey] = {}

    def source(self, *, code: str = "a", signer: str = "s", version: int = 1, tcb: int = 1) -> SimulatedSealing:
        """As SealingWorld says."""
        measurement = hashlib.sha384(code.encode()).digest()
        key = self._signers.setdefault(signer, ec.generate_private_key(ec.SECP256R1()))
        signed = json.dumps(sign_code(key, product="p", version=version, measurement=measurement)).encode()
        hardware = self._platform.sealing(measurement, signed=verify_signed_code(signed), tcb=tcb)
        inside, outside = map(self.enter_context, socket.socketpair())
        threading.Thread(target=serve_sealing, args=(hardware, outside), daemon=True).start()
        return SimulatedSealing(inside)

    def signer(self, name: str) -> bytes:
        """What names that signer."""
        return self.source(signer=name).current(SealPolicy.SIGNER).subject

    def elsewhere(self) -> SimulatedMachine:
        """As SealingWorld says."""
        return self.enter_context(SimulatedMachine(self._directory / "elsewhere"))
