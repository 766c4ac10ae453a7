"""A process of a test's own that is spoken to in lines of JSON: a question a line, and an answer a line."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

ANSWER_SECONDS = 60.0

END_SECONDS = 5.0


class Conversation:
    """The test's end. The process runs `program` and ends with its standard input."""

    def __init__(self, program: Path, environment: Mapping[str, str] | None = None) -> None:
        path = os.pathsep.join(filter(None, sys.path))
        self._process = subprocess.Popen(
            [sys.executable, program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, **(environment or {})},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()
            try:
                self._process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()  # an attacker's gRPC may stop its own interpreter

    def ask(self, **question: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question).encode() + b"\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], ANSWER_SECONDS)
        assert ready, "the process does not answer"
        line = self._process.stdout.readline()
        assert line, "the process has ended"
        answer: dict[str, Any] = json.loads(line)
        return answer


def converse(answer: Callable[..., dict[str, Any]]) -> None:
    """The process's end: answer every question, until there are no more. It ends with whatever is under way."""
    for line in sys.stdin:
        print(json.dumps(answer(**json.loads(line))), flush=True)
    os._exit(0)
