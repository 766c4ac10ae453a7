"""What every test needs: a home of its own, with a space in its name, so that nothing of the user's is touched."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from adyton.host.image.cache import default_cache
from adyton.host.manager import EnclaveClient, EnclaveManager
from adyton.testing.probes import answer, command

settings.register_profile("adyton", deadline=None, print_blob=True)
settings.load_profile("adyton")

#: The one thing that all tests share with the user: images of machines take long to fetch and are named by digest.
IMAGE_CACHE = Path(os.environ.get("ADYTON_IMAGE_CACHE") or default_cache())


def pytest_configure() -> None:
    """Handle what a job in background ignores: a child inherits that, and tests send these signals to children."""
    for each in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(each) is signal.SIG_IGN:
            signal.signal(each, lambda _number, _frame: None)


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """Name bytes by their argument alone.

    Bytes that are made while tests are collected (a compressed file has a time in it) would name the test otherwise
    in each worker, and xdist refuses to begin.
    """
    return argname if isinstance(val, bytes) and len(val) > 16 else None


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("a home")
    with pytest.MonkeyPatch.context() as patch:
        for name, part in (
            ("HOME", "."),
            ("XDG_DATA_HOME", "data"),
            ("XDG_CACHE_HOME", "cache"),
            ("XDG_RUNTIME_DIR", "run time"),
        ):
            (folder / part).mkdir(mode=0o700, exist_ok=True)
            patch.setenv(name, str(folder / part))
        IMAGE_CACHE.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / "cache" / "adyton").mkdir(exist_ok=True)
        (folder / "cache" / "adyton" / "image").symlink_to(IMAGE_CACHE.absolute())
        yield folder


@pytest.fixture
def runtime_directory() -> Path:
    """Where the folders of enclaves are, as long as they live."""
    return Path(os.environ["XDG_RUNTIME_DIR"]) / "adyton"


@pytest.fixture
def manager() -> Iterator[EnclaveManager]:
    with EnclaveManager() as made:
        yield made


@pytest.fixture
def ask() -> Callable[[EnclaveClient, str], str]:
    """Tell the plain probe what to do; what it answers."""

    def words(enclave: EnclaveClient, text: str) -> str:
        return answer(enclave.enter_and_run(command(text), timeout_seconds=30))

    return words
