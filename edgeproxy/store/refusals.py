"""How often known keys were refused, by minute and HTTP status. Who is not known is only in the metrics."""

from collections.abc import Sequence
from dataclasses import dataclass

from edgeproxy.domain.keys import KeyId
from edgeproxy.domain.times import to_datetime
from edgeproxy.store.database import Connection
from edgeproxy.store.statements import statements


@dataclass(frozen=True, slots=True)
class RefusalCount:
    """How often a key was refused with one status in the minute that began at `minute_ms`."""

    key_id: KeyId
    minute_ms: int
    status: int
    count: int


async def add(connection: Connection, counts: Sequence[RefusalCount]) -> None:
    """Store counts; a larger one of the same minute replaces a smaller. Raises RowRefused."""
    await connection.execute(
        statements("refusals")["add"],
        [each.key_id for each in counts],
        [to_datetime(each.minute_ms) for each in counts],
        [each.status for each in counts],
        [each.count for each in counts],
    )


async def delete(connection: Connection, key_id: KeyId) -> None:
    """Remove a key's counts."""
    await connection.execute(statements("refusals")["delete"], key_id)
