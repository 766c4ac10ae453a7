"""The options of `adyton run`: the command refuses what the enclave would refuse, and takes what the enclave takes."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from adyton.bundle.settings import ServerSettings, Settings
from adyton.cli import run_options
from adyton.cli.run_options import a_port, a_time_ms, an_address, whole_number
from adyton.enclave.grpc_application import read_plan
from adyton.errors import ApplicationError
from adyton.proto import grpc_application_pb2 as extensions
from adyton.testing.probes import server_config

ADDRESSES = [
    "localhost",
    "127.0.0.1",
    "0.0.0.0",
    "::",
    "[::1]",
    "fe80::1%eth0",
    "Localhost",
    "elsewhere.example",
    "this-machine",
    "127.1",
    "127.0.0.1:80",
    "[::1",
    " ::1",
    "",
]
NUMBERS = {
    "port": (a_port, extensions.port),
    "workers": (whole_number(1, run_options.MAX_WORKERS), extensions.workers),
    "lifetime": (a_time_ms, extensions.server_max_lifetime_ms),
    "grace": (a_time_ms, extensions.shutdown_grace_ms),
}
BOUNDS = [-1, 0, 1, 256, 257, 65535, 65536, run_options.MAX_TIME_MS, run_options.MAX_TIME_MS + 1]
SETTINGS = Settings(name="p", application="p:P", include=("p",), server=ServerSettings())


def the_enclave_takes(**asked: Any) -> bool:
    """Whether it takes a configuration that has these extensions."""
    made = server_config()
    for name, value in asked.items():
        made.Extensions[getattr(extensions, name)] = value
    try:
        read_plan(made, SETTINGS)
    except ApplicationError:
        return False
    return True


@pytest.mark.parametrize("text", ADDRESSES)
def test_an_address(text: str) -> None:
    if the_enclave_takes(server_address=text):
        assert an_address(text) == text
    else:
        with pytest.raises(argparse.ArgumentTypeError, match="is neither localhost nor an IP address of this machine"):
            an_address(text)


@pytest.mark.parametrize("option", NUMBERS)
@pytest.mark.parametrize("number", BOUNDS)
def test_a_number(option: str, number: int) -> None:
    read, extension = NUMBERS[option]
    try:
        takes = the_enclave_takes(**{extension.name: number})
    except ValueError:  # more than the field's type can hold
        takes = False
    if takes:
        assert read(str(number)) == number
    else:
        with pytest.raises(argparse.ArgumentTypeError, match=f"'{number}' is not a whole number from "):
            read(str(number))


@pytest.mark.parametrize("text", ["", "1.5", "1e3", "0x10", "many", "9" * 5000])
def test_what_is_no_whole_number(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a whole number from 0 to 65535") as caught:
        a_port(text)
    assert len(str(caught.value)) < 200
