"""What waits in Redis for PostgreSQL: usage events, corrections of such, and counts of refusals, by partition.

Reading takes nothing away: an entry is removed by its id once it is stored, never by length or age, so that whatever
dies in between leaves it there to be read again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from edgeproxy.domain.keys import KeyId
from edgeproxy.domain.usage import decode_event
from edgeproxy.hotstate import keyspace
from edgeproxy.hotstate.calling import Caller

PAYLOAD = b"e"  # the one field of an entry
_SCAN_COUNT = 1000  # entries looked at in one round trip: about a millisecond of Redis


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a stream. `payload` is what `encode_event` wrote, or anything at all."""

    id: str
    payload: bytes

    @property
    def added_ms(self) -> int:
        """Unix time in ms at which Redis took it."""
        return _ms(self.id)


@dataclass(frozen=True, slots=True)
class Mark:
    """The last correction of a partition at some moment, and the last event that waited then, None when none did.

    A correction says what is right only after all that was flushed which came before it: the sweeper's event of the
    same request, above all. Ids rather than times, because the clock of a server may be set back.
    """

    correction: str
    event: str | None

    @property
    def added_ms(self) -> int:
        """Unix time in ms at which Redis took the correction."""
        return _ms(self.correction)


class EventStreams:
    """What waits, over all partitions."""

    def __init__(self, caller: Caller, partitions: int) -> None:
        self.caller = caller
        self.partitions = partitions

    async def now_ms(self) -> int:
        """Return the time by the clock that entries are stamped with."""
        seconds, microseconds = await self.caller.command("TIME")
        return int(seconds) * 1000 + int(microseconds) // 1000

    async def read(self, partition: int, until_ms: int, count: int) -> list[Entry]:
        """Return the oldest `count` events that were added up to `until_ms`."""
        return await self._range(keyspace.events(partition), "-", str(until_ms), count)

    async def read_ahead(self, partition: int, from_ms: int, count: int) -> list[Entry]:
        """Return the oldest `count` events that were added at `from_ms`, a time to come, or later.

        There are such where the clock was set back; what was added since follows them, under times that are as wrong.
        """
        return await self._range(keyspace.events(partition), str(from_ms), "+", count)

    async def remove(self, partition: int, ids: Sequence[str]) -> None:
        """Remove these events, no others."""
        await self._remove(keyspace.events(partition), ids)

    async def oldest_ms(self) -> int | None:
        """Return when the oldest event of all partitions was added, None when nothing waits."""
        first = [entry for p in range(self.partitions) for entry in await self._range(keyspace.events(p), "-", "+", 1)]
        return min((entry.added_ms for entry in first), default=None)

    async def mark(self, partition: int) -> Mark | None:
        """Return how far both streams go now, None when no correction waits."""
        last = await self._last_id(keyspace.corrections(partition))
        # Asked second: whatever was added before that correction lies up to here, whatever the clock did in between.
        return None if last is None else Mark(last, await self._last_id(keyspace.events(partition)))

    async def corrections(self, partition: int, mark: Mark, count: int) -> list[Entry] | None:
        """Return the oldest `count` corrections up to `mark`; None while an event from before it waits."""
        if mark.event is not None and await self._range(keyspace.events(partition), "-", mark.event, 1):
            return None
        return await self._range(keyspace.corrections(partition), "-", mark.correction, count)

    async def remove_corrections(self, partition: int, ids: Sequence[str]) -> None:
        """Remove these corrections, no others."""
        await self._remove(keyspace.corrections(partition), ids)

    async def remove_of_key(self, partition: int, key_id: KeyId) -> int:
        """Remove what one key has in both streams and return how much. Looks at every entry that is there now."""
        removed = 0
        for stream in (keyspace.events(partition), keyspace.corrections(partition)):
            last, begin = await self._last_id(stream), "-"
            while last is not None:  # ends: the range has a fixed end, and each turn begins after the one before
                entries = await self._range(stream, begin, last, _SCAN_COUNT)
                if not entries:
                    break
                found = [entry.id for entry in entries if _is_of_key(entry, key_id)]
                await self._remove(stream, found)
                removed += len(found)
                begin = f"({entries[-1].id}"
        return removed

    async def refusals(self, partition: int) -> dict[str, int]:
        """Return how often keys were refused, by `<key id>:<minute>:<status>`. Redis bounds how many there are."""
        counts: dict[str, int] = {}
        cursor = 0
        while True:  # ends: the cursor is 0 again when all was seen
            cursor, found = await self.caller.command(
                "HSCAN", keyspace.refusals(partition), cursor, "COUNT", _SCAN_COUNT
            )
            counts |= {name.decode(errors="replace"): int(count) for name, count in found.items()}
            if not cursor:
                return counts

    async def remove_refusals(self, partition: int, names: Sequence[str]) -> None:
        """Remove these counts."""
        if names:
            await self.caller.command("HDEL", keyspace.refusals(partition), *names)

    async def _range(self, stream: str, begin: str, end: str, count: int) -> list[Entry]:
        found = await self.caller.command("XRANGE", stream, begin, end, "COUNT", count)
        return [Entry(entry_id.decode(), fields.get(PAYLOAD, b"")) for entry_id, fields in found]

    async def _last_id(self, stream: str) -> str | None:
        found = await self.caller.command("XREVRANGE", stream, "+", "-", "COUNT", 1)
        return found[0][0].decode() if found else None

    async def _remove(self, stream: str, ids: Sequence[str]) -> None:
        if ids:
            await self.caller.command("XDEL", stream, *ids)


def _ms(entry_id: str) -> int:
    return int(entry_id.partition("-")[0])


def _is_of_key(entry: Entry, key_id: KeyId) -> bool:
    try:
        return decode_event(entry.payload).key_id == key_id
    except ValueError:  # the flush sees to it
        return False
