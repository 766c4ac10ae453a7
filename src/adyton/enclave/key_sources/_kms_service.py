"""AWS KMS as a service: where it is, one signed request and its answer, and how often to ask again."""

from __future__ import annotations

import json
import re
import secrets
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from http.client import HTTPException
from typing import Any, Final

from adyton.enclave.key_sources._https import Connect, Deadline, HttpsServer, tcp, tls_context
from adyton.enclave.key_sources._sigv4 import AwsCredentials, sign
from adyton.errors import ConfigurationError, KeyUnavailableError

PAUSES_SECONDS: Final = (0.0, 0.25, 1.0)
"""Before each attempt, give or take a half of it at random."""
HTTPS_PORT: Final = "443"
MAX_PORT: Final = 65535

_ARN: Final = re.compile(r"arn:(aws[a-z-]*):kms:([a-z0-9-]{1,32}):[0-9]{12}:key/[A-Za-z0-9-]{1,64}", re.ASCII)
_ENDPOINT: Final = re.compile(r"https://(([A-Za-z0-9.-]{1,253})(?::([0-9]{1,5}))?)", re.ASCII)
_ERROR: Final = re.compile(r"[A-Za-z]{1,64}", re.ASCII)
_THROTTLED: Final = frozenset(
    {"ThrottlingException", "Throttling", "TooManyRequestsException", "RequestLimitExceeded", "LimitExceededException"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class KmsSettings:
    """Which key, and whom to ask for it; the enclave's own, not its host's. Wrong ones are a `ConfigurationError`.

    `key_arn` is a key's, not an alias', which can be pointed elsewhere. `enclave` is the name in the encryption
    context: data of one name is not opened under another. `endpoint` is a URL (https://host[:port]), by default that
    of the key's region; `roots_pem` the only roots that its certificate is believed from, by default the system's.
    `seconds` are for one key, all attempts together.
    """

    key_arn: str
    enclave: str
    endpoint: str = ""
    roots_pem: str = ""
    seconds: float = 15.0

    def __post_init__(self) -> None:
        if not _ARN.fullmatch(self.key_arn):
            raise ConfigurationError(f"no ARN of a KMS key: {self.key_arn[:200]!r}", mend="an alias will not do")
        if not self.enclave:
            raise ConfigurationError("the enclave has no name in the encryption context")
        endpoint = _ENDPOINT.fullmatch(self.url)
        if not endpoint or not 0 < int(endpoint[3] or HTTPS_PORT) <= MAX_PORT:
            raise ConfigurationError(f"no endpoint of KMS: {self.url[:200]!r}", mend="write https://host:port")

    @property
    def region(self) -> str:
        """The key's."""
        return self.key_arn.split(":")[3]

    @property
    def url(self) -> str:
        """Where KMS is."""
        suffix = "amazonaws.com.cn" if self.key_arn.startswith("arn:aws-cn:") else "amazonaws.com"
        return self.endpoint or f"https://kms.{self.region}.{suffix}"


@dataclass(frozen=True, slots=True, kw_only=True)
class KmsAnswer:
    """`members` are empty if the answer is not a JSON object."""

    status: int
    members: Mapping[str, Any]

    @property
    def error(self) -> str:
        """KMS' name for it. Never its message: that of a bad signature holds the request's headers, with the token."""
        name = str(self.members.get("__type", "")).rpartition("#")[2].partition(":")[0]
        return name if _ERROR.fullmatch(name) else f"HTTP {self.status}"

    @property
    def may_pass(self) -> bool:
        """Whether another attempt may do better."""
        return self.status >= 500 or self.status == 429 or (self.status != 200 and self.error in _THROTTLED)


class KmsService:
    """Asks, and asks again where that may help. Safe in threads; holds no connection."""

    def __init__(
        self,
        settings: KmsSettings,
        credentials: Callable[[], AwsCredentials],
        connect: Connect | None,
        clock: Callable[[], datetime],
    ) -> None:
        self._settings = settings
        self._credentials = credentials
        self._clock = clock
        self._server, self._host = _server(settings, connect)

    def ask(self, operation: str, request: Mapping[str, Any]) -> KmsAnswer:
        """The answer, also a refusal that would be the same again; all else is a `KeyUnavailableError`."""
        body = json.dumps(request).encode("ascii")
        deadline = Deadline(self._settings.seconds)
        failure = ""
        for pause in PAUSES_SECONDS:
            try:
                time.sleep(min(pause * (0.5 + secrets.randbelow(512) / 1024), deadline.left()))
                answer = self._attempt(operation, body, deadline)
            except ssl.SSLCertVerificationError as problem:
                message = f"whoever answers is not {self._host}: {problem.verify_message}"
                mend = "somebody else answers, or the enclave lacks its root: roots_pem"
                raise KeyUnavailableError(message, mend=mend) from problem
            except (OSError, HTTPException) as problem:
                failure = type(problem).__name__
            else:
                if not answer.may_pass:
                    return answer
                failure = answer.error
        raise KeyUnavailableError(f"AWS KMS at {self._host} gives no key now: {failure}")

    def _attempt(self, operation: str, body: bytes, deadline: Deadline) -> KmsAnswer:
        headers = {
            "Host": self._host,
            "Content-Type": "application/x-amz-json-1.1",
            "X-Amz-Target": f"TrentService.{operation}",
        }
        signed = sign(headers, body, credentials=self._credentials(), region=self._settings.region, now=self._clock())
        share = self._settings.seconds / len(PAUSES_SECONDS)
        status, content = self._server.post(signed, body, seconds=min(share, deadline.left()))
        return KmsAnswer(status=status, members=_parsed(content))


def _server(settings: KmsSettings, connect: Connect | None) -> tuple[HttpsServer, str]:
    """The server, and its name in requests."""
    found = _ENDPOINT.fullmatch(settings.url)
    assert found is not None
    authority, host, port = found.groups(HTTPS_PORT)
    try:
        context = tls_context(settings.roots_pem)
    except (ssl.SSLError, TypeError) as problem:
        raise ConfigurationError("roots_pem is no certificate in PEM") from problem
    return HttpsServer(host=host, context=context, connect=connect or tcp(host, int(port))), authority


def _parsed(content: bytes) -> Mapping[str, Any]:
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) else {}
