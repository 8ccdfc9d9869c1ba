"""The ledger as it lasts: credits, and corrections of what was charged, numbered per key from 1 without a gap.

An entry is written in the transaction that makes it true, and applied to Redis afterwards, in order. Whoever adds one
holds the key's row (`keys.read_to_change`): so the numbers of a key are committed in order.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from edgeproxy.domain.keys import KeyId
from edgeproxy.store.database import Connection
from edgeproxy.store.statements import statements


class Kind(StrEnum):
    """What an entry is: tokens given to a prepaid key, or a difference to what a request was charged."""

    CREDIT = "credit"
    CORRECTION = "correction"


@dataclass(frozen=True, slots=True)
class Difference:
    """What a request was charged too little; below 0: too much."""

    requests: int
    input_tokens: int
    output_tokens: int


NO_DIFFERENCE = Difference(0, 0, 0)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry: the `tokens` of a credit, or the `difference` of a correction."""

    seq: int
    kind: Kind
    difference: Difference
    tokens: int


@dataclass(frozen=True, slots=True)
class Credited:
    """The sum of a key's credits, and the number of its last entry, 0 before the first."""

    tokens: int
    seq: int


async def add_credit(connection: Connection, key_id: KeyId, tokens: int, reference: str | None) -> int:
    """Add a credit and return its number. Raises RowRefused when the key has one with this reference."""
    return await _add(connection, key_id, Kind.CREDIT, None, NO_DIFFERENCE, tokens, reference)


async def add_correction(connection: Connection, key_id: KeyId, request_id: str, difference: Difference) -> int:
    """Add the difference to what a request was charged, and return the entry's number."""
    return await _add(connection, key_id, Kind.CORRECTION, request_id, difference, 0, None)


async def credited(connection: Connection, key_id: KeyId) -> Credited:
    """Return what was credited to a key so far."""
    row = await connection.fetchrow(statements("ledger")["credited"], key_id)
    return Credited(row["tokens"], row["seq"])


async def find_credit(connection: Connection, key_id: KeyId, reference: str) -> int | None:
    """Return the tokens that were credited under a reference, None when none were."""
    tokens: int | None = await connection.fetchval(statements("ledger")["find"], key_id, reference)
    return tokens


async def after(connection: Connection, key_id: KeyId, seq: int, count: int) -> list[Entry]:
    """Return up to `count` entries that follow the one with this number, applied or not, in order."""
    return [_entry(row) for row in await connection.fetch(statements("ledger")["after"], key_id, seq, count)]


async def first_waiting(connection: Connection, key_id: KeyId) -> int | None:
    """Return the number of the key's first entry that Redis has not confirmed, None when there is none."""
    seq: int | None = await connection.fetchval(statements("ledger")["first_waiting"], key_id)
    return seq


async def waiting(connection: Connection, after_id: KeyId, count: int) -> list[KeyId]:
    """Return up to `count` keys after `after_id` with entries that Redis has not confirmed."""
    return [KeyId(str(row[0])) for row in await connection.fetch(statements("ledger")["waiting"], after_id, count)]


async def mark_applied(connection: Connection, key_id: KeyId, seq: int) -> None:
    """Note that Redis has all entries of the key up to this number."""
    await connection.execute(statements("ledger")["mark_applied"], key_id, seq)


async def delete(connection: Connection, key_id: KeyId) -> None:
    """Remove a key's entries."""
    await connection.execute(statements("ledger")["delete"], key_id)


async def _add(
    connection: Connection,
    key_id: KeyId,
    kind: Kind,
    request_id: str | None,
    difference: Difference,
    tokens: int,
    reference: str | None,
) -> int:
    seq: int = await connection.fetchval(
        statements("ledger")["add"],
        key_id,
        kind,
        request_id,
        difference.requests,
        difference.input_tokens,
        difference.output_tokens,
        tokens,
        reference,
    )
    return seq


def _entry(row: Any) -> Entry:
    difference = Difference(row["requests"], row["input_tokens"], row["output_tokens"])
    return Entry(row["seq"], Kind(row["kind"]), difference, row["tokens"])
