"""What no policy accepts alone: the caller who appraises must have agreed to it too, by name."""

from __future__ import annotations

import enum


class Insecurity(enum.StrEnum):
    """A property of evidence with which the TEE does not protect as it should."""

    SIMULATED = "simulated"
    """No hardware protects anything."""
    DEBUG = "debug"
    """The host can read and change the enclave's memory."""
    OUT_OF_DATE = "out-of-date"
    """The platform lacks fixes for known vulnerabilities, or was started before it had them."""
    MIGRATABLE = "migratable"
    """An agent outside the measurement can copy the enclave elsewhere."""
    REVOCATION_UNKNOWN = "revocation-unknown"
    """No revocation list was at hand for the vendor's intermediate certificate."""
