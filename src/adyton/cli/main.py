"""The command's entry: which verbs there are, and how an error ends the process.

Results go to standard output, talk goes to standard error. The exit codes are adyton.errors.ExitCode.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, TextIO

import adyton
from adyton.cli.printable import printable
from adyton.errors import AdytonError, EvidenceError, ExitCode, PolicyError

#: Verb → one line of help. Each verb is a module of this package, '-' written '_', with `add_arguments(parser)` and
#: `run(arguments)`.
VERBS: dict[str, str] = {
    "init": "make a new project: proto, servicer, enclave.toml, test",
    "build": "make a project's bundle and its measurements.json",
    "new-key": "make a signer's or an owner's private key, and print the id that names it",
    "sign": "sign a bundle as a version of a product, for data that is sealed for its signer",
    "run": "start an enclave and serve until Ctrl-C or SIGTERM",
    "call": "call one method of a server, by its reflection",
    "verify-server": "whether a server is an enclave that a policy accepts",
    "export-ca": "write the CA of such an enclave to a file, for clients that can't attest",
    "secrets": "send an owner's secrets to such an enclave, or list or replace them",
    "proxy": "let local gRPC clients that can't attest speak to such an enclave",
    "inspect": "what evidence claims, not verified",
    "verify": "whether evidence is genuine, and acceptable to a policy",
    "explain": "a verification step by step, and a policy key by key",
    "policy": "print the policy that accepts a bundle, of its measurements.json",
    "doctor": "what this machine can launch and attest, and what is missing for the rest",
}


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    _open_closed_streams()
    arguments = _parser().parse_args(words)
    try:
        code: int = _module(arguments.verb).run(arguments)
        sys.stdout.flush()
    except (EvidenceError, PolicyError) as problem:
        from adyton.cli.verdict import print_refusal

        return print_refusal(arguments.verb, problem, as_json=False)
    except AdytonError as problem:
        say(f"adyton {arguments.verb}: {problem}")
        return int(type(problem).exit_code)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _silence(sys.stdout)
        return 141
    except Exception:  # noqa: BLE001  what is left is a bug of ours, and has an exit code of its own
        traceback.print_exc()
        print("adyton: this is a bug in adyton, please report it with the lines above", file=sys.stderr)
        return int(ExitCode.BUG)
    return code


def say(text: str) -> None:
    """Talk: to standard error, without what a terminal would obey; an enclave may have chosen the words.

    That nobody can hear it, for the terminal is gone, changes nothing.
    """
    try:
        print(printable(text), file=sys.stderr, flush=True)
    except OSError:
        _silence(sys.stderr)


def _silence(stream: TextIO) -> None:
    """A stream that failed: what it still holds goes nowhere, so that the last flush has nothing to say."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _open_closed_streams() -> None:
    """A command may be started without standard streams (`2>&-`): no other file may get their numbers."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
        if name != "stdin" and getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, "w"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="adyton",
        description="Run gRPC servicers inside enclaves.",
        epilog="exit codes: 0 ok, 1 the enclave or the service answered with an error, 2 usage, 3 not genuine, "
        "4 refused by policy, 5 unreachable, 6 not possible on this machine, 70 bug",
    )
    parser.add_argument("--version", action="version", version=f"adyton {adyton.__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="COMMAND")
    for name, text in VERBS.items():
        _module(name).add_arguments(verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + "."))
    return parser


def _module(verb: str) -> Any:
    return importlib.import_module(f"adyton.cli.{verb.replace('-', '_')}")


if __name__ == "__main__":
    sys.exit(main())
