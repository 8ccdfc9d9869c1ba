"""What a request does in Redis: look its key up, reserve, stay alive, settle, or count a refusal.

Every answer of the scripts brings the time of Redis along, so that ids and expiries follow one clock without asking for
it. Errors of the wire end here: above, there are replies and `StoreUnavailable`.
"""

import asyncio
import time
from collections.abc import Awaitable, Collection, Sequence
from contextlib import suppress
from typing import Any

from prometheus_client import Histogram

from edgeproxy import tasks
from edgeproxy.config import Stores
from edgeproxy.domain.keys import KeyId, KeyRecord, decode_record
from edgeproxy.domain.limits import Amounts
from edgeproxy.domain.reservations import HeartbeatStatus, ReserveReply, SettleReply
from edgeproxy.errors import StoreUnavailable
from edgeproxy.hotstate import keyspace, scripts
from edgeproxy.hotstate.connection import CommandFailed
from edgeproxy.hotstate.nodes import Nodes
from edgeproxy.hotstate.watch import Told, Watch


def _nothing(_partitions: Collection[int]) -> None:
    return


class HotState:
    """The request path's commands over connections that this object owns."""

    def __init__(
        self, stores: Stores, round_trips: Histogram, returned: Told = _nothing, waiting: Told = _nothing
    ) -> None:
        self._scripts = scripts.load()
        preamble = [("SCRIPT", "LOAD", script.source) for script in self._scripts.values()]
        self._nodes = Nodes(stores.redis, stores.redis_timeout_ms, stores.redis_waiting, list(preamble))
        self._names = [keyspace.epoch(partition) for partition in range(stores.partitions)]
        self.partitions = stores.partitions
        self._lease_ms = stores.lease_ms
        self._round_trips = round_trips
        self._offset_ms = time.time_ns() // 1_000_000 - _monotonic_ms()
        self.watch = Watch(self._nodes, stores.partitions, returned, waiting)
        self._nodes.on_connect = self.watch.reconsider
        self._watching: asyncio.Task[None] | None = None

    @property
    def is_connected(self) -> bool:
        """Whether Redis can be asked at all."""
        return self._nodes.is_connected

    def now_ms(self) -> int:
        """Return Unix time in ms by the clock of Redis, as last seen."""
        return time.monotonic_ns() // 1_000_000 + self._offset_ms

    async def start(self) -> None:
        """Connect, and stay connected until `close`."""
        await self._nodes.start()
        self._watching = tasks.spawn("epochs", self.watch.run())

    async def close(self) -> None:
        """Give the connections up."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])
        await self._nodes.close()

    async def lookup(self, digests: Sequence[str]) -> tuple[str, KeyRecord] | None:
        """Return the first of these digests under which a record is published, and the record.

        Always one round trip, whatever is found. Raises StoreUnavailable, also when nothing is found in a Redis that
        may have forgotten it.
        """
        names = [keyspace.key_record(digest) for digest in digests]
        replies = [self._nodes.send(name, "GET", name) for name in names]
        # All of them: what was emptied is filled and opened again one partition after the other.
        epochs = [self._nodes.send(name, "GET", name) for name in self._names]
        records = [await self._timed(reply) for reply in replies]
        try:
            is_emptied = None in [await epoch for epoch in epochs]
        except CommandFailed:
            raise StoreUnavailable("redis") from None
        try:
            found = next(
                ((digest, decode_record(raw)) for digest, raw in zip(digests, records, strict=True) if raw), None
            )
        except ValueError:
            raise StoreUnavailable("redis") from None  # not written by this program: nothing can be decided from it
        # Records lie anywhere in a cluster: only where every server is complete is one that is not there unknown. And
        # what a server that was not compared yet has may be an older one.
        is_complete = found is not None or (not is_emptied and self.watch.all_open)
        if not is_complete or not all(map(self.watch.trusts, names)):
            raise StoreUnavailable("redis")
        return found

    async def reserve(
        self,
        partition: int,
        request_id: str,
        scope: scripts.Scope,
        amounts: Amounts,
        note: bytes,
        *,
        announce: bool = False,
    ) -> ReserveReply:
        """Charge an estimate, or learn why not; repeating with the same id is safe.

        `announce`: Redis admitted it before, and may have forgotten. Raises StoreUnavailable, also where the counters
        are not to be trusted.
        """
        if not announce and not self.watch.is_open(partition):
            raise StoreUnavailable("redis")
        arguments = scripts.reserve_args(
            partition, request_id, [scope], amounts, self._lease_ms, note, announce=announce
        )
        started = time.perf_counter()
        try:
            raw = await self._nodes.send(self._names[partition], *self._scripts["reserve"].command(arguments))
        except CommandFailed as error:
            raw = await self._run_again(partition, "reserve", arguments, error)
        finally:
            self._round_trips.observe(time.perf_counter() - started)
        reply = scripts.decode_reserve(raw)
        self._offset_ms = reply.now_ms - _monotonic_ms()
        if not announce and not self.watch.is_open(partition):  # the partition has moved to another server meanwhile
            raise StoreUnavailable("redis", may_have_run=True)
        return reply

    def settle(self, partition: int, arguments: scripts.Arguments) -> tuple["asyncio.Future[Any]", bool]:
        """Write a settlement to the socket before this returns; return the future of its raw reply.

        And whether the socket took it, so that it reaches Redis even if this process dies now. Raises StoreUnavailable
        when Redis is away; the future raises what `RedisConnection.send` says.
        """
        name = self._names[partition]
        reply = self._nodes.send(name, *self._scripts["settle"].command(arguments))
        return reply, self._nodes.flush(name)

    async def settle_again(self, partition: int, arguments: scripts.Arguments) -> SettleReply:
        """Repeat a settlement whose reply did not come: a reservation resolves once. Raises StoreUnavailable."""
        return scripts.decode_settle(await self._run(partition, "settle", arguments))

    async def heartbeat(self, partition: int, beats: Sequence[scripts.Beat]) -> list[HeartbeatStatus]:
        """Renew the leases of reservations, and tell what has passed so far. Raises StoreUnavailable."""
        arguments = scripts.heartbeat_args(partition, self._lease_ms, beats)
        return scripts.decode_heartbeat(await self._run(partition, "heartbeat", arguments))

    def count_refusal(self, partition: int, key_id: KeyId, status: int) -> None:
        """Count a refusal of a known key; lost when Redis is away, because then all are refused."""
        arguments = scripts.refusal_args(partition, key_id, status)
        with suppress(StoreUnavailable):
            self._nodes.send(self._names[partition], *self._scripts["refusal"].command(arguments))

    async def _run(self, partition: int, name: str, arguments: scripts.Arguments) -> Any:
        """Await a script's reply; where Redis has lost the script, send it along once. Raises StoreUnavailable."""
        try:
            return await self._nodes.send(self._names[partition], *self._scripts[name].command(arguments))
        except CommandFailed as error:
            return await self._run_again(partition, name, arguments, error)

    async def _run_again(self, partition: int, name: str, arguments: scripts.Arguments, error: CommandFailed) -> Any:
        if error.code != "NOSCRIPT":
            raise StoreUnavailable("redis") from None
        try:
            return await self._nodes.send(self._names[partition], "EVAL", self._scripts[name].source, *arguments)
        except CommandFailed:
            raise StoreUnavailable("redis") from None

    async def _timed(self, reply: Awaitable[Any]) -> Any:
        started = time.perf_counter()
        try:
            return await reply
        except CommandFailed:
            raise StoreUnavailable("redis") from None
        finally:
            self._round_trips.observe(time.perf_counter() - started)


def _monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000
