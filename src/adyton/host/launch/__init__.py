"""Ways to start an enclave: one file a technology, all behind launcher.py's interface, named in registry.py."""
