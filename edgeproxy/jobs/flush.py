"""Hot -> durable: usage events from the partitions' streams into PostgreSQL, each exactly once.

For a batch of a stream's oldest entries: store them and their sums in one transaction, commit, then remove
exactly these entries from the stream. Whatever dies in between leaves entries that are stored already; the next round
finds that (their ids are there) and only removes them. So any number of flushers may work on one stream, and none has
to know of the others.

An entry waits two seconds before it is stored: an embedded Redis writes its file once a second, and an event must not
outlive the debit that it belongs to. Where the clock of Redis was set back, by more than a minute, nothing waits for
its return: entries from the time ahead are stored as they are found.

What cannot be stored blocks nobody: a batch that the database refuses is halved until the entry is found, and that is
noted as a dead letter: where it was and why, never what it held.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from uuid import UUID

from edgeproxy import logs
from edgeproxy.domain.keys import KeyId
from edgeproxy.domain.usage import UsageEvent, decode_event
from edgeproxy.hotstate.events import Entry, EventStreams
from edgeproxy.metrics import Metrics
from edgeproxy.store import partitions, usage
from edgeproxy.store.database import Database, RowRefused
from edgeproxy.store.usage import DeadLetter

MAX_BATCHES = 20  # of one partition in one round, so that a busy one does not keep the others waiting

# Ids carry their time, and a month outside of this is a broken clock or a broken id, not a table to create.
EARLIEST_MS = 1_704_067_200_000  # 2024-01-01: before the first version
AHEAD_MS = 62 * 86_400_000
SET_BACK_MS = 60_000  # longer than a round takes: an entry that is this much younger than now is no younger entry


@dataclass(frozen=True, slots=True)
class Flushed:
    """What became of entries: stored now, stored before, of a key that is gone, or not storable."""

    stored: int = 0
    repeated: int = 0
    dropped: int = 0
    dead: int = 0

    def __bool__(self) -> bool:
        return self != Flushed()

    def __add__(self, other: "Flushed") -> "Flushed":
        return Flushed(
            self.stored + other.stored,
            self.repeated + other.repeated,
            self.dropped + other.dropped,
            self.dead + other.dead,
        )


class Flusher:
    """Flushes all partitions. `after_ms` is how old an entry is before it is stored; `batch` bounds a transaction."""

    def __init__(
        self, database: Database, streams: EventStreams, metrics: Metrics, *, batch: int, after_ms: int
    ) -> None:
        self._database = database
        self._streams = streams
        self._metrics = metrics
        self._batch = batch
        self._after_ms = after_ms

    async def flush_once(self) -> Flushed:
        """Store what is old enough in every partition. Raises StoreUnavailable; what was committed stays so."""
        now_ms = await self._streams.now_ms()
        flushed = Flushed()
        for partition in range(self._streams.partitions):
            flushed += await self._flush_partition(partition, now_ms)
        return flushed

    async def drain(self, partition: int) -> Flushed:
        """Store what is old enough in one partition now, however much it is. Raises StoreUnavailable."""
        now_ms = await self._streams.now_ms()
        flushed = Flushed()
        while part := await self._flush_partition(partition, now_ms):  # ends: each turn removes the oldest entries
            flushed += part
        return flushed

    async def lag_ms(self) -> int:
        """Return the age of the oldest entry that waits, 0 when none does."""
        oldest_ms = await self._streams.oldest_ms()
        return 0 if oldest_ms is None else max(await self._streams.now_ms() - oldest_ms, 0)

    async def _flush_partition(self, partition: int, now_ms: int) -> Flushed:
        flushed = Flushed()
        for _ in range(MAX_BATCHES):
            entries = await self._streams.read(partition, now_ms - self._after_ms, self._batch)
            entries = entries or await self._streams.read_ahead(partition, now_ms + SET_BACK_MS, self._batch)
            if not entries:
                break
            events, dead = readable(entries, now_ms)
            flushed += await self._store(partition, events)
            flushed += await self._bury(partition, dead)
            if len(entries) < self._batch:
                break
        return flushed

    async def _store(self, partition: int, events: Sequence[tuple[str, UsageEvent]]) -> Flushed:
        """Store events and remove their entries; those that the database refuses are buried."""
        if not events:
            return Flushed()
        try:
            async with self._database.transaction() as connection:
                await partitions.ensure(connection, {partitions.month_of(event.at_ms) for _, event in events})
            async with self._database.transaction() as connection:
                added = await usage.add_events(connection, [event for _, event in events])
        except RowRefused:
            if len(events) == 1:
                entry_id, event = events[0]
                return await self._bury(partition, [DeadLetter(entry_id, event.key_id, "refused")])
            middle = len(events) // 2
            flushed = await self._store(partition, events[:middle])
            flushed += await self._store(partition, events[middle:])
            return flushed
        await self._streams.remove(partition, [entry_id for entry_id, _ in events])
        return self._counted(Flushed(stored=added.added, repeated=added.repeated, dropped=added.unknown))

    async def _bury(self, partition: int, letters: Sequence[DeadLetter]) -> Flushed:
        """Note entries that cannot be stored, and remove them."""
        if not letters:
            return Flushed()
        async with self._database.transaction() as connection:
            noted = await usage.add_dead_letters(connection, partition, letters)
        await self._streams.remove(partition, [letter.stream_id for letter in letters])
        logs.event("usage_event_not_storable", partition=partition, count=len(letters), error=letters[0].reason)
        return self._counted(Flushed(dead=noted))

    def _counted(self, flushed: Flushed) -> Flushed:
        """Add to the metrics as soon as it is committed: a round may fail later."""
        for outcome, count in asdict(flushed).items():
            self._metrics.flushed_events.labels(outcome).inc(count)
        return flushed


def readable(entries: Sequence[Entry], now_ms: int) -> tuple[list[tuple[str, UsageEvent]], list[DeadLetter]]:
    """Return the events that can be tried, each with its entry's id, and the entries that hold none."""
    events: list[tuple[str, UsageEvent]] = []
    dead: list[DeadLetter] = []
    for entry in entries:
        try:
            event = decode_event(entry.payload)
            UUID(event.key_id)
        except ValueError:
            dead.append(DeadLetter(entry.id, None, "undecodable"))
            continue
        if EARLIEST_MS <= event.at_ms <= now_ms + AHEAD_MS:
            events.append((entry.id, event))
        else:
            dead.append(DeadLetter(entry.id, KeyId(event.key_id), "time_out_of_range"))
    return events, dead
