"""Channels that are open when the interpreter ends.

gRPC keeps a thread for a channel whose client signs by itself, and Python waits for that thread before it runs any
other hook. A program that forgets to close a channel would never end.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import grpc
    import grpc.aio

_open: weakref.WeakSet[grpc.Channel | grpc.aio.Channel] = weakref.WeakSet()
_left = threading.Event()


def close_when_leaving(channel: grpc.Channel | grpc.aio.Channel) -> None:
    """Close the channel when every thread has ended that Python waits for, if nobody has closed it by then."""
    _open.add(channel)
    _watch()
    if _left.is_set():
        _close(channel)


@functools.cache
def _watch() -> None:
    # Not a daemon: Python waits for it too, and by then the main thread has ended for all others.
    with contextlib.suppress(RuntimeError):  # the interpreter is ending already, and starts no thread
        threading.Thread(target=_close_all, name="atls-leaving", daemon=False).start()


def _close_all() -> None:
    threading.main_thread().join()
    while working := [thread for thread in threading.enumerate() if _is_of_the_program(thread)]:
        working[0].join()
    _left.set()
    for channel in list(_open):
        _close(channel)


def _close(channel: grpc.Channel | grpc.aio.Channel) -> None:
    closing = channel.close()
    if closing is not None:  # a coroutine, whose event loop is over; without calls under way it needs none
        with contextlib.suppress(Exception, StopIteration):
            closing.send(None)
        closing.close()


def _is_of_the_program(thread: threading.Thread) -> bool:
    """Whether Python waits for the thread, and it is neither this one nor gRPC's for a signer."""
    of_grpc = (getattr(getattr(thread, "_target", None), "__module__", None) or "").startswith("grpc.")
    ours = (threading.main_thread(), threading.current_thread())
    return not (thread.daemon or of_grpc or thread in ours)


# A forked child has none of its parent's threads, and its channels are of no use to it.
os.register_at_fork(after_in_child=_open.clear)
os.register_at_fork(after_in_child=_watch.cache_clear)
