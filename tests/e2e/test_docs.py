"""The pages say what is so: tables are compared with the code, commands are run as a newcomer would."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest
from newcomer import DEVELOPMENT, newcomer_with_a_clone, type_commands

from adyton.bundle.settings import Settings
from adyton.cli.verdict import DANGERS
from adyton.errors import AdytonError, ApplicationError, ConfigurationError, ExitCode
from adyton.policy.appraisal import Appraisal
from adyton.policy.document import Policy
from adyton.policy.insecurity import Insecurity
from adyton.policy.rules import SCHEMAS
from adyton.policy.schema import Field
from adyton.tee.registry import TEES

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def rows(page: str) -> list[list[str]]:
    return rows_of((ROOT / page).read_text())


def rows_of(text: str) -> list[list[str]]:
    """The cells of each row of a table whose first cell is code."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:3] == "| `"]


def sections(page: str) -> dict[str, str]:
    """Title → text."""
    _, *parts = re.split(r"^## (.+)\n", (ROOT / page).read_text(), flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_every_error_is_in_the_table() -> None:
    def subclasses(kind: type[AdytonError]) -> list[type[AdytonError]]:
        return [kind, *(each for child in kind.__subclasses__() for each in subclasses(child))]

    table = {cells[0].strip("`"): cells[1:3] for cells in rows("docs/errors.md")}
    here = [each for each in subclasses(AdytonError) if each.__module__ == "adyton.errors"]
    wanted = {
        each.__name__: [
            "the application's own" if each is ApplicationError else each.status.name,
            str(int(each.exit_code)),
        ]
        for each in here
    }
    assert table == wanted
    assert all(each.__doc__ for each in here)


def test_every_exit_code_is_explained() -> None:
    text = (ROOT / "docs" / "errors.md").read_text()
    assert all(re.search(rf"\b{int(code)}\s", text) for code in ExitCode)


def test_every_key_of_enclave_toml_is_in_the_table() -> None:
    def keys(kind: type, prefix: str = "") -> dict[str, tuple[str, str]]:
        found: dict[str, tuple[str, str]] = {}
        hints = typing.get_type_hints(kind)
        for field in dataclasses.fields(kind):
            if dataclasses.is_dataclass(hints[field.name]):
                found |= keys(hints[field.name], f"{prefix}{field.name}.")
                continue
            low, high = field.metadata.get("bounds", ("", ""))
            default = "required" if field.default is dataclasses.MISSING else f"`{_toml(field.default)}`"
            found[prefix + field.name] = (default, f"{low} to {high}" if high else "")
        return found

    table = {cells[0].strip("`"): (cells[1], cells[2]) for cells in rows("docs/enclave-toml.md")}
    wanted = keys(Settings)
    assert list(table) == list(wanted)
    for key, (default, bounds) in wanted.items():
        assert table[key][0] == default, key
        assert not bounds or table[key][1] == bounds, key


POLICY_SECTIONS = {
    "sgx": "Intel SGX",
    "tdx": "Intel TDX",
    "snp": "AMD SEV-SNP",
    "nitro": "AWS Nitro Enclaves",
    "tpm": "TPM 2.0",
    "azure": "Azure's confidential VMs",
    "cca": "Arm CCA",
    "psa": "Arm PSA",
    "simulated": "The simulation",
}
POLICY_TYPES = {
    "one_of": "one of",
    "none_but": "none but",
    "at_least": "at least",
    "not_older_than": "at most",
    "within": "mask",
    "permitted": "permit",
    "required": "require",
    "components": "floors",
    "registers": "registers",
    "logged": "events",
    "parts": "parts",
}
"""A reading's name → the page's."""


def test_every_key_of_a_policy_is_in_the_table_of_its_technology() -> None:
    assert list(POLICY_SECTIONS) == list(SCHEMAS)
    for label, title in POLICY_SECTIONS.items():
        table = {cells[0].strip("`"): (cells[1], cells[2]) for cells in rows_of(sections("docs/policy.md")[title])}
        wanted = {field.key: (_policy_type(field), _policy_default(field)) for field in SCHEMAS[label].fields}
        assert list(table) == list(wanted)
        for key, (kind, default) in wanted.items():
            assert re.match(kind, table[key][0]), f"{label}: {key} is {kind}"
            assert table[key][1] == default, f"{label}: {key}"


def _policy_type(field: Field) -> str:
    """A pattern of what the page says of it: the kind, how many bytes, and whether "any" is none of the values."""
    kind = POLICY_TYPES[field.read.__qualname__.partition(".")[0]]
    said = ""
    for wrong in (["-"], {str(index): ["-"] for index in range(3)}):
        try:
            field.read(wrong, "")
        except ConfigurationError as problem:
            said += problem.message
    sizes = re.search(r"a string of ([0-9 or]+) bytes", said)
    if sizes:
        kind += ": " + re.sub(" or (?=.* or )", ", ", sizes[1]) + " bytes"
    return kind + ('.*, no `"any"`$' if kind.startswith("one of") and not _takes_any(field) else "")


def _takes_any(field: Field) -> bool:
    try:
        field.read("any", "")
    except ConfigurationError:
        return False
    return True


def _policy_default(field: Field) -> str:
    if field.default is None:
        return "required"
    match field.default:
        case [str(digits)] if not digits.strip("0"):
            return "zero"
    return f"`{json.dumps(field.default)}`"


def test_the_policies_of_the_page_are_policies() -> None:
    blocks = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "policy.md").read_text(), re.DOTALL)
    policies = [Policy.parse(block.encode()) for block in blocks]
    assert {rule.schema.tee for policy in policies for rule in policy.rules} == set(SCHEMAS)


def test_insecurities_and_records_are_in_their_tables() -> None:
    def table(title: str) -> list[str]:
        return [cells[0].strip("`") for cells in rows_of(sections("docs/policy.md")[title])]

    assert table("What is never accepted by a policy alone") == list(Insecurity) == list(DANGERS)
    assert table("The record") == [field.name for field in dataclasses.fields(Appraisal)]


def test_every_technology_is_in_the_table_of_evidence_with_its_mark_and_anchors() -> None:
    table = {cells[0].strip("`"): cells[1:] for cells in rows_of(sections("docs/evidence.md")["What is verified"])}
    assert {label: cells[0] for label, cells in table.items()} == {label: each.mark for label, each in TEES.items()}
    for label, cells in table.items():
        assert cells[1].startswith("yours: ") is not bool(TEES[label].anchors()), label


def test_every_argument_of_verify_is_in_its_table() -> None:
    def names(verb: str) -> set[str]:
        parser = argparse.ArgumentParser()
        importlib.import_module(f"adyton.cli.{verb}").add_arguments(parser)
        return set(re.findall(r"--[a-z-]+", parser.format_help())) - {"--help"}

    table = {cells[0].strip("`").split()[0] for cells in rows_of(sections("docs/evidence.md")["What can be given"])}
    assert names("verify") == names("explain") == table | {"--tee"}


def test_every_copy_of_the_runtimes_requirements_is_the_same() -> None:
    wanted = (ROOT / "src/adyton/host/requirements.lock").read_text()
    assert (ROOT / "examples/translator/requirements.lock").read_text() == wanted
    names = [
        [line for line in (ROOT / path).read_text().splitlines() if not line.startswith("#")]
        for path in ("requirements/runtime.in", "src/adyton/cli/template/requirements.in")
    ]
    assert names[0] == names[1]
    assert {line.partition("==")[0] for line in wanted.splitlines() if "==" in line} >= set(names[0])


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "[]" if value == () else str(value)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target.partition("#")[0]).exists(), target


def test_the_readmes_commands() -> None:
    demo = subprocess.run(
        [sys.executable, "dev.py", "demo"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=100
    )
    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert "9. Shut down" in demo.stdout


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_tutorial_word_for_word(tmp_path: Path) -> None:
    assert type_commands("docs/tutorial.md", newcomer_with_a_clone(tmp_path)) > 15


def test_the_translators_commands(tmp_path: Path) -> None:
    newcomer = newcomer_with_a_clone(tmp_path, activated=DEVELOPMENT)
    assert type_commands("examples/translator/README.md", newcomer) == 20


def test_the_commands_about_evidence(tmp_path: Path) -> None:
    newcomer = newcomer_with_a_clone(tmp_path, activated=DEVELOPMENT)
    assert type_commands("docs/evidence.md", newcomer) == 9
