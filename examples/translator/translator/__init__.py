"""A translation service, and the enclave application that serves it."""
