"""The enclave's log: one JSON object a line, on standard error, from where the launcher takes it.

The host reads it. So no request, no response, no secret may be in it.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import traceback
from datetime import UTC, datetime

_log = logging.getLogger(__name__)

#: Attributes of every LogRecord; whatever else a record has was given with `extra`, and is logged.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
MAX_LINE_CHARACTERS = 16_000


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON, with what was given in `extra` as fields of their own."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, shortened where a traceback would make it endless."""
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)[-MAX_LINE_CHARACTERS // 2 :]
        return json.dumps(fields, default=repr, ensure_ascii=True)[:MAX_LINE_CHARACTERS]


def start_logging(level: int) -> None:
    """Send what Python's logging gets to standard error, as JSON. Calling it again changes the level."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # gRPC logs a servicer's exception with its message, which may quote a request; interceptors.py logs it without.
    logging.getLogger("grpc").setLevel(logging.CRITICAL)


def log_uncaught(log: logging.Logger, what: str, error: BaseException, *, messages: bool, **extra: object) -> None:
    """Log that nobody caught `error`: its type and where it was raised, and only if `messages` what it says."""
    fields = {"exception": type(error).__name__, "frames": frames_of(error), **extra}
    if messages:
        fields["exception_message"] = str(error)
    log.error(what, extra=fields)


def log_threads_quietly(*, messages: bool) -> None:
    """For exceptions that end a thread of the application: Python's own hook would print what they say."""

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if arguments.exc_value is not None:
            log_uncaught(_log, "uncaught exception in a thread", arguments.exc_value, messages=messages)

    threading.excepthook = hook


def frames_of(error: BaseException) -> str:
    """Where an exception was raised, without what it says: its message may quote a request."""
    return "".join(traceback.format_list(traceback.extract_tb(error.__traceback__))).rstrip()
