"""Credits of prepaid keys, and how entries of the ledger come to hold in Redis.

An entry is true once PostgreSQL has it, and is applied to Redis in the order of its number: at once by whoever wrote
it, and by `jobs` for as long as Redis has not confirmed it. Any number of them may do so at once, because Redis takes
each number once.
"""

from dataclasses import dataclass
from typing import Any

from edgeproxy.control.installation import Control
from edgeproxy.control.key_list import KeyRow, existing, resolve, row_of
from edgeproxy.domain.keys import KeyId, KeyStatus, partition_of
from edgeproxy.domain.limits import MAX_AMOUNT
from edgeproxy.domain.reservations import LedgerStatus
from edgeproxy.errors import OperatorError, StoreUnavailable
from edgeproxy.hotstate.ledger import HotLedger
from edgeproxy.store import keys, ledger
from edgeproxy.store.keys import FIRST_ID, StoredKey
from edgeproxy.store.ledger import Entry, Kind

REFERENCE_LENGTH = 200
_BATCH = 100  # entries of a key, or keys, read at once
_GAPS = 3  # in one go at a key: a Redis that was set back says once from where on it needs its entries again


@dataclass(frozen=True, slots=True)
class Credit:
    """What became of a credit. `repeated`: it was there before, under its reference, and nothing was added.

    `applied` False: Redis did not take it yet; `jobs` repeats that.
    """

    row: KeyRow
    tokens: int
    reference: str | None
    repeated: bool
    applied: bool

    def to_json(self) -> dict[str, Any]:
        """Return the credit under stable names, with the key's balance after it."""
        return {
            "id": self.row.key.id,
            "tokens": self.tokens,
            "reference": self.reference,
            "repeated": self.repeated,
            "applied": self.applied,
            "balance": self.row.balance_json(),
        }


async def credit(control: Control, ref: str, tokens: int, reference: str | None = None) -> Credit:
    """Give a prepaid key tokens. With a reference it may be repeated: a key is credited once for each.

    Raises OperatorError for a key that is not prepaid or is revoked, a number of tokens that cannot be counted, and a
    reference that was used for another number; StoreUnavailable when PostgreSQL does not answer.
    """
    _check(tokens, reference)
    key_id = await resolve(control, ref)
    async with control.database.transaction() as connection:
        key = existing(await keys.read_to_change(connection, key_id))
        _check_may_have(key)
        before = None if reference is None else await ledger.find_credit(connection, key_id, reference)
        if before not in (None, tokens):
            raise OperatorError(f"this reference was used for {before} tokens; give another credit another reference")
        if before is None:
            if (await ledger.credited(connection, key_id)).tokens + tokens > MAX_AMOUNT:
                raise OperatorError(f"a key can be credited {MAX_AMOUNT} tokens altogether")
            await ledger.add_credit(connection, key_id, tokens, reference)
    try:
        applied = await apply_entries(control, key_id)
    except StoreUnavailable as away:
        if away.store != "redis":
            raise
        applied = False
    return Credit(await row_of(control, key), tokens, reference, repeated=before is not None, applied=applied)


async def apply_entries(control: Control, key_id: KeyId) -> bool:
    """Apply the key's entries that Redis has not confirmed, and return whether it has them all now.

    It has not where the key is not published: that comes first, and is done by others. Where Redis lost entries that it
    once confirmed, it is given them again. Raises StoreUnavailable, OperatorError when the counters are not readable.
    """
    async with control.database.transaction() as connection:
        waiting = await ledger.first_waiting(connection, key_id)
    if waiting is None:
        return True
    done, gaps = waiting - 1, 0
    while gaps <= _GAPS:
        async with control.database.transaction() as connection:
            entries = await ledger.after(connection, key_id, done, _BATCH)
        if not entries:
            return True
        status, done = await _apply(control, key_id, entries)
        if status is LedgerStatus.UNPUBLISHED:
            return False
        gaps += status is LedgerStatus.GAP
    return False


async def apply_pending(control: Control) -> int:
    """Apply what waits of all keys, and return of how many keys Redis has everything now. Raises as `apply_entries`."""
    applied = 0
    after = FIRST_ID
    while True:  # ends: each page begins after the one before
        async with control.database.transaction() as connection:
            page = await ledger.waiting(connection, after, _BATCH)
        for key_id in page:
            applied += await apply_entries(control, key_id)
        if len(page) < _BATCH:
            return applied
        after = page[-1]


async def _apply(control: Control, key_id: KeyId, entries: list[Entry]) -> tuple[LedgerStatus, int]:
    """Apply entries up to the first that is not taken; return what became of the last, and which one Redis has now."""
    hot, partition = HotLedger(control.caller), partition_of(key_id, control.partitions)
    status = LedgerStatus.APPLIED
    for entry in entries:
        if entry.kind is Kind.CREDIT:
            status, has = await hot.credit(partition, key_id, entry.seq, entry.tokens)
        else:
            each = entry.difference
            status, has = await hot.adjust(
                partition, key_id, entry.seq, each.requests, each.input_tokens, each.output_tokens
            )
        if status not in (LedgerStatus.APPLIED, LedgerStatus.DUPLICATE):
            return status, has
    async with control.database.transaction() as connection:
        await ledger.mark_applied(connection, key_id, entries[-1].seq)
    return status, entries[-1].seq


def _check(tokens: int, reference: str | None) -> None:
    if not 1 <= tokens <= MAX_AMOUNT:
        raise OperatorError(f"a credit has 1 to {MAX_AMOUNT} tokens")
    if reference is None:
        return
    if not 1 <= len(reference) <= REFERENCE_LENGTH or not reference.isprintable() or reference != reference.strip():
        raise OperatorError(
            f"a reference has 1 to {REFERENCE_LENGTH} printable characters, none of them a space at an end"
        )


def _check_may_have(key: StoredKey) -> None:
    if not key.prepaid:
        raise OperatorError(
            "the key is not prepaid, so it has no balance; limit it with keys set --limit,"
            " or issue a prepaid one with keys create --prepaid"
        )
    if key.status is KeyStatus.REVOKED:
        raise OperatorError("the key is revoked, for good; create another one")
