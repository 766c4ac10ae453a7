"""Enclaves in virtual machines of QEMU."""
