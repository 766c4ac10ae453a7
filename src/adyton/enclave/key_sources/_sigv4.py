"""AWS Signature Version 4 of the one kind of request that KMS takes: `POST /` with a body and no query.

Ours, because botocore, which has it too, is 30 MB and 150 modules to be trusted inside an enclave; it is what the tests
compare this with. AWS, "Create a signed AWS API request", https://docs.aws.amazon.com/IAM/latest/UserGuide/.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from adyton.errors import KeyUnavailableError

ALGORITHM: Final = "AWS4-HMAC-SHA256"
DATE_FORMAT: Final = "%Y%m%dT%H%M%SZ"
_SERVICE: Final = "kms"


@dataclass(frozen=True, slots=True, kw_only=True)
class AwsCredentials:
    """What lets a request in at AWS; `session_token` is empty for a user's own, lasting key.

    They come from the host, and say nothing of the enclave. What no header can carry is a `KeyUnavailableError`.
    """

    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if not (self.access_key_id and self.secret_access_key):
            raise KeyUnavailableError("the AWS credentials lack a part")
        for value in (self.access_key_id, self.secret_access_key, self.session_token):
            if not (value.isascii() and value.isprintable()) or " " in value:
                raise KeyUnavailableError("the AWS credentials are not printable ASCII")


def environment_credentials() -> AwsCredentials:
    """Those of the environment, by AWS' names. Not the host's to set, unless enclave.toml says so."""
    try:
        return AwsCredentials(
            access_key_id=os.environ["AWS_ACCESS_KEY_ID"],
            secret_access_key=os.environ["AWS_SECRET_ACCESS_KEY"],
            session_token=os.environ.get("AWS_SESSION_TOKEN", ""),
        )
    except KeyError as missing:
        mend = "have enclave.toml's environment.allow list it, and AWS_SESSION_TOKEN, and give it to the launcher"
        raise KeyUnavailableError(f"the environment has no {missing.args[0]}", mend=mend) from None


def sign(
    headers: Mapping[str, str], body: bytes, *, credentials: AwsCredentials, region: str, now: datetime
) -> dict[str, str]:
    """The headers, `Host` among them, with those that sign them all and the body."""
    now = now.astimezone(UTC)
    signed = {**headers, "X-Amz-Date": now.strftime(DATE_FORMAT)}
    if credentials.session_token:
        signed["X-Amz-Security-Token"] = credentials.session_token
    canonical = {name.lower(): value.strip() for name, value in signed.items()}
    scope = f"{now:%Y%m%d}/{region}/{_SERVICE}/aws4_request"
    authorization = (
        f"{ALGORITHM} Credential={credentials.access_key_id}/{scope}, SignedHeaders={';'.join(sorted(canonical))}, "
        f"Signature={signature(canonical, body, secret=credentials.secret_access_key, scope=scope)}"
    )
    return {**signed, "Authorization": authorization}


def signature(headers: Mapping[str, str], body: bytes, *, secret: str, scope: str) -> str:
    """In hexadecimal. `headers` are those that are signed, named in lower case, `x-amz-date` among them."""
    names = sorted(headers)
    lines = [f"{name}:{headers[name]}" for name in names]
    request = "\n".join(["POST", "/", "", *lines, "", ";".join(names), hashlib.sha256(body).hexdigest()])
    digest = hashlib.sha256(request.encode()).hexdigest()
    key = f"AWS4{secret}".encode()
    for part in scope.split("/"):
        key = _hmac(key, part)
    return _hmac(key, "\n".join([ALGORITHM, headers["x-amz-date"], scope, digest])).hex()


def _hmac(key: bytes, message: str) -> bytes:
    return hmac.digest(key, message.encode(), hashlib.sha256)
