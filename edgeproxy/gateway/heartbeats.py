"""Keeps open reservations alive: what is not heard of for the length of a lease is settled by `jobs` in our place.

A heartbeat tells also what has passed so far, which is what such a settlement charges. When Redis comes back as another
one it is told of every open reservation again, because it may have forgotten those of its last second.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence

from edgeproxy import logs, tasks
from edgeproxy.domain.reservations import BEATS_PER_LEASE, HeartbeatStatus, ReserveStatus
from edgeproxy.errors import StoreUnavailable
from edgeproxy.gateway.admission import Hold
from edgeproxy.gateway.settlement import Reservation, Settlements
from edgeproxy.hotstate.commands import HotState
from edgeproxy.hotstate.scripts import Beat

_REMEMBERED_S = 110.0  # for how long Redis knows, after a lease was over, that it was settled in our place
_BATCH = 100  # reservations in one script: about a tenth of a millisecond of Redis


class Heartbeats:
    """Renews the leases of the open reservations of one process, until it is closed."""

    def __init__(self, hot: HotState, settlements: Settlements, lease_ms: int) -> None:
        self._hot = hot
        self._settlements = settlements
        self._lease_s = lease_ms / 1000
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = tasks.spawn("heartbeats", self._run())

    async def close(self) -> None:
        """Stop. What is still open has one lease left."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def announce(self, partitions: Collection[int]) -> None:
        """Tell Redis, which is another one than before, what is open in these partitions."""
        opened = self._open()
        for partition in partitions:
            if partition in opened:
                tasks.spawn("announce", self._announce(opened[partition]))

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._lease_s / BEATS_PER_LEASE)
            for partition, held in self._open().items():
                for batch in _batches(held):
                    try:
                        await self._renew(partition, batch)
                    except Exception as error:  # noqa: BLE001 - a mistake over one must not end the leases of all
                        logs.event("heartbeat_failed", error=type(error).__name__, partition=partition)

    async def _renew(self, partition: int, held: Sequence[tuple[Reservation, Hold]]) -> None:
        at = time.monotonic()
        beats = [Beat(hold.id, *reservation.so_far()) for reservation, hold in held]
        try:
            statuses = await self._hot.heartbeat(partition, beats)
        except StoreUnavailable:
            return  # the next one may come in time
        for (_, hold), status in zip(held, statuses, strict=True):
            if status is HeartbeatStatus.RENEWED:
                hold.renewed_at = at

    async def _announce(self, held: Sequence[tuple[Reservation, Hold]]) -> None:
        """Charge again what was lost; one that was reaped is known as such for a while, and then left to its end."""
        for reservation, hold in held:
            if time.monotonic() - hold.renewed_at > self._lease_s + _REMEMBERED_S or reservation.is_resolved:
                continue
            try:
                reply = await self._hot.reserve(
                    hold.partition, hold.id, hold.scope, hold.amounts, hold.note, announce=True
                )
            except StoreUnavailable:
                return  # it will come back once more
            if reply.status is ReserveStatus.ADMITTED:
                if reservation.charge is not None:  # its settlement was faster, and found nothing to settle
                    self._settlements.give_back(hold)
                else:
                    hold.renewed_at = time.monotonic()

    def _open(self) -> dict[int, list[tuple[Reservation, Hold]]]:
        found: dict[int, list[tuple[Reservation, Hold]]] = defaultdict(list)
        for reservation in self._settlements.open:
            for hold in reservation.holds:
                found[hold.partition].append((reservation, hold))
        return found


def _batches(held: Sequence[tuple[Reservation, Hold]]) -> Iterator[Sequence[tuple[Reservation, Hold]]]:
    starts: Iterable[int] = range(0, len(held), _BATCH)
    return (held[start : start + _BATCH] for start in starts)
