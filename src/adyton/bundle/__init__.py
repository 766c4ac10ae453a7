"""What is measured: the archive, enclave.toml, and the lock of the dependencies.

Host and enclave read the same three formats here, and nowhere else. Bytes in, values out, and no I/O but in
installed.py.
"""
