"""What a check finds: a level, a fact, and what to do about it. Nothing here looks at anything."""

from dataclasses import dataclass
from enum import StrEnum

from edgeproxy.errors import OperatorError, StoreUnavailable, operator_line


class Level(StrEnum):
    """ERROR: something does not work, or will lose counts or leak secrets. WARNING: it works, but should be better."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `remedy` says what to do, "" when there is nothing to be done."""

    level: Level
    found: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Clock:
    """How far a server's clock is ahead of ours, in ms, give or take `uncertain_ms`: half the way there and back."""

    ahead_ms: int
    uncertain_ms: int


def ok(found: str) -> Finding:
    """Nothing to be done."""
    return Finding(Level.OK, found)


def warning(found: str, remedy: str) -> Finding:
    """It works; it should be better."""
    return Finding(Level.WARNING, found, remedy)


def error(found: str, remedy: str) -> Finding:
    """It does not work, or will lose counts or leak secrets."""
    return Finding(Level.ERROR, found, remedy)


def of_error(raised: OperatorError | StoreUnavailable) -> Finding:
    """Return the finding that an error of ours is: its line says what is wrong, then what to do."""
    found, _, remedy = operator_line(raised).rpartition("; ")
    return error(found or remedy, remedy if found else "see docs/operating.md")
