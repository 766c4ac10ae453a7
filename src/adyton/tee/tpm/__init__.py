"""TPM 2.0: quotes of a machine's PCRs, by an attestation key that a certificate or a pin vouches for."""
