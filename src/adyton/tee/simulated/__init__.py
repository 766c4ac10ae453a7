"""The simulation TEE, mark *simulation*: it protects from nothing, and has exactly the shape of those that do.

`format`, `signature` and `verify` are what a client runs, `device` what the enclave runs. `platform`, with
`certificates` and `root_file`, plays the vendor and the hardware on the host: whoever can read the host's memory or
the root's file can sign any measurement. A client believes it only if it was given that machine's root.
"""
