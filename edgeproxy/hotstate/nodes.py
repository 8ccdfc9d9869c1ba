"""The way of a request to its Redis: one server, or the nodes of a Redis Cluster (`cluster.py`)."""

import asyncio
from collections.abc import Callable
from typing import Any

from edgeproxy.domain.redis_addresses import is_cluster, redis_addresses
from edgeproxy.hotstate.cluster import Cluster
from edgeproxy.hotstate.connection import Argument, RedisConnection


def _nothing() -> None:
    return


class Nodes:
    """Connections to all Redis nodes, for one worker; they belong to one event loop.

    `timeout_ms`, `waiting_max` and `preamble` hold for each node, as `RedisConnection` says. `on_connect` is called
    each time that keys have become reachable, or go to another server: what it sends there is sent before anything
    else. It must not raise.
    """

    def __init__(self, url: str, timeout_ms: int, waiting_max: int, preamble: list[tuple[Argument, ...]]) -> None:
        self.on_connect: Callable[[], None] = _nothing
        self._redis: RedisConnection | Cluster
        if is_cluster(url):
            self._redis = Cluster(redis_addresses(url), timeout_ms, waiting_max, preamble, self._connected)
        else:
            self._redis = RedisConnection(url, timeout_ms, waiting_max, preamble, self._connected)

    @property
    def is_connected(self) -> bool:
        """Whether every key can be asked for."""
        return self._redis.is_connected

    async def start(self) -> None:
        """Connect, and stay connected until `close`. Returns also when the first try failed."""
        await self._redis.start()

    async def close(self) -> None:
        """Give all connections up; what waits gets StoreUnavailable."""
        await self._redis.close()

    def send(self, key: str, *command: Argument) -> "asyncio.Future[Any]":
        """Queue one command for the server that has `key`, and return the future of its reply.

        Raises StoreUnavailable, and the future does, as `RedisConnection.send` says.
        """
        if isinstance(self._redis, Cluster):
            return self._redis.send(key, command)
        return self._redis.send(*command)

    def flush(self, key: str) -> bool:
        """Write what is queued for the server of `key` now. Returns whether the system has all of it."""
        if isinstance(self._redis, Cluster):
            return self._redis.flush(key)
        return self._redis.flush()

    def run_id(self, key: str) -> str:
        """Return what the server that `key`'s commands go to now calls itself; "" while it is away or not known."""
        if isinstance(self._redis, Cluster):
            return self._redis.run_id(key)
        return self._redis.run_id

    def _connected(self) -> None:
        self.on_connect()
