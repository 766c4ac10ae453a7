"""Has every guard of the verifiers a forgery that needs it? `python3 dev.py guards [LABEL…]`.

A guard is a statement that can do nothing but refuse: `raise EvidenceError(…)`, or a call whose result nobody takes.
Each is taken out, one at a time, of what a TEE's verifier runs, and the forgeries of the TEEs that run it are verified
without it. One that is then believed, or refused for another reason, or crashes, has noticed. A guard that none of them
notices is dead code, or it could be lost and no test would say so.

Two kinds are counted and stay in: a raise inside `except`, which only says in our words what something else refused,
and what `UNREACHABLE` names.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import gc
import importlib
import signal
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, NoReturn

import grimp

from adyton.errors import EvidenceError
from adyton.tee.registry import TEES, tee
from adyton.testing import samples
from adyton.testing.forgery import Case

#: Calls that are statements of their own and refuse nothing.
HARMLESS = {"add", "append", "begin", "extend", "setdefault", "simplefilter", "take", "update"}
#: Functions that no evidence makes refuse, and why they are there all the same.
UNREACHABLE = {
    "check_agreement": "it compares two parsers, which agree; it is for the day when one of them changes",
    "check_crl_is_of": "its only caller has looked at both already, at the signature as AMD makes it; the next may not",
    "prefixed": "only devices read with it",
}
#: A verification that has lost a bound may not end by itself.
SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """The statement at `index` of a block of the module in `path`, which was parsed to `tree`."""

    path: str
    tree: ast.Module
    block: list[ast.stmt]
    index: int

    def __str__(self) -> str:
        statement = self.block[self.index]
        return f"{self.path}:{statement.lineno}: {ast.unparse(statement)[:100]}"

    def compile_without(self) -> CodeType:
        """The module with the guard where it is never reached; so what it names is still there to be named."""
        statement = self.block[self.index]
        self.block[self.index] = ast.copy_location(ast.If(ast.Constant(value=False), [statement], []), statement)
        try:
            return compile(ast.fix_missing_locations(self.tree), self.path, "exec")
        finally:
            self.block[self.index] = statement


def find_guards(path: str) -> tuple[list[Guard], int]:
    """The guards in the functions of a module that can be examined, and how many can't."""
    tree = ast.parse(Path(path).read_text())
    kept = {id(inner) for node in ast.walk(tree) if _stays_in(node) for inner in ast.walk(node)}
    blocks = [
        block
        for parent in ast.walk(tree)
        for block in (getattr(parent, name, None) for name in ("body", "orelse", "finalbody"))
        if isinstance(block, list) and block is not tree.body
    ]
    found = [
        Guard(path=path, tree=tree, block=block, index=index)
        for block in blocks
        for index, statement in enumerate(block)
        if _is_guard(statement)
    ]
    guards = [each for each in found if id(each.block[each.index]) not in kept]
    return guards, len(found) - len(guards)


def _is_guard(statement: ast.stmt) -> bool:
    match statement:
        case ast.Raise(exc=ast.Call(func=raised)):
            return _name(raised) == EvidenceError.__name__
        case ast.Raise(exc=ast.Name()):  # what was wrong with the last of several candidates
            return True
        case ast.Expr(value=ast.Call(func=called)):
            return _name(called) not in HARMLESS
    return False


def _stays_in(node: ast.AST) -> bool:
    match node:
        case ast.ExceptHandler():
            return True
        case ast.FunctionDef(name=name):
            return name in UNREACHABLE
        case ast.Expr(value=ast.Call(func=called)):
            return _name(called) in UNREACHABLE
    return False


def _name(expression: ast.expr) -> str:
    return ast.unparse(expression).rpartition(".")[2]


@contextlib.contextmanager
def without(guard: Guard) -> Iterator[None]:
    """Run what is inside with the guard taken out.

    The function that it is in gets other code and stays the same object, so it is without its guard wherever it was
    imported to.
    """
    changes = [
        (function, function.__code__, code)
        for code in _codes(guard.compile_without())
        for function in functions().get(_place(code), ())
        if function.__code__ != code
    ]
    for function, _, code in changes:
        function.__code__ = code
    try:
        forget()
        yield
    finally:
        for function, original, _ in changes:
            function.__code__ = original
        forget()


Place = tuple[str, str, int]


@functools.cache
def functions() -> Mapping[Place, list[FunctionType]]:
    """Every function there is, by file, qualified name and line."""
    found: dict[Place, list[FunctionType]] = {}
    for each in gc.get_objects():
        if isinstance(each, FunctionType):
            found.setdefault(_place(each.__code__), []).append(each)
    return found


def _place(code: CodeType) -> Place:
    return code.co_filename, code.co_qualname, code.co_firstlineno


def _codes(code: CodeType) -> Iterator[CodeType]:
    """The code of every function that has a name; two lambdas can be in one place."""
    for each in code.co_consts:
        if isinstance(each, CodeType) and each.co_name != "<lambda>":
            yield each
            yield from _codes(each)


def forget() -> None:
    """Empty the verifiers' caches: what is in them was found under other guards."""
    for each in caches():
        each.cache_clear()


@functools.cache
def caches() -> list[functools._lru_cache_wrapper[Any]]:
    """The caches of all verifiers."""
    every = (each for each in gc.get_objects() if isinstance(each, functools._lru_cache_wrapper))
    return [each for each in every if each.__module__.startswith("adyton.tee.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A forgery, made while every guard was in its place."""

    label: str
    refusal: str
    case: Case

    def is_refused(self) -> bool:
        """Whether it is refused for what is wrong with it."""
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            self.case.verify_with(tee(self.label).verifier())
        except EvidenceError as error:
            return self.refusal in error.message
        except Exception:  # noqa: BLE001  whatever it is, it is no refusal
            return False
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        return False


def _too_long(_signal: int, _frame: object) -> NoReturn:
    raise TimeoutError


@functools.cache
def trials(label: str) -> Sequence[Trial]:
    """The forgeries of a TEE, and one of them under another label, for what all verifiers ask first.

    One that is not refused as it says is left out: it would seem to notice everything.
    """
    forgeries = samples.forgeries(label)
    made = {name: Trial(label=label, refusal=each.refusal, case=each.make()) for name, each in forgeries.items()}
    any_case = next(iter(made.values())).case
    mislabelled = replace(any_case, evidence=replace(any_case.evidence, tee="another"))
    made["another label"] = Trial(label=label, refusal="was given to the verifier", case=mislabelled)
    for name in [name for name, trial in made.items() if not trial.is_refused()]:
        print(f"left out, for it is not refused as it says: {name!r} of {label}", file=sys.stderr)
        del made[name]
    return list(made.values())


def is_noticed(guard: Guard, labels: Iterable[str]) -> bool:
    """Whether a forgery of one of these TEEs notices that the guard is missing."""
    for made in map(trials, labels):  # each made before the guard is taken out
        with without(guard):
            if not all(trial.is_refused() for trial in made):
                return True
    return False


def modules_by_label() -> dict[str, set[str]]:
    """The modules that each TEE's verifier runs; imports them."""
    graph = grimp.build_graph("adyton", exclude_type_checking_imports=True, cache_dir=None)
    found: dict[str, set[str]] = {}
    for label, each in TEES.items():
        verifier = f"adyton.tee.{each.module}.verify"
        upstream = (name for name in graph.find_upstream_modules(verifier) if name.startswith("adyton.tee."))
        found[label] = {verifier, *upstream}
    for name in set[str]().union(*found.values()):
        importlib.import_module(name)
    return found


def main() -> int:
    """Print a table of modules, and the guards that nothing notices; 1 if there are any."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("labels", nargs="*", metavar="LABEL", help="a TEE; all of them if none is named")
    chosen: list[str] = parser.parse_args().labels or list(TEES)
    if unknown := set(chosen) - set(TEES):
        parser.error(f"no TEE: {', '.join(unknown)}; known are {', '.join(TEES)}")
    signal.signal(signal.SIGALRM, _too_long)
    warnings.simplefilter("ignore")  # the library's, about what the forgeries make wrong
    used = modules_by_label()
    print(f"{'module':<36} guards  noticed  stay in")
    missed: list[Guard] = []
    for module in sorted(set[str]().union(*(used[label] for label in chosen))):
        users = sorted((label for label in used if module in used[label]), key=lambda label: label not in chosen)
        guards, stay_in = find_guards(str(sys.modules[module].__file__))
        unnoticed = [guard for guard in guards if not is_noticed(guard, users)]
        print(f"{module:<36} {len(guards):>6} {len(guards) - len(unnoticed):>8} {stay_in:>8}", flush=True)
        missed += unnoticed
    for guard in missed:
        print(f"no forgery notices {guard}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
