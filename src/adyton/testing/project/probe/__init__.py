"""Enclave applications that do as they are told: for adyton.testing's conformance kits and Adyton's own tests."""
