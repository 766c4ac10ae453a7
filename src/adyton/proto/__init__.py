"""The wire: the messages of the enclave model, the control protocol, and both ends of it."""
