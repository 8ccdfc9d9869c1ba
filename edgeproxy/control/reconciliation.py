"""Whether Redis holds of each key what PostgreSQL knows, and how a key's counters are made anew from that.

What settles in Redis reaches PostgreSQL a little later, so the two agree in this way and no other: the totals in Redis
are those in PostgreSQL, and what waits in the event stream, without the corrections that Redis has not been given yet;
a balance is what was credited, without those totals. `compare` holds the two against each other at one moment; a
difference that is still there when it looks again is drift.

`rebuild` writes a key's state as it should be: totals, balance and number of the last ledger entry as stored, windows
from the events that still lie within them and from the requests that are open.
"""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from edgeproxy.control.installation import Control
from edgeproxy.control.key_list import resolve
from edgeproxy.control.publish import publish_key
from edgeproxy.domain.keys import KeyId, partition_of
from edgeproxy.domain.limits import Amounts, Limit
from edgeproxy.domain.reservations import RebuildStatus, RebuiltState, SettleStatus
from edgeproxy.domain.usage import UsageEvent
from edgeproxy.hotstate import keyspace
from edgeproxy.hotstate.leases import Leases
from edgeproxy.hotstate.rebuilding import HotSums, Known, OpenRequest, Rebuilding, decode_state
from edgeproxy.hotstate.scripts import Scope
from edgeproxy.store import keys, reconciliation
from edgeproxy.store.keys import FIRST_ID, StoredKey
from edgeproxy.store.reconciliation import StoredSums, WindowAsked

CHUNK = 500  # keys compared or rebuilt at once: a fraction of a second, in which their rows are held
_IDS = 10_000
_LOOKS = 5  # at a key that changes while it is read
_TRIES = 10  # to rebuild a key while its open requests end
_PAUSE_S = 0.1  # between two looks at what differs: what is on its way arrives


@dataclass(frozen=True, slots=True)
class Drift:
    """One thing that Redis and PostgreSQL disagree on, of one key. None: there is nothing.

    `what` is `state` (absent, or not readable), `version`, `record` (what workers read), `requests`, `input_tokens`,
    `output_tokens`, `balance` or `ledger`. `is_behind`: Redis has forgotten something. Otherwise it has more, because
    PostgreSQL is the older one, or holds what can never be stored.
    """

    key_id: KeyId
    what: str
    redis: int | None
    postgresql: int | None
    is_behind: bool


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What became of a comparison. `left` is what of `found` is still so after the repair, all of it without one."""

    compared: int
    found: tuple[Drift, ...]
    left: tuple[Drift, ...]

    def to_json(self) -> dict[str, Any]:
        """Return it under stable names."""
        return {
            "compared": self.compared,
            "found": [_drift_json(each) for each in self.found],
            "left": [_drift_json(each) for each in self.left],
        }


async def reconcile(control: Control, refs: Sequence[str] = (), *, repair: bool = False) -> Reconciled:
    """Compare keys, all of them unless some are named, and with `repair` let Redis have what PostgreSQL knows.

    The repair takes away as well as it gives. Raises StoreUnavailable, OperatorError when there is no such key.
    """
    if refs:
        ids = by_partition(control, [await resolve(control, ref) for ref in refs])
    else:
        ids = await all_keys(control)
    found: list[Drift] = []
    left: list[Drift] = []
    for partition, each in ids.items():
        for begin in range(0, len(each), CHUNK):
            drift = await drift_of(control, partition, each[begin : begin + CHUNK])
            found += drift
            left += await _repaired(control, partition, drift) if repair and drift else drift
    return Reconciled(sum(map(len, ids.values())), tuple(found), tuple(left))


async def _repaired(control: Control, partition: int, drift: Sequence[Drift]) -> list[Drift]:
    """Let keys have in Redis what PostgreSQL knows, and return what is still different."""
    published = [each for each in drift if each.what == "record" or (each.what == "version" and each.is_behind)]
    await mend(control, partition, published)
    await rebuild(control, partition, sorted({each.key_id for each in drift if each not in published}))
    newer = [each.key_id for each in published if not each.is_behind]
    async with control.database.transaction() as connection:
        stored = await keys.read_each_to_publish(connection, newer)
        await Rebuilding(control.caller).replace_records(
            [(key.record(control.partitions), key.digest) for key in stored]
        )
    return await drift_of(control, partition, sorted({each.key_id for each in drift}))


def by_partition(control: Control, ids: Iterable[KeyId]) -> dict[int, list[KeyId]]:
    """Return keys by the partition that has them, each once."""
    found: dict[int, list[KeyId]] = {}
    for key_id in dict.fromkeys(ids):
        found.setdefault(partition_of(key_id, control.partitions), []).append(key_id)
    return found


async def all_keys(control: Control) -> dict[int, list[KeyId]]:
    """Return the ids of all keys by partition."""
    ids: list[KeyId] = []
    page = [FIRST_ID] * _IDS
    while len(page) == _IDS:  # ends: each page begins after the one before
        async with control.database.transaction() as connection:
            page = await reconciliation.key_ids(connection, page[-1], _IDS)
        ids += page
    return by_partition(control, ids)


async def drift_of(control: Control, partition: int, ids: Sequence[KeyId]) -> list[Drift]:
    """Return what Redis and PostgreSQL disagree on, of keys of one partition: what two looks find alike.

    Raises StoreUnavailable, OperatorError.
    """
    first = await compare(control, partition, ids)
    suspects = sorted({drift.key_id for drift in first})
    if not suspects:
        return []
    await asyncio.sleep(_PAUSE_S)
    second = set(await compare(control, partition, suspects))
    return [drift for drift in first if drift in second]


async def mend(control: Control, partition: int, drift: Sequence[Drift]) -> list[KeyId]:
    """Give Redis back what it has forgotten; return the keys that did not hold still for it. What it has more stays.

    Raises StoreUnavailable, OperatorError.
    """
    behind = [each for each in drift if each.is_behind]
    forgotten = {each.key_id for each in behind if each.what not in ("version", "record")}
    older = {each.key_id for each in behind if each.what == "version"} - forgotten
    for key_id in sorted(older):
        await publish_key(control, key_id)
    await _give_records_back(control, sorted({each.key_id for each in behind} - older - forgotten))
    return await rebuild(control, partition, sorted(forgotten))


async def _give_records_back(control: Control, ids: Sequence[KeyId]) -> None:
    """Write what workers read of keys, and no state: Redis may have been emptied since it was looked at.

    A key that was published in full would then have a state of which nothing was used, and no balance.
    """
    async with control.database.transaction() as holding:  # a deletion waits
        stored = await keys.read_each_to_publish(holding, ids)
        await Rebuilding(control.caller).publish_records(
            [(key.record(control.partitions), key.digest) for key in stored]
        )


async def rebuild(control: Control, partition: int, ids: Sequence[KeyId]) -> list[KeyId]:
    """Make the counters of these keys what PostgreSQL knows, and return the keys that did not hold still for it.

    Raises StoreUnavailable.
    """
    if not ids:
        return []
    await cancel_stored(control, partition)
    left: list[KeyId] = []
    for begin in range(0, len(ids), CHUNK):
        waiting = list(ids[begin : begin + CHUNK])
        for _ in range(_TRIES):
            waiting = await _rebuild(control, partition, waiting)
            if not waiting:
                break
        left += waiting
    return left


async def cancel_stored(control: Control, partition: int) -> int:
    """Cancel the open requests that have ended already, and return how many there were.

    A Redis that was restored from an older file holds requests as open whose events PostgreSQL has. What they used is
    counted from these. Raises StoreUnavailable.
    """
    opened = [each for each in await Rebuilding(control.caller).opened(partition) if each.model]
    async with control.database.transaction() as connection:
        stored = await reconciliation.stored_ids(connection, [each.id for each in opened])
    cancelled = 0
    for each in opened:
        if each.id in stored:
            names = keyspace.state(partition, each.holder), keyspace.ring(partition, each.holder)
            scope = Scope(each.holder, *names, each.pending.scopes[0].version)
            status = await Leases(control.caller).cancel(partition, each.id, [scope])
            cancelled += status is SettleStatus.RESOLVED
    return cancelled


async def erase_unknown(control: Control, partition: int) -> int:
    """Remove what the server of a partition has of keys that there are not, and return how many there were.

    Removing is dangerous where it is needed: nothing here is, because what was counted of a key without a row is stored
    nowhere, and nobody could revoke it. A Redis that was restored from an older file knows keys that were deleted
    since. What is no key's (the limits of providers) stays. Raises StoreUnavailable.
    """
    hot = Rebuilding(control.caller)
    erased = 0
    async for found in hot.known(partition):
        holders = [(home, holder) for home, holder in found.holders if _is_key_id(holder)]
        async with control.database.transaction() as connection:
            known = await reconciliation.known(connection, [holder for _, holder in holders], found.digests)
        unknown = [(home, holder) for home, holder in holders if holder not in known]
        await hot.forget(Known(unknown, [digest for digest in found.digests if digest not in known]))
        erased += len(unknown)
    return erased


async def compare(control: Control, partition: int, ids: Sequence[KeyId]) -> list[Drift]:
    """Return what is not as it should be, at one look: what is stored meanwhile may be among it.

    A key that never holds still for a moment is left out. Raises StoreUnavailable, OperatorError.
    """
    found: list[Drift] = []
    left = list(ids)
    for _ in range(_LOOKS):
        if not left:
            break
        compared, drift = await _look(control, partition, left)
        found += drift
        left = [key_id for key_id in left if key_id not in compared]
    return found


async def _look(control: Control, partition: int, ids: Sequence[KeyId]) -> tuple[set[KeyId], list[Drift]]:
    """Return which keys could be compared, and what is not as it should be.

    Redis comes first. An event that it has counted by then waits in the stream, or was stored before: so it is found,
    in one of the two, by whoever looks into the stream next and into PostgreSQL last.
    """
    hot = Rebuilding(control.caller)
    read = await hot.read(partition, ids)
    states = {key_id: decode_state(raw) for key_id, raw in read.states.items()}
    waiting = await hot.waiting(partition, read.last_event) if read.last_event else []
    async with reconciliation.snapshot(control.database) as connection:
        stored = await reconciliation.stored_ids(connection, [event.id for event in waiting])
        ledgers = {key_id: state.ledger if state else 0 for key_id, state in states.items()}
        rows = await reconciliation.sums(connection, ledgers)
    used = _used_by_key([event for event in waiting if event.id not in stored])
    versions = await hot.versions([row.digest for row in rows.values()])
    drift: list[Drift] = []
    for (key_id, row), version in zip(rows.items(), versions, strict=True):
        drift += _differences(key_id, states[key_id], row, used.get(key_id, Amounts()), version)
    return set(states), drift


def _differences(
    key_id: KeyId, state: HotSums | None, row: StoredSums, waiting: Amounts, record_version: int | None
) -> list[Drift]:
    """Return how a key's state differs from what it should be."""
    rows = [("record", record_version, row.version)]
    if state is None:
        return [Drift(key_id, "state", None, row.version, is_behind=True), *_unequal(key_id, rows)]
    # Entries that Redis never confirmed are on their way to it.
    ledger = min(max(state.ledger, row.confirmed_ledger), row.ledger)
    rows += [("version", state.version, row.version), ("ledger", state.ledger, ledger)]
    rows += [
        ("requests", state.totals.requests, row.totals.requests + waiting.requests - row.corrected[0]),
        ("input_tokens", state.totals.input_tokens, row.totals.input_tokens + waiting.input_tokens - row.corrected[1]),
        (
            "output_tokens",
            state.totals.output_tokens,
            row.totals.output_tokens + waiting.output_tokens - row.corrected[2],
        ),
    ]
    found = _unequal(key_id, rows)
    balance = row.applied_credits - state.totals.input_tokens - state.totals.output_tokens
    if state.balance != balance and state.ledger <= row.ledger:  # else credits are missing from what it is held against
        found.append(Drift(key_id, "balance", state.balance, balance, is_behind=state.balance > balance))
    return found


def _unequal(key_id: KeyId, rows: list[tuple[str, int | None, int]]) -> list[Drift]:
    return [
        Drift(key_id, what, redis, postgresql, is_behind=redis is None or redis < postgresql)
        for what, redis, postgresql in rows
        if redis != postgresql
    ]


async def _rebuild(control: Control, partition: int, ids: Sequence[KeyId]) -> list[KeyId]:
    """Rebuild these keys once, and return those whose state changed meanwhile.

    The states are read first: whatever happens to a key after that changes its state, which is then not replaced. Its
    requests cannot end unseen. Only where there is no state, or one of another layout, they can: so with open requests
    that is done twice.
    """
    hot = Rebuilding(control.caller)
    async with control.database.transaction() as holding:
        stored_keys = await keys.read_each_to_publish(holding, ids)
        if not stored_keys:
            return []
        read = await hot.read(partition, [key.id for key in stored_keys])
        steady = [key for key in stored_keys if key.id in read.states]
        opened = _by_holder(await hot.opened(partition))
        states = await _wanted(control, steady, opened, read.states)
        statuses = await hot.rebuild([(read.states[key.id], state) for key, state in zip(steady, states, strict=True)])
        rebuilt = {key.id: key for key, status in zip(steady, statuses, strict=True) if status is RebuildStatus.REBUILT}
        await hot.publish_records([(key.record(control.partitions), key.digest) for key in rebuilt.values()])
    unseen = {key_id for key_id in rebuilt if decode_state(read.states[key_id]) is None and opened.get(key_id)}
    return [key.id for key in stored_keys if key.id not in rebuilt or key.id in unseen]


async def _wanted(
    control: Control, wanted: Sequence[StoredKey], opened: dict[str, list[OpenRequest]], there: dict[KeyId, bytes]
) -> list[RebuiltState]:
    """Return what the states of keys should be, from one moment of PostgreSQL and what waits for it."""
    ids = [key.id for key in wanted]
    if not ids:
        return []
    partition = partition_of(ids[0], control.partitions)
    waiting = await Rebuilding(control.caller).waiting(partition)
    now_ms = await control.streams.now_ms()
    asked = [_window_asked(key.id, limit, now_ms) for key in wanted for limit in key.limits]
    async with reconciliation.snapshot(control.database) as connection:
        stored = await reconciliation.stored_ids(connection, [event.id for event in waiting])
        sums = await reconciliation.sums(connection, dict.fromkeys(ids, 0))
        last_used = await reconciliation.last_used(connection, ids)
        windows = iter(await reconciliation.buckets(connection, asked))
    unstored: dict[KeyId, list[UsageEvent]] = {}
    for event in waiting:
        if event.id not in stored:
            unstored.setdefault(event.key_id, []).append(event)
    states = []
    for key in wanted:
        charges = _Charges(unstored.get(key.id, []), opened.get(key.id, []))
        rings = tuple(charges.ring(limit, next(windows), now_ms) for limit in key.limits)
        before = decode_state(there[key.id])
        used_ms = max(last_used.get(key.id, 0), before.last_used_ms if before else 0)
        states.append(_state(control, key, sums[key.id], charges, rings, used_ms))
    return states


@dataclass(frozen=True, slots=True)
class _Charges:
    """What is charged to a key beside what is stored: requests that wait to be, and open ones."""

    unstored: list[UsageEvent]
    opened: list[OpenRequest]

    def ring(self, limit: Limit, stored: Sequence[tuple[int, Amounts]], now_ms: int) -> tuple[tuple[int, int], ...]:
        """Return what counts in a window now, by bucket, oldest first.

        What lies in the future, by a clock that was set back, counts as of now: later is safer.
        """
        newest = now_ms // limit.bucket_ms
        charged: dict[int, int] = {}
        charges = [(bucket, amounts.of(limit.dimension)) for bucket, amounts in stored]
        charges += [
            (event.at_ms // limit.bucket_ms, event.usage.amounts.of(limit.dimension)) for event in self.unstored
        ]
        for each in self.opened:
            bucket = each.pending.scopes[0].buckets.get(limit.id)
            if bucket is not None:  # else it was admitted before there was this window
                charges.append((bucket, each.pending.reserved.of(limit.dimension)))
        for bucket, amount in charges:
            if bucket >= newest - limit.buckets and amount:
                charged[min(bucket, newest)] = charged.get(min(bucket, newest), 0) + amount
        return tuple(sorted(charged.items()))


def _state(
    control: Control,
    key: StoredKey,
    row: StoredSums,
    charges: _Charges,
    windows: tuple[tuple[tuple[int, int], ...], ...],
    last_used_ms: int,
) -> RebuiltState:
    used = _sum([row.totals, *(event.usage.amounts for event in charges.unstored)])
    reserved = _sum([each.pending.reserved for each in charges.opened])
    return RebuiltState(
        record=key.record(control.partitions),
        open=len(charges.opened),
        held=reserved.input_tokens + reserved.output_tokens if key.prepaid else 0,
        last_used_ms=last_used_ms,
        totals=used,
        balance=row.credits - used.input_tokens - used.output_tokens,
        ledger=row.ledger,
        windows=windows,
    )


def _window_asked(key_id: KeyId, limit: Limit, now_ms: int) -> WindowAsked:
    oldest = max(now_ms // limit.bucket_ms - limit.buckets, 0)
    return WindowAsked(key_id, limit.bucket_ms, oldest * limit.bucket_ms)


def _by_holder(opened: Sequence[OpenRequest]) -> dict[str, list[OpenRequest]]:
    found: dict[str, list[OpenRequest]] = {}
    for each in opened:
        found.setdefault(each.holder, []).append(each)
    return found


def _is_key_id(holder: str) -> bool:
    try:
        return str(UUID(holder)) == holder
    except ValueError:
        return False


def _drift_json(drift: Drift) -> dict[str, Any]:
    return {"key_id": drift.key_id, "what": drift.what, "redis": drift.redis, "postgresql": drift.postgresql}


def _used_by_key(events: Sequence[UsageEvent]) -> dict[KeyId, Amounts]:
    found: dict[KeyId, Amounts] = {}
    for event in events:
        found[event.key_id] = _sum([found.get(event.key_id, Amounts()), event.usage.amounts])
    return found


def _sum(amounts: Sequence[Amounts]) -> Amounts:
    return Amounts(
        sum(each.requests for each in amounts),
        sum(each.input_tokens for each in amounts),
        sum(each.output_tokens for each in amounts),
    )
