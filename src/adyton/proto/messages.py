"""Parsing what the other side of a wire sent."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

T = TypeVar("T", bound=Message)


def parse_message(kind: type[T], data: bytes) -> T:
    """A `kind` of `data`, whose strings are strings. Raises DecodeError.

    proto2 takes any bytes for a string and hands them over as bytes where they are not UTF-8; nobody expects that.
    """
    message = kind.FromString(data)
    _check_strings(message)
    return message


def _check_strings(message: Message) -> None:
    for field, value in message.ListFields():
        if field.type not in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_MESSAGE, FieldDescriptor.TYPE_GROUP):
            continue
        for each in value if field.is_repeated else (value,):
            if isinstance(each, Message):
                _check_strings(each)
            elif isinstance(each, bytes):
                raise DecodeError(f"{field.full_name} is not UTF-8")
