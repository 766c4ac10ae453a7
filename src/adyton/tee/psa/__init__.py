"""Arm PSA: tokens of a root of trust on TrustZone (RFC 9783). No vendor has a root; each device's key is pinned."""
