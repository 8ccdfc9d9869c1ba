"""Hot -> durable: how often known keys were refused, per minute and status.

Redis holds absolute counts, so storing them again changes nothing. A count leaves Redis once its minute is over by the
clock that counted it: nothing is added to it any more.
"""

import itertools
from uuid import UUID

from edgeproxy.domain.keys import KeyId
from edgeproxy.hotstate.events import EventStreams
from edgeproxy.store import refusals
from edgeproxy.store.database import Database
from edgeproxy.store.refusals import RefusalCount

_MINUTE_MS = 60_000
_BATCH = 1000  # rows in one transaction
_MAX_MINUTE = 4_000_000_000_000 // _MINUTE_MS  # the year 2096: beyond is no time
_MAX_COUNT = 2**53


async def roll_up(database: Database, streams: EventStreams) -> int:
    """Store the counts of all partitions, take away those that are complete, and return how many were stored.

    What is not a count (nothing of ours writes such) is taken away as well. Raises StoreUnavailable.
    """
    stored = 0
    for partition in range(streams.partitions):
        this_minute = await streams.now_ms() // _MINUTE_MS  # before the counts are read: they may only grow after
        for part in _batches(await streams.refusals(partition)):
            counts = {name: read_count(name, count) for name, count in part}
            known = [count for count in counts.values() if count is not None]
            async with database.transaction() as connection:
                await refusals.add(connection, known)
            over = [n for n, count in counts.items() if count is None or count.minute_ms < this_minute * _MINUTE_MS]
            await streams.remove_refusals(partition, over)
            stored += len(known)
    return stored


def read_count(name: str, count: int) -> RefusalCount | None:
    """Return what a field `<key id>:<minute>:<status>` counts, None when it is not one."""
    key_id, _, rest = name.partition(":")
    minute, _, status = rest.partition(":")
    try:
        row = RefusalCount(KeyId(str(UUID(key_id))), int(minute) * _MINUTE_MS, int(status), count)
    except ValueError:
        return None
    in_range = 0 <= int(minute) <= _MAX_MINUTE and 100 <= row.status <= 599 and 1 <= count <= _MAX_COUNT
    return row if in_range else None


def _batches(counts: dict[str, int]) -> list[list[tuple[str, int]]]:
    items = iter(counts.items())
    return list(iter(lambda: list(itertools.islice(items, _BATCH)), []))
