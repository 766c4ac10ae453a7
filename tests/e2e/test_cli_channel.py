"""`adyton call`, `verify-server` and `export-ca` against an enclave, as a user types them; and what they refuse."""

from __future__ import annotations

import base64
import json
import re
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from command_line import ALLOW, SIMULATED, adyton, running, simulated_policy
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from probe import probe_pb2, probe_pb2_grpc

from adyton.errors import ExitCode
from adyton.host.bundles import Bundle
from adyton.policy.signed import PAYLOAD_TYPE, pre_authentication_encoding
from adyton.testing.probes import SERVER, write_probe_project

SETTINGS = '[server]\nplain_tls = true\nnames = ["probe.example"]\n'


@dataclass(frozen=True, slots=True, kw_only=True)
class Enclave:
    target: str
    plain_tls: str
    project: Path
    policy: Path

    @property
    def words(self) -> tuple[str | Path, ...]:
        """How to connect to it."""
        return (self.target, "--policy", self.policy, *ALLOW)

    def words_under(self, policy: str, folder: Path) -> tuple[str | Path, ...]:
        """The same under another policy."""
        (folder / "other.toml").write_text(policy)
        return (self.target, "--policy", folder / "other.toml", *ALLOW)


@pytest.fixture(scope="module")
def enclave(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Enclave]:
    project = write_probe_project(tmp_path_factory.mktemp("project"), SERVER, SETTINGS)
    policy = tmp_path_factory.mktemp("policy") / "policy.toml"
    policy.write_text(simulated_policy(project))
    with running(project) as server:
        plain_tls = re.fullmatch(r"Plain TLS on port (\d+)", server.next_line())
        assert plain_tls is not None
        yield Enclave(
            target=f"localhost:{server.port}",
            plain_tls=f"localhost:{plain_tls[1]}",
            project=project,
            policy=policy,
        )


@pytest.fixture
def twin(enclave: Enclave) -> Iterator[Enclave]:
    """A genuine enclave of the very same code."""
    with running(enclave.project) as server:
        plain_tls = f"localhost:{server.next_line().rpartition(' ')[2]}"
        yield Enclave(
            target=f"localhost:{server.port}", plain_tls=plain_tls, project=enclave.project, policy=enclave.policy
        )


class TestCall:
    def test_unary(self, enclave: Enclave) -> None:
        done = adyton("call", *enclave.words, "probe.Probe/Echo", '{"text": "a"}', "--compact")
        assert (done.returncode, done.stdout, done.stderr) == (0, '{"text": "a"}\n', SIMULATED)

    def test_streams(self, enclave: Enclave) -> None:
        lines = '{"text": "a"}\n' * 500
        done = adyton("call", *enclave.words, "probe.Probe/Chat", input=lines)
        assert (done.returncode, done.stdout, done.stderr) == (0, lines.upper().replace("TEXT", "text"), SIMULATED)

    def test_list(self, enclave: Enclave) -> None:
        services = adyton("call", *enclave.words, "--list").stdout
        assert "probe.Probe\n" in services
        methods = adyton("call", *enclave.words, "--list", "probe.Probe").stdout
        assert "probe.Probe/Count(probe.Text) returns (stream probe.Text)\n" in methods

    def test_the_services_own_status(self, enclave: Enclave) -> None:
        done = adyton("call", *enclave.words, "probe.Probe/Fail", '{"text": "abort"}')
        assert (done.returncode, done.stderr) == (1, f"{SIMULATED}adyton call: OUT_OF_RANGE: as asked\n")

    def test_deadline(self, enclave: Enclave) -> None:
        words = ("probe.Probe/Echo", '{"milliseconds": 5000}', "--timeout", "1")
        done = adyton("call", *enclave.words, *words)
        assert (done.returncode, "was not done in 1 s" in done.stderr) == (ExitCode.UNREACHABLE, True)

    def test_another_name_of_the_server(self, enclave: Enclave) -> None:
        words = (*enclave.words, "probe.Probe/Echo", "--server-name")
        assert adyton("call", *words, "probe.example").returncode == 0
        done = adyton("call", *words, "elsewhere.example")
        assert (done.returncode, done.stdout) == (ExitCode.NOT_GENUINE, "")
        assert "shows a certificate for another name than the one that was asked for" in done.stderr

    def test_nothing_of_a_failed_call_is_left_for_the_exit(self, enclave: Enclave) -> None:
        """A gRPC call object that only Python's exit finalizes can hang the process, once in some hundred runs."""
        script = """if True:
            import gc, sys
            gc.disable()
            from adyton.cli.main import main
            code = main(["call", *sys.argv[1:]])
            import grpc
            left = [each for each in gc.get_objects() if issubclass(type(each), grpc.Call | grpc.Channel)]
            sys.exit(repr(left) if left else code)
        """
        command = [sys.executable, "-c", script, *map(str, enclave.words)]
        for method, code in (("probe.Probe/Fail", ExitCode.FAILED), ("probe.Probe/Nothing", ExitCode.USAGE)):
            done = subprocess.run([*command, method], capture_output=True, text=True, timeout=60, check=False)
            assert (done.returncode, "object at" in done.stderr) == (code, False), done.stderr


class TestRefusals:
    @pytest.mark.parametrize("verb", ["call", "verify-server", "export-ca"])
    def test_an_insecurity_that_nobody_agreed_to(self, enclave: Enclave, verb: str, tmp_path: Path) -> None:
        done = adyton(verb, enclave.target, "--policy", enclave.policy, *_more(verb, tmp_path))
        assert (done.returncode, done.stdout) == (ExitCode.POLICY_REFUSED, "")
        assert f"adyton {verb}: the policy accepts no such evidence of simulated\n" in done.stderr
        assert ": insecurity is simulated, wanted is none" in done.stderr
        assert not (tmp_path / "ca.pem").exists()

    def test_every_finding_has_a_line(self, enclave: Enclave, tmp_path: Path) -> None:
        policy = enclave.policy.read_text()
        first, second = (
            re.sub(r'measurement = \["[0-9a-f]{96}', f'measurement = ["{digits * 48}', policy.partition("[[")[2])
            for digits in ("00", "ff")
        )
        rules = f"[[{first}\n[[{second}".replace('name = "', 'name = "first ', 1)
        words = enclave.words_under(policy.partition("[[")[0] + rules, tmp_path)[:-2]
        done = adyton("call", *words, "probe.Probe/Echo")
        assert done.returncode == ExitCode.POLICY_REFUSED
        findings = [line for line in done.stderr.splitlines() if line.startswith("  rule '")]
        assert [re.findall("(measurement|insecurity) is", line) for line in findings] == [
            ["measurement"],
            ["insecurity"],
        ] * 2

    def test_one_byte_of_the_application_is_another(self, enclave: Enclave, tmp_path: Path) -> None:
        project = shutil.copytree(enclave.project, tmp_path / "project")
        servicer = project / "probe" / "servers.py"
        servicer.write_text(servicer.read_text().replace("as asked", "as asken", 1))
        with running(project) as server:
            words = (f"localhost:{server.port}", "--policy", enclave.policy, *ALLOW)
            done = adyton("call", *words, "probe.Probe/Echo", '{"text": "a"}')
        assert (done.returncode, done.stdout) == (ExitCode.POLICY_REFUSED, "")
        changed = Bundle.build(project).measurements()["reference_values"]
        assert isinstance(changed, dict)
        assert f"measurement is {changed['simulated']['measurement']}, wanted is " in done.stderr

    @pytest.mark.parametrize("verb", ["call", "verify-server", "export-ca"])
    def test_evidence_under_another_root(self, enclave: Enclave, verb: str, tmp_path: Path) -> None:
        policy = re.sub(r'simulated = \["[0-9a-f]{64}', f'simulated = ["{"00" * 32}', enclave.policy.read_text())
        done = adyton(verb, *enclave.words_under(policy, tmp_path), *_more(verb, tmp_path))
        assert (done.returncode, done.stdout) == (ExitCode.NOT_GENUINE, "")
        assert not (tmp_path / "ca.pem").exists()

    @pytest.mark.parametrize("verb", ["call", "verify-server", "export-ca"])
    def test_nobody_there(self, enclave: Enclave, verb: str, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as closing:
            target = f"127.0.0.1:{closing.getsockname()[1]}"
        done = adyton(verb, target, *enclave.words[1:], *_more(verb, tmp_path))
        assert (done.returncode, done.stdout) == (ExitCode.UNREACHABLE, "")
        assert "Connection refused" in done.stderr

    def test_somebody_who_says_nothing(self, enclave: Enclave) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            target = f"127.0.0.1:{listener.getsockname()[1]}"
            done = adyton("verify-server", target, *enclave.words[1:], "--timeout", "1")
        assert (done.returncode, done.stdout) == (ExitCode.UNREACHABLE, "")

    def test_a_server_that_is_no_enclave(self, enclave: Enclave) -> None:
        server = grpc.server(futures.ThreadPoolExecutor(2))
        target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        done = adyton("call", target, *enclave.words[1:], "--list")
        server.stop(0).wait()
        assert (done.returncode, "does not speak TLS 1.3" in done.stderr) == (ExitCode.NOT_GENUINE, True)

    def test_a_plain_client_at_the_enclave(self, enclave: Enclave) -> None:
        done = adyton("call", enclave.target, "--list", "--plaintext")
        assert done.returncode == ExitCode.UNREACHABLE
        assert "an enclave's server closes a plain connection: give --policy" in done.stderr

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ((), "which enclave would be acceptable? (--policy FILE; or --plaintext for an ordinary gRPC server)"),
            (("--plaintext", "--policy", "p"), "--plaintext attests nothing"),
            (("--plaintext", "--server-name", "n"), "--plaintext attests nothing"),
            (("--plaintext", *ALLOW), "--allow-insecure is about a policy, and none is given"),
            (("--policy", "/nowhere/p.toml"), "can't read /nowhere/p.toml: No such file or directory"),
            (("--policy", "p", "--timeout", "0"), "is not a number of seconds between 0 and"),
        ],
    )
    def test_arguments_of_call(self, words: tuple[str, ...], message: str) -> None:
        done = adyton("call", "localhost:1", "a.B/C", *words)
        assert (done.returncode, message in done.stderr) == (ExitCode.USAGE, True), done.stderr

    @pytest.mark.parametrize("verb", ["verify-server", "export-ca", "proxy"])
    def test_the_others_need_a_policy(self, verb: str) -> None:
        done = adyton(verb, "localhost:1")
        assert (done.returncode, "required: " in done.stderr and "--policy" in done.stderr) == (ExitCode.USAGE, True)


def _more(verb: str, folder: Path) -> list[str | Path]:
    """What the verb needs beside a connection."""
    words: dict[str, list[str | Path]] = {"call": ["probe.Probe/Echo"], "export-ca": ["-o", folder / "ca.pem"]}
    return words.get(verb, [])


class TestVerifyServer:
    def test_the_record(self, enclave: Enclave) -> None:
        done = adyton("verify-server", *enclave.words)
        assert (done.returncode, done.stderr) == (0, SIMULATED)
        record = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
        assert (record["tee"], record["level"], record["audience"]) == ("simulated", "connection", "atls.internal")
        assert record["report_data_compared"] == "yes"
        assert json.loads(record["claims"])["name"] == "probe"

    def test_the_record_as_json(self, enclave: Enclave) -> None:
        done = adyton("verify-server", *enclave.words, "--json")
        record = json.loads(done.stdout)
        measurement = Bundle.build(enclave.project).measurements()["reference_values"]
        assert measurement == {"simulated": {"measurement": record["measurement"]}}
        assert (record["level"], record["claims"]["v"], record["report_data_compared"]) == ("connection", 1, True)

    def test_the_refusal_as_json(self, enclave: Enclave) -> None:
        done = adyton("verify-server", enclave.target, "--policy", enclave.policy, "--json")
        refusal = json.loads(done.stdout)
        assert (done.returncode, done.stderr, refusal["accepted"]) == (ExitCode.POLICY_REFUSED, "", False)
        assert [finding["subject"] for finding in refusal["findings"]] == ["insecurity"]

    def test_a_configuration_that_the_policy_pins(self, enclave: Enclave, tmp_path: Path) -> None:
        record = json.loads(adyton("verify-server", *enclave.words, "--json").stdout)
        for digest, code in ((record["claims"]["config_sha256"], 0), ("00" * 32, ExitCode.POLICY_REFUSED)):
            policy = f'{enclave.policy.read_text()}[channel]\nconfig_sha256 = ["{digest}"]\n'
            assert adyton("verify-server", *enclave.words_under(policy, tmp_path)).returncode == code

    def test_signed_reference_values_never_go_back(self, enclave: Enclave, tmp_path: Path) -> None:
        signer = Ed25519PrivateKey.generate()
        for version in (7, 8):
            (tmp_path / f"v{version}.json").write_bytes(_signed_measurement(enclave, version, signer))
        policy = re.sub(r"measurement = \[.*\]", 'measurement = { signed = "them" }', enclave.policy.read_text())
        key = signer.public_key().public_bytes_raw().hex()
        source = f'[[reference_values]]\nname = "them"\nkeys = ["{key}"]\nthreshold = 1\nmin_version = 1\n'
        words = (*enclave.words_under(policy + source, tmp_path), "--state", tmp_path / "state.json")
        assert adyton("verify-server", *words).returncode == ExitCode.POLICY_REFUSED  # the values are missing
        assert not (tmp_path / "state.json").exists()
        newer = ("--reference-values", tmp_path / "v8.json")
        assert adyton("call", *newer, *words, "probe.Probe/Echo").returncode == 0
        done = adyton("verify-server", *words, "--reference-values", tmp_path / "v7.json")
        assert done.returncode == ExitCode.POLICY_REFUSED


def _signed_measurement(enclave: Enclave, version: int, signer: Ed25519PrivateKey) -> bytes:
    values = Bundle.build(enclave.project).measurements()["reference_values"]
    assert isinstance(values, dict)
    values = {"simulated": {"measurement": [values["simulated"]["measurement"]]}}
    body = {"name": "them", "version": version, "expires": "2100-01-01T00:00:00Z", "values": values}
    payload = json.dumps(body).encode()
    signature = signer.sign(pre_authentication_encoding(payload))
    payload_text, signature_text = (base64.b64encode(part).decode() for part in (payload, signature))
    envelope = {"payloadType": PAYLOAD_TYPE, "payload": payload_text, "signatures": [{"sig": signature_text}]}
    return json.dumps(envelope).encode()


@pytest.fixture(scope="module")
def ca(enclave: Enclave, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that `export-ca` wrote."""
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    done = adyton("export-ca", *enclave.words, "-o", path)
    assert done.returncode == 0, done.stderr
    return path


class TestExportCa:
    def test_what_it_writes_and_says(self, enclave: Enclave, tmp_path: Path) -> None:
        path = tmp_path / "ca.pem"
        done = adyton("export-ca", *enclave.words, "-o", path, umask=0o077)
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        assert [each.name for each in tmp_path.iterdir()] == ["ca.pem"]
        said = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
        assert said["valid_until"] == certificate.not_valid_after_utc.isoformat()
        assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        for words in (SIMULATED, f"wrote {path}\n", 'level "key"', "attests once", "after 30 days"):
            assert words in done.stderr

    def test_whom_a_client_may_take_the_server_for(self, enclave: Enclave, tmp_path: Path) -> None:
        said = self.talk(enclave, enclave.target, tmp_path)
        assert "the server's certificate is for atls.internal, probe.example\n" in said
        mend = 'add names = ["localhost"] under [server] in enclave.toml, or clients must override the name\n'
        assert f"localhost is none of its names: {mend}" in said
        assert f"{enclave.target} asks clients for a certificate: they need the port that plain_tls = true" in said
        said = self.talk(enclave, enclave.target.replace("localhost", "127.0.0.1"), tmp_path)
        assert "127.0.0.1 is none of its names: clients must override the name\n" in said

    def test_nothing_is_said_of_a_name_that_the_certificate_has(self, tmp_path: Path) -> None:
        settings = '[server]\nnames = ["LocalHost"]\n'
        project = write_probe_project(tmp_path / "project", SERVER, settings)
        (tmp_path / "policy.toml").write_text(simulated_policy(project))
        with running(project) as server:
            target = f"localhost:{server.port}"
            words = ("--policy", tmp_path / "policy.toml", *ALLOW, "-o", tmp_path / "ca.pem")
            said = adyton("export-ca", target, *words).stderr
        assert f"wrote {tmp_path / 'ca.pem'}\n" in said
        assert "the server's certificate is for atls.internal, LocalHost\n" in said
        assert "is none of its names" not in said

    @staticmethod
    def talk(enclave: Enclave, target: str, folder: Path) -> str:
        done = adyton("export-ca", target, *enclave.words[1:], "-o", folder / "ca.pem", "--force")
        assert done.returncode == 0, done.stderr
        return done.stderr

    def test_it_writes_over_a_file_only_by_force(self, enclave: Enclave, tmp_path: Path) -> None:
        path = tmp_path / "ca.pem"
        path.write_text("mine")
        done = adyton("export-ca", *enclave.words, "-o", path)
        assert (done.returncode, done.stdout, path.read_text()) == (ExitCode.USAGE, "", "mine")
        assert f"{path} exists already (--force writes over it)" in done.stderr
        assert adyton("export-ca", *enclave.words, "-o", path, "--force").returncode == 0
        assert path.read_text().startswith("-----BEGIN CERTIFICATE-----\n")
        done = adyton("export-ca", *enclave.words, "-o", tmp_path / "no" / "folder")
        assert (done.returncode, "can't write" in done.stderr) == (ExitCode.USAGE, True)

    def test_what_it_prints_pins_this_enclave_in_a_policy(
        self, enclave: Enclave, twin: Enclave, tmp_path: Path
    ) -> None:
        done = adyton("export-ca", *enclave.words, "-o", tmp_path / "ca.pem")
        digest = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())["ca_sha256"]
        policy = f'{enclave.policy.read_text()}[channel]\nca_sha256 = ["{digest}"]\n'
        words = (*enclave.words_under(policy, tmp_path)[1:], "probe.Probe/Echo")
        assert adyton("call", enclave.target, *words).returncode == 0
        refused = adyton("call", twin.target, *words)
        assert (refused.returncode, "channel.ca_sha256 is " in refused.stderr) == (ExitCode.POLICY_REFUSED, True)

    def test_a_client_of_stock_grpc_with_the_file(self, enclave: Enclave, ca: Path) -> None:
        with _foreign_channel(enclave, ca) as channel:
            response = probe_pb2_grpc.ProbeStub(channel).Echo(probe_pb2.Text(text="a"), timeout=20)
        assert response.text == "a"

    def test_a_twins_port_does_not_fit_the_file(self, twin: Enclave, ca: Path) -> None:
        with _foreign_channel(twin, ca) as channel, pytest.raises(grpc.RpcError) as caught:
            probe_pb2_grpc.ProbeStub(channel).Echo(probe_pb2.Text(text="a"), timeout=20)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "CERTIFICATE_VERIFY_FAILED" in str(caught.value.details())

    @pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl")
    def test_openssl_with_the_file(self, enclave: Enclave, twin: Enclave, ca: Path) -> None:
        words = ["openssl", "s_client", "-CAfile", str(ca), "-verify_return_error", "-verify_hostname", "atls.internal"]
        for server, verifies in ((enclave, True), (twin, False)):
            connect = ("-servername", "atls.internal", "-alpn", "h2", "-connect", server.plain_tls)
            done = subprocess.run(
                [*words, *connect], stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=30
            )
            assert (b"Verify return code: 0 (ok)" in done.stdout) == verifies, done.stdout + done.stderr
            assert (done.returncode == 0) == verifies


def _foreign_channel(enclave: Enclave, ca: Path) -> grpc.Channel:
    credentials = grpc.ssl_channel_credentials(ca.read_bytes())
    options = [("grpc.ssl_target_name_override", "atls.internal"), ("grpc.enable_http_proxy", 0)]
    return grpc.secure_channel(enclave.plain_tls, credentials, options)
