"""Puts right what was settled wrongly, or not at all, because a settlement found its reservation gone.

Redis cannot know what such a settlement is: one that was heard before and forgotten, one of a request that the sweeper
charged an estimate for, or one of a reservation that was lost. So its event waits in a stream of corrections, and here
it is compared with what PostgreSQL has of the same request:

    nothing                           the event is stored, and all of it is charged
    an estimate that differs          the event takes its place, and the difference is charged
    final figures, or the same ones   nothing: the first final figures stand
    the key is erased                 nothing

What is charged is an entry of the key's ledger, written in the transaction that changes the rows: so whatever dies in
between, the next look finds the rows as they should be, and each entry is applied to Redis once. Any number of
correctors may work at once, because each holds the key's row while it compares.

A correction waits until all events that came before it are flushed, and as long as an event waits for the flush.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum

from edgeproxy import logs
from edgeproxy.control.installation import Control
from edgeproxy.control.ledger import apply_entries
from edgeproxy.domain.usage import UsageEvent
from edgeproxy.hotstate.events import Mark
from edgeproxy.jobs.flush import SET_BACK_MS, readable
from edgeproxy.metrics import Metrics
from edgeproxy.store import keys, ledger, partitions, usage
from edgeproxy.store.database import Connection, RowRefused
from edgeproxy.store.ledger import NO_DIFFERENCE, Difference
from edgeproxy.store.usage import DeadLetter

BATCH = 100  # corrections of one partition in one round: each is a transaction of its own


class Correction(StrEnum):
    """What became of a correction."""

    ADDED = "added"  # the request was not stored: now it is
    CHANGED = "changed"  # an estimate was stored: now it is what the event says
    EQUAL = "equal"  # the same was stored
    KEPT = "kept"  # other final figures were stored, and stand
    DROPPED = "dropped"  # the key is erased
    DEAD = "dead"  # not storable


class Corrector:
    """Works off the corrections of all partitions. `after_ms` is how old one is before it is looked at."""

    def __init__(self, control: Control, metrics: Metrics, *, after_ms: int) -> None:
        self._control = control
        self._streams = control.streams
        self._metrics = metrics
        self._after_ms = after_ms
        self._marks: dict[int, Mark] = {}  # by partition: how far both streams went at the first look

    async def correct_once(self) -> Counter[Correction]:
        """Work off what can be decided now. Raises StoreUnavailable; what was committed stays so."""
        now_ms = await self._streams.now_ms()
        outcomes: Counter[Correction] = Counter()
        for partition in range(self._streams.partitions):
            outcomes += await self._correct_partition(partition, now_ms)
        return outcomes

    async def _correct_partition(self, partition: int, now_ms: int) -> Counter[Correction]:
        outcomes: Counter[Correction] = Counter()
        mark = self._marks.get(partition) or await self._streams.mark(partition)
        if mark is None:
            return outcomes
        self._marks[partition] = mark
        is_young = -SET_BACK_MS <= now_ms - mark.added_ms < self._after_ms
        entries = None if is_young else await self._streams.corrections(partition, mark, BATCH)
        if entries is None:
            return outcomes
        events, dead = readable(entries, now_ms)
        async with self._control.database.transaction() as connection:
            await partitions.ensure(connection, {partitions.month_of(event.at_ms) for _, event in events})
        for entry_id, event in events:
            outcomes[await self._correct(partition, entry_id, event)] += 1
        outcomes[Correction.DEAD] += await self._bury(partition, dead)
        if len(entries) < BATCH:
            del self._marks[partition]
        return outcomes

    async def _correct(self, partition: int, entry_id: str, event: UsageEvent) -> Correction:
        try:
            async with self._control.database.transaction() as connection:
                outcome = await _book(connection, event)
        except RowRefused:
            await self._bury(partition, [DeadLetter(entry_id, event.key_id, "refused")])
            return Correction.DEAD
        self._metrics.corrections.labels(outcome).inc()
        if outcome is not Correction.DROPPED:  # also for what was booked before: whoever did may have died then
            await apply_entries(self._control, event.key_id)
        await self._streams.remove_corrections(partition, [entry_id])
        return outcome

    async def _bury(self, partition: int, letters: Sequence[DeadLetter]) -> int:
        """Note entries that cannot be stored, beside those of the other stream of the partition; remove them."""
        if not letters:
            return 0
        named = [replace(letter, stream_id=f"corrections/{letter.stream_id}") for letter in letters]
        async with self._control.database.transaction() as connection:
            noted = await usage.add_dead_letters(connection, partition, named)
        await self._streams.remove_corrections(partition, [letter.stream_id for letter in letters])
        logs.event("correction_not_storable", partition=partition, count=len(letters), error=letters[0].reason)
        self._metrics.corrections.labels(Correction.DEAD).inc(noted)
        return noted


async def _book(connection: Connection, event: UsageEvent) -> Correction:
    """Compare an event with what is stored, and book what is missing; the key's row is held meanwhile."""
    if await keys.read_to_change(connection, event.key_id) is None:
        return Correction.DROPPED
    if (await usage.add_events(connection, [event])).added:
        whole = event.usage.amounts
        difference = Difference(whole.requests, whole.input_tokens, whole.output_tokens)
        await ledger.add_correction(connection, event.key_id, event.id, difference)
        return Correction.ADDED
    stored = await usage.read_to_correct(connection, event.id)
    if stored == event:
        return Correction.EQUAL
    if stored is None or stored.key_id != event.key_id or not stored.usage.estimated:
        return Correction.KEPT
    difference = await usage.correct(connection, stored, event)
    if difference != NO_DIFFERENCE:
        await ledger.add_correction(connection, event.key_id, event.id, difference)
    return Correction.CHANGED
