"""Where clients on the host reach the servers of a guest: one listener here for each of their ports there."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
from collections.abc import Callable

from adyton.errors import ConfigurationError, ControlProtocolError, LaunchError

#: Linux's first port of those that it chooses itself (ip_local_port_range).
FIRST_EPHEMERAL = 32768

#: Gives a listener to the trunk, which opens a stream to that port inside for each connection.
Forward = Callable[[socket.socket, int], None]


class HostPorts:
    """The listeners of one guest. `address` is where the enclave's configuration wants its server."""

    def __init__(self, address: str) -> None:
        self._host = address
        self._guard = threading.Lock()
        self._listeners: dict[int, list[socket.socket]] = {}
        self._forward: Forward | None = None

    def reserve(self, port: int) -> None:
        """Listen there already, so that nobody else can; 0 lets the system choose.

        Raises LaunchError if somebody does, ConfigurationError for what is no port.
        """
        if not 0 <= port < 65536:
            raise ConfigurationError(f"port {port} is none: it has to be below 65536, and not negative")
        with self._guard:
            self._listeners[port] = self._listen(port)

    def start(self, forward: Forward) -> None:
        """From now on connections are carried into the guest."""
        with self._guard:
            self._forward = forward
            for port, listeners in self._listeners.items():
                for each in listeners:
                    forward(each, port)

    def address_of(self, port: int) -> str:
        """Where `port` of the guest is reached: the same number if it is free here, else another.

        The guest chose it, so it is never one that means something on the host: only one that the host has reserved, or
        one that systems give to whoever asks for any. Raises ControlProtocolError for what is no port.
        """
        if not 0 < port < 65536:
            raise ControlProtocolError(f"the enclave says that it listens on port {port}, which is none")
        with self._guard:
            if port not in self._listeners:
                try:
                    self._listeners[port] = self._listen(port if port >= FIRST_EPHEMERAL else 0)
                except LaunchError:
                    self._listeners[port] = self._listen(0)
                if self._forward is not None:
                    for each in self._listeners[port]:
                        self._forward(each, port)
            return f"{self._shown_host()}:{self._listeners[port][0].getsockname()[1]}"

    def close(self) -> None:
        """Stop listening. Safe to call twice; what the trunk was given it closes itself."""
        with self._guard:
            if self._forward is None:
                for each in [each for listeners in self._listeners.values() for each in listeners]:
                    each.close()
            self._listeners.clear()

    def _shown_host(self) -> str:
        host = {"0.0.0.0": "localhost", "::": "localhost"}.get(self._host, self._host)  # noqa: S104
        return f"[{host}]" if ":" in host else host

    def _listen(self, port: int) -> list[socket.socket]:
        with contextlib.ExitStack() as on_failure:
            listeners: list[socket.socket] = []
            for family, address in self._resolve():
                number = listeners[0].getsockname()[1] if listeners else port
                try:
                    listener = on_failure.enter_context(socket.socket(family, socket.SOCK_STREAM))
                    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    if family == socket.AF_INET6:
                        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                    listener.bind((address, number))
                    listener.listen(128)
                except OSError as problem:
                    if problem.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT) and listeners:
                        continue  # a name with an address of IPv6 on a machine without it
                    raise LaunchError(f"port {port} of {self._host} can't be used: {problem.strerror}") from problem
                listeners.append(listener)
            on_failure.pop_all()
            return listeners

    def _resolve(self) -> list[tuple[int, str]]:
        """The families and addresses of the host's name, IPv4 first."""
        try:
            found = socket.getaddrinfo(self._host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except (OSError, UnicodeError) as problem:
            raise LaunchError(f"{self._host[:200]!r} is no address of this machine: {problem}") from problem
        addresses = dict.fromkeys((int(family), str(sockaddr[0])) for family, _, _, _, sockaddr in found)
        return sorted(addresses, key=lambda each: each[0] != socket.AF_INET)
