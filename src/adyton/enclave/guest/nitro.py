"""In a Nitro enclave: the sign of life that its parent waits for, and the way to it. Standard library only.

nitro-cli, which started the enclave, takes it for booted when it gets one byte over vsock and has sent it back; it
waits three minutes for that, or longer for a large image or much memory, and then takes the enclave down. AWS's init
sends it before it starts the application (aws-nitro-enclaves-sdk-bootstrap, init/init.c, `enclave_ready`).
"""

from __future__ import annotations

import socket

PARENT_CID = 3
READY_PORT = 9000
TRUNK_PORT = 9001
"""Where the parent's side of the trunk listens; ours to choose."""
HEARTBEAT = b"\xb7"
WAIT_SECONDS = 10.0
"""For the connection, and for the answer."""


def beat() -> None:
    """Tell the parent that this enclave has booted, and wait until it knows. Call it once, from PID 1.

    /dev must be there and the vsock transport loaded. Raises OSError if there is no parent, or it does not answer in
    time, or with another byte. What the parent says proves nothing, and nothing may depend on it but to go on or end.
    """
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as connection:
        exchange(connection, (PARENT_CID, READY_PORT))


def open_trunk() -> int:
    """The descriptor of a connection to the parent's side of the trunk. Raises OSError where nobody listens there."""
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as connection:
        connection.settimeout(WAIT_SECONDS)
        connection.connect((PARENT_CID, TRUNK_PORT))
        connection.setblocking(False)
        return connection.detach()


def exchange(connection: socket.socket, parent: tuple[object, ...] | str, *, seconds: float = WAIT_SECONDS) -> None:
    """Connect the socket to `parent`, an address of its family, and give and take the byte. See `beat`."""
    connection.settimeout(seconds)
    connection.connect(parent)
    connection.sendall(HEARTBEAT)
    answer = connection.recv(1)
    if answer != HEARTBEAT:
        raise ConnectionError(f"the parent answered the heartbeat with {answer.hex() or 'nothing'}")
