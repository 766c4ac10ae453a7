"""Hardware that is not there, put into the files of a real guest's kernel, where the enclave's runtime finds it.

This is part of the bundles that test_guest_devices.py makes, and runs inside them as root, beside PID 1.
"""
