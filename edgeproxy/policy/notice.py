"""What a service says of privacy, made of its profile, the inventory and what is configured: sections of plain text.

Each sentence is there because of a setting or of the program itself, and changes with it. It must not promise what
neither of them holds. How it looks is the page's to say.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgeproxy.domain.inventory import GROUPS, Kind, places
from edgeproxy.domain.retention import Keep
from edgeproxy.policy.profiles import Profile


@dataclass(frozen=True, slots=True)
class Receiver:
    """A provider that requests are handed to. `host` is where it is; `stores` names what it is asked to keep there."""

    name: str
    host: str
    stores: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Facts:
    """What is configured beside the profile. `access_lines`: whether each request leaves a line in the log."""

    receivers: tuple[Receiver, ...] = ()
    access_lines: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table: what it is about, and what is said of it."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the notice: text, then points or a table, of which one may be empty."""

    id: str
    title: str
    text: tuple[str, ...] = ()
    points: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()


@dataclass(frozen=True, slots=True)
class Notice:
    """The whole of it. `updated` is the day of the latest change, as 2026-03-17."""

    title: str
    updated: str
    sections: tuple[Section, ...]


_STORED_THERE = {
    "batches": "batches of requests",
    "files": "files",
    "background": "answers that are made in the background",
    "stored_context": "conversations",
}
_NAMES = {
    "keys": "Keys",
    "usage": "Requests",
    "refusals": "Refusals",
    "counters": "Counters",
    "ledger": "Credits",
    "technical_log": "Technical log",
    "accounts": "Accounts",
    "payments": "Payments",
    "sessions": "Sessions",
    "analytics": "Visits",
    "mail": "Mail",
}
_NOT_KEPT = {
    "": (
        "What you send to a model: text, instructions, pictures, sound, files, results of tools.",
        "What a model answers.",
        "The course of a conversation: each request is one of its own, and forgotten.",
    ),
    "technical_log": ("Your network address, your user agent, or anything else that tells devices apart.",),
    "accounts": ("Your name or your address of mail: there are no accounts.",),
    "payments": ("Anything about payments.",),
    "analytics": ("Your visits: pages load nothing from elsewhere, count nobody, and set no cookie.",),
}


def make_notice(profile: Profile, facts: Facts) -> Notice:
    """Return what a service with this profile has to say."""
    kept = profile.kept()
    sections = (
        _in_short(profile),
        Section("not-kept", "What is not kept", points=tuple(_not_kept(kept))),
        _kept(kept, facts),
        _flow(),
        _receivers(facts.receivers, profile.region),
        _how_long(kept),
        _rights(profile, kept),
        Section(
            "children",
            "Children",
            ("This service is not meant for children under 13. Of nobody is it asked how old they are.",),
        ),
        Section("contact", "Contact", (f"For questions about any of this, turn to {profile.contact}.",)),
        _changes(profile),
    )
    return Notice(profile.title, profile.updated, sections)


def _in_short(profile: Profile) -> Section:
    text = (
        f"{profile.title} hands what you ask to a provider of AI models, hands back what it answers, and forgets both."
        " It counts what you use. No model is trained here with what passes, and nothing of it is sold or given to"
        " anybody but the provider that answers."
    )
    return Section("in-short", "In short", (text,))


def _not_kept(kept: dict[str, Keep]) -> Iterator[str]:
    for group, texts in _NOT_KEPT.items():
        if group not in kept:
            yield from texts


def _kept(kept: dict[str, Keep], facts: Facts) -> Section:
    rows = []
    for group in (name for name in GROUPS if name in kept):
        found = places(Kind.COLUMN, group=group) or places(Kind.REDIS, group=group)
        fields = f" In full: {'; '.join(dict.fromkeys(place.what for place in found))}." if found else ""
        rows.append(Row(_NAMES[group], f"{_sentence(GROUPS[group].what)}{fields}"))
    text = [
        "This is all that is kept of those who use the service. It cannot tell what was said.",
        "The log of the program's own work may name a key or a request by its random id, where something went wrong.",
    ]
    if facts.access_lines:
        text.append("Beside that each request leaves a line in the log, with its counts, model, status and ids.")
    return Section("kept", "What is kept", tuple(text), rows=tuple(rows))


def _flow() -> Section:
    return Section(
        "flow",
        "Where it flows",
        points=(
            "Your request comes in over an encrypted connection, unless you are on the same machine.",
            "Your key is checked, and whether your limits have room. What is refused here goes nowhere.",
            "The request is handed to the provider of its model, over an encrypted connection, without your key.",
            "The answer is handed to you while it comes.",
            "The counts of the request are written down. Its content was in memory only, and is gone.",
        ),
    )


def _receivers(receivers: Sequence[Receiver], region: str) -> Section:
    where = f"The servers of this service are in {region}." if region else ""
    if not receivers:
        return Section(
            "receivers", "Who receives it", _texts("No provider is configured: nothing goes anywhere.", where)
        )
    text = (
        "What you ask goes to the provider of the model that you name, and to nobody else. Providers may be in other"
        " countries, and have rules of their own for what they receive: please read theirs."
    )
    rows = []
    for each in receivers:
        stored = ", ".join(_STORED_THERE[name] for name in each.stores)
        said = (
            f" It is also asked to keep, where a client wants it: {stored}. Other keys can reach these."
            if stored
            else ""
        )
        rows.append(Row(each.name, f"{each.host}.{said}"))
    return Section("receivers", "Who receives it", _texts(text, where), rows=tuple(rows))


def _how_long(kept: dict[str, Keep]) -> Section:
    rows = [Row("Content", "Not kept.")]
    rows += [Row(_NAMES[group], _sentence(kept[group].told)) for group in GROUPS if group in kept]
    text = "When a key is deleted, everything that was kept of it is gone at once for everybody who asks."
    return Section("how-long", "How long it is kept", (text,), rows=tuple(rows))


def _rights(profile: Profile, kept: dict[str, Keep]) -> Section:
    points = [
        "See it: with your key, and nothing else, you can ask at any time what it used.",
        f"Have it deleted: ask {profile.contact} to delete your key, and all that is kept of it goes with it.",
        f"Take it with you: ask {profile.contact} for everything that is kept of your key, in a form for programs.",
    ]
    if "accounts" in kept:
        points.append(f"Have it put right: tell {profile.contact} what of your account is wrong.")
    return Section("rights", "What you can do", points=tuple(points))


def _changes(profile: Profile) -> Section:
    text = "A change holds from the day on which this page shows it. These are all there were:"
    newest_first = sorted(profile.history, key=lambda change: change.date, reverse=True)
    return Section("changes", "Changes", (text,), rows=tuple(Row(change.date, change.what) for change in newest_first))


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _texts(*texts: str) -> tuple[str, ...]:
    return tuple(text for text in texts if text)
