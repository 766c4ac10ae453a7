"""The asking end of the control protocol: a request in, a future out, any number at once.

Two threads a connection: one reads, one writes, so that a peer that takes no bytes blocks nobody who has a deadline.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import Any

from google.protobuf.message import DecodeError

from adyton.errors import (
    AdytonError,
    ApplicationError,
    ConfigurationError,
    ControlProtocolError,
    LaunchError,
    StatusCode,
    WrongStateError,
)
from adyton.proto import control_pb2
from adyton.proto.frames import Stream, encode_frame, read_frame
from adyton.proto.messages import parse_message

PROTOCOL_VERSION = 1


class ControlClient:
    """One connection to an enclave's runtime.

    `ready` is done when the enclave said that it is; `stop_requested` when its application asked to be finalized, with
    the reason. `explain` is called once when the connection ends, with what went wrong on it or None, and says which
    error everybody who still waits shall get.
    """

    def __init__(self, stream: Stream, *, explain: Callable[[AdytonError | None], AdytonError]) -> None:
        self.ready: Future[None] = Future()
        self.stop_requested: Future[str] = Future()
        self._stream = stream
        self._explain = explain
        self._ids = itertools.count(1)
        self._waiting: dict[int, Future[bytes]] = {}
        self._lock = threading.Lock()
        self._ended: AdytonError | None = None
        self._outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._read, self._write)]
        for thread in self._threads:
            thread.start()

    def call(self, request: control_pb2.Request) -> Future[bytes]:
        """Send `request` (its id is set here); the future gives the reply's result or raises what the enclave said.

        Raises ConfigurationError for a request that is longer than a frame can be.
        """
        future: Future[bytes] = Future()
        with self._lock:
            if self._ended is not None:
                future.set_exception(self._ended)
                return future
            request.id = next(self._ids)
            try:
                frame = encode_frame(request.SerializeToString())
            except ControlProtocolError as problem:
                raise ConfigurationError(problem.message) from problem
            self._waiting[request.id] = future
            self._outgoing.put(frame)  # under the lock, so that ids arrive in order
        return future

    @property
    def has_ended(self) -> bool:
        """Whether the connection is over, so that every call fails."""
        return self._ended is not None

    def runs_this_thread(self) -> bool:
        """Whether the caller is a callback of one of this connection's futures: it must not wait for another one."""
        return threading.current_thread() in self._threads

    def close(self) -> None:
        """End the connection; the enclave's runtime takes that as its host's death and exits."""
        with contextlib.suppress(OSError):
            self._stream.shutdown(socket.SHUT_RDWR)
        self._outgoing.put(None)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
        self._stream.close()

    def _write(self) -> None:
        while (frame := self._outgoing.get()) is not None:
            try:
                self._stream.sendall(frame)
            except OSError:
                return  # the reader sees the end of the stream too, and tells everybody

    def _read(self) -> None:
        problem: AdytonError | None = None
        try:
            while (frame := read_frame(self._stream)) is not None:
                self._take(parse_message(control_pb2.FromEnclave, frame))
        except AdytonError as error:
            problem = error
        except DecodeError:
            problem = ControlProtocolError("the enclave sent what is not a message of the control protocol")
        except OSError:
            pass
        self._end(self._explain(problem))

    def _take(self, message: control_pb2.FromEnclave) -> None:
        match message.WhichOneof("message"):
            case "reply":
                self._settle(message.reply)
            case "ready" if message.ready.version == PROTOCOL_VERSION:
                _set_once(self.ready, None)
            case "ready":
                raise ControlProtocolError(f"the enclave speaks version {message.ready.version} of the protocol, not 1")
            case "refused":
                raise LaunchError(f"the enclave refused to start: {message.refused.reason}")
            case "stop_requested":
                _set_once(self.stop_requested, message.stop_requested.reason)
            case _:
                raise ControlProtocolError("the enclave sent a message that the protocol does not know")

    def _settle(self, reply: control_pb2.Reply) -> None:
        with self._lock:
            future = self._waiting.pop(reply.id, None)
        if future is None:
            raise ControlProtocolError("the enclave answered what was not asked")
        error = _error_of(reply.status)
        with contextlib.suppress(InvalidStateError):  # its owner cancelled it
            if error is None:
                future.set_result(reply.result)
            else:
                future.set_exception(error)

    def _end(self, error: AdytonError) -> None:
        with self._lock:
            self._ended = error
            waiting, self._waiting = list(self._waiting.values()), {}
        self._outgoing.put(None)
        everybody: list[Future[Any]] = [*waiting, self.ready, self.stop_requested]
        for future in everybody:
            with contextlib.suppress(InvalidStateError):
                future.set_exception(error)


def _set_once(future: Future[None] | Future[str], value: str | None) -> None:
    with contextlib.suppress(InvalidStateError):
        future.set_result(value)  # type: ignore[arg-type]


def _error_of(status: control_pb2.Status) -> AdytonError | None:
    if status.code == StatusCode.OK:
        return None
    if status.wrong_state:
        return WrongStateError(status.message)
    try:
        code = StatusCode(status.code)
    except ValueError:
        code = StatusCode.UNKNOWN
    return ApplicationError(code, status.message)
