"""What the documents say can be done: links lead somewhere, examples are accepted, names are those of the code."""

import re
import shlex
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import click
import pytest

from edgeproxy import config
from edgeproxy.__main__ import cli
from edgeproxy.domain.features import Feature
from edgeproxy.domain.usage import Usage
from edgeproxy.providers import anthropic, gemini, openai
from edgeproxy.providers.headers import ANSWER_HEADERS
from tests.support import reference

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("loadtests/*.md")])
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")
BLOCK = re.compile(r"```([a-z]*)\n(.*?)```", re.DOTALL)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_to_a_file_leads_to_one(document: Path) -> None:
    for target in LINK.findall(document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_the_configurations_that_are_shown_are_accepted(tmp_path: Path) -> None:
    shown = [text for document in DOCUMENTS for kind, text in BLOCK.findall(document.read_text()) if kind == "toml"]
    assert shown
    for text in shown:
        path = tmp_path / "shown.toml"
        path.write_text(text)
        config.load(path, {})


def test_the_commands_that_are_shown_exist_with_their_options() -> None:
    lines = [
        line
        for document in DOCUMENTS
        for _, text in BLOCK.findall(document.read_text())
        for line in text.replace("\\\n", " ").splitlines()
        if line.startswith("edgeproxy ")
    ]
    assert len(lines) >= 5
    for line in lines:
        command: click.Command = cli
        words = shlex.split(line, comments=True)[1:]
        options = {name for parameter in cli.params for name in parameter.opts}
        for word in words:
            if isinstance(command, click.Group) and word in command.commands:
                command = command.commands[word]
                options |= {name for parameter in command.params for name in parameter.opts}
            elif word.startswith("--"):
                assert word in options, f"{line}: {word}"
        assert not isinstance(command, click.Group), line


def test_the_stages_that_are_told_of_are_the_files_that_there_are() -> None:
    text = (ROOT / "docs" / "life-of-a-request.md").read_text()
    told = set(re.findall(r"^\*\*([a-z]+)\.\*\*", text, re.MULTILINE))
    files = {path.stem for path in (ROOT / "edgeproxy" / "gateway").glob("*.py")} - {"__init__", "handler"}
    assert told == files


PROVIDERS = (ROOT / "docs" / "providers.md").read_text()


def test_the_operations_that_are_told_of_are_those_that_are_served() -> None:
    told = set(re.findall(r"`POST (/v1/[^`]+)`", PROVIDERS))
    assert told == {*openai._ENDPOINTS, *anthropic._ENDPOINTS}
    told = set(re.findall(r"`[^`]*:([a-zA-Z]+)`", PROVIDERS.partition("## One form")[0]))
    assert told == set(gemini._METHODS)


def test_every_feature_that_can_be_allowed_and_every_field_of_usage_is_told_of() -> None:
    rows = set(re.findall(r"^\| `([a-z_]+)` \|", PROVIDERS.partition("## What is refused")[2], re.MULTILINE))
    assert rows == set(Feature)
    told = set(re.findall(r"`([a-z0-9_]+)`", PROVIDERS.partition("## One form")[2].partition("Limits count")[0]))
    assert {field.name for field in fields(Usage)} <= told


@pytest.mark.parametrize("dialect", [openai, anthropic, gemini])
def test_every_header_that_may_pass_is_told_of(dialect: ModuleType) -> None:
    table = PROVIDERS.partition("## Keys, headers, query")[2]
    for name in dialect._CLIENT_HEADERS | dialect._ANSWER_HEADERS | ANSWER_HEADERS:
        assert f"`{name}`" in table, name


@pytest.mark.parametrize("document", reference.TABLES)
def test_the_tables_are_those_of_the_code(document: str) -> None:
    text = (reference.DOCS / document).read_text(encoding="utf-8")
    assert text == reference.written(document), f"docs/{document} is behind the code: run make docs"


def test_every_threat_is_covered_by_a_test_that_there_is() -> None:
    text = (ROOT / "THREAT_MODEL.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| threat ")]
    assert len(rows) > 30
    for row in rows:
        shown = re.findall(r"`(tests/[^`]+)`", row)
        assert shown, row
        for each in shown:
            path, _, name = each.partition("::")
            assert (ROOT / path).is_file(), each
            assert not name or re.search(rf"def {name}\b", (ROOT / path).read_text()), each
