"""The four things that a request does in Redis: look its key up, reserve, settle, count a refusal.

Every answer brings the time of Redis along, so that ids and expiries follow one clock without asking for it.
Errors of the wire end here: above, there are replies and `StoreUnavailable`.
"""

import asyncio
import time
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from typing import Any

from prometheus_client import Histogram

from edgeproxy.domain.keys import KeyId, KeyRecord, decode_record
from edgeproxy.domain.limits import Amounts
from edgeproxy.domain.reservations import ReserveReply, SettleReply
from edgeproxy.errors import StoreUnavailable
from edgeproxy.hotstate import keyspace, scripts
from edgeproxy.hotstate.connection import CommandFailed, RedisConnection


class HotState:
    """The request path's commands over one connection that this object owns."""

    def __init__(self, url: str, timeout_ms: int, waiting_max: int, round_trips: Histogram) -> None:
        self._scripts = scripts.load()
        preamble = [("SCRIPT", "LOAD", script.source) for script in self._scripts.values()]
        self._connection = RedisConnection(url, timeout_ms, waiting_max, list(preamble))
        self._round_trips = round_trips
        self._offset_ms = time.time_ns() // 1_000_000 - _monotonic_ms()

    @property
    def is_connected(self) -> bool:
        """Whether Redis can be asked at all."""
        return self._connection.is_connected

    def now_ms(self) -> int:
        """Return Unix time in ms by the clock of Redis, as last seen."""
        return _monotonic_ms() + self._offset_ms

    async def start(self) -> None:
        """Connect, and stay connected until `close`."""
        await self._connection.start()

    async def close(self) -> None:
        """Give the connection up."""
        await self._connection.close()

    async def lookup(self, digests: Sequence[str]) -> tuple[str, KeyRecord] | None:
        """Return the first of these digests under which a record is published, and the record.

        Always one round trip, whatever is found. Raises StoreUnavailable.
        """
        replies = [self._connection.send("GET", keyspace.key_record(digest)) for digest in digests]
        records = [await self._timed(reply) for reply in replies]
        try:
            found = ((digest, decode_record(raw)) for digest, raw in zip(digests, records, strict=True) if raw)
            return next(found, None)
        except ValueError:
            raise StoreUnavailable("redis") from None  # not written by this program: nothing can be decided from it

    async def reserve(
        self, partition: int, request_id: str, scope: scripts.Scope, amounts: Amounts, lease_ms: int
    ) -> ReserveReply:
        """Charge an estimate, or learn why not. Raises StoreUnavailable; repeating with the same id is safe."""
        arguments = scripts.reserve_args(partition, request_id, [scope], amounts, lease_ms)
        reply = scripts.decode_reserve(await self._timed(self._run("reserve", arguments)))
        self._offset_ms = reply.now_ms - _monotonic_ms()
        return reply

    def settle(self, arguments: scripts.Arguments) -> "asyncio.Future[Any]":
        """Write a settlement to the socket before this returns, and return the future of its raw reply.

        Raises StoreUnavailable when Redis is away; the future raises what `RedisConnection.send` says.
        """
        reply = self._connection.send(*self._scripts["settle"].command(arguments))
        self._connection.flush()
        return reply

    async def settle_again(self, arguments: scripts.Arguments) -> SettleReply:
        """Repeat a settlement whose reply did not come: a reservation resolves once. Raises StoreUnavailable."""
        return scripts.decode_settle(await self._run("settle", arguments))

    def count_refusal(self, partition: int, key_id: KeyId, status: int) -> None:
        """Count a refusal of a known key; lost when Redis is away, because then all are refused."""
        arguments = scripts.refusal_args(partition, key_id, status)
        with suppress(StoreUnavailable):
            self._connection.send(*self._scripts["refusal"].command(arguments))

    async def _run(self, name: str, arguments: scripts.Arguments) -> Any:
        """Await a script's reply; where Redis has lost the script, send it along once. Raises StoreUnavailable."""
        try:
            try:
                return await self._connection.send(*self._scripts[name].command(arguments))
            except CommandFailed as error:
                if error.code != "NOSCRIPT":
                    raise
            return await self._connection.send("EVAL", self._scripts[name].source, *arguments)
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
