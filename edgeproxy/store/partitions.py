"""The monthly tables of usage events. A month is a range of ids, because an id (UUIDv7) begins with its time."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from edgeproxy.domain.identifiers import uuid7_floor
from edgeproxy.domain.times import to_datetime, to_ms
from edgeproxy.store.database import Connection
from edgeproxy.store.statements import statements


@dataclass(frozen=True, slots=True, order=True)
class Month:
    """A calendar month in UTC."""

    year: int
    month: int

    @property
    def next(self) -> "Month":
        """The month after."""
        return Month(self.year + self.month // 12, self.month % 12 + 1)

    @property
    def begin_ms(self) -> int:
        """Unix time in ms of its first instant."""
        return to_ms(datetime(self.year, self.month, 1, tzinfo=UTC))

    @property
    def table(self) -> str:
        """The name of its table."""
        return f"usage_events_{self.year:04d}_{self.month:02d}"


def month_of(at_ms: int) -> Month:
    """Return the month in which a time lies."""
    at = to_datetime(at_ms)
    return Month(at.year, at.month)


async def ensure(connection: Connection, months: Iterable[Month]) -> list[Month]:
    """Create the tables of those months that have none, and return these months."""
    sql = statements("partitions")
    missing = [month for month in sorted(set(months)) if not await connection.fetchval(sql["exists"], month.table)]
    if not missing:
        return []
    await connection.execute(sql["lock"])
    created = [month for month in missing if not await connection.fetchval(sql["exists"], month.table)]
    for month in created:
        # Made apart and then attached: that locks out neither readers nor writers of the other months.
        low, high = uuid7_floor(month.begin_ms), uuid7_floor(month.next.begin_ms)
        await connection.execute(f"CREATE TABLE {month.table} (LIKE usage_events INCLUDING ALL)")
        await connection.execute(
            f"ALTER TABLE usage_events ATTACH PARTITION {month.table} FOR VALUES FROM ('{low}') TO ('{high}')"
        )
    return created
