"""Usage as it lasts: one row per admitted request, its sums by day, and its totals. Counts and a model name only."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from edgeproxy.domain.keys import KeyId
from edgeproxy.domain.limits import Amounts
from edgeproxy.domain.times import to_datetime
from edgeproxy.domain.usage import Usage, UsageEvent
from edgeproxy.store.database import Connection
from edgeproxy.store.ledger import Difference
from edgeproxy.store.statements import statements

ERASE_BATCH = 10_000  # rows removed in one statement: some tens of milliseconds


@dataclass(frozen=True, slots=True)
class Added:
    """What became of a batch of events: stored now, stored before, or of a key that is not known (any more)."""

    added: int
    repeated: int
    unknown: int


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An entry of a stream that could not be stored. `key_id` None: not readable.

    `reason` is `undecodable`, `time_out_of_range` or `refused` (by the database).
    """

    stream_id: str
    key_id: KeyId | None
    reason: str


@dataclass(frozen=True, slots=True)
class UsageSum:
    """How many requests, and what they used together."""

    requests: int
    usage: Usage


@dataclass(frozen=True, slots=True)
class DailySum:
    """The sum of one day (UTC) and model."""

    day: date
    model: str
    sum: UsageSum


async def add_events(connection: Connection, events: Sequence[UsageEvent]) -> Added:
    """Store the events that are not stored yet and add those to the daily sums and the totals.

    Raises RowRefused when any of them cannot be stored; then none of them is.
    """
    usages = [event.usage for event in events]
    row = await connection.fetchrow(
        statements("usage")["add_events"],
        [event.id for event in events],
        [event.key_id for event in events],
        [to_datetime(event.at_ms) for event in events],
        [event.model for event in events],
        [event.status for event in events],
        [usage.input_uncached for usage in usages],
        [usage.cache_read for usage in usages],
        [usage.cache_write for usage in usages],
        [usage.output for usage in usages],
        [usage.reasoning for usage in usages],
        [event.latency_ms for event in events],
        [usage.estimated for usage in usages],
    )
    return Added(row["added"], len(events) - row["added"] - row["unknown"], row["unknown"])


async def add_dead_letters(connection: Connection, partition: int, letters: Sequence[DeadLetter]) -> int:
    """Note entries that could not be stored, and return how many were not noted before."""
    count: int = await connection.fetchval(
        statements("usage")["add_dead_letters"],
        partition,
        [letter.stream_id for letter in letters],
        [letter.key_id for letter in letters],
        [letter.reason for letter in letters],
    )
    return count


async def read_to_correct(connection: Connection, event_id: str) -> UsageEvent | None:
    """Return a stored request, None when there is none. The caller has locked its key with `keys.read_to_change`."""
    row = await connection.fetchrow(statements("usage")["read_to_correct"], event_id)
    return None if row is None else _event(row)


async def correct(connection: Connection, stored: UsageEvent, event: UsageEvent) -> Difference:
    """Put `event` in the place of what is stored of the same request, in the sums as well, and return the difference.

    Raises RowRefused when it cannot be stored.
    """
    sql, was, now = statements("usage"), stored.usage, event.usage
    await connection.execute(
        sql["correct_event"],
        event.id,
        event.model,
        event.status,
        *_counts(now),
        event.latency_ms,
        now.estimated,
    )
    taken, given = (-1, *(-count for count in _counts(was))), (1, *_counts(now))
    at = to_datetime(event.at_ms)
    await connection.execute(
        sql["correct_daily"],
        event.key_id,
        at,
        [stored.model, event.model],
        *([old, new] for old, new in zip(taken, given, strict=True)),
    )
    await connection.execute(sql["delete_empty_daily"], event.key_id, at)
    difference = Difference(0, now.input_total - was.input_total, now.output - was.output)
    await connection.execute(
        sql["correct_totals"],
        event.key_id,
        difference.requests,
        difference.input_tokens,
        difference.output_tokens,
    )
    return difference


async def recent(connection: Connection, key_id: KeyId, count: int) -> list[UsageEvent]:
    """Return the key's latest `count` stored requests, the latest first."""
    return [_event(row) for row in await connection.fetch(statements("usage")["recent"], key_id, count)]


async def daily(connection: Connection, key_id: KeyId, since: date) -> list[DailySum]:
    """Return the key's sums by day and model from the day `since` on, the latest day first."""
    return [
        DailySum(row["day"], row["model"], UsageSum(row["requests"], _usage(row)))
        for row in await connection.fetch(statements("usage")["daily"], key_id, since)
    ]


async def totals(connection: Connection, key_id: KeyId) -> Amounts:
    """Return the sum of all that is stored of a key; what still waits in Redis is not in it."""
    row = await connection.fetchrow(statements("usage")["totals"], key_id)
    return Amounts() if row is None else Amounts(row["requests"], row["input_tokens"], row["output_tokens"])


async def delete_events(connection: Connection, key_id: KeyId) -> bool:
    """Remove a batch of a key's rows and return whether there may be more."""
    status: str = await connection.execute(statements("usage")["delete_events"], key_id, ERASE_BATCH - 1)
    return int(status.rpartition(" ")[2]) >= ERASE_BATCH  # "DELETE 10000"


async def delete_sums(connection: Connection, key_id: KeyId) -> None:
    """Remove everything else of a key's usage."""
    await connection.execute(statements("usage")["delete_sums"], key_id)
    await connection.execute(statements("usage")["delete_totals"], key_id)
    await connection.execute(statements("usage")["delete_dead_letters"], key_id)


def _event(row: Any) -> UsageEvent:
    return UsageEvent(
        id=str(row["id"]),
        key_id=KeyId(str(row["key_id"])),
        model=row["model"],
        status=row["status"],
        usage=_usage(row, estimated=row["estimated"]),
        latency_ms=row["latency_ms"],
    )


def _counts(usage: Usage) -> tuple[int, ...]:
    return (usage.input_uncached, usage.cache_read, usage.cache_write, usage.output, usage.reasoning)


def _usage(row: Any, *, estimated: bool = False) -> Usage:
    return Usage(
        input_uncached=row["input_uncached"],
        cache_read=row["cache_read"],
        cache_write=row["cache_write"],
        output=row["output"],
        reasoning=row["reasoning"],
        estimated=estimated,
    )
