"""Intel SGX: an enclave's report, quoted by Intel's quoting enclave (DCAP)."""
