"""The enclave as a machine of its own: its first process, and the hardware under it."""
