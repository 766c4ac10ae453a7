"""What `adyton build` and `adyton run` find out about a project's Python without running it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

import adyton
from adyton.cli.sources import build_bundle
from adyton.errors import ConfigurationError
from adyton.host.bundles import LOCK, Bundle, runtime_lock

BROKEN = "x = (\n"
PACKAGE = "left-pad==1.0 --hash=sha256:" + "0" * 64 + "\n"


def project(folder: Path, files: Mapping[str, str | bytes], application: str = "app:App", packages: str = "") -> Path:
    """A project of those files, which all belong to it."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    included = sorted({name.partition("/")[0] for name in files})
    (folder / "enclave.toml").write_text(f'name = "p"\napplication = "{application}"\ninclude = {included}\n')
    (folder / LOCK).write_bytes(runtime_lock() + packages.encode())
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(ConfigurationError) as caught:
        build_bundle(folder)
    return caught.value.message


class TestWhatStarts:
    def test_is_the_same_bundle_and_nothing_is_said(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        folder = project(tmp_path, {"app.py": "import other\n", "other/__init__.py": "", "data.bin": b"\xff\0"})
        assert build_bundle(folder) == Bundle.build(folder)
        assert capsys.readouterr().err == ""

    @pytest.mark.parametrize("line", ["x = 1 is 1", r"x = '\d'", "assert (1, 'x')"])
    def test_may_have_what_python_only_warns_of(self, line: str, tmp_path: Path) -> None:
        build_bundle(project(tmp_path, {"app.py": line}))

    def test_may_be_in_any_encoding_that_it_names(self, tmp_path: Path) -> None:
        build_bundle(project(tmp_path, {"app.py": "# coding: latin-1\nx = 'é'\n".encode("latin-1")}))

    @pytest.mark.parametrize("name", ["app.cpython-311-x86_64-linux-gnu.so", "app/__init__.abi3.so"])
    def test_may_be_compiled(self, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        build_bundle(project(tmp_path, {name: b"\x7fELF"}))
        assert capsys.readouterr().err == ""

    def test_may_be_adytons_own(self, tmp_path: Path) -> None:
        build_bundle(project(tmp_path, {"data": ""}, "adyton.enclave.key_release:KeyReleaseApplication"))

    def test_may_be_in_packages_without_an_init(self, tmp_path: Path) -> None:
        build_bundle(project(tmp_path, {"acme/services/app.py": "from . import more"}, "acme.services.app:App"))

    def test_may_nest_more_deeply_than_this_command_can_follow(self, tmp_path: Path) -> None:
        build_bundle(project(tmp_path, {"app.py": "x = " + "-" * 100_000 + "1"}))


class TestAMissingModule:
    def test_is_refused(self, tmp_path: Path) -> None:
        said = "enclave.toml: 'application' is in the module 'other', which 'include' does not bring"
        assert refusal(project(tmp_path, {"app.py": ""}, "other:App")) == said

    def test_is_refused_where_a_folder_has_its_name(self, tmp_path: Path) -> None:
        assert "'app', which 'include' does not" in refusal(project(tmp_path, {"app/other.py": ""}))

    def test_may_be_in_a_locked_package_and_the_user_hears_of_it(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        build_bundle(project(tmp_path, {"data": ""}, "left_pad:App", PACKAGE))
        said = capsys.readouterr().err
        assert said.startswith("warning: enclave.toml: 'application' is in the module 'left_pad', which 'include' does")
        assert said.endswith("; it has to be in a package of requirements.lock\n")

    def test_can_not_be_in_a_package_that_the_projects_own_hides(self, tmp_path: Path) -> None:
        folder = project(tmp_path, {"app/__init__.py": "", "app/server.py": ""}, "app.servr:App", PACKAGE)
        assert "'app.servr', which 'include' does not" in refusal(folder)


NO_PYTHON: dict[str, tuple[str | bytes, str]] = {
    "a bracket that stays open": ("\n\nx = (\n", "3: '(' was never closed"),
    "a return outside of a function": ("return 1\n", "1: 'return' outside function"),
    "a name of Python 2": ("print 'a'\n", "1: Missing parentheses"),
    "bytes that are no text": (b"x = '\xff'\n", "1: "),
    "an unknown encoding": ("# coding: abacus\n", "1: unknown encoding: abacus"),
    "a NUL": ("x\0", "1: source code string cannot contain null bytes"),
}


class TestAModuleThatIsNoPython:
    @pytest.mark.parametrize("kind", NO_PYTHON)
    def test_is_refused_with_its_line(self, kind: str, tmp_path: Path) -> None:
        content, why = NO_PYTHON[kind]
        said = refusal(project(tmp_path, {"app.py": content}))
        assert said.startswith(f"app.py:{why}")
        assert said.endswith("; the application imports it, so it can't start")

    @pytest.mark.parametrize(
        ("statement", "file"),
        [
            ("import other", "other.py"),
            ("import other.deep.er", "other/deep/er.py"),
            ("import other.deep.er", "other/deep/__init__.py"),
            ("import left, other as o", "other/__init__.py"),
            ("from other import name", "other/name.py"),
            ("from other import *", "other/__init__.py"),
            ("from . import sibling", "pkg/sibling.py"),
            ("from .sibling import f", "pkg/sibling.py"),
            ("from .. import cousin", "cousin.py"),
            ("x = 1", "pkg/__init__.py"),
        ],
    )
    def test_is_refused_where_the_application_imports_it(self, statement: str, file: str, tmp_path: Path) -> None:
        """All below one package, whose application says so."""
        below = {"pkg/app.py": statement.replace("other", "top.other"), file: BROKEN}
        folder = project(tmp_path, {f"top/{name}": content for name, content in below.items()}, "top.pkg.app:App")
        assert refusal(folder).startswith(f"top/{file}:1: '(' was never closed")

    def test_is_refused_where_it_is_imported_by_way_of_others(self, tmp_path: Path) -> None:
        files = {
            "app.py": "import a",
            "a.py": "import app\nimport b",
            "b/__init__.py": "from .c import d",
            "b/c.py": "",
        }
        build_bundle(project(tmp_path, files))
        assert refusal(project(tmp_path, files | {"b/c.py": BROKEN})).startswith("b/c.py:1: ")

    @pytest.mark.parametrize(
        "statement",
        [
            "x = 1",
            "try:\n    import other\nexcept ImportError:\n    pass",
            "import sys\nif sys.version_info < (3,):\n    import other",
            "def f():\n    import other",
            "from ...... import other",
        ],
    )
    def test_is_left_alone_where_the_application_can_start_without_it(
        self, statement: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        build_bundle(project(tmp_path, {"app.py": statement, "other.py": BROKEN}))
        assert capsys.readouterr().err == ""

    def test_is_left_alone_where_adytons_own_comes_before_it(self, tmp_path: Path) -> None:
        build_bundle(project(tmp_path, {"app.py": "import adyton.errors", "adyton/errors.py": BROKEN}))


def test_a_large_project_costs_little_more_than_its_bundle(tmp_path: Path) -> None:
    """What the application does not import is not parsed: here that would take many times as long."""
    source = Path(adyton.__file__).with_name("errors.py").read_text()
    folder = project(tmp_path, {"app.py": "", **{f"many/m{number}.py": source for number in range(3000)}})
    begun = time.monotonic()
    Bundle.build(folder)
    build_seconds = time.monotonic() - begun
    build_bundle(folder)
    assert time.monotonic() - begun - build_seconds < 3 * build_seconds + 1
    shutil.rmtree(folder)
