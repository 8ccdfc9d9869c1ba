"""Whether the counters of a partition may be trusted: nothing is admitted on a Redis that may have forgotten something.

A server that was started again, or promoted, may hold less than it once confirmed. It has another run id then, and
`jobs` compares it with PostgreSQL before it writes that run id into the partitions' epochs. Until then a worker admits
nothing there. Whether it may costs no round trip of a request: the run id is known since the connection was made, and
the epochs are read once a second. A restart breaks the connection, so it is never noticed too late; that a server was
emptied while it runs is noticed within that second.
"""

import asyncio
from collections.abc import Callable, Collection

from edgeproxy.errors import StoreUnavailable
from edgeproxy.hotstate import keyspace
from edgeproxy.hotstate.connection import CommandFailed
from edgeproxy.hotstate.epochs import decode_epoch
from edgeproxy.hotstate.nodes import Nodes

Told = Callable[[Collection[int]], None]

_INTERVAL_S = 1.0
_CLOSED_INTERVAL_S = 0.25


class Watch:
    """Knows which partitions are open.

    `returned` is called with those that another server holds than before, and once more when they are opened. Until
    then `waiting` is called with them, again and again: what that server is told may need what `jobs` gives it first.
    """

    def __init__(self, nodes: Nodes, partitions: int, returned: Told, waiting: Told) -> None:
        self._nodes = nodes
        self._names = [keyspace.epoch(partition) for partition in range(partitions)]
        self._trusted: list[frozenset[str]] = [frozenset()] * partitions
        self._run_ids = [""] * partitions  # of the server that was seen last
        self._opened_ms: list[int | None] = [None] * partitions  # by the epoch that was seen last
        self._reopened: set[int] = set()  # since the last decision: emptied and filled again between two readings
        self._open = [False] * partitions
        self._returned = returned
        self._waiting = waiting
        self._opened = asyncio.Event()

    def is_open(self, partition: int) -> bool:
        """Whether requests may be admitted in this partition."""
        return self._open[partition]

    @property
    def all_open(self) -> bool:
        """Whether requests may be admitted everywhere."""
        return self._opened.is_set()

    @property
    def any_open(self) -> bool:
        """Whether requests may be admitted somewhere: a node of a cluster that is away takes only its own with it."""
        return any(self._open)

    def trusts(self, name: str) -> bool:
        """Whether the server that has this Redis key now is known to be complete."""
        return any(self._nodes.run_id(name) in trusted for trusted in self._trusted)

    async def until_open(self, patience_s: float) -> None:
        """Return when all partitions are open, or the patience is over."""
        try:
            async with asyncio.timeout(patience_s):
                await self._opened.wait()
        except TimeoutError:
            return

    def reconsider(self) -> None:
        """Decide again after a connection was made: by the run id at its other end."""
        news, waiting = [], []
        for partition, name in enumerate(self._names):
            run_id = self._nodes.run_id(name)
            was_open, is_open = self._open[partition], run_id in self._trusted[partition]
            is_first = not self._run_ids[partition]
            self._open[partition] = is_open
            if run_id:
                is_another = run_id != self._run_ids[partition]
                self._run_ids[partition] = run_id
                if not is_first and (is_another or is_open != was_open or partition in self._reopened):
                    news.append(partition)
                elif not is_first and not is_open:
                    waiting.append(partition)
        self._reopened.clear()
        if news:
            self._returned(news)
        if waiting:
            self._waiting(waiting)
        if all(self._open):
            self._opened.set()
        else:
            self._opened.clear()

    async def run(self) -> None:
        """Read the epochs, again and again, until cancelled."""
        while True:
            for partition in range(len(self._names)):
                await self._read(partition)
            self.reconsider()
            await asyncio.sleep(_INTERVAL_S if self.all_open else _CLOSED_INTERVAL_S)

    async def _read(self, partition: int) -> None:
        name = self._names[partition]
        try:
            epoch = decode_epoch(await self._nodes.send(name, "GET", name))
        except (StoreUnavailable, CommandFailed):
            return  # what it trusted before is compared with the server that comes back
        self._trusted[partition] = frozenset() if epoch is None else frozenset(epoch.run_ids)
        if epoch is not None:
            if self._opened_ms[partition] not in (None, epoch.opened_ms):
                self._reopened.add(partition)
            self._opened_ms[partition] = epoch.opened_ms
