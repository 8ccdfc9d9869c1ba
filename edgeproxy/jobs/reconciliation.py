"""Opens partitions: gives a Redis that may have forgotten something back what PostgreSQL knows, and lets it be trusted.

A server that was started again, promoted or emptied is named by no epoch, so nothing is admitted there. What waits in
its event stream is stored; requests that it holds as open although they have ended are cancelled, and keys that were
deleted since are deleted there, too. Each key is compared, and rebuilt where Redis has less. Where it has more,
PostgreSQL is the older one: that is kept, and told. Only then, and when workers have had the time to tell of their open
requests again, the epoch names the server. With PostgreSQL away nothing opens. Any number of these may work at once.

An epoch names the servers of all partitions that are open, so that a partition stays open when it moves from one of
them to another.

Between that, all keys are looked at again, a few at a time: drift in a system that runs is told, and not repaired here.
"""

import time
from collections.abc import Sequence

from edgeproxy import logs
from edgeproxy.control.installation import Control
from edgeproxy.control.reconciliation import (
    CHUNK,
    Drift,
    all_keys,
    by_partition,
    cancel_stored,
    compare,
    drift_of,
    erase_unknown,
    mend,
)
from edgeproxy.domain.keys import KeyId
from edgeproxy.hotstate.epochs import Epoch, Epochs, Standing
from edgeproxy.jobs.flush import Flusher
from edgeproxy.metrics import Metrics
from edgeproxy.store import reconciliation
from edgeproxy.store.keys import FIRST_ID

WATCHED = 500  # keys looked at in one round
ANNOUNCE_S = 2.0  # a worker tries to connect every second, and then tells what it has open
_PUBLISHED = ("version", "record")  # what is made right by publishing a key again


class Reconciler:
    """Opens partitions and watches for drift. `flusher` stores events of any age."""

    def __init__(self, control: Control, flusher: Flusher, metrics: Metrics) -> None:
        self._control = control
        self._flusher = flusher
        self._metrics = metrics
        self._epochs = Epochs(control.caller, control.partitions)
        self._drifting: set[KeyId] = set()
        self._closed_since: dict[tuple[int, str], float] = {}  # by partition and server, monotonic seconds
        self._watched = FIRST_ID

    async def open_once(self) -> int:
        """Open what is closed and can be, and return how many partitions that was.

        Raises StoreUnavailable, and OperatorError for a Redis that does not keep what it is told.
        """
        standings = await self._epochs.look()
        closed = [standing for standing in standings if not standing.is_open]
        self._note_closed(closed)
        await self._withdraw(closed)
        self._metrics.partitions_closed.set(len(closed))
        opened = 0
        if closed:
            await self._epochs.refuse_forgetful()
            for partition in {standing.run_id: standing.partition for standing in closed}.values():
                if erased := await erase_unknown(self._control, partition):
                    logs.event("unknown_keys_erased", partition=partition, count=erased)
            ids = await all_keys(self._control)
            if len({standing.run_id for standing in standings}) > 1:
                await self._publish_records(standings, ids)
            mended = 0
            for standing in closed:
                done = await self._open(standing, ids.get(standing.partition, []), is_empty=not ids)
                if done is not None:
                    opened, mended = opened + 1, mended + done
            if mended or any(standing.epoch is not None for standing in closed):  # else it is the first start
                logs.event("partitions_opened", count=opened)
            if mended:
                logs.event("keys_rebuilt", count=mended)
            standings = await self._epochs.look()
            self._metrics.partitions_closed.set(sum(not standing.is_open for standing in standings))
        await self._name_each_other(standings)
        return opened

    async def watch_once(self) -> None:
        """Look at the next keys, of partitions that are open. Raises StoreUnavailable, OperatorError."""
        async with self._control.database.transaction() as connection:
            page = await reconciliation.key_ids(connection, self._watched, WATCHED)
        self._watched = page[-1] if len(page) == WATCHED else FIRST_ID
        looked_at = by_partition(self._control, page)
        for standing in await self._epochs.look():
            ids = looked_at.get(standing.partition, [])
            if standing.is_open and ids:
                drift = await drift_of(self._control, standing.partition, ids)
                await mend(self._control, standing.partition, [each for each in drift if each.what in _PUBLISHED])
                self._tell(ids, [each for each in drift if each.what not in _PUBLISHED or not each.is_behind])

    def _note_closed(self, closed: Sequence[Standing]) -> None:
        now_s = time.monotonic()
        since = self._closed_since
        self._closed_since = {each: since.get(each, now_s) for each in ((one.partition, one.run_id) for one in closed)}

    async def _withdraw(self, closed: Sequence[Standing]) -> None:
        """Let the epochs of closed partitions name no server: one could move to a server that it names, uncompared."""
        named = [each for each in closed if each.epoch is not None and each.epoch.run_ids]
        await self._epochs.write({each.partition: Epoch((), 0) for each in named})

    async def _open(self, standing: Standing, ids: Sequence[KeyId], *, is_empty: bool) -> int | None:
        """Make a partition complete and open it. Returns how many keys Redis had forgotten something of.

        None when it is not to be opened yet, or did not come to its end on the same server: the next round goes on.
        Where there are no keys at all (`is_empty`), no worker has anything to tell.
        """
        partition = standing.partition
        await self._flusher.drain(partition)
        await cancel_stored(self._control, partition)
        mended = 0
        for begin in range(0, len(ids), CHUNK):
            chunk = ids[begin : begin + CHUNK]
            drift = await compare(self._control, partition, chunk)
            behind = {each.key_id for each in drift if each.is_behind}
            if await mend(self._control, partition, drift):
                return None
            self._tell(chunk, [each for each in drift if each.key_id not in behind])
            mended += len(behind)
        if not is_empty and time.monotonic() - self._closed_since[partition, standing.run_id] < ANNOUNCE_S:
            return None
        now = await self._epochs.look()
        if now[partition].run_id != standing.run_id:
            return None
        run_ids = {each.run_id for each in now if each.is_open} | {standing.run_id}
        opened_ms = await self._control.streams.now_ms()
        await self._epochs.write({partition: Epoch(tuple(sorted(run_ids)), opened_ms)})
        return mended

    async def _publish_records(self, standings: Sequence[Standing], ids: dict[int, list[KeyId]]) -> None:
        """Give a cluster back the records that workers read: they lie anywhere, not with their key's partition."""
        for standing in standings:
            keys = ids.get(standing.partition, []) if standing.is_open else []
            for begin in range(0, len(keys), CHUNK):
                drift = await compare(self._control, standing.partition, keys[begin : begin + CHUNK])
                await mend(self._control, standing.partition, [each for each in drift if each.what == "record"])

    async def _name_each_other(self, standings: Sequence[Standing]) -> None:
        """Let the epochs of all open partitions name the servers of all open partitions."""
        opened = {each.partition: each.epoch for each in standings if each.is_open and each.epoch is not None}
        run_ids = tuple(sorted({each.run_id for each in standings if each.is_open}))
        await self._epochs.write(
            {
                partition: Epoch(run_ids, epoch.opened_ms)
                for partition, epoch in opened.items()
                if epoch.run_ids != run_ids
            }
        )

    def _tell(self, looked_at: Sequence[KeyId], drift: Sequence[Drift]) -> None:
        found = {each.key_id for each in drift}
        new = found - self._drifting
        self._drifting = (self._drifting - set(looked_at)) | found
        self._metrics.drift_keys.set(len(self._drifting))
        for key_id in sorted(new):
            logs.event("key_drifts", key_id=key_id, count=sum(each.key_id == key_id for each in drift))
