"""How the control plane calls Redis: one command or one script at a time, over a client that belongs to the caller.

The way of a request never comes through here. The client decides how long a call may take, and gives replies as bytes.
"""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import redis.asyncio
import redis.exceptions

from edgeproxy.errors import StoreUnavailable
from edgeproxy.hotstate import scripts


class Caller:
    """Runs commands and scripts. Every method raises StoreUnavailable when Redis is away, too slow, or refuses."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._execute: Callable[..., Awaitable[Any]] = client.execute_command
        self._scripts = scripts.load()

    async def command(self, *command: str | bytes | int) -> Any:
        """Return the reply of one command."""
        with _errors_mapped():
            return await self._execute(*command)

    async def run(self, name: str, arguments: scripts.Arguments) -> list[Any]:
        """Return the reply of a script; where Redis does not have it (it was restarted, or is new), load it first."""
        script = self._scripts[name]
        command = script.command(arguments)
        reply: list[Any]
        with _errors_mapped():
            try:
                reply = await self._execute(*command)
            except redis.exceptions.NoScriptError:
                await self._execute("SCRIPT LOAD", script.source)
                reply = await self._execute(*command)
        return reply


@contextmanager
def _errors_mapped() -> Iterator[None]:
    """Turn what the client library raises into ours, without its text, which may hold addresses and arguments."""
    try:
        yield
    except (redis.exceptions.RedisError, OSError):
        raise StoreUnavailable("redis") from None
