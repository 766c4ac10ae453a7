"""What the enclave takes from its host when it is initialized, and what it refuses."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from observing import answer_of

from adyton.bundle.settings import EnvironmentSettings, Settings
from adyton.enclave.runtime import Runtime
from adyton.errors import StatusCode
from adyton.proto.control_pb2 import Initialize, Request
from adyton.proto.enclave_pb2 import EnclaveConfig, EnvironmentVariable, LoggingConfig

APPLICATION = """
from adyton.enclave.application import TrustedApplication

applications = []

class App(TrustedApplication):
    def initialize(self, config):
        applications.append(self)

class NoApplication:
    pass

number = 7

def make():
    return App()
"""

Answer = Callable[..., tuple[StatusCode, str]]
OK = (StatusCode.OK, "")


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Answer]:
    """Initialize an application with a configuration. Afterwards logging and environment are as they were."""
    (tmp_path / "own_application.py").write_text(APPLICATION)
    (tmp_path / "data" / "sub folder").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    environment, root = dict(os.environ), logging.getLogger()
    handlers, levels = root.handlers[:], {name: logging.getLogger(name).level for name in ("", "grpc")}

    def initialize(config: EnclaveConfig | bytes = b"", application: str = "App") -> tuple[StatusCode, str]:
        name = application if ":" in application else f"own_application:{application}"
        allowed = EnvironmentSettings(allow=("MODE", "PLACE"))
        runtime = Runtime(
            settings=Settings(name="a", application=name, include=("a",), environment=allowed),
            application_directory=tmp_path / "bundle",
            data_directory=tmp_path / "data",
            device=None,
            worker=3,
            request_stop=lambda _: None,
        )
        data = config if isinstance(config, bytes) else config.SerializeToString()
        call = Initialize(config=data, name="an enclave")
        status = answer_of(runtime, Request(initialize=call)).status
        return StatusCode(status.code), status.message

    yield initialize
    sys.modules.pop("own_application", None)
    root.handlers[:] = handlers
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    os.environ.clear()
    os.environ.update(environment)


def test_nothing_need_be_configured(ask: Answer, tmp_path: Path) -> None:
    assert ask() == OK
    assert Path.cwd() == tmp_path / "data"
    assert logging.getLogger().level == logging.INFO


def test_the_application_sees_its_context(ask: Answer, tmp_path: Path) -> None:
    assert ask() == OK
    context = sys.modules["own_application"].applications[0].context
    assert (context.name, context.worker, context.settings.name) == ("an enclave", 3, "a")
    assert (context.application_directory, context.data_directory) == (tmp_path / "bundle", tmp_path / "data")


# --- environment


def test_listed_variables_are_set(ask: Answer) -> None:
    variables = [EnvironmentVariable(name="MODE", value="a b"), EnvironmentVariable(name="PLACE", value="")]
    assert ask(EnclaveConfig(environment_variables=variables)) == OK
    assert (os.environ["MODE"], os.environ["PLACE"]) == ("a b", "")


REFUSED_VARIABLES = [("LD_PRELOAD", "x"), ("mode", "x"), ("", "x"), ("MODE=", "x"), ("MODE ", "x"), ("MODE", "a\0b")]


@pytest.mark.parametrize(("name", "value"), REFUSED_VARIABLES)
def test_another_variable_is_refused_and_none_is_set(ask: Answer, name: str, value: str) -> None:
    variables = [EnvironmentVariable(name="PLACE", value="x"), EnvironmentVariable(name=name, value=value)]
    code, message = ask(EnclaveConfig(environment_variables=variables))
    assert code is StatusCode.INVALID_ARGUMENT
    assert f"environment variable {name!r} is not one that the enclave takes from its host" in message
    assert not {"PLACE", name} & os.environ.keys()


# --- working folder and log


def test_the_working_folder_is_below_the_enclaves_own(ask: Answer, tmp_path: Path) -> None:
    assert ask(EnclaveConfig(current_working_directory="sub folder")) == OK
    assert Path.cwd() == tmp_path / "data" / "sub folder"


@pytest.mark.parametrize("folder", ["missing", "../own_application.py", "a\0b", "x" * 5000])
def test_a_working_folder_that_can_not_be_entered_is_refused(ask: Answer, tmp_path: Path, folder: str) -> None:
    code, message = ask(EnclaveConfig(current_working_directory=folder))
    assert code is StatusCode.INVALID_ARGUMENT
    assert message.startswith("current_working_directory ")
    assert Path.cwd() == tmp_path


def test_the_host_sets_the_level_of_the_log(ask: Answer) -> None:
    assert ask(EnclaveConfig(logging_config=LoggingConfig(level=LoggingConfig.ERROR))) == OK
    assert logging.getLogger().level == logging.ERROR


# --- the application


@pytest.mark.parametrize("name", ["NoApplication", "number", "make"])
def test_what_is_no_trusted_application_is_refused(ask: Answer, name: str) -> None:
    message = f"own_application:{name} is not a TrustedApplication"
    assert ask(application=name) == (StatusCode.INVALID_ARGUMENT, message)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("own_application:Missing", "ImportError: module 'own_application' has no attribute 'Missing'"),
        ("missing_module:App", "ModuleNotFoundError: No module named 'missing_module'"),
    ],
)
def test_an_application_that_is_not_there_is_named(ask: Answer, name: str, why: str) -> None:
    message = f"application '{name}' can't be imported: {why}"
    assert ask(application=name) == (StatusCode.INVALID_ARGUMENT, message)


# --- bytes


def with_other_bytes(**fields: object) -> bytes:
    """A configuration whose text "zz" is replaced by what is not UTF-8."""
    return EnclaveConfig(**fields).SerializeToString().replace(b"zz", b"\xff\xff")  # type: ignore[arg-type]


NOT_A_CONFIGURATION = {
    "garbage": b"\xff",
    "cut off": b"\x3a\x05ab",
    "a folder that is no text": with_other_bytes(current_working_directory="zz"),
    "a value that is no text": with_other_bytes(environment_variables=[EnvironmentVariable(name="MODE", value="zz")]),
    "a name that is no text": with_other_bytes(environment_variables=[EnvironmentVariable(name="zz")]),
    "a path that is no text": with_other_bytes(logging_config=LoggingConfig(log_directory="zz")),
}


@pytest.mark.parametrize("data", NOT_A_CONFIGURATION.values(), ids=NOT_A_CONFIGURATION.keys())
def test_bytes_that_are_no_configuration_are_refused(ask: Answer, data: bytes) -> None:
    assert ask(data) == (StatusCode.INVALID_ARGUMENT, "the host sent what is not an EnclaveConfig")
