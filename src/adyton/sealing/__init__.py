"""Secrets that only this code on this TEE can read again: sealed data, a durable store, files."""
