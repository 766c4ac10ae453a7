"""Emulations of the parts of Linux that give evidence, down to files and ioctls, for the tests of devices.

    kernel = EmulatedKernel(Tsm(provider="sev_guest", quote=...))
    with kernel:
        SnpDevice(kernel=kernel).collect_evidence(...)

They keep the traps of the real ones, and fail a test for what the real ones would take with a shrug: a file or a
directory that was left behind, a second write where one counts.
"""
