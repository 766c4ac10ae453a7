"""Adyton's errors as failed RPCs: every class keeps its own kind and its fields, and gRPC's callers catch it too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import pytest

from adyton.atls.failures import GRPC_CODES, aio_rpc_failure, cancelled, rpc_failure
from adyton.errors import (
    AdytonError,
    ApplicationError,
    DeadlineError,
    EnclaveDiedError,
    EvidenceError,
    Finding,
    PolicyError,
    StatusCode,
    UnreachableError,
)

FINDING = Finding(rule="r", subject="s", got="g", wanted="w", mend="m")
ERRORS: list[AdytonError] = [
    PolicyError("refused", findings=(FINDING,)),
    EvidenceError("forged"),
    UnreachableError("nobody there", mend="start it"),
    DeadlineError("too late"),
    EnclaveDiedError("gone", exit_status=-9, log_tail=("last words",), console=("a panic",)),
    ApplicationError(StatusCode.ABORTED, "no"),
    cancelled("given up"),
]
KINDS = [(rpc_failure, grpc.RpcError), (aio_rpc_failure, grpc.aio.AioRpcError)]


@pytest.mark.parametrize(("make", "base"), KINDS)
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_failure_is_of_both_kinds_and_keeps_everything(
    make: Callable[[AdytonError], Any], base: type[Exception], error: AdytonError
) -> None:
    failure = make(error)
    assert {base, type(error)} <= set(type(failure).__mro__)
    assert vars(error).items() <= vars(failure).items()
    assert (str(failure), failure.args, failure.__cause__) == (str(error), error.args, error)
    assert (failure.code(), failure.details()) == (GRPC_CODES[error.status], str(error))
    assert failure.debug_error_string() == str(error)
    assert not failure.initial_metadata()
    assert not failure.trailing_metadata()


@pytest.mark.parametrize(("make", "_base"), KINDS)
def test_each_caller_gets_an_exception_of_its_own_and_of_one_class(make: Callable[[Any], Any], _base: object) -> None:
    one, other = make(ERRORS[0]), make(ERRORS[0])
    assert one is not other
    assert type(one) is type(other)


def test_every_status_has_a_name_in_grpc() -> None:
    assert set(GRPC_CODES) == set(StatusCode)


def test_a_failure_is_an_rpc_that_is_over() -> None:
    failure: Any = rpc_failure(ERRORS[0])
    called: list[object] = []
    failure.add_done_callback(called.append)
    assert called == [failure]
    assert (failure.done(), failure.running(), failure.cancelled(), failure.cancel()) == (True, False, False, False)
    assert (failure.is_active(), failure.time_remaining(), failure.add_callback(print)) == (False, None, False)
    assert failure.exception() is failure
    assert failure.traceback() is None
    with pytest.raises(PolicyError) as caught:
        failure.result()
    assert caught.value is failure
