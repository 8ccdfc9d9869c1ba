"""What Redis should hold of keys, as PostgreSQL knows it. Only reads: what it means is decided by whoever compares.

Several statements that have to agree with each other are run inside one `snapshot`.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from edgeproxy.domain.identifiers import uuid7_floor
from edgeproxy.domain.keys import KeyId
from edgeproxy.domain.limits import Amounts
from edgeproxy.domain.times import to_ms
from edgeproxy.store.database import Connection, Database
from edgeproxy.store.statements import statements


@dataclass(frozen=True, slots=True)
class StoredSums:
    """What is stored of a key, asked with the number of the last ledger entry that is applied in Redis.

    `totals` have every correction in them; `corrected` is the part by entries that Redis has not applied yet. `ledger`
    is the number of the last entry, 0 before the first, `confirmed_ledger` that of the last one that Redis once had;
    `credits` are of all entries, `applied_credits` of those that Redis has.
    """

    version: int
    digest: str
    is_prepaid: bool
    totals: Amounts
    corrected: tuple[int, int, int]
    ledger: int
    confirmed_ledger: int
    credits: int
    applied_credits: int


@dataclass(frozen=True, slots=True)
class WindowAsked:
    """The window of a key: buckets of `width_ms` since the one that begins at `since_ms`."""

    key_id: KeyId
    width_ms: int
    since_ms: int


@asynccontextmanager
async def snapshot(database: Database) -> AsyncIterator[Connection]:
    """Give a connection whose statements all see one moment."""
    async with database.transaction() as connection:
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        yield connection


async def key_ids(connection: Connection, after: KeyId, count: int) -> list[KeyId]:
    """Return the ids of up to `count` keys that were created after the key `after`."""
    return [
        KeyId(str(row["id"])) for row in await connection.fetch(statements("reconciliation")["key_ids"], after, count)
    ]


async def known(connection: Connection, ids: Sequence[str], digests: Sequence[str]) -> set[str]:
    """Return which of these ids (UUIDs) and digests are those of keys."""
    return {row["known"] for row in await connection.fetch(statements("reconciliation")["known"], ids, digests)}


async def sums(connection: Connection, ledgers: dict[KeyId, int]) -> dict[KeyId, StoredSums]:
    """Return what is stored of those keys that there are; `ledgers`: the last entry of each that Redis has applied."""
    return {
        KeyId(str(row["id"])): StoredSums(
            version=row["version"],
            digest=row["digest"],
            is_prepaid=row["prepaid"],
            totals=Amounts(row["requests"], row["input_tokens"], row["output_tokens"]),
            corrected=(row["corrected_requests"], row["corrected_input_tokens"], row["corrected_output_tokens"]),
            ledger=row["ledger"],
            confirmed_ledger=row["confirmed_ledger"],
            credits=row["credits"],
            applied_credits=row["applied_credits"],
        )
        for row in await connection.fetch(statements("reconciliation")["sums"], list(ledgers), list(ledgers.values()))
    }


async def stored_ids(connection: Connection, ids: Sequence[str]) -> set[str]:
    """Return which of these requests have their row."""
    return (
        {str(row["id"]) for row in await connection.fetch(statements("reconciliation")["stored_ids"], ids)}
        if ids
        else set()
    )


async def last_used(connection: Connection, ids: Sequence[KeyId]) -> dict[KeyId, int]:
    """Return when the latest request of each key was over, Unix ms; keys without one are left out."""
    rows = await connection.fetch(statements("reconciliation")["last_used"], ids)
    return {KeyId(str(row["key_id"])): to_ms(row["at"]) + row["latency_ms"] for row in rows}


async def buckets(connection: Connection, asked: Sequence[WindowAsked]) -> list[list[tuple[int, Amounts]]]:
    """Return, for each window, what its requests used by bucket (Unix ms / width), the oldest first."""
    rows = await connection.fetch(
        statements("reconciliation")["buckets"],
        list(range(len(asked))),
        [window.key_id for window in asked],
        [window.width_ms for window in asked],
        [uuid7_floor(window.since_ms) for window in asked],
    )
    found: list[list[tuple[int, Amounts]]] = [[] for _ in asked]
    for row in rows:
        amounts = Amounts(row["requests"], row["input_tokens"], row["output_tokens"])
        found[row["position"]].append((row["bucket"], amounts))
    return found
