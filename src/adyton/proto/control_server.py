"""The answering end of the control protocol, inside the enclave."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from google.protobuf.message import DecodeError

from adyton.errors import ControlProtocolError, StatusCode
from adyton.proto import control_pb2
from adyton.proto.control_client import PROTOCOL_VERSION
from adyton.proto.frames import Stream, encode_frame, read_frame
from adyton.proto.messages import parse_message

#: Calls that one host may have in flight; one more is RESOURCE_EXHAUSTED.
MAX_CALLS = 256

#: Gives the reply to the host.
Send = Callable[[control_pb2.Reply], None]
#: What a request leads to. Called in the order in which requests arrive; what it returns carries the request out, in
#: whichever thread, and sends one reply. Neither raises.
Accept = Callable[[control_pb2.Request], Callable[[Send], None]]


class ControlServer:
    """Serves one host over one stream."""

    def __init__(self, stream: Stream, accept: Accept) -> None:
        self._stream = stream
        self._accept = accept
        self._sending = threading.Lock()
        self._free = threading.BoundedSemaphore(MAX_CALLS)
        self._pool = ThreadPoolExecutor(MAX_CALLS, "control")

    def refuse(self, reason: str) -> None:
        """Tell the host why nothing starts here."""
        self._send(control_pb2.FromEnclave(refused=control_pb2.Refused(reason=reason)))

    def request_stop(self, reason: str) -> None:
        """Tell the host that the application wants to be finalized."""
        self._send(control_pb2.FromEnclave(stop_requested=control_pb2.StopRequested(reason=reason)))

    def serve(self) -> None:
        """Say Ready and answer until the host closes the stream.

        Raises ControlProtocolError for what the protocol does not allow: the host is then not heard any more.
        """
        self._send(control_pb2.FromEnclave(ready=control_pb2.Ready(version=PROTOCOL_VERSION)))
        seen = 0
        while (frame := self._next_frame()) is not None:
            try:
                request = parse_message(control_pb2.Request, frame)
            except DecodeError as problem:
                raise ControlProtocolError("the host sent what is not a message of the control protocol") from problem
            if request.id <= seen or request.WhichOneof("call") is None:
                raise ControlProtocolError("the host sent a request that the protocol does not allow")
            seen = request.id
            self._begin(request)

    def _begin(self, request: control_pb2.Request) -> None:
        if request.HasField("finalize"):  # not behind calls that are stuck
            work, send = self._accept(request), functools.partial(self._reply, request)
            threading.Thread(target=work, args=(send,), name="control-finalize", daemon=True).start()
        elif self._free.acquire(blocking=False):
            done = self._pool.submit(self._accept(request), functools.partial(self._reply, request))
            done.add_done_callback(lambda _: self._free.release())
        else:
            self._refuse(request, f"{MAX_CALLS} calls are in flight")

    def _next_frame(self) -> bytes | None:
        with contextlib.suppress(OSError):
            return read_frame(self._stream)
        return None

    def _reply(self, request: control_pb2.Request, reply: control_pb2.Reply) -> None:
        reply.id = request.id
        try:
            self._send(control_pb2.FromEnclave(reply=reply))
        except ControlProtocolError as problem:
            self._refuse(request, str(problem))

    def _refuse(self, request: control_pb2.Request, why: str) -> None:
        status = control_pb2.Status(code=StatusCode.RESOURCE_EXHAUSTED, message=why)
        self._send(control_pb2.FromEnclave(reply=control_pb2.Reply(id=request.id, status=status)))

    def _send(self, message: control_pb2.FromEnclave) -> None:
        frame = encode_frame(message.SerializeToString())
        with self._sending, contextlib.suppress(OSError):  # a host that is gone is seen by the reader
            self._stream.sendall(frame)
