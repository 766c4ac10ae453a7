"""The kernel's command line as it is measured: the bytes that the kernel will read, and no others."""

from __future__ import annotations

from typing import Final

from adyton.errors import ConfigurationError

MAX_COMMAND_LINE_BYTES: Final = 2047
"""What Linux keeps of it, on x86_64 and aarch64 (COMMAND_LINE_SIZE); it drops the rest without a word."""


def encode_command_line(command_line: str) -> bytes:
    """The bytes of a command line, without an end.

    Raises ConfigurationError for what a loader or Linux could cut short or read in another way: more than it keeps, or
    anything but printable ASCII.
    """
    if not (command_line.isascii() and command_line.isprintable()):
        raise ConfigurationError("the kernel's command line has a character that is not printable ASCII")
    if len(command_line) > MAX_COMMAND_LINE_BYTES:
        message = f"the kernel's command line has {len(command_line)} bytes; {MAX_COMMAND_LINE_BYTES} are allowed"
        raise ConfigurationError(message)
    return command_line.encode("ascii")
