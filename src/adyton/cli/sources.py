"""Whether a project's Python is fit to start, as far as that shows without running it.

The application's module has to be there, and it and whatever it imports without condition have to be Python, or the
enclave could not start. At other files nobody looks: packages carry templates, and modules for other Pythons that they
import only there.
"""

from __future__ import annotations

import ast
import importlib.util
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from adyton.bundle.archive import parse_archive
from adyton.bundle.lock import parse_lock
from adyton.cli.main import say
from adyton.errors import ConfigurationError
from adyton.host.bundles import Bundle, runtime_lock

#: Where the bundle has the project's files, and where those of Adyton that run inside.
_PROJECTS: Final = "app/"
_ADYTONS: Final = "runtime/"


def build_bundle(project: Path) -> Bundle:
    """The bundle of a project's folder, whose sources are fit to start. Raises ConfigurationError."""
    bundle = Bundle.build(project)
    files = parse_archive(bundle.data)
    module = bundle.settings.application.partition(":")[0]
    if not _has_module(files, module):
        _refuse_or_warn(bundle, files, module)
    _check_what_it_imports(files, module)
    return bundle


def _has_module(files: Mapping[str, bytes], module: str) -> bool:
    """As source or, compiled, as an extension module."""
    if _source(files, module):
        return True
    base = _base(module)
    return any(name.startswith((f"{base}.", f"{base}/__init__.")) and name.endswith(".so") for name in files)


def _base(module: str) -> str:
    """Where it lies, without what follows its name. Adyton's own comes before a project's of the same name."""
    room = _ADYTONS if module.partition(".")[0] == "adyton" else _PROJECTS
    return room + module.replace(".", "/")


def _source(files: Mapping[str, bytes], module: str) -> str:
    """The module's file, or an empty string."""
    base = _base(module)
    return next((path for path in (f"{base}/__init__.py", f"{base}.py") if path in files), "")


def _refuse_or_warn(bundle: Bundle, files: Mapping[str, bytes], module: str) -> None:
    """The module is not in the bundle. It may be in a locked package, unless the bundle's own hides that."""
    packages = {each.name for each in bundle.lock} - {each.name for each in parse_lock(runtime_lock())}
    what = f"enclave.toml: 'application' is in the module {module!r}, which 'include' does not bring"
    if not packages or _source(files, module.partition(".")[0]):
        raise ConfigurationError(what)
    say(f"warning: {what}; it has to be in a package of requirements.lock")


def _check_what_it_imports(files: Mapping[str, bytes], module: str) -> None:
    """Parse the project's files that an import of `module` runs whatever happens. Raises ConfigurationError."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        path, parent = _source(files, name), name.rpartition(".")[0]
        if parent:
            waiting.append(parent)
        if path.startswith(_PROJECTS):
            tree = _parse(path.removeprefix(_PROJECTS), files[path])
            waiting += _imports(tree, name if path.endswith("/__init__.py") else parent)


def _parse(path: str, content: bytes) -> ast.Module:
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(content, path)
            compile(tree, path, "exec", dont_inherit=True)  # finds more, a `return` outside of a function for one
    except SyntaxError as problem:
        line, why = problem.lineno or 1, problem.msg
    except ValueError as problem:  # a NUL
        line, why = 1, str(problem)
    except (RecursionError, MemoryError):  # nested so deeply that it is the enclave's to say whether it can
        return ast.Module(body=[], type_ignores=[])
    else:
        return tree
    raise ConfigurationError(f"{path}:{line}: {why}; the application imports it, so it can't start")


def _imports(tree: ast.Module, package: str) -> Iterator[str]:
    """What stands at the top of a module of `package`; not what stands in `try`, in `if`, or in a function."""
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            try:
                base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            except ImportError:  # above the top: that it fails is the import's to say
                continue
            yield base
            yield from (f"{base}.{each.name}" for each in node.names)
