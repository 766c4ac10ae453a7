"""A policy for tests: it accepts one bundle, in the simulation of this machine."""

from __future__ import annotations

import json

from cryptography.hazmat.primitives import hashes

from adyton.host.bundles import Bundle
from adyton.policy.document import Policy
from adyton.policy.reference_values import policy_for
from adyton.tee.simulated.platform import SimulatedPlatform


def simulation_policy(bundle: Bundle, *, channel: str = "") -> Policy:
    """What `adyton policy` would print for that bundle here; `channel` is the text of a [channel] table's keys.

    Give it to `adyton.connect` with `allow_insecure=["simulated"]`.
    """
    anchor = SimulatedPlatform.open().root.fingerprint(hashes.SHA256())
    text = policy_for(json.dumps(bundle.measurements()).encode(), {"simulated": anchor})
    return Policy.parse(f"{text}\n[channel]\n{channel}\n".encode())
