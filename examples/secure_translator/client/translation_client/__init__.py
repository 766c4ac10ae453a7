"""An enclave that has words translated by another one."""
