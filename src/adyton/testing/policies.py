"""A policy for tests: it accepts one bundle, as a launcher of this machine starts it."""

from __future__ import annotations

import json

from adyton.host.bundles import Bundle
from adyton.host.launch.registry import launcher
from adyton.policy.document import Policy
from adyton.policy.reference_values import policy_for


def launcher_policy(bundle: Bundle, *, on: str = "process", channel: str = "") -> Policy:
    """What `adyton policy` would print for that bundle here; `channel` is the text of a [channel] table's keys.

    Of the simulation: give it to `adyton.connect` with `allow_insecure=["simulated"]`.
    """
    starting = launcher(on)
    text = policy_for(json.dumps(starting.measurements(bundle)).encode(), starting.anchors())
    return Policy.parse(f"{text}\n[channel]\n{channel}\n".encode())
