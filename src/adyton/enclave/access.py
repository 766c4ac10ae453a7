"""What stands before a servicer where [access] of enclave.toml asks who calls; two forms, for two kinds of server.

A caller that may not call a method is answered with that fact; the reasons are in the enclave's log. Nothing of the
request has been read by then.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import AsyncIterator, Collection, Mapping
from typing import Any, Final

import grpc
import grpc.aio

from adyton.atls.access import appraise_caller
from adyton.atls.peer import peer
from adyton.atls.sparing import SparingLog
from adyton.bundle.access import OWN_PREFIXES, AccessSettings, Expectation, Word
from adyton.enclave.handlers import AioGuard, Behavior, Guard, Handler, behavior_of, rebuild
from adyton.errors import ConfigurationError

_log = SparingLog(logging.getLogger("adyton.access"))

_REFUSED: Final = (grpc.StatusCode.PERMISSION_DENIED, "this caller may not call this method")


def access_interceptors(access: AccessSettings) -> list[Guard]:
    """For grpc.server(): what keeps [access]. Nothing, where everything is for anyone."""
    expectations = _Expectations(access)
    return [_AccessInterceptor(expectations)] if expectations.ask_anything else []


def aio_access_interceptors(access: AccessSettings) -> list[AioGuard]:
    """The same for grpc.aio.server()."""
    expectations = _Expectations(access)
    return [_AioAccessInterceptor(expectations)] if expectations.ask_anything else []


def check_methods(access: AccessSettings, services: Collection[str], methods: Mapping[str, Collection[str]]) -> None:
    """That every method which [access] names is there: a misspelt one would be as open as the default.

    `services` are the full names of all services, `methods` those of the ones whose methods are known. Raises
    ConfigurationError.
    """
    for path, _ in access.methods:
        service, _, method = path.removeprefix("/").rpartition("/")
        if service not in services or (method != "*" and method not in methods.get(service, (method,))):
            raise ConfigurationError(f"enclave.toml: access.methods names {path!r}, and this server has no such method")


class _Expectations:
    """Method → expectation: the method's own comes before its service's, and that before the default."""

    def __init__(self, access: AccessSettings) -> None:
        self._methods = dict(access.methods)
        self._default = access.default
        self.ask_anything = {self._default, *self._methods.values()} != {Word.ANYONE}

    def of(self, method: str) -> Expectation:
        if method.startswith(OWN_PREFIXES):
            return Word.ANYONE
        service = method.rpartition("/")[0]
        return self._methods.get(method, self._methods.get(f"{service}/*", self._default))


class _Gate:
    """Before one method whose callers have to be somebody."""

    __slots__ = ("_behavior", "_expectation", "_method", "experimental_non_blocking", "experimental_thread_pool")

    def __init__(self, behavior: Behavior, expectation: Expectation, method: str) -> None:
        self._behavior = behavior
        self._expectation = expectation
        self._method = method

    def _objections(self, context: Any) -> tuple[str, ...]:
        against = appraise_caller(self._expectation, peer(context))
        if against:
            extra = {"rpc": self._method, "reasons": against}
            _log.warning("a caller was refused", kind=self._method, extra=extra)
        return against

    def __call__(self, request: Any, context: Any, *callback: Any) -> Any:
        """For a handler in a thread: it returns a response or an iterator of them, or sends them to a callback."""
        if self._objections(context):
            context.abort(*_REFUSED)
        return self._behavior(request, context, *callback)

    async def await_call(self, request: Any, context: Any) -> Any:
        """For a coroutine."""
        if self._objections(context):
            await context.abort(*_REFUSED)
        return await self._behavior(request, context)

    async def iterate_call(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """For an asynchronous generator."""
        if self._objections(context):
            await context.abort(*_REFUSED)
        async for response in self._behavior(request, context):
            yield response


class _AccessInterceptor(Guard):
    def __init__(self, expectations: _Expectations) -> None:
        self._expectations = expectations

    def wrap(self, handler: Handler, method: str) -> Handler:
        expectation = self._expectations.of(method)
        if expectation is Word.ANYONE:
            return handler
        return rebuild(handler, _Gate(behavior_of(handler), expectation, method))


class _AioAccessInterceptor(AioGuard):
    def __init__(self, expectations: _Expectations) -> None:
        self._expectations = expectations

    def wrap(self, handler: Handler, method: str) -> Handler:
        expectation = self._expectations.of(method)
        if expectation is Word.ANYONE:
            return handler
        behavior = behavior_of(handler)
        gate = _Gate(behavior, expectation, method)
        return rebuild(handler, gate.iterate_call if inspect.isasyncgenfunction(behavior) else gate.await_call)
