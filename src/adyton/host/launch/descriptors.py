"""What a launcher opens for an enclave, so that nothing stays open whatever fails."""

from __future__ import annotations

import contextlib
import os
import socket

from adyton.host.launch.launcher import LaunchRequest
from adyton.host.launch.log_pump import open_log


def socket_pair(on_failure: contextlib.ExitStack, always: contextlib.ExitStack) -> tuple[socket.socket, socket.socket]:
    """The host's end, closed on failure, and the enclave's, which the host closes in any case."""
    mine, theirs = socket.socketpair()
    on_failure.callback(mine.close)
    always.callback(theirs.close)
    return mine, theirs


def request_log(request: LaunchRequest, always: contextlib.ExitStack) -> int | None:
    """The file that the host wants the enclave's log in as well. Raises LaunchError."""
    if request.log_directory is None:
        return None
    descriptor = open_log(request.log_directory / f"{request.name}.log")
    always.callback(os.close, descriptor)
    return descriptor
