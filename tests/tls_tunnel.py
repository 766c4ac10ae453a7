"""gRPC over TLS that its own client would not speak: gRPC without TLS to a Unix socket here, TLS from here on."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

CHUNK = 65536


@contextlib.contextmanager
def tunnel(port: int, context: ssl.SSLContext, server_name: str | None, folder: Path) -> Iterator[str]:
    """A target for gRPC, for as long as the context lasts. Its first connection is passed on, with that TLS."""
    path = folder / "tunnel"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        thread = threading.Thread(target=_carry, args=(listening, port, context, server_name))
        thread.start()
        try:
            yield f"unix:{path}"
        finally:
            thread.join()


def _carry(listening: socket.socket, port: int, context: ssl.SSLContext, server_name: str | None) -> None:
    near, _ = listening.accept()
    with (
        near,
        contextlib.suppress(OSError),
        socket.create_connection(("127.0.0.1", port), 10) as plain,
        context.wrap_socket(plain, server_hostname=server_name) as far,
    ):
        _join(near, far)


def _join(near: socket.socket, far: ssl.SSLSocket) -> None:
    while True:
        readable = [far] if far.pending() else select.select([near, far], [], [])[0]
        for source in readable:
            data = source.recv(CHUNK)
            if not data:
                return
            (far if source is near else near).sendall(data)
