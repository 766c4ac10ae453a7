"""Text from an enclave or a server, which is not trusted, for a terminal."""

from __future__ import annotations

import re


def printable(text: str) -> str:
    r"""The text with every character that a terminal could obey, but the line feed, in JSON's escape: \u001b."""
    return "\n".join(line if line.isprintable() else _escaped(line) for line in text.split("\n"))


def _escaped(line: str) -> str:
    return "".join(each if each.isprintable() else _escape(each) for each in line)


def _escape(character: str) -> str:
    return re.sub("....", r"\\u\g<0>", character.encode("utf-16-be", "surrogatepass").hex())
