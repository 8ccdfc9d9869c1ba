"""What waits in Redis for PostgreSQL: the partitions' streams of usage events, and their counts of refusals.

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
    """One entry of an event stream. `payload` is what `encode_event` wrote, or anything at all."""

    id: str
    payload: bytes

    @property
    def added_ms(self) -> int:
        """Unix time in ms at which Redis took it."""
        return int(self.id.partition("-")[0])


class EventStreams:
    """What waits, over all partitions."""

    def __init__(self, caller: Caller, partitions: int) -> None:
        self._caller = caller
        self.partitions = partitions

    async def now_ms(self) -> int:
        """Return the time by the clock that entries are stamped with."""
        seconds, microseconds = await self._caller.command("TIME")
        return int(seconds) * 1000 + int(microseconds) // 1000

    async def read(self, partition: int, until_ms: int, count: int) -> list[Entry]:
        """Return the oldest `count` entries that were added up to `until_ms`."""
        return await self._range(partition, "-", str(until_ms), count)

    async def remove(self, partition: int, ids: Sequence[str]) -> None:
        """Remove these entries, no others."""
        if ids:
            await self._caller.command("XDEL", keyspace.events(partition), *ids)

    async def oldest_ms(self) -> int | None:
        """Return when the oldest entry of all partitions was added, None when nothing waits."""
        first = [entry for p in range(self.partitions) for entry in await self._range(p, "-", "+", 1)]
        return min((entry.added_ms for entry in first), default=None)

    async def remove_of_key(self, partition: int, key_id: KeyId) -> int:
        """Remove the events of one key and return how many there were. Looks at every entry that is there now."""
        last = await self._last_id(partition)
        begin, removed = "-", 0
        while last is not None:  # ends: the range has a fixed end, and each turn begins after the one before
            entries = await self._range(partition, begin, last, _SCAN_COUNT)
            if not entries:
                break
            found = [entry.id for entry in entries if _is_of_key(entry, key_id)]
            await self.remove(partition, found)
            removed += len(found)
            begin = f"({entries[-1].id}"
        return removed

    async def refusals(self, partition: int) -> dict[str, int]:
        """Return how often keys were refused, by `<key id>:<minute>:<status>`. Redis bounds how many there are."""
        counts: dict[str, int] = {}
        cursor = 0
        while True:  # ends: the cursor is 0 again when all was seen
            cursor, found = await self._caller.command(
                "HSCAN", keyspace.refusals(partition), cursor, "COUNT", _SCAN_COUNT
            )
            counts |= {name.decode(errors="replace"): int(count) for name, count in found.items()}
            if not cursor:
                return counts

    async def remove_refusals(self, partition: int, names: Sequence[str]) -> None:
        """Remove these counts."""
        if names:
            await self._caller.command("HDEL", keyspace.refusals(partition), *names)

    async def _range(self, partition: int, begin: str, end: str, count: int) -> list[Entry]:
        found = await self._caller.command("XRANGE", keyspace.events(partition), begin, end, "COUNT", count)
        return [Entry(entry_id.decode(), fields.get(PAYLOAD, b"")) for entry_id, fields in found]

    async def _last_id(self, partition: int) -> str | None:
        found = await self._caller.command("XREVRANGE", keyspace.events(partition), "+", "-", "COUNT", 1)
        return found[0][0].decode() if found else None


def _is_of_key(entry: Entry, key_id: KeyId) -> bool:
    try:
        return decode_event(entry.payload).key_id == key_id
    except ValueError:  # the flush sees to it
        return False
