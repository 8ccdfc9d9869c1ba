"""Reads tables, as TOML, JSON or the environment have them, into dataclasses: nothing unknown, nothing of another type.

What is wrong is one line that names the field, and what was probably meant. Which fields there are, and which of their
values make sense, is `config`'s to say.
"""

import difflib
import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import Field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from edgeproxy.errors import OperatorError

_MOST = 10**12  # of any bound: a terabyte, or thirty years in ms

T = TypeVar("T")


class Text(str):
    """A value from the environment: always text, to be read as the type of its setting; a list has commas in it."""

    __slots__ = ()


def build(kind: type[T], table: Any, where: str) -> T:
    """Return an instance of a settings dataclass from a TOML table. Raises OperatorError."""
    if not isinstance(table, dict):
        raise OperatorError(f"{where.rstrip('.')} must be a table")
    known: dict[str, Field[Any]] = {each.name: each for each in fields(kind)}  # type: ignore[arg-type]
    hints = get_type_hints(kind)
    values = {}
    for name, value in table.items():
        if name not in known:
            raise OperatorError(f"unknown setting {where}{shown(name)}{suggestion(name, known)}")
        values[name] = _value(hints[name], value, f"{where}{name}")
    return kind(**values)


def _value(kind: Any, value: Any, name: str) -> Any:
    """Return `value` as the type of the setting `name`. Raises OperatorError."""
    if is_dataclass(kind) and isinstance(kind, type):
        return build(kind, value, f"{name}.")
    if get_args(kind):  # tuple[X, ...]
        if isinstance(value, Text):
            value = [Text(each.strip()) for each in value.split(",")] if value else []
        if not isinstance(value, list):
            raise OperatorError(f"{name} must be a list")
        return tuple(_value(get_args(kind)[0], each, f"{name}[{i}]") for i, each in enumerate(value))
    if kind is Path and isinstance(value, str) and value:
        return Path(value)
    if isinstance(value, Text):
        return _from_text(kind, value, name)
    if type(value) is not kind:
        raise OperatorError(f"{name} must be {_TYPE_NAMES[kind]}")
    return value


def _from_text(kind: Any, value: str, name: str) -> Any:
    if kind is bool and value in ("true", "false"):
        return value == "true"
    if kind is int and re.fullmatch("[0-9]{1,18}", value):
        return int(value)
    if kind is str:
        return str(value)
    raise OperatorError(f"{name} must be {_TYPE_NAMES[kind]}")


_TYPE_NAMES = {int: "a whole number", str: "a string", bool: "true or false", Path: "a path"}


def one_of(name: str, value: str, known: Iterable[str]) -> None:
    """Refuse what is not among these. Raises OperatorError."""
    if value not in (known := list(known)):
        raise OperatorError(f"{name} = {value!r} is not known{suggestion(value, known)}")


def between(name: str, value: int, low: int, high: int) -> None:
    """Refuse what is less or more. Raises OperatorError."""
    if not low <= value <= high:
        raise OperatorError(f"{name} must be {low} to {high}")


def positive(table: str, section: Any, may_be_zero: Container[str] = ()) -> None:
    """Refuse numbers of a section that bound nothing. Raises OperatorError."""
    for each in fields(section):
        value = getattr(section, each.name)
        least = 0 if each.name in may_be_zero else 1
        if type(value) is int and not least <= value <= _MOST:
            wanted = "greater than 0" if least else "0 or more"
            raise OperatorError(f"{table}.{each.name} must be {wanted}, and at most {_MOST}")


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return what was probably meant, as the end of a line that says that a name is not known."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; known: {', '.join(known)}" if known else "; none is configured"


def shown(name: str) -> str:
    """Return a name that somebody chose, fit for one line."""
    return name if name.isprintable() else ascii(name)


def variables(kind: type[Any], prefix: str) -> Iterable[tuple[tuple[str, ...], str]]:
    """Yield the path of each field that the environment can set, and the variable's name: prefix, table, field."""
    hints = get_type_hints(kind)
    for top in fields(kind):
        if is_dataclass(inner := hints[top.name]):
            paths: list[tuple[str, ...]] = [(top.name, each.name) for each in fields(inner)]
        elif get_args(inner):
            continue  # lists of tables: in a file only
        else:
            paths = [(top.name,)]
        for path in paths:
            yield path, prefix + "_".join(path).upper()


def overlay(tables: dict[str, Any], environ: Mapping[str, str], known: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """Return the tables with variables laid over them; `known` is the path of each. Raises OperatorError."""
    for variable, text in environ.items():
        if variable not in known:
            raise OperatorError(f"environment variable {shown(variable)} is no setting{suggestion(variable, known)}")
        *tops, name = known[variable]
        table = tables
        for top in tops:
            table = table.setdefault(top, {})
            if not isinstance(table, dict):
                raise OperatorError(f"{top} must be a table")
        table[name] = Text(text)
    return tables
