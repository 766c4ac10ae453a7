"""Intel TDX: the report of a trust domain, a virtual machine, quoted by Intel's quoting enclave (DCAP)."""
