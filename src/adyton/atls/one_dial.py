"""Holding gRPC to one TCP connection for a channel.

gRPC reconnects by itself, and what it reaches then nobody has attested: whoever has the enclave's TLS key could cut an
attested connection and be that. So gRPC may not dial again. It asks a *socket mutator* about each socket before it
connects it; ours agrees once.

`grpc.socket_mutator` is one of gRPC's public channel arguments. Its C structure is not in a public header, so
`check_used` makes sure after the first connection that gRPC has really asked, and a test that it obeys.
"""

from __future__ import annotations

import ctypes
import threading
from typing import Final

from adyton.errors import UnsupportedError

_MUTATE: Final = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_int, ctypes.c_void_p)
_COMPARE: Final = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_DESTROY: Final = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

ARGUMENT: Final = "grpc.socket_mutator"


class _Table(ctypes.Structure):
    """grpc_socket_mutator_vtable (grpc, src/core/lib/iomgr/socket_mutator.h)."""

    _fields_ = (("mutate_fd", _MUTATE), ("compare", _COMPARE), ("destroy", _DESTROY), ("mutate_fd_2", ctypes.c_void_p))


class _Mutator(ctypes.Structure):
    """grpc_socket_mutator, and a count of ours behind it."""

    _fields_ = (("table", ctypes.c_void_p), ("references", ctypes.c_ssize_t), ("asked", ctypes.c_int))


_guard: Final = threading.Lock()
#: gRPC's core may look at one after its channel is gone, and nobody says when it is done. 24 bytes a connection, in
#: blocks, for a host can make a client dial as often as it likes.
_kept: Final[list[ctypes.Array[_Mutator]]] = []
_BLOCK: Final = 1024
_unused: Final[list[_Mutator]] = []
_NEVER_ZERO: Final = 1 << 30


def _agree_once(_descriptor: int, address: int) -> bool:
    # In a thread of gRPC's core, before connect().
    mutator = _Mutator.from_address(address)
    with _guard:
        mutator.asked += 1
        return bool(mutator.asked == 1)


def _compare(one: int, other: int) -> int:
    return (one > other) - (one < other)


def _destroy(_address: int) -> None:
    pass


_table: Final = _Table(_MUTATE(_agree_once), _COMPARE(_compare), _DESTROY(_destroy), None)


class OneDial:
    """The value of the channel argument `ARGUMENT`; for one channel."""

    def __init__(self) -> None:
        with _guard:
            if not _unused:
                _kept.append((_Mutator * _BLOCK)())
                _unused.extend(_kept[-1])
            self._mutator = _unused.pop()
        self._mutator.references = _NEVER_ZERO
        self._mutator.table = ctypes.addressof(_table)

    def __int__(self) -> int:
        """The address of the C structure, as gRPC takes pointers."""
        return ctypes.addressof(self._mutator)

    @property
    def was_asked_again(self) -> bool:
        """Whether gRPC wanted to dial a second time, which it does when the connection is gone."""
        return bool(self._mutator.asked > 1)

    def check_used(self) -> None:
        """After the channel has connected: `UnsupportedError` if gRPC did so without asking."""
        if not self._mutator.asked:
            raise UnsupportedError("this build of gRPC can't be held to one connection", mend="use grpcio from PyPI")
