"""The kernel's FUSE protocol (include/uapi/linux/fuse.h, 7.31), as far as a small server needs it."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

LOOKUP, FORGET, GETATTR, SETATTR, MKDIR, RMDIR, OPEN, READ, WRITE = 1, 2, 3, 4, 9, 11, 14, 15, 16
RELEASE, FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR = 18, 25, 26, 27, 28, 29
INTERRUPT, IOCTL, BATCH_FORGET, CUSE_INIT = 36, 39, 42, 4096
VERSION: Final = (7, 31)

_REQUEST: Final = struct.Struct("<IIQQIIII")
_REPLY: Final = struct.Struct("<IiQ")
_NO_REPLY: Final = frozenset({FORGET, INTERRUPT, BATCH_FORGET})
_READ_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the kernel asks: `node` is the file's number, 1 the root's."""

    opcode: int
    unique: int
    node: int
    body: bytes

    def name(self, offset: int = 0) -> str:
        """The file's name that is in the body."""
        return self.body[offset:].split(b"\0", 1)[0].decode()


Handlers = Mapping[int, Callable[[Request], bytes]]
"""By opcode. What a handler returns is the reply; an OSError is its error."""


class Channel:
    """A descriptor of /dev/fuse or /dev/cuse."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def receive(self) -> Request:
        """The next request; OSError when there are no more."""
        data = os.read(self.descriptor, _READ_BYTES)
        _, opcode, unique, node, *_ = _REQUEST.unpack_from(data)
        return Request(opcode=opcode, unique=unique, node=node, body=data[_REQUEST.size :])

    def reply(self, request: Request, data: bytes = b"", *, error: int = 0) -> None:
        """One reply, in one write."""
        os.write(self.descriptor, _REPLY.pack(_REPLY.size + len(data), -error, request.unique) + data)

    def serve(self, handlers: Handlers) -> None:
        """Answer until the kernel has no more to ask."""
        while True:
            request = self.receive()
            if request.opcode in _NO_REPLY:
                continue
            try:
                answer = handlers[request.opcode](request)
            except KeyError:
                self.reply(request, error=errno.ENOSYS)
            except OSError as problem:
                self.reply(request, error=problem.errno or errno.EIO)
            else:
                self.reply(request, answer)
