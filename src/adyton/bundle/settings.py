"""enclave.toml: what the enclave's author decides, and what is measured with the code.

A closed world: an unknown table or key, a wrong type, a number out of bounds is a ConfigurationError that names the
key. What the host may decide instead stands in adyton/proto/enclave.proto. docs/enclave-toml.md is the reference.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import sys
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from adyton.bundle.access import AccessSettings, check_access, is_included
from adyton.bundle.names import is_dns_name
from adyton.errors import ConfigurationError

_NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")
_APPLICATION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
_KEY_ID = re.compile(r"[0-9a-f]{64}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
#: Variables that steer the interpreter, the loader or a library: never the host's to set, whatever enclave.toml says.
_STEERING = re.compile(
    r"(LD_|PYTHON|GRPC_|PROTOCOL_BUFFERS_|GLIBC_|MALLOC_|OPENSSL_|SSL|GCONV_PATH|LOCPATH|NLSPATH|HOSTALIASES|RES_OPTIONS"
    r"|BASH_ENV$|ENV$|IFS$|PATH$|HOME$|TMPDIR$|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|.*_proxy$)",
    re.IGNORECASE,
)

MAX_TOML_BYTES = 64 * 1024
#: OVMF needs memory beside the image that it loads; with less it stops without a word.
OVMF_LEAST_MB = 384
#: A smaller disk has hardly room for its file system's journal.
STATE_LEAST_MB = 16
_DAY_MS = 24 * 3600 * 1000

T = TypeVar("T")


def _within(default: int, low: int, high: int) -> Any:
    return field(default=default, metadata={"bounds": (low, high)})


def _one_of(*words: str) -> Any:
    """The first is the default."""
    return field(default=words[0], metadata={"words": words})


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentSettings:
    """[environment]: names of the variables that the host may set."""

    allow: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSettings:
    """[network]: whether the enclave may open connections. Where a launcher can't enforce it, doctor says so."""

    outbound: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggingSettings:
    """[logging]: the log leaves the enclave, so by default no text that could come from a request is in it.

    `access`: a line an RPC (method, status, duration). `exception_messages`: an exception in a servicer is logged with
    its message, which may quote a request; without it only its type and where it was raised.
    """

    access: bool = False
    exception_messages: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """[server]: the names, ports and limits of GrpcApplication's server. Times in milliseconds, sizes in bytes.

    `names` are DNS names that clients may reach it by, beside "atls.internal". `plain_tls`: a second port, for clients
    that show no certificate. `mesh`: a third, for callers that have enrolled.
    """

    names: tuple[str, ...] = ()
    plain_tls: bool = False
    mesh: bool = False
    workers: int = _within(1, 1, 256)
    threads: int = _within(10, 1, 1024)
    max_message_bytes: int = _within(1024 * 1024, 1024, 1 << 30)
    max_concurrent_rpcs: int = _within(1000, 1, 1_000_000)
    max_concurrent_streams: int = _within(100, 1, 1_000_000)
    max_rpc_ms: int = _within(0, 0, _DAY_MS)
    request_timeout_ms: int = _within(60_000, 0, _DAY_MS)
    max_connection_idle_ms: int = _within(300_000, 1000, _DAY_MS)
    handshake_timeout_ms: int = _within(10_000, 100, 600_000)
    keepalive_time_ms: int = _within(60_000, 1000, _DAY_MS)
    keepalive_timeout_ms: int = _within(20_000, 100, _DAY_MS)
    min_ping_interval_ms: int = _within(10_000, 100, _DAY_MS)
    health: bool = True
    reflection: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class VmSettings:
    """[vm]: the virtual machine that the enclave gets where it runs in one.

    `firmware`: "none", and the launcher measures what it boots; "ovmf", and OVMF does, as in clouds. `state_mb`: the
    size of the disk for what outlives the enclave, where the host gives it a state folder; 0: it takes none.
    """

    memory_mb: int = _within(512, 256, 1024 * 1024)
    cpus: int = _within(1, 1, 64)
    firmware: str = _one_of("none", "ovmf")
    state_mb: int = _within(256, 0, 1024 * 1024)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseSettings:
    """[sealing.release]: the enclave that releases keys: what it must be (a policy in the bundle), and where it is.

    The address may come from the host instead, who is not trusted with it: only what meets the policy is asked.
    """

    policy: str = ""
    address: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class KmsSettings:
    """[sealing.kms]: a key of AWS KMS, by its ARN, and where KMS is reached, if not at its region's own endpoint.

    `roots` is a file of the bundle with the certificates (PEM) that KMS' own must be under.
    """

    key: str = ""
    roots: str = ""
    endpoint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SealingSettings:
    """[sealing]: where sealing keys come from, and whom they are for.

    `source`: "tee" is the hardware that the enclave runs on. `policy`: "measurement" is this very code; "signer" is all
    code that one of `signers` signed for the same name, of this `version` or later. `min_version`: data that was sealed
    by an earlier version is refused. A signer is the SHA-256 of its public key, as `adyton new-key` prints it; on SGX,
    MRSIGNER.
    """

    source: str = _one_of("tee", "release", "aws-kms")
    policy: str = _one_of("measurement", "signer")
    signers: tuple[str, ...] = ()
    version: int = _within(1, 1, 65535)
    min_version: int = _within(1, 1, 65535)
    release: ReleaseSettings = ReleaseSettings()
    kms: KmsSettings = KmsSettings()


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretsSettings:
    """[secrets]: who may send secrets to the enclave, as `adyton new-key` prints keys: 64 hexadecimal digits each."""

    owners: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """enclave.toml, checked.

    `application` is `module:Class`; `include` the files and folders, relative to enclave.toml, that make the bundle.
    """

    name: str
    application: str
    include: tuple[str, ...]
    environment: EnvironmentSettings = EnvironmentSettings()
    network: NetworkSettings = NetworkSettings()
    logging: LoggingSettings = LoggingSettings()
    server: ServerSettings = ServerSettings()
    vm: VmSettings = VmSettings()
    sealing: SealingSettings = SealingSettings()
    secrets: SecretsSettings = SecretsSettings()
    access: AccessSettings = field(default=AccessSettings())


def parse_settings(text: bytes) -> Settings:
    """Read enclave.toml. Raises ConfigurationError, which names the key and says what it should be."""
    if len(text) > MAX_TOML_BYTES:
        raise ConfigurationError(f"enclave.toml is larger than {MAX_TOML_BYTES} bytes")
    try:
        raw = tomllib.loads(text.decode())
    except (ValueError, RecursionError) as problem:  # not UTF-8, not TOML, or a number of thousands of digits
        raise ConfigurationError(f"enclave.toml is not TOML: {problem}") from problem
    settings = _table(Settings, raw, "")
    _check_words(settings)
    check_access(settings.access, settings.include)
    return settings


def _table(kind: type[T], raw: dict[str, Any], prefix: str) -> T:
    hints = typing.get_type_hints(kind)
    known = {each.name: each for each in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in raw:
        if key not in known:
            raise ConfigurationError(f"enclave.toml: unknown key {prefix + key!r}", mend=f"known: {', '.join(known)}")
    values = {}
    for name, each in known.items():
        if name in raw:
            parse = each.metadata.get("parse", functools.partial(_value, hints[name], each.metadata))
            values[name] = parse(raw[name], prefix + name)
        elif each.default is dataclasses.MISSING:
            raise ConfigurationError(f"enclave.toml: {prefix + name!r} is missing")
    return kind(**values)


def _value(kind: Any, limits: Mapping[str, Any], raw: object, key: str) -> object:
    if dataclasses.is_dataclass(kind) and isinstance(raw, dict):
        return _table(typing.cast("type[Any]", kind), raw, key + ".")
    if kind is bool and isinstance(raw, bool):
        return raw
    if kind is int and isinstance(raw, int) and not isinstance(raw, bool):
        low, high = limits["bounds"]
        if not low <= raw <= high:
            raise ConfigurationError(f"enclave.toml: {key!r} is out of bounds; it may be {low} to {high}")
        return raw
    if kind is str and isinstance(raw, str):
        if raw not in limits.get("words", (raw,)):
            raise ConfigurationError(f"enclave.toml: {key!r} should be one of {', '.join(limits['words'])}")
        return raw
    if kind == tuple[str, ...] and isinstance(raw, list) and all(isinstance(each, str) for each in raw):
        return tuple(raw)
    expected = "a table" if dataclasses.is_dataclass(kind) else _WORDS[kind]
    raise ConfigurationError(f"enclave.toml: {key!r} should be {expected}")


_WORDS = {bool: "true or false", int: "a whole number", str: "a string", tuple[str, ...]: "a list of strings"}


def _check_words(settings: Settings) -> None:
    if not _NAME.fullmatch(settings.name):
        raise ConfigurationError("enclave.toml: 'name' should be small letters, digits and '-', 63 at most")
    if not _APPLICATION.fullmatch(settings.application):
        raise ConfigurationError("enclave.toml: 'application' should be 'module:Class'")
    if not settings.include:
        raise ConfigurationError("enclave.toml: 'include' is empty, so nothing would be in the bundle")
    for path in settings.include:
        parts = path.split("/")
        if any(part in ("", ".", "..") for part in parts):
            raise ConfigurationError(
                f"enclave.toml: 'include' has {path!r}; it takes paths below enclave.toml's folder"
            )
        if parts[0].removesuffix(".py") in sys.stdlib_module_names:
            raise ConfigurationError(f"enclave.toml: 'include' has {path!r}, which the standard library's would hide")
    if settings.vm.firmware == "ovmf" and settings.vm.memory_mb < OVMF_LEAST_MB:
        raise ConfigurationError(f"enclave.toml: with 'vm.firmware' ovmf, 'vm.memory_mb' is {OVMF_LEAST_MB} or more")
    if 0 < settings.vm.state_mb < STATE_LEAST_MB:
        raise ConfigurationError(f"enclave.toml: 'vm.state_mb' is {STATE_LEAST_MB} or more, or 0 for no state")
    _check_names(settings)
    _check_sealing(settings)


def _check_names(settings: Settings) -> None:
    for name in settings.server.names:
        if not is_dns_name(name) or name.lower().endswith("atls.internal"):
            mend = "DNS names; those of atls.internal are Adyton's"
            raise ConfigurationError(f"enclave.toml: 'server.names' has {name[:80]!r}", mend=mend)
    for name in settings.environment.allow:
        if not _VARIABLE.fullmatch(name) or _STEERING.match(name):
            raise ConfigurationError(f"enclave.toml: 'environment.allow' has {name!r}, which a host may not set")


def _check_sealing(settings: Settings) -> None:  # noqa: C901  one for each mistake
    sealing = settings.sealing
    if sealing.min_version > sealing.version:
        raise ConfigurationError("enclave.toml: 'sealing.min_version' is more than 'sealing.version'")
    if sealing.policy == "signer" and not sealing.signers:
        raise ConfigurationError("enclave.toml: 'sealing.policy' signer needs 'sealing.signers'")
    needed = {
        "release": {"release.policy": sealing.release.policy},
        "aws-kms": {"kms.key": sealing.kms.key, "kms.roots": sealing.kms.roots},
    }
    for name, value in needed.get(sealing.source, {}).items():
        if not value:
            raise ConfigurationError(f"enclave.toml: 'sealing.source' {sealing.source} needs 'sealing.{name}'")
    if sealing.source != "tee" and (sealing.policy, sealing.min_version) != ("measurement", 1):
        raise ConfigurationError(
            f"enclave.toml: with 'sealing.source' {sealing.source}, that source decides who gets a key",
            mend="leave 'sealing.policy' and 'sealing.min_version' out",
        )
    for name, path in (("release.policy", sealing.release.policy), ("kms.roots", sealing.kms.roots)):
        if path and not is_included(path, settings.include):
            raise ConfigurationError(f"enclave.toml: 'sealing.{name}' is {path!r}, which 'include' leaves out")
    for name, keys in (("sealing.signers", sealing.signers), ("secrets.owners", settings.secrets.owners)):
        for key in keys:
            if not _KEY_ID.fullmatch(key):
                mend = "64 digits, as `adyton new-key` prints them"
                raise ConfigurationError(f"enclave.toml: {name!r} has {key[:80]!r}", mend=mend)
