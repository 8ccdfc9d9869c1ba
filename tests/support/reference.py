"""Writes the tables of the documents out of the code: settings, metrics, errors, commands. `make docs` runs it.

A table stands between two marks in its document; what stands around it is written by hand. `tests/test_docs.py` fails
when a table is not what would be written now.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import click
from prometheus_client.metrics import MetricWrapperBase

from edgeproxy.__main__ import cli
from edgeproxy.config import ENVIRONMENT_PREFIX, Settings, environment_names
from edgeproxy.errors import KINDS
from edgeproxy.metrics import Metrics

DOCS = Path(__file__).parents[2] / "docs"


def settings() -> Iterator[str]:
    """Every setting: its name, default, the variable that overrides it, and what an operator has to know."""
    variables = {".".join(path): name for path, name in environment_names()}
    yield "| setting | default | |"
    yield "|---|---|---|"
    for name, default, doc in _settings(Settings, ""):
        shown = f"`{name}`" + ("" if name in variables else " (in the file only)")
        yield f"| {shown} | {_toml(default)} | {_cell(doc)} |"
    yield ""
    yield f"`a.b` is the variable `{ENVIRONMENT_PREFIX}A_B`, such as `{variables['listen.api']}` for `listen.api`."


def metrics() -> Iterator[str]:
    """Every metric: its name as it is scraped, type, labels, and what it counts."""
    yield "| metric | type | labels | |"
    yield "|---|---|---|---|"
    for metric in (each for each in vars(Metrics()).values() if isinstance(each, MetricWrapperBase)):
        labels = ", ".join(f"`{label}`" for label in metric._labelnames)
        suffix = "_total" if metric._type == "counter" else ""
        yield f"| `{metric._name}{suffix}` | {metric._type} | {labels} | {_cell(metric._documentation)} |"


def errors() -> Iterator[str]:
    """Every error: its code, status, whose fault it is, whether asking again can help, and what is said."""
    yield "| code | status | source | asking again | what is said |"
    yield "|---|---|---|---|---|"
    for kind in KINDS:
        again = "can help" if kind.retryable else "does not help"
        yield f"| `{kind.code}` | {kind.status} | {kind.source} | {again} | {_cell(kind.message)} |"


def commands() -> Iterator[str]:
    """Every command, and the first line of its help."""
    yield "| command | |"
    yield "|---|---|"
    for name, command in _commands(cli, "edgeproxy"):
        yield f"| `{name}` | {_cell((command.help or '').partition(chr(10))[0])} |"


# Document -> the tables in it, by the word in their marks.
TABLES: dict[str, dict[str, Callable[[], Iterator[str]]]] = {
    "operating.md": {"settings": settings, "commands": commands},
    "metrics.md": {"metrics": metrics},
    "errors.md": {"errors": errors},
}


def written(document: str) -> str:
    """Return a document with its tables as the code has them."""
    text = (DOCS / document).read_text(encoding="utf-8")
    for word, table in TABLES[document].items():
        mark = re.compile(rf"(<!-- {word} -->\n).*?(<!-- end of {word} -->)", re.DOTALL)
        body = "\n".join(table())
        text, found = mark.subn(lambda match, body=body: f"{match[1]}{body}\n{match[2]}", text)
        assert found == 1, f"{document}: no place for {word}"
    return text


def _settings(kind: Any, prefix: str) -> Iterator[tuple[str, Any, str]]:
    hints, empty = get_type_hints(kind), kind()
    for each in fields(kind):
        inner = get_args(hints[each.name])[:1]
        name = f"{prefix}{each.name}"
        if is_dataclass(hints[each.name]):
            yield from _settings(hints[each.name], f"{name}.")
        elif inner and is_dataclass(inner[0]):
            yield from _settings(inner[0], f"{name}[].")
        else:
            yield name, getattr(empty, each.name), each.metadata["doc"]


def _commands(group: click.Group, prefix: str) -> Iterator[tuple[str, click.Command]]:
    for name, command in sorted(group.commands.items()):
        if isinstance(command, click.Group):
            yield from _commands(command, f"{prefix} {name}")
        elif not command.hidden:
            yield f"{prefix} {name}", command


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return "none" if not value else f"`{list(value)}`"
    return f"`{value}`" if value != "" else "none"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    for name in TABLES:
        (DOCS / name).write_text(written(name), encoding="utf-8")
