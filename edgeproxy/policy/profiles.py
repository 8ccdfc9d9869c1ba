"""A profile: what a service keeps and for how long, who answers for it, and since when. Checked whole when it is read.

The five that are known come with the program; an operator's own is a file like them, with a name of theirs and so with
their claims. Whether this version of the program keeps what a profile promises is told in `claims`.
"""

import re
import tomllib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

from edgeproxy.domain.inventory import PROFILES
from edgeproxy.domain.limits import parse_limit
from edgeproxy.domain.retention import Keep, Until, parse_keep
from edgeproxy.errors import OperatorError
from edgeproxy.tables import build, one_of, shown

_FIELD = re.compile(r"(?:unknown setting )?([a-z_]\w*(?:\[[0-9]+\])?(?:\.\w+)*)(?= must|;)")


@dataclass(frozen=True, slots=True)
class Kept:
    """For how long each group of the inventory is kept, as `parse_keep` reads it. Empty: it is not collected."""

    keys: str = ""
    usage: str = ""
    refusals: str = ""
    counters: str = ""
    ledger: str = ""
    technical_log: str = ""
    accounts: str = ""
    payments: str = ""
    sessions: str = ""
    analytics: str = ""
    mail: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """What was changed in what is promised, and the day from which it holds, as 2026-03-17."""

    date: str = ""
    what: str = ""


@dataclass(frozen=True, slots=True)
class Profile:
    """A profile as its file says.

    `title` is what the service calls itself, `contact` whom to ask: part of a sentence, or an address. `region` is
    where its servers are, "" where that is not stated. `longest_window` is the longest that a limit of a key may be.
    """

    name: str = ""
    title: str = ""
    contact: str = ""
    region: str = ""
    longest_window: str = "366d"
    keep: Kept = field(default_factory=Kept)
    history: tuple[Change, ...] = ()

    @property
    def updated(self) -> str:
        """The day of the latest change, as 2026-03-17."""
        return max(change.date for change in self.history)

    def kept(self) -> dict[str, Keep]:
        """Return the groups that are collected, and for how long each is kept."""
        return {group: parse_keep(text) for group, text in asdict(self.keep).items() if text}


def load_profile(setting: str) -> Profile:
    """Return the profile that the setting `profile` names: one of the known ones, or a file.

    Raises OperatorError, one line that names the place and the remedy.
    """
    if "/" in setting or setting.endswith(".toml"):
        return read_profile(Path(setting))
    one_of("profile", setting, PROFILES)
    return read_profile(shipped() / "profiles" / f"{setting}.toml")


def read_profile(path: Path) -> Profile:
    """Return the profile in a file. Raises OperatorError."""
    where = f"profile {shown(str(path))}"
    try:
        text = path.read_text(encoding="utf-8")
        tables = tomllib.loads(text)
    except OSError:
        raise OperatorError(f"cannot read {where}; check the setting profile") from None
    except (ValueError, RecursionError) as error:
        raise OperatorError(f"{where} is not valid TOML: {error}") from None
    try:
        profile = build(Profile, _with_texts_for_dates(tables), "")
    except OperatorError as error:
        found = _FIELD.match(str(error))
        raise OperatorError(f"{_at(where, text, found[1] if found else '')}: {error}") from None
    for name, problem in _problems(profile):
        raise OperatorError(f"{_at(where, text, name)}: {name} {problem}")
    return profile


@cache
def shipped() -> Path:
    """Return the folder of the files that come with the program, installed or in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "_config"
    return installed if installed.is_dir() else package.parent / "config"


def _problems(profile: Profile) -> Iterator[tuple[str, str]]:
    """Yield what is missing or contradicts itself: the field, and the rest of the sentence with the remedy."""
    if profile.name not in PROFILES:
        yield "name", f"must be that of the service whose claims are made, one of {', '.join(PROFILES)}"
    for name in ("title", "contact"):
        text = getattr(profile, name)
        if not text.strip() or not text.isprintable():
            yield name, f"is missing: write {'the name of the service' if name == 'title' else 'whom people can ask'}"
    yield from _history_problems(profile)
    yield from _keep_problems(profile)


def _history_problems(profile: Profile) -> Iterator[tuple[str, str]]:
    if not profile.history:
        yield "history", "is missing: add a [[history]] with date and what, for the day from which this holds"
    for number, change in enumerate(profile.history):
        try:
            well_written = date.fromisoformat(change.date).isoformat() == change.date
        except ValueError:
            well_written = False
        if not well_written:
            yield f"history[{number}].date", "must be a day such as 2026-03-17"
        if not change.what.strip():
            yield f"history[{number}].what", "is missing: say what was changed"


def _keep_problems(profile: Profile) -> Iterator[tuple[str, str]]:
    rules = {}
    for group in (each.name for each in fields(Kept)):
        text = getattr(profile.keep, group)
        try:
            rules[group] = parse_keep(text) if text else None
        except ValueError as error:
            yield f"keep.{group}", f"= {text!r} {error}"
            return
    for group, rule in rules.items():
        if rule is not None and rule.until is Until.AGE and not rule.seconds:
            yield f"keep.{group}", "is collected and not kept at all: remove the line, or keep it longer"
        if rule is not None and rule.until is Until.ACCOUNT and rules["accounts"] is None:
            yield f"keep.{group}", "depends on accounts, which are not collected: add keep.accounts, or change it"
    if rules["keys"] is None:
        yield "keep.keys", "is missing: nothing works without the records of keys"
    try:
        window_ms = parse_limit(f"requests=1/{profile.longest_window}").window_ms
    except ValueError:
        yield "longest_window", "must be a length such as 30d, at most 366d"
        return
    usage = rules["usage"]
    if usage is not None and usage.until is Until.AGE and usage.seconds * 1000 < window_ms:
        yield (
            "keep.usage",
            f"is shorter than a limit may be ({profile.longest_window}): keep it longer, or set longest_window",
        )


def _with_texts_for_dates(tables: dict[str, Any]) -> dict[str, Any]:
    """Return the tables with days as text: TOML has a type for them, and may be given either."""
    history = tables.get("history")
    for change in history if isinstance(history, list) else []:
        if isinstance(change, dict) and isinstance(change.get("date"), date):
            change["date"] = change["date"].isoformat()
    return tables


def _at(where: str, text: str, name: str) -> str:
    """Return the place of a field in a file, with its line where it has one."""
    *tables, last = re.sub(r"\[[0-9]+\]", "", name).split(".")
    wanted = int((re.search(r"\[([0-9]+)\]", name) or ["", "0"])[1])
    table, seen = "", -1
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.fullmatch(r"\s*\[\[?\s*([\w.]+)\s*\]\]?\s*(?:#.*)?", line):
            table = header[1]
            seen += table == ".".join(tables)
        elif table == ".".join(tables) and seen in (-1, wanted) and re.match(rf"\s*\"?{re.escape(last)}\"?\s*=", line):
            return f"{where}, line {number}"
    return where
