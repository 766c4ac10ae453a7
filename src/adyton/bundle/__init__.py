"""What is measured: the archive, enclave.toml, and the lock of the dependencies.

Host and enclave read the same three formats here, and nowhere else. No I/O: bytes in, values out.
"""
