"""Open reservations as the control plane sees them: which there are, whose lease is over, and how to end one.

A worker ends its own. Here is what happens to those of a worker that died.
"""

from collections.abc import Sequence

from edgeproxy.domain.limits import Amounts
from edgeproxy.domain.reservations import Outcome, Pending, ReapStatus, SettleStatus
from edgeproxy.hotstate import keyspace, scripts
from edgeproxy.hotstate.calling import Caller
from edgeproxy.hotstate.scripts import Scope


class Leases:
    """The leases of all partitions. Every method raises StoreUnavailable, and may be repeated after any failure."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def expired(self, partition: int, now_ms: int, count: int) -> list[str]:
        """Return up to `count` requests whose lease was over at `now_ms`, the longest over first."""
        found = await self._caller.command(
            *("ZRANGEBYSCORE", keyspace.leases(partition), "-inf", now_ms, "LIMIT", 0, count)
        )
        return [request_id.decode(errors="replace") for request_id in found]

    async def all(self, partition: int, after: int, count: int) -> tuple[int, list[str]]:
        """Return about `count` requests, and what `after` has to be for the next ones: 0 begins, and 0 is the end.

        Whatever is open from the beginning to the end is there; what comes or goes meanwhile may be, or twice.
        """
        cursor, found = await self._caller.command("ZSCAN", keyspace.leases(partition), after, "COUNT", count)
        return int(cursor), [request_id.decode(errors="replace") for request_id, _ in found]

    async def examine(self, partition: int, request_id: str) -> Pending | None:
        """Return what is reserved for a request, None when nothing is (any more)."""
        return scripts.decode_examine(await self._caller.run("examine", scripts.examine_args(partition, request_id)))

    async def reap(
        self, partition: int, request_id: str, scopes: Sequence[Scope], actual: Amounts, event: bytes
    ) -> ReapStatus:
        """End a reservation whose lease is over: charge `actual` and record the event, if there is one."""
        arguments = scripts.reap_args(partition, request_id, scopes, actual, event)
        return scripts.decode_reap(await self._caller.run("reap", arguments))

    async def cancel(self, partition: int, request_id: str, scopes: Sequence[Scope]) -> SettleStatus:
        """End a reservation as if it had never been."""
        arguments = scripts.settle_args(partition, request_id, scopes, Outcome.CANCEL, Amounts(), b"")
        return scripts.decode_settle(await self._caller.run("settle", arguments)).status
