"""Settlements from the moment they are decided until Redis has confirmed them, through whatever happens to Redis.

    Redis is there            written to its socket; the reply is looked at when it comes
    Redis is away             a line in the journal first; sent as soon as Redis is back, again and again
    the connection breaks     what was not confirmed gets its line, and is sent again
    Redis comes back another  what was confirmed in the last seconds is sent again: Redis may have forgotten it

All of it may be repeated, because a reservation resolves once. What Redis answers to a settlement whose reservation is
gone is not this file's trouble: the script hands the event to `jobs`.

How many wait is bounded by how many requests were open when Redis went away: nothing is admitted without it.
"""

import asyncio
import itertools
import random
import time
from collections import deque
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

from edgeproxy import logs, tasks
from edgeproxy.domain.reservations import Outcome, SettleStatus
from edgeproxy.errors import StoreUnavailable
from edgeproxy.gateway.journal import Journal, Left, Settlement, take_over
from edgeproxy.hotstate import scripts
from edgeproxy.hotstate.commands import HotState
from edgeproxy.hotstate.connection import CommandFailed
from edgeproxy.metrics import Metrics

REPLAY_S = 5.0  # an embedded Redis writes its file every second, a replica is hardly behind: twice that, and a margin
_REPLAYED_MAX = 10_000  # some 8 MB
_BATCH = 200  # sent again at once
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 2.0
_LATE = {SettleStatus.UNKNOWN: "unknown", SettleStatus.REAPED: "reaped"}

_Name = tuple[int, str]


class Unconfirmed:
    """All settlements of one process that Redis has not confirmed, and those of processes before it."""

    def __init__(self, hot: HotState, folder: Path, metrics: Metrics) -> None:
        self._hot = hot
        self._partitions = hot.partitions
        self._metrics = metrics
        self._folder = folder
        self._journal = Journal(folder)
        self._left: list[Left] = []
        self._waiting: dict[_Name, Settlement] = {}
        self._sent: set[_Name] = set()  # of these, which are on their way
        self._journaled: set[_Name] = set()  # and which have a line in a file
        self._confirmed: deque[tuple[float, Settlement]] = deque(maxlen=_REPLAYED_MAX)
        self._failed: list[Settlement] = []
        self._kick = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Take over what processes that are gone have left, and begin to send what has to be sent again."""
        self._left = take_over(self._folder)
        for settlement in itertools.chain.from_iterable(left.read() for left in self._left):
            if settlement.partition < self._partitions:
                self._journaled.add(self._put(settlement))
        self._task = tasks.spawn("unconfirmed settlements", self._send_on())
        self._kick.set()

    def send(self, settlement: Settlement) -> None:
        """Hand a settlement to Redis, or to the journal, before this returns."""
        name = self._put(settlement)
        try:
            reply, has_left = self._hot.settle(settlement.partition, settlement.arguments)
        except StoreUnavailable:
            self._write([settlement])
            self._kick.set()
            return
        if not has_left:  # it waits in this process still
            self._write([settlement])
        self._sent.add(name)
        reply.add_done_callback(partial(self._answered, name, settlement))

    def replay(self, partitions: Collection[int]) -> None:
        """Send again what Redis confirmed last in these partitions, because it is another one than before.

        Those are the last seconds in which it confirmed anything, however long it has been away since.
        """
        ours = [(at, settlement) for at, settlement in self._confirmed if settlement.partition in partitions]
        for at, settlement in ours:
            if at >= ours[-1][0] - REPLAY_S:
                self._put(settlement)
        self._kick.set()

    async def finish(self, patience_s: float) -> None:
        """Wait until all is confirmed, within a bound; what is not stays in the journal for the next process."""
        try:
            async with asyncio.timeout(patience_s):
                await self._empty.wait()
        except TimeoutError:
            if self._write(list(self._waiting.values())):
                logs.event("settlements_left_in_journal", count=len(self._waiting))
            else:
                self._metrics.settlements_lost.inc(len(self._waiting))
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._journal.close()
        for left in self._left:
            left.let_go()

    def _put(self, settlement: Settlement) -> _Name:
        name = settlement.partition, settlement.request_id
        if not self._waiting:
            self._empty.clear()
        self._waiting[name] = settlement
        return name

    def _answered(self, name: _Name, settlement: Settlement, reply: "asyncio.Future[Any]") -> None:
        self._sent.discard(name)
        if not reply.cancelled() and reply.exception() is None:
            self._confirm(name, scripts.decode_settle(reply.result()).status)
            return
        if not self._failed:  # with a connection all of its settlements fail, in one turn of the loop: one write
            asyncio.get_running_loop().call_soon(self._write_failed)
        self._failed.append(settlement)

    def _write_failed(self) -> None:
        failed, self._failed = self._failed, []
        self._write(failed)
        self._kick.set()

    def _write(self, settlements: list[Settlement]) -> bool:
        self._metrics.journaled_settlements.inc(len(settlements))
        is_written = self._journal.write(settlements)
        if is_written:
            self._journaled.update((settlement.partition, settlement.request_id) for settlement in settlements)
        return is_written

    def _confirm(self, name: _Name, status: SettleStatus) -> None:
        settlement = self._waiting.pop(name, None)
        if settlement is None:  # two replies for one: it was sent twice
            return
        self._confirmed.append((time.monotonic(), settlement))
        if status in _LATE and settlement.outcome is not Outcome.CANCEL:  # that one may never have been reserved
            self._metrics.late_settlements.labels(_LATE[status]).inc()
        self._journaled.discard(name)
        if not self._journaled and (self._left or self._journal.lines):
            self._forget_files()
        if not self._waiting:
            self._empty.set()

    def _forget_files(self) -> None:
        self._journal.clear()
        while self._left:
            self._left.pop().remove()

    async def _send_on(self) -> None:
        """Send what is not on its way, until cancelled."""
        wait_s = _FIRST_WAIT_S
        while True:
            await self._kick.wait()
            self._kick.clear()
            while idle := [name for name in self._waiting if name not in self._sent]:
                # Any of them: what cannot be confirmed, because its node is away, must not hold up the others.
                batch = random.sample(idle, min(len(idle), _BATCH))
                done = await asyncio.gather(*map(self._send_again, batch))
                if all(done):
                    wait_s = _FIRST_WAIT_S
                else:
                    await asyncio.sleep(wait_s)
                    wait_s = min(wait_s * 2, _LONGEST_WAIT_S)

    async def _send_again(self, name: _Name) -> bool:
        """Send one settlement again; return whether it was confirmed."""
        settlement = self._waiting.get(name)
        if settlement is None:
            return True
        try:
            reply = await self._hot.settle_again(settlement.partition, settlement.arguments)
        except (StoreUnavailable, CommandFailed):
            return False
        except Exception as error:  # noqa: BLE001 - a mistake over one must not hold up all the others
            logs.event("settlement_failed", error=type(error).__name__, request_id=settlement.request_id)
            return False
        self._confirm(name, reply.status)
        return True
