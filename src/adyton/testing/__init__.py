"""Shipped test support: conformance kits, forged evidence, and applications that do as they are told."""
