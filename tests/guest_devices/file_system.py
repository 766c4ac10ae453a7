"""An emulated kernel's driver as a file system of the real one: configfs-tsm where the runtime looks for it."""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import stat
import struct

from adyton.testing.kernels.emulated import Driver, OpenFile, failure
from guest_devices import protocol
from guest_devices.protocol import Channel, Handlers, Request

_NOSUID_NODEV_NOEXEC = 2 | 4 | 8
_NOT_CACHED = struct.Struct("<QI4x")
_ATTRIBUTES = struct.Struct("<QQQQQQIIIIIIIIII")
_INIT_REPLY = struct.Struct("<IIIIHHIIHHI28x")
_MOST_BYTES = 64 * 1024
_DIRECT_IO, _NO_SEEK = 1, 4


class FileSystem:
    """What `driver` has below the folder `root`, mounted there. Its files are read and written from front to back."""

    def __init__(self, driver: Driver, root: str) -> None:
        self._driver = driver
        self._paths = {1: root}
        self._nodes = {root: 1}
        self._root = root
        self._new_node = itertools.count(2)
        self._new_handle = itertools.count(1)
        self._open: dict[int, OpenFile] = {}
        self._channel = Channel("/dev/fuse")
        options = f"fd={self._channel.descriptor},rootmode=40755,user_id=0,group_id=0"
        if ctypes.CDLL(None, use_errno=True).mount(
            b"emulated", root.encode(), b"fuse", ctypes.c_ulong(_NOSUID_NODEV_NOEXEC), options.encode()
        ):
            raise failure(ctypes.get_errno(), root)

    def serve(self) -> None:
        """Until it is unmounted."""
        self._channel.serve(self._handlers())

    def _handlers(self) -> Handlers:
        return {
            protocol.INIT: lambda _: _INIT_REPLY.pack(*protocol.VERSION, 0, 0, 8, 6, _MOST_BYTES, 1, 0, 0, 0),
            protocol.LOOKUP: lambda request: self._entry(self._path(request, request.name())),
            protocol.GETATTR: lambda request: _NOT_CACHED.pack(0, 0) + self._attributes(self._path(request)),
            protocol.SETATTR: lambda request: _NOT_CACHED.pack(0, 0) + self._attributes(self._path(request)),
            protocol.MKDIR: self._mkdir,
            protocol.RMDIR: self._rmdir,
            protocol.OPEN: self._open_file,
            protocol.READ: self._read,
            protocol.WRITE: self._write,
            protocol.FLUSH: self._flush,
            protocol.RELEASE: self._release,
            protocol.OPENDIR: lambda _: bytes(16),
            protocol.READDIR: lambda _: b"",
            protocol.RELEASEDIR: lambda _: b"",
        }

    def _path(self, request: Request, name: str = "") -> str:
        try:
            path = self._paths[request.node]
        except KeyError:
            raise failure(errno.ESTALE) from None
        return f"{path}/{name}" if name else path

    def _entry(self, path: str) -> bytes:
        attributes = self._attributes(path)
        if path not in self._nodes:
            self._nodes[path] = next(self._new_node)
            self._paths[self._nodes[path]] = path
        return struct.pack("<QQQQII", self._nodes[path], 0, 0, 0, 0, 0) + attributes

    def _attributes(self, path: str) -> bytes:
        """OSError if the driver has no such file. root's, as configfs's are."""
        if path == self._root or path in self._driver.leftovers():
            mode = stat.S_IFDIR | 0o755
        elif any(self._driver.open(path, flags) for flags in (os.O_RDONLY, os.O_WRONLY)):
            mode = stat.S_IFREG | 0o600
        else:
            raise failure(errno.ENOENT, path)
        return _ATTRIBUTES.pack(0, 0, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

    def _mkdir(self, request: Request) -> bytes:
        path = self._path(request, request.name(8))
        if not self._driver.mkdir(path):
            raise failure(errno.EPERM, path)
        return self._entry(path)

    def _rmdir(self, request: Request) -> bytes:
        path = self._path(request, request.name())
        if not self._driver.rmdir(path):
            raise failure(errno.ENOENT, path)
        for each in [each for each in self._nodes if each == path or each.startswith(f"{path}/")]:
            del self._paths[self._nodes.pop(each)]
        return b""

    def _open_file(self, request: Request) -> bytes:
        (flags,) = struct.unpack_from("<I", request.body)
        opened = self._driver.open(self._path(request), flags & os.O_ACCMODE)
        if opened is None:
            raise failure(errno.EACCES)
        handle = next(self._new_handle)
        self._open[handle] = opened
        return struct.pack("<QII", handle, _DIRECT_IO | _NO_SEEK, 0)

    def _read(self, request: Request) -> bytes:
        handle, _, size = struct.unpack_from("<QQI", request.body)
        return self._open[handle].read(size)

    def _write(self, request: Request) -> bytes:
        handle, _, size = struct.unpack_from("<QQI", request.body)
        return struct.pack("<II", self._open[handle].write(request.body[40 : 40 + size]), 0)

    def _flush(self, request: Request) -> bytes:
        """What close() waits for, unlike RELEASE."""
        self._open[struct.unpack_from("<Q", request.body)[0]].close()
        return b""

    def _release(self, request: Request) -> bytes:
        del self._open[struct.unpack_from("<Q", request.body)[0]]
        return b""
