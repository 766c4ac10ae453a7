"""AWS Nitro Enclaves."""
