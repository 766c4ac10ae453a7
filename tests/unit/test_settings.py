"""enclave.toml: every key, every default, every bound, and every way of saying it wrong."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, asdict

import pytest

from adyton.bundle.access import AccessSettings, Word
from adyton.bundle.settings import (
    MAX_TOML_BYTES,
    EnvironmentSettings,
    LoggingSettings,
    NetworkSettings,
    ServerSettings,
    Settings,
    parse_settings,
)
from adyton.errors import ConfigurationError

NAME, APPLICATION, INCLUDE = 'name = "translator"', 'application = "translator:App"', 'include = ["translator"]'
MINIMAL = f"{NAME}\n{APPLICATION}\n{INCLUDE}\n"
DAY_MS = 86_400_000

#: [server]: key → default, lowest, highest.
NUMBERS = {
    "workers": (1, 1, 256),
    "threads": (10, 1, 1024),
    "max_message_bytes": (1_048_576, 1024, 1_073_741_824),
    "max_concurrent_rpcs": (1000, 1, 1_000_000),
    "max_concurrent_streams": (100, 1, 1_000_000),
    "max_rpc_ms": (0, 0, DAY_MS),
    "max_connection_idle_ms": (300_000, 1000, DAY_MS),
    "request_timeout_ms": (60_000, 0, 86_400_000),
    "handshake_timeout_ms": (10_000, 100, 600_000),
    "keepalive_time_ms": (60_000, 1000, DAY_MS),
    "keepalive_timeout_ms": (20_000, 100, DAY_MS),
    "min_ping_interval_ms": (10_000, 100, DAY_MS),
}
#: Every switch: table, key → default.
SWITCHES = {
    ("network", "outbound"): False,
    ("logging", "access"): False,
    ("logging", "exception_messages"): False,
    ("server", "plain_tls"): False,
    ("server", "mesh"): False,
    ("server", "health"): True,
    ("server", "reflection"): True,
}


def parse(text: str) -> Settings:
    return parse_settings(text.encode())


def refusal(text: str | bytes) -> str:
    with pytest.raises(ConfigurationError, match=r"^enclave\.toml") as caught:
        parse_settings(text if isinstance(text, bytes) else text.encode())
    return str(caught.value)


# --- what is taken


def test_three_keys_are_enough() -> None:
    assert parse(MINIMAL) == Settings(name="translator", application="translator:App", include=("translator",))


def test_what_is_not_said_has_its_default() -> None:
    settings = parse(MINIMAL)
    assert settings.environment == EnvironmentSettings(allow=())
    assert settings.network == NetworkSettings(outbound=False)
    assert settings.logging == LoggingSettings(access=False, exception_messages=False)
    numbers = {key: default for key, (default, _, _) in NUMBERS.items()}
    switches = {key: default for (table, key), default in SWITCHES.items() if table == "server"}
    assert asdict(settings.server) == numbers | switches | {"names": ()}
    assert settings.access == AccessSettings(policy=None, allow_insecure=(), default=Word.ANYONE, methods=())


def test_an_empty_table_is_its_defaults() -> None:
    assert parse(MINIMAL + "[environment]\n[network]\n[logging]\n[server]\n[access]\n") == parse(MINIMAL)
    assert parse(MINIMAL + "[access.methods]\n") == parse(MINIMAL)


@pytest.mark.parametrize("key", NUMBERS)
def test_a_number_may_reach_its_bounds_and_no_further(key: str) -> None:
    _, low, high = NUMBERS[key]
    for value in (low, high):
        assert getattr(parse(f"{MINIMAL}[server]\n{key} = {value}").server, key) == value
    for value in (low - 1, high + 1):
        why = refusal(f"{MINIMAL}[server]\n{key} = {value}")
        assert f"'server.{key}' is out of bounds; it may be {low} to {high}" in why


@pytest.mark.parametrize(("table", "key"), SWITCHES)
def test_a_switch_can_be_set_either_way(table: str, key: str) -> None:
    for word, value in (("true", True), ("false", False)):
        settings = parse(f"{MINIMAL}[{table}]\n{key} = {word}")
        assert getattr(getattr(settings, table), key) is value


def test_variables_that_the_host_may_set_are_listed() -> None:
    names = ("MODE", "_x", "a1", "TZ", "PATHS", "HOMEPAGE", "MY_LD_X", "PROXY", "A" * 128)
    settings = parse(f"{MINIMAL}[environment]\nallow = {list(names)}")
    assert settings.environment.allow == names


def test_settings_can_not_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        parse(MINIMAL).server.workers = 2  # type: ignore[misc]
    assert ServerSettings() == parse(MINIMAL).server


# --- keys


@pytest.mark.parametrize("missing", ["name", "application", "include"])
def test_a_key_without_a_default_must_be_there(missing: str) -> None:
    text = "\n".join(line for line in MINIMAL.splitlines() if not line.startswith(missing))
    assert f"'{missing}' is missing" in refusal(text)


@pytest.mark.parametrize("table", ["", "environment", "network", "logging", "server", "access"])
def test_an_unknown_key_is_refused_at_every_level(table: str) -> None:
    header, key = (f"[{table}]\n", f"{table}.wrokers") if table else ("", "wrokers")
    assert f"unknown key '{key}' (known: " in refusal(f"{MINIMAL}{header}wrokers = 1")


def test_an_unknown_table_is_refused() -> None:
    assert "unknown key 'sever' (known: name, application, include, environment" in refusal(MINIMAL + "[sever]\n")
    assert "unknown key 'server.tls'" in refusal(MINIMAL + "[server.tls]\n")


# --- types

LITERALS = {
    "bool": "true",
    "int": "1",
    "float": "1.0",
    "string": '"1"',
    "list": "[1]",
    "table": "{}",
    "date": "1979-05-27",
}


@pytest.mark.parametrize("literal", [each for each in LITERALS if each != "int"])
@pytest.mark.parametrize("key", NUMBERS)
def test_a_number_is_nothing_else(key: str, literal: str) -> None:
    why = refusal(f"{MINIMAL}[server]\n{key} = {LITERALS[literal]}")
    assert f"'server.{key}' should be a whole number" in why


@pytest.mark.parametrize("literal", [each for each in LITERALS if each != "bool"])
@pytest.mark.parametrize(("table", "key"), SWITCHES)
def test_a_switch_is_nothing_else(table: str, key: str, literal: str) -> None:
    why = refusal(f"{MINIMAL}[{table}]\n{key} = {LITERALS[literal]}")
    assert f"'{table}.{key}' should be true or false" in why


@pytest.mark.parametrize("literal", [each for each in LITERALS if each != "string"])
def test_a_string_is_nothing_else(literal: str) -> None:
    assert "'name' should be a string" in refusal(f"name = {LITERALS[literal]}\n{APPLICATION}\n{INCLUDE}")
    assert "'application' should be a string" in refusal(f"{NAME}\napplication = {LITERALS[literal]}\n{INCLUDE}")


@pytest.mark.parametrize("value", [*LITERALS.values(), '["a", 1]', '[["a"]]', "[true]"])
def test_a_list_of_strings_is_nothing_else(value: str) -> None:
    assert "'include' should be a list of strings" in refusal(f"{NAME}\n{APPLICATION}\ninclude = {value}")
    for table, key in (("environment", "allow"), ("server", "names"), ("access", "allow_insecure")):
        assert f"'{table}.{key}' should be a list of strings" in refusal(f"{MINIMAL}[{table}]\n{key} = {value}")


@pytest.mark.parametrize("table", ["environment", "network", "logging", "server", "access"])
@pytest.mark.parametrize("value", [literal for kind, literal in LITERALS.items() if kind != "table"])
def test_a_table_is_nothing_else(table: str, value: str) -> None:
    assert f"'{table}' should be a table" in refusal(f"{MINIMAL}{table} = {value}")
    assert f"'{table}' should be a table" in refusal(f"{MINIMAL}[[{table}]]")


# --- words


@pytest.mark.parametrize("name", ["a", "a-b", "a1", "a-", "a" * 63])
def test_a_good_name_is_taken(name: str) -> None:
    assert parse(f'name = "{name}"\n{APPLICATION}\n{INCLUDE}').name == name


@pytest.mark.parametrize("name", ["", "A", "1a", "-a", "a_b", "a.b", "a/b", "a b", "à", "a\\n", "a\\u0000", "a" * 64])
def test_a_bad_name_is_refused(name: str) -> None:
    assert "'name' should be small letters" in refusal(f'name = "{name}"\n{APPLICATION}\n{INCLUDE}')


# fmt: off
BAD_APPLICATIONS = (
    "", "a", ":", "a:", ":B", "a.B", "a:B.C", "a:B:C", ".a:B", "a.:B", "a..b:C", "1a:B", "a:1B", "a-b:C", "a :B",
    "a:B\\n", "à:B", "aé:B", "a/b:C", "a:B()", "a:B\\u0000",
)
# fmt: on


@pytest.mark.parametrize("application", ["a:B", "a.b.c:D", "_a._b:_C", "a1.b2:C3"])
def test_a_good_application_is_taken(application: str) -> None:
    assert parse(f'{NAME}\napplication = "{application}"\n{INCLUDE}').application == application


@pytest.mark.parametrize("application", BAD_APPLICATIONS)
def test_a_bad_application_is_refused(application: str) -> None:
    assert "'application' should be 'module:Class'" in refusal(f'{NAME}\napplication = "{application}"\n{INCLUDE}')


@pytest.mark.parametrize("path", ["", ".", "..", "/", "/etc", "../a", "a/..", "a/../b", "./a", "a/", "a//b", "a/./b"])
def test_a_path_outside_the_project_is_refused(path: str) -> None:
    why = refusal(f'{NAME}\n{APPLICATION}\ninclude = ["translator", "{path}"]')
    assert f"'include' has {path!r}; it takes paths below" in why


@pytest.mark.parametrize("path", ["json", "json.py", "os.py", "email/x.py", "sys", "_thread.py"])
def test_a_module_that_the_standard_library_has_is_refused(path: str) -> None:
    assert "which the standard library's would hide" in refusal(f'{NAME}\n{APPLICATION}\ninclude = ["{path}"]')


@pytest.mark.parametrize("path", ["json2", "a/json.py", "json.txt", "a/b/c", "..a", "data file.txt", "été"])
def test_another_path_is_taken(path: str) -> None:
    assert parse(f'{NAME}\n{APPLICATION}\ninclude = ["{path}"]').include == (path,)


def test_an_empty_include_is_refused() -> None:
    assert "'include' is empty, so nothing would be in the bundle" in refusal(f"{NAME}\n{APPLICATION}\ninclude = []")


# fmt: off
STEERING = (
    "LD_PRELOAD", "ld_preload", "LD_", "PYTHONPATH", "PYTHON", "PYTHONHASHSEED", "GRPC_VERBOSITY", "GRPC_TRACE",
    "GLIBC_TUNABLES", "MALLOC_ARENA_MAX", "OPENSSL_CONF", "SSLKEYLOGFILE", "SSL_CERT_FILE", "GCONV_PATH", "PATH",
    "path", "HOME", "TMPDIR", "http_proxy", "HTTPS_PROXY", "no_proxy",
)
# fmt: on


@pytest.mark.parametrize("name", [*STEERING, "", "1A", "A-B", "A=B", "A B", "À", "A\\n", "A\\u0000", "A" * 129])
def test_a_variable_that_is_not_the_hosts_to_set_is_refused(name: str) -> None:
    why = refusal(f'{MINIMAL}[environment]\nallow = ["MODE", "{name}"]')
    assert "'environment.allow' has " in why
    assert "which a host may not set" in why


# --- the text itself

BROKEN = {
    "not UTF-8": b"name = '\xff'",
    "not TOML": b"name: translator",
    "a key twice": f"{MINIMAL}{NAME}".encode(),
    "a table twice": f"{MINIMAL}[server]\n[server]".encode(),
    "nested without end": b"a = " + b"[" * 60_000,
    "a number of thousands of digits": f"{MINIMAL}[server]\nworkers = {'1' * 5000}".encode(),
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN.keys())
def test_what_is_not_toml_is_refused(text: bytes) -> None:
    assert "enclave.toml is not TOML" in refusal(text)


def test_a_number_of_thousands_of_hexadecimal_digits_is_out_of_bounds() -> None:
    assert "'server.workers' is out of bounds" in refusal(f"{MINIMAL}[server]\nworkers = 0x{'f' * 50_000}")


def test_a_text_that_is_too_long_is_refused() -> None:
    longest = MINIMAL.encode().ljust(MAX_TOML_BYTES, b"\n")
    assert parse_settings(longest) == parse(MINIMAL)
    assert "larger than 65536 bytes" in refusal(longest + b"\n")


def test_firmware_is_one_of_two_words_and_ovmf_needs_memory() -> None:
    assert parse(MINIMAL + '[vm]\nfirmware = "ovmf"\nmemory_mb = 384').vm.firmware == "ovmf"
    assert "'vm.firmware' should be one of none, ovmf" in refusal(MINIMAL + '[vm]\nfirmware = "bios"')
    assert "'vm.memory_mb' is 384 or more" in refusal(MINIMAL + '[vm]\nfirmware = "ovmf"\nmemory_mb = 383')
    assert parse(MINIMAL + "[vm]\nmemory_mb = 256").vm.memory_mb == 256


SIGNER = "ab" * 32


@pytest.mark.parametrize(
    ("sealing", "message"),
    [
        ('policy = "signer"', "needs 'sealing.signers'"),
        (f'policy = "signer"\nsigners = ["{SIGNER[1:]}"]', "'sealing.signers' has"),
        ("version = 2\nmin_version = 3", "more than 'sealing.version'"),
        ('source = "release"', "needs 'sealing.release.policy'"),
        ('source = "release"\nrelease.policy = "p.toml"', "which 'include' leaves out"),
        ('source = "aws-kms"', "needs 'sealing.kms.key'"),
        ('source = "aws-kms"\nkms.key = "arn"', "needs 'sealing.kms.roots'"),
        ('source = "aws-kms"\nkms.key = "arn"\nkms.roots = "r.pem"', "which 'include' leaves out"),
        ('source = "sgx"', "should be one of tee, release, aws-kms"),
        ("version = 0", "out of bounds"),
    ],
)
def test_sealing_settings_that_do_not_fit_are_refused(sealing: str, message: str) -> None:
    text = f'name = "e"\napplication = "e:E"\ninclude = ["e"]\n[sealing]\n{sealing}\n'
    with pytest.raises(ConfigurationError, match=message):
        parse_settings(text.encode())


def test_sealing_settings_that_fit_are_taken() -> None:
    text = (
        'name = "e"\napplication = "e:E"\ninclude = ["e"]\n'
        f'[sealing]\npolicy = "signer"\nsigners = ["{SIGNER}"]\nversion = 3\nmin_version = 2\n'
        f'release.policy = "e/p.toml"\n[secrets]\nowners = ["{SIGNER}"]\n'
    )
    settings = parse_settings(text.encode())
    assert (settings.sealing.version, settings.sealing.signers, settings.secrets.owners) == (3, (SIGNER,), (SIGNER,))


def test_an_owner_is_named_by_a_digest() -> None:
    with pytest.raises(ConfigurationError, match=r"'secrets.owners' has"):
        parse_settings(b'name = "e"\napplication = "e:E"\ninclude = ["e"]\n[secrets]\nowners = ["me"]\n')
