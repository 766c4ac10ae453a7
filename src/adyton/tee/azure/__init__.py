"""Azure confidential VMs: a vTPM inside the paravisor, whose attestation key an SEV-SNP or TDX report vouches for."""
