"""Channels that are open when the interpreter ends.

gRPC keeps a thread for a channel whose client signs by itself, and Python waits for that thread before it runs any
other hook. A program that forgets to close a channel would never end.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import grpc
    import grpc.aio

_open: weakref.WeakSet[grpc.Channel | grpc.aio.Channel] = weakref.WeakSet()


def close_when_leaving(channel: grpc.Channel | grpc.aio.Channel) -> None:
    """Close the channel when the main thread has ended, if nobody has closed it by then."""
    _open.add(channel)
    _watch()


@functools.cache
def _watch() -> None:
    # Not a daemon: Python waits for it too, and by then the main thread has ended for all others.
    threading.Thread(target=_close_all, name="atls-leaving", daemon=False).start()


def _close_all() -> None:
    threading.main_thread().join()
    for channel in list(_open):
        closing = channel.close()
        if closing is not None:  # a coroutine, whose event loop is over; without calls under way it needs none
            with contextlib.suppress(Exception, StopIteration):
                closing.send(None)
            closing.close()
