"""The table of everything that is kept anywhere: each column, Redis key, log field, metric label, cookie and file.

What is not in it is not kept: a start compares it with what there is, and refuses what is undeclared. Erasure, export,
retention and the privacy page are driven by it. Whoever adds a place to the program adds its row here. Pure.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase

from edgeproxy.domain.retention import (
    INSTALLATION,
    LIFE_OF_KEY,
    LIFE_OF_PROCESS,
    OPEN_REQUEST,
    OUTSIDE,
    UNTIL_FLUSHED,
    Keep,
)

PROFILES = ("opusgate", "opuslive", "opusmax", "opulon", "ominigate")


class Kind(StrEnum):
    """What a place is."""

    COLUMN = "column"
    REDIS = "redis"
    LOG_FIELD = "log_field"
    METRIC_LABEL = "metric_label"
    COOKIE = "cookie"
    FILE = "file"


class Whose(StrEnum):
    """Whom what is kept is about."""

    HOLDER = "key holder"
    OPERATOR = "operator"
    NOBODY = "nobody"


@dataclass(frozen=True, slots=True)
class Group:
    """What belongs together for people, and what a profile chooses: whether it is kept, and for how long.

    `what` is a part of a sentence. `is_built` says whether this version of the program has any place for it.
    """

    what: str
    is_built: bool = True


GROUPS: Mapping[str, Group] = {
    "keys": Group("the key's record: its name, its display prefix, a one-way digest of it, its limits and dates"),
    "usage": Group("of each request: time, model, status, counts of tokens, duration, and which key it was"),
    "refusals": Group("how often a key was refused, by minute and status"),
    "counters": Group("a key's totals, its open requests, and what is used of each limit"),
    "ledger": Group("credits of a prepaid key, and corrections of what was counted"),
    "log": Group("what the program tells of its own work, one line per event"),
    "metrics": Group("sums over all keys, for graphs and alarms"),
    "installation": Group("what the program needs to start: its own secrets, the number of its schema, locks"),
    "technical_log": Group("address and user agent of each request", is_built=False),
    "accounts": Group("e-mail address and digest of the password of each account", is_built=False),
    "payments": Group("amount and reference of each payment", is_built=False),
    "sessions": Group("who is signed in to the pages", is_built=False),
    "analytics": Group("visits of the website, for those who agreed", is_built=False),
    "mail": Group("messages that the program has to send", is_built=False),
}


@dataclass(frozen=True, slots=True)
class Place:
    """One place where something is kept. `name` is unique within its kind."""

    kind: Kind
    name: str
    what: str
    why: str
    whose: Whose
    group: str
    keep: Keep
    profiles: tuple[str, ...] = PROFILES


_Row = tuple[str, str, str]  # name, what, why

_FIND = "to tell it from others"
_LIMITS = "limits of the key"
_HISTORY = "the key's history of use"
_BUDGET = "limits and totals count tokens"
_RIGHT = "counts have to be right"
_OPERATE = "the operator has to see what went wrong"


def _table(name: str, group: str, rows: Iterable[_Row], keep: Keep = LIFE_OF_KEY) -> Iterator[Place]:
    whose = Whose.NOBODY if keep == INSTALLATION else Whose.HOLDER
    for column, what, why in rows:
        yield Place(Kind.COLUMN, f"{name}.{column}", what, why, whose, group, keep)


def _token_counts() -> Iterator[_Row]:
    yield "input_uncached", "input tokens that no cache held", _BUDGET
    yield "cache_read", "input tokens read from the provider's cache", _BUDGET
    yield "cache_write", "input tokens written to the provider's cache", _BUDGET
    yield "output", "output tokens", _BUDGET
    yield "reasoning", "output tokens spent on thinking", _BUDGET


def _installation_columns() -> Iterator[Place]:
    yield from _table(
        "install",
        "installation",
        (
            ("only_row", "nothing: it keeps the table at one row", "a second one would contradict it"),
            ("partitions", "number of partitions", "it must not change"),
            ("pepper_fingerprint", "what tells one pepper from another", "a start with a wrong pepper is refused"),
            ("created_at", "time of the installation", "the operator asks"),
        ),
        INSTALLATION,
    )
    yield from _table(
        "alembic_version", "installation", [("version_num", "number of the schema", _RIGHT)], INSTALLATION
    )


def _key_columns() -> Iterator[Place]:
    yield from _table(
        "keys",
        "keys",
        (
            ("id", "random id of the key", _FIND),
            ("name", "name that the operator gave the key", _FIND),
            ("prefix", "first characters of the key", "its holder recognises it"),
            ("digest", "keyed one-way digest of the key", "requests are recognised by it"),
            ("status", "active or revoked", "a revoked key admits nothing"),
            ("version", "how often the key was changed", "the newest of two changes counts"),
            ("limits", "rate limits and token budgets", _LIMITS),
            ("concurrency", "how many requests may be open at once", _LIMITS),
            ("models", "models that may be used", _LIMITS),
            ("mode", "whether limits refuse, or only count", _LIMITS),
            ("reserve", "how much is held back for an open request", _LIMITS),
            ("on_limit", "whether a request that does not fit is shortened", _LIMITS),
            ("prepaid", "whether tokens have to be credited first", _LIMITS),
            ("created_at", "time of issue", "the operator asks"),
            ("expires_at", "time from which it is not valid any more", _LIMITS),
            ("revoked_at", "time of revocation", "the operator asks"),
        ),
    )
    yield from _table(
        "outbox",
        "keys",
        (
            ("key_id", "id of a key that was changed", _FIND),
            ("version", "number of the change", "the newest counts"),
            ("action", "publish or erase", "workers learn of it"),
            ("digest", "keyed one-way digest of the key", "workers find the record by it"),
            ("created_at", "time of the change", "the operator sees what waits"),
        ),
        UNTIL_FLUSHED,
    )


_SUMS: tuple[_Row, ...] = (
    ("requests", "number of requests", _LIMITS),
    ("input_tokens", "input tokens", _BUDGET),
    ("output_tokens", "output tokens", _BUDGET),
)


def _usage_columns() -> Iterator[Place]:
    yield from _table(
        "usage_events",
        "usage",
        (
            ("id", "random id of the request, with its time", _FIND),
            ("key_id", "id of the key", _HISTORY),
            ("at", "time of the request", _HISTORY),
            ("model", "name of the model", _HISTORY),
            ("status", "HTTP status", "failed requests are shown as such"),
            *_token_counts(),
            ("latency_ms", "duration of the provider's answer, ms", "slow providers are seen"),
            ("estimated", "whether the counts are an estimate", "an estimate is not shown as a measurement"),
        ),
    )
    yield from _table(
        "usage_daily",
        "usage",
        (
            ("key_id", "id of the key", _HISTORY),
            ("day", "date", _HISTORY),
            ("model", "name of the model", _HISTORY),
            ("requests", "number of requests", _HISTORY),
            *_token_counts(),
        ),
    )
    yield from _table("usage_totals", "usage", (("key_id", "id of the key", _HISTORY), *_SUMS))


def _other_columns() -> Iterator[Place]:
    yield from _table(
        "dead_letters",
        "usage",
        (
            ("partition", "number of a partition", _OPERATE),
            ("stream_id", "where in Redis a record was that could not be stored", _OPERATE),
            ("key_id", "id of the key, where it could be read", _FIND),
            ("reason", "why it could not be stored, a word of ours", _OPERATE),
            ("created_at", "when that was", _OPERATE),
        ),
    )
    yield from _table(
        "refusals",
        "refusals",
        (
            ("key_id", "id of the key", _FIND),
            ("minute", "time, to the minute", "misuse is seen"),
            ("status", "HTTP status", "misuse is seen"),
            ("count", "how often", "misuse is seen"),
        ),
    )
    yield from _table(
        "ledger",
        "ledger",
        (
            ("key_id", "id of the key", _FIND),
            ("seq", "number of the entry", "each entry counts once"),
            ("kind", "credit or correction", _RIGHT),
            ("request_id", "id of the request that is corrected", _RIGHT),
            *_SUMS,
            ("tokens", "tokens credited", "a prepaid key uses them up"),
            ("reference", "the operator's reference of a credit", "a credit counts once"),
            ("at", "time of the entry", _HISTORY),
            ("applied", "whether Redis has it", "each entry counts once"),
        ),
    )


def _redis() -> Iterator[Place]:
    for name, what, why, whose, group, keep in (
        ("install", "number of partitions, fingerprint of the pepper", _RIGHT, None, "installation", INSTALLATION),
        ("key:*", "a key's id, status, limits, models and expiry", "workers check them", True, "keys", LIFE_OF_KEY),
        ("{pNN}:state:*", "totals, windows, open requests, balance", _LIMITS, True, "counters", LIFE_OF_KEY),
        ("{pNN}:ring:*", "what is used of each window, by slice of time", _LIMITS, True, "counters", LIFE_OF_KEY),
        ("{pNN}:reservation:*", "what is held for an open request", _RIGHT, True, "counters", OPEN_REQUEST),
        ("{pNN}:leases", "ids of open requests", "a dead worker's are ended", True, "counters", OPEN_REQUEST),
        ("{pNN}:events", "requests on their way to the database", _HISTORY, True, "usage", UNTIL_FLUSHED),
        ("{pNN}:corrections", "requests that were counted late", _RIGHT, True, "usage", UNTIL_FLUSHED),
        ("{pNN}:refusals", "refusals on their way to the database", "misuse is seen", True, "refusals", UNTIL_FLUSHED),
        ("{pNN}:epoch", "which server has complete counts", _RIGHT, None, "installation", INSTALLATION),
    ):
        yield Place(Kind.REDIS, name, what, why, Whose.HOLDER if whose else Whose.NOBODY, group, keep)


# Field of a log line -> what it holds is told in `logs.FIELDS`; these are about the holder of a key.
_OF_A_HOLDER = {"key_id", "request_id"}
_LOG_FIELDS = (
    *("attempt", "cache_read", "cache_write", "count", "dialect", "error", "estimated", "event", "exit_status"),
    *("input_uncached", "key_id", "lag_ms", "latency_ms", "library", "listener", "model", "operation", "output"),
    *("partition", "pid", "provider", "reasoning", "request_id", "role", "status", "store", "task", "timestamp"),
    "wait_ms",
)
_METRIC_LABELS = (
    ("dialect", "openai, anthropic or gemini"),
    ("error", "a code of ours, or an HTTP status"),
    ("kind", "kind of token"),
    ("outcome", "a word of ours"),
    ("provider", "the operator's name of a provider"),
    ("reason", "a word of ours"),
    ("rule", "the rule that a malformed request broke"),
    ("status", "HTTP status"),
    ("task", "name of a background task"),
    ("tool", "a tool of a provider, from a closed list"),
)


def _told() -> Iterator[Place]:
    for field in _LOG_FIELDS:
        whose = Whose.HOLDER if field in _OF_A_HOLDER else Whose.NOBODY
        what = "a number, a word or an id of ours, as the list of log fields has it"
        yield Place(Kind.LOG_FIELD, field, what, _OPERATE, whose, "log", OUTSIDE)
    for label, what in _METRIC_LABELS:
        yield Place(Kind.METRIC_LABEL, label, what, _OPERATE, Whose.NOBODY, "metrics", LIFE_OF_PROCESS)


def _files() -> Iterator[Place]:
    own, stores = "installation", "the servers that come along keep there what the other rows name"
    for name, what, why, group, keep, whose in (
        ("lock", "which process serves from the folder", "two would destroy it", own, INSTALLATION, Whose.NOBODY),
        ("redis.lock", "nothing: it is held by a server", "two would destroy it", own, INSTALLATION, Whose.NOBODY),
        ("postgres.lock", "nothing: it is held by a server", "two would destroy it", own, INSTALLATION, Whose.NOBODY),
        ("stores_are_in", "where the servers' folders are", "a start finds them", own, INSTALLATION, Whose.NOBODY),
        ("secrets/*", "secrets of the program itself", "keys are recognised", own, INSTALLATION, Whose.OPERATOR),
        (
            "compose/**",
            "settings and secrets of the Compose file",
            "they are mounted",
            own,
            INSTALLATION,
            Whose.OPERATOR,
        ),
        ("redis.log", "what the server says of itself", _OPERATE, "log", LIFE_OF_PROCESS, Whose.NOBODY),
        ("postgres.log", "what the server says of itself", _OPERATE, "log", LIFE_OF_PROCESS, Whose.NOBODY),
        ("redis/**", "what Redis holds", stores, "counters", LIFE_OF_KEY, Whose.HOLDER),
        ("postgres/**", "what PostgreSQL holds", stores, "usage", LIFE_OF_KEY, Whose.HOLDER),
        (
            *("journal/*", "counts of finished requests that Redis has not taken yet", _RIGHT, "usage"),
            *(UNTIL_FLUSHED, Whose.HOLDER),
        ),
    ):
        yield Place(Kind.FILE, name, what, why, whose, group, keep)


PLACES: tuple[Place, ...] = (
    *_installation_columns(),
    *_key_columns(),
    *_usage_columns(),
    *_other_columns(),
    *_redis(),
    *_told(),
    *_files(),
)

_PARTITION = re.compile(r"\A\{p[0-9]{2}\}")


def places(kind: Kind | None = None, *, group: str | None = None, whose: Whose | None = None) -> list[Place]:
    """Return the rows of a kind, a group or a person; of all where nothing is said."""
    return [
        place
        for place in PLACES
        if kind in (None, place.kind) and group in (None, place.group) and whose in (None, place.whose)
    ]


def undeclared(kind: Kind, names: Iterable[str]) -> list[str]:
    """Return those of the names that no row of the table covers, each once, in order.

    A column is `table.column`; a Redis key is given as it is; a file is a path from the data directory, with slashes.
    """
    rows = [place.name for place in PLACES if place.kind is kind]
    known = set(rows)
    patterns = [name for name in rows if name.endswith("*")]
    found = set()
    for name in names:
        family = _PARTITION.sub("{pNN}", name) if kind is Kind.REDIS else name
        if family not in known and not any(_fits(kind, family, pattern) for pattern in patterns):
            found.add(name)
    return sorted(found)


def _fits(kind: Kind, name: str, pattern: str) -> bool:
    """Whether a name is one of those that a pattern stands for. `*` of a file ends at a slash, `**` does not."""
    if kind is Kind.FILE and pattern.endswith("/**"):
        return name.startswith(pattern.removesuffix("**"))
    if kind is Kind.FILE:
        return fnmatchcase(name, pattern) and name.count("/") == pattern.count("/")
    return name.startswith(pattern.removesuffix("*")) and len(name) >= len(pattern)
