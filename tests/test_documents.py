"""What the documents say can be done: links lead somewhere, examples are accepted, names are those of the code."""

import re
import shlex
from pathlib import Path

import click
import pytest

from edgeproxy import config
from edgeproxy.__main__ import cli

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
