"""One multiplexed connection to Redis for everything that a request waits for.

Commands of one turn of the event loop leave in one write; replies come back in the same order, so a queue of futures
is all the bookkeeping there is. Time limits need one timer, not one per command: all commands have the same limit, so
the oldest one expires first. When it does, the connection is given up and all that wait are told: a Redis that is
frozen is as good as away. A background task connects again.

Nothing is repeated here: a command whose reply was lost may have run. Whoever sent it knows whether that matters.
Where a node of a cluster says that another one has the key, its words go to `nodes.py` as they are.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import hiredis
from redis.asyncio.connection import parse_url

from edgeproxy import logs, tasks
from edgeproxy.errors import StoreUnavailable

_BACKOFF_MIN_S = 0.05
_BACKOFF_MAX_S = 1.0

Argument = str | bytes | int


class CommandFailed(Exception):
    """Redis answered a command with an error. `code` is the first word of it (NOSCRIPT, OOM, ...), nothing more."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class Redirected(CommandFailed):
    """A node of a cluster did not run the command: `address` has the slot of the key (MOVED), or is getting it (ASK).

    `address` is HOST:PORT as the node wrote it. Its host is empty where it is the node's own.
    """

    def __init__(self, code: str, address: str) -> None:
        super().__init__(code)
        self.address = address


class RedisConnection:
    """A connection that comes back by itself. One per worker and Redis node; it belongs to one event loop.

    `timeout_ms` bounds connecting and each reply; at most `waiting_max` commands wait at once. `preamble` are the
    commands that a fresh connection has to have run (loading scripts). `on_connect` is called each time a connection
    stands: what it sends is sent before anything else.
    """

    def __init__(
        self,
        url: str,
        timeout_ms: int,
        waiting_max: int,
        preamble: list[tuple[Argument, ...]],
        on_connect: Callable[[], None] = lambda: None,
    ) -> None:
        self._target = cast("dict[str, Any]", parse_url(url))
        self._tls = ssl.create_default_context() if url.startswith("rediss://") else None
        self._timeout_s = timeout_ms / 1000
        self._waiting_max = waiting_max
        self._preamble = preamble
        self._on_connect = on_connect
        self._protocol: _Protocol | None = None
        self._run_id = ""
        self._tried = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    @property
    def is_connected(self) -> bool:
        """Whether a command sent now would be written at once."""
        return self._protocol is not None and not self._protocol.lost.done()

    @property
    def run_id(self) -> str:
        """What the server calls itself from its start to its end; "" while it is away."""
        return self._run_id if self.is_connected else ""

    async def start(self) -> None:
        """Connect once, then keep connected in the background. Returns also when the first try failed."""
        self.begin()
        await self.first_try()

    def begin(self) -> None:
        """Connect and keep connected in the background."""
        self._keeper = tasks.spawn("redis connection", self._keep_connected())

    async def first_try(self) -> None:
        """Return when the first try to connect is over."""
        await self._tried.wait()

    async def close(self) -> None:
        """Give the connection up; what waits gets StoreUnavailable."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        if self._protocol is not None:
            self._protocol.give_up()

    def send(self, *command: Argument) -> "asyncio.Future[Any]":
        """Queue one command for the end of this turn of the loop and return the future of its reply.

        Raises StoreUnavailable when Redis is away or too many commands wait; the future raises it when the reply
        does not come in time, and CommandFailed when Redis refuses the command.
        """
        protocol = self._protocol
        if protocol is None or len(protocol.waiting) >= self._waiting_max:
            raise StoreUnavailable("redis")
        return protocol.send(command)

    def flush(self) -> bool:
        """Write what is queued now, instead of at the end of this turn of the loop.

        Returns whether the system has all of it, so that it goes its way even when this process is killed.
        """
        return self._protocol is not None and self._protocol.flush()

    async def _keep_connected(self) -> None:
        backoff_s = _BACKOFF_MIN_S
        while True:  # until cancelled; each turn waits
            protocol = await self._try_connect()
            is_first = not self._tried.is_set()
            self._tried.set()
            if protocol is not None:
                if not is_first:
                    logs.event("store_found", store="redis")
                self._on_connect()
                backoff_s = _BACKOFF_MIN_S
                await protocol.lost
                self._protocol = None
                logs.event("store_lost", store="redis")
            await asyncio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, _BACKOFF_MAX_S)

    async def _try_connect(self) -> "_Protocol | None":
        protocol = None
        try:
            async with asyncio.timeout(self._timeout_s):
                protocol = await self._open()
                replies = [protocol.send(command) for command in self._greeting()]
                told = [await reply for reply in replies][-1]
            self._run_id = _run_id(told)
            self._protocol = protocol
        except (OSError, TimeoutError, StoreUnavailable, CommandFailed) as error:
            logs.event("store_unreachable", store="redis", error=type(error).__name__)
            return None
        finally:  # cancellation too
            if protocol is not None and protocol is not self._protocol:
                protocol.give_up()
        return protocol

    async def _open(self) -> "_Protocol":
        loop = asyncio.get_running_loop()
        target = self._target

        def factory() -> _Protocol:
            return _Protocol(loop, self._timeout_s)

        if "path" in target:
            _, protocol = await loop.create_unix_connection(factory, target["path"])
        else:
            host, port = target.get("host", "localhost"), target.get("port", 6379)
            _, protocol = await loop.create_connection(factory, host, port)
            if self._tls is not None:
                await protocol.encrypt(self._tls, host)
        return protocol

    def _greeting(self) -> list[tuple[Argument, ...]]:
        commands: list[tuple[Argument, ...]] = []
        if password := self._target.get("password"):
            commands.append(("AUTH", self._target.get("username") or "default", password))
        if number := self._target.get("db"):
            commands.append(("SELECT", number))
        return [*commands, *self._preamble, ("INFO", "server")]


class _Protocol(asyncio.Protocol):
    """The wire: packs commands, parses replies, and notices silence."""

    def __init__(self, loop: asyncio.AbstractEventLoop, timeout_s: float) -> None:
        self._loop = loop
        self._timeout_s = timeout_s
        self._reader = hiredis.Reader()
        self._outbox: list[bytes] = []
        self._flushes_soon = False  # at the end of this turn of the loop
        self._transport: asyncio.Transport | None = None
        self._socket: asyncio.Transport | None = None  # the same, or what is below its TLS
        self._timer: asyncio.TimerHandle | None = None
        self.waiting: deque[tuple[float, asyncio.Future[Any]]] = deque()
        self.lost: asyncio.Future[None] = loop.create_future()

    def send(self, command: tuple[Argument, ...]) -> "asyncio.Future[Any]":
        if self._transport is None:
            raise StoreUnavailable("redis")
        loop = self._loop
        reply: asyncio.Future[Any] = loop.create_future()
        if not self._flushes_soon:
            self._flushes_soon = True
            loop.call_soon(self._flush_at_end)
        # The stub of pack_command names a tuple of one.
        self._outbox.append(hiredis.pack_command(command))  # type: ignore[arg-type]
        self.waiting.append((loop.time() + self._timeout_s, reply))
        if self._timer is None:
            self._timer = loop.call_later(self._timeout_s, self._check_silence)
        return reply

    def _flush_at_end(self) -> None:
        self._flushes_soon = False
        if self._outbox:
            self.flush()

    def flush(self) -> bool:
        transport, below = self._transport, self._socket
        if transport is None or below is None:
            return False
        if self._outbox:
            transport.write(b"".join(self._outbox))
            self._outbox.clear()
        is_written = transport.get_write_buffer_size() == below.get_write_buffer_size() == 0
        return is_written and not below.is_closing()  # a transport that failed has nothing left to write, either

    async def encrypt(self, context: ssl.SSLContext, host: str) -> None:
        if self._transport is None:
            raise StoreUnavailable("redis")
        self._transport = await self._loop.start_tls(self._transport, self, context, server_hostname=host)

    def give_up(self) -> None:
        """Close at once and tell all that wait."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._outbox.clear()
        while self.waiting:
            _, reply = self.waiting.popleft()
            fail(reply, StoreUnavailable("redis", may_have_run=True))
        if not self.lost.done():
            self.lost.set_result(None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = self._socket = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.give_up()

    def data_received(self, data: bytes) -> None:
        reader = self._reader
        reader.feed(data)
        try:
            while (value := reader.gets()) is not False:  # False: no complete reply is left (RESP2 has no booleans)
                _, reply = self.waiting.popleft()
                if isinstance(value, hiredis.ReplyError):
                    fail(reply, _failure(str(value)))
                elif not reply.done():
                    reply.set_result(value)
        except (hiredis.ProtocolError, IndexError):  # not Redis, or a reply that nobody asked for
            self.give_up()

    def _check_silence(self) -> None:
        self._timer = None
        if not self.waiting:
            return
        remaining_s = self.waiting[0][0] - self._loop.time()
        if remaining_s > 0:
            self._timer = self._loop.call_later(remaining_s, self._check_silence)
        else:
            self.give_up()


def _failure(words: str) -> CommandFailed:
    code, _, rest = words.partition(" ")
    if code in {"MOVED", "ASK"}:  # and the slot, and the address
        return Redirected(code, rest.rpartition(" ")[2])
    return CommandFailed(code)


def _run_id(told: object) -> str:
    """Return the run id in the reply of INFO, "" where there is none."""
    lines = told.split() if isinstance(told, bytes) else []
    return next((line[7:].decode("ascii", "replace") for line in lines if line.startswith(b"run_id:")), "")


def fail(reply: "asyncio.Future[Any]", error: Exception) -> None:
    """Let whoever waits for a reply have this error."""
    if not reply.done():
        reply.set_exception(error)
        reply.exception()  # counts as seen: a settlement's reply is not always awaited
