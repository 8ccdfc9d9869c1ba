"""How the control plane calls Redis: commands and scripts, one or many at once, over a client that is its caller's.

The way of a request never comes through here. The client decides how long a call may take, gives replies as bytes, and
knows the nodes of a cluster.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, cast

import redis.asyncio
import redis.exceptions
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff

from edgeproxy.domain.redis_addresses import is_cluster, redis_addresses
from edgeproxy.errors import StoreUnavailable
from edgeproxy.hotstate import scripts

_CLUSTER_TRIES = 3  # the slots are asked for in between

Client = redis.asyncio.Redis | RedisCluster


@asynccontextmanager
async def open_client(url: str, timeout_s: float, **options: Any) -> AsyncIterator[Client]:
    """Have a client of what an address in the configuration names, while the block runs. Connects when it is used.

    `options` are those that clients of one server and of a cluster have both.
    """
    options |= {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s}
    if not is_cluster(url):
        async with redis.asyncio.Redis.from_url(url, **options) as client:
            yield client
        return
    cluster = _cluster_client(url, options)
    try:
        yield cluster
    finally:
        await cluster.aclose()
        # That does nothing after a failure, when it is about to ask for the slots again.
        for nodes in ("nodes_cache", "startup_nodes"):
            await cluster.nodes_manager.aclose(nodes)


def _cluster_client(url: str, options: dict[str, Any]) -> RedisCluster:
    seeds = [cast("dict[str, Any]", parse_url(address)) for address in redis_addresses(url)]
    return RedisCluster(
        startup_nodes=[ClusterNode(seed["host"], seed.get("port", 6379)) for seed in seeds],
        username=seeds[0].get("username"),
        password=seeds[0].get("password"),
        ssl=url.startswith("rediss"),
        require_full_coverage=False,  # the partitions that are there go on
        retry=Retry(ExponentialWithJitterBackoff(base=0.05, cap=0.5), _CLUSTER_TRIES),
        **options,
    )


class Caller:
    """Runs commands and scripts. Every method raises StoreUnavailable when Redis is away, too slow, or refuses."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._execute: Callable[..., Awaitable[Any]] = client.execute_command
        self._scripts = scripts.load()

    async def command(self, *command: str | bytes | int) -> Any:
        """Return the reply of one command."""
        with _errors_mapped():
            return await self._execute(*command)

    async def run(self, name: str, arguments: scripts.Arguments) -> list[Any]:
        """Return the reply of a script; where Redis does not have it (it was restarted, or is new), send it along."""
        script = self._scripts[name]
        reply: list[Any]
        with _errors_mapped():
            try:
                reply = await self._execute(*script.command(arguments))
            except redis.exceptions.NoScriptError:
                reply = await self._execute("EVAL", script.source, *arguments)
        return reply

    async def commands(self, commands: Sequence[scripts.Arguments]) -> list[Any]:
        """Return the replies of many commands that are sent at once; others may come in between."""
        with _errors_mapped():
            return _checked(await self._pipelined(commands))

    async def run_each(self, name: str, arguments: Sequence[scripts.Arguments]) -> list[list[Any]]:
        """Return the replies of a script that is called many times at once."""
        script = self._scripts[name]
        calls = [script.command(each) for each in arguments]
        with _errors_mapped():
            replies = await self._pipelined(calls)
            lost = [at for at, reply in enumerate(replies) if isinstance(reply, redis.exceptions.NoScriptError)]
            if lost:
                again = await self._pipelined([("EVAL", script.source, *arguments[at]) for at in lost])
                for at, reply in zip(lost, again, strict=True):
                    replies[at] = reply
            return _checked(replies)

    async def _pipelined(self, commands: Sequence[scripts.Arguments]) -> list[Any]:
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        replies: list[Any] = await pipeline.execute(raise_on_error=False)
        return replies


def _checked(replies: list[Any]) -> list[Any]:
    """Return the replies. Raises the first that is an error."""
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    return replies


@contextmanager
def _errors_mapped() -> Iterator[None]:
    """Turn what the client library raises into ours, without its text, which may hold addresses and arguments."""
    try:
        yield
    except (redis.exceptions.RedisError, redis.exceptions.RedisClusterException, OSError):
        raise StoreUnavailable("redis") from None
