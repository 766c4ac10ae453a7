"""What each TEE says and how it is believed: one folder a TEE, all of one shape, and none sees another.

`format.py` turns bytes into a frozen dataclass; `verify.py` says whether they are genuine, given roots and a time;
`device.py` runs inside the enclave only and asks the hardware. `registry.py` is the one place that knows all of them.
Whether genuine evidence is also *acceptable* is not decided here.
"""
