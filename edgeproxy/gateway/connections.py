"""Connections to one provider: HTTP/1.1 over asyncio protocols, parsed by llhttp.

An answer is handed on by callbacks, in the very turn of the loop in which its bytes arrived: no task is woken, no chunk
is queued. Whoever listens (`AnswerSink`) can slow the provider down by pausing the connection.

A request is never repeated here: once a byte of it was written, it may have been billed. A pooled connection that turns
out closed before that is replaced silently. `written` says whether the whole request has left.
"""

import asyncio
from collections import deque
from typing import Protocol, cast
from urllib.parse import urlsplit

import httptools

from edgeproxy import logs
from edgeproxy.config import Provider
from edgeproxy.errors import (
    INTERNAL,
    UPSTREAM_BUSY,
    UPSTREAM_FAILED,
    UPSTREAM_TIMEOUT,
    UPSTREAM_UNREACHABLE,
    GatewayError,
)
from edgeproxy.providers.base import Headers
from edgeproxy.tls import for_provider

MAX_HEAD_BYTES = 256 * 1024  # of an answer: far more than any provider sends, far less than would hurt
_NO_BODY_STATUSES = (204, 304)


class AnswerSink(Protocol):
    """Who listens to one answer. Calls come in this order; after `answer_ended` or `answer_failed` none comes.

    Only `request_left` comes at any time, or never: an answer may begin, and end, while the request is being sent.
    """

    def request_left(self) -> None:
        """The whole request has been sent, and is no longer held here."""

    def answer_began(self, status: int, headers: Headers) -> None:
        """The head is here; header names are in lower case."""

    def answer_continued(self, chunk: bytes) -> None:
        """A piece of the body, as it arrived."""

    def answer_paused(self) -> None:
        """All that one read from the socket brought has been handed over: now is the time to write."""

    def answer_ended(self) -> None:
        """The answer is complete."""

    def answer_failed(self, error: GatewayError) -> None:
        """The answer will not come, or not to its end."""


class Pool:
    """Connections to one provider: idle ones are used again, newest first, so that the others can age and go."""

    def __init__(self, provider: Provider) -> None:
        url = urlsplit(provider.base_url)
        self.provider = provider
        self.host_header = url.netloc
        self._host = cast("str", url.hostname)
        self._port = url.port or (443 if url.scheme == "https" else 80)
        self._tls = for_provider(provider) if url.scheme == "https" else None
        limits_ms = (provider.first_byte_timeout_ms, provider.silence_timeout_ms, provider.total_timeout_ms)
        self.shortest_s = min(*limits_ms, provider.idle_ms) / 1000  # no time limit that begins now ends sooner
        self._idle: deque[Connection] = deque()
        self._open: set[Connection] = set()  # those that are being opened, too

    async def acquire(self, *, for_upload: bool = False) -> "Connection":
        """Return a connection that is the caller's until its answer has ended.

        Uploads hold one for as long as their clients take, so they get at most half of them. Raises GatewayError:
        UPSTREAM_BUSY, UPSTREAM_UNREACHABLE or UPSTREAM_TIMEOUT; nothing was sent then.
        """
        if for_upload and sum(each.is_uploading for each in self._open) * 2 >= self.provider.max_connections:
            raise GatewayError(UPSTREAM_BUSY, retry_after_ms=1000)
        connection = self.idle()
        if connection is not None:
            connection.is_uploading = for_upload
            return connection
        if len(self._open) >= self.provider.max_connections:
            raise GatewayError(UPSTREAM_BUSY, retry_after_ms=1000)
        connection = Connection(self, asyncio.get_running_loop())
        connection.is_uploading = for_upload
        self._open.add(connection)
        try:
            await self._connect(connection)
        except BaseException:  # cancellation too: the place is given back
            self._open.discard(connection)
            raise
        return connection

    def idle(self) -> "Connection | None":
        """Return a connection that is the caller's as with `acquire`, None when none is idle."""
        while self._idle:
            connection = self._idle.pop()
            if connection.leave_pool():
                return connection
        return None

    async def _connect(self, connection: "Connection") -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.provider.connect_timeout_ms / 1000):
                await loop.create_connection(lambda: connection, self._host, self._port, ssl=self._tls)
        except TimeoutError:
            raise GatewayError(UPSTREAM_TIMEOUT) from None
        except OSError:  # refused, no such host, no valid certificate
            raise GatewayError(UPSTREAM_UNREACHABLE) from None

    def keep(self, connection: "Connection") -> None:
        """Take back a connection that can carry another request."""
        self._idle.append(connection)

    def closed(self, connection: "Connection") -> None:
        """Take note of a connection that is no more."""
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def close(self) -> None:
        """Close the idle connections."""
        for connection in list(self._idle):
            connection.abort()


class Connection(asyncio.Protocol):
    """One connection, which carries one request at a time."""

    def __init__(self, pool: Pool, loop: asyncio.AbstractEventLoop) -> None:
        self._pool = pool
        self.loop = loop
        self._transport: asyncio.Transport | None = None
        self._sink: AnswerSink | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._read_paused = False
        self._reset()

    def _reset(self) -> None:
        self._has_left = False
        self._is_sending = False  # more of the request is to come
        self.is_uploading = False  # it is taken for a request whose end its client has not sent yet
        self._room: asyncio.Future[None] | None = None  # somebody waits until what was written has been sent
        self._blocked_at: float | None = None  # since when
        self._status = 0  # 0 until the head of the final answer is here
        self._headers: Headers = []
        self._head_bytes = 0
        self._is_complete = False
        self._is_reusable = True
        self._sent_at = self._read_at = 0.0
        self._idle_until = 0.0  # 0 unless it is idle

    @property
    def written(self) -> bool:
        """Whether the whole request has left: from then on it can have been billed."""
        return self._has_left

    # --- what the owner of an exchange does

    def send(self, outgoing: bytes, sink: AnswerSink, *, is_whole: bool = True) -> None:
        """Send one request, or its beginning; `sink` hears of the answer.

        Raises GatewayError when the connection is gone already.
        """
        transport = self._transport
        if transport is None or transport.is_closing():
            raise GatewayError(UPSTREAM_FAILED)
        self._sink = sink
        self._parser = httptools.HttpResponseParser(self)
        self._sent_at = self._read_at = self.loop.time()
        self._is_sending = not is_whole
        transport.write(outgoing)
        if transport.get_write_buffer_size() == 0:
            self.resume_writing()
        self._arm()

    async def send_more(self, piece: bytes) -> None:
        """Send more of a request, and wait until it has left: a slow provider slows down its client."""
        if self._transport is None or self._transport.is_closing():
            return  # the sink has been told
        self._transport.write(piece)
        if self._transport.get_write_buffer_size():
            self._room = self.loop.create_future()
            self._blocked_at = self.loop.time()
            self._arm()
            await self._room
            self._blocked_at = None

    def send_end(self, last: bytes) -> None:
        """Send the last bytes of a request, which may be none."""
        if self._transport is None or self._transport.is_closing():
            return
        self._is_sending = self.is_uploading = False
        self._sent_at = self.loop.time()  # the provider can answer only now
        if not self._status:
            self._arm()
        self._transport.write(last)
        if self._transport.get_write_buffer_size() == 0:
            self.resume_writing()

    def pause(self) -> None:
        """Stop reading: the provider is slowed down by its own connection."""
        if not self._read_paused and self._transport is not None:
            self._read_paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Go on reading."""
        if self._read_paused and self._transport is not None:
            self._read_paused = False
            self._read_at = self.loop.time()
            self._transport.resume_reading()

    def abort(self) -> None:
        """Close at once. The sink hears nothing of it: it is who wants it."""
        self._sink = None
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.abort()

    # --- idle life

    def leave_pool(self) -> bool:
        """Stop being idle, and forget the exchange before. Whether the connection can be used."""
        self._reset()
        return self._transport is not None and not self._transport.is_closing()

    def _finish(self) -> None:
        """The exchange is over: say so, then go idle, or close when nothing more can be sent here."""
        if self._sink is not None:
            self._sink.answer_ended()  # writes the last bytes, and pauses us when its client is slow
        self._sink = None
        if self._read_paused:
            self.resume()
        if self._is_reusable and self._has_left and self._transport is not None:
            self._idle_until = self.loop.time() + self._pool.provider.idle_ms / 1000
            self._arm()
            self._pool.keep(self)
        elif self._transport is not None:
            self._transport.abort()

    def _fail(self, error: GatewayError) -> None:
        sink = self._sink
        self.abort()
        if sink is not None:
            sink.answer_failed(error)

    # --- time limits: one timer, which goes off no later than the earliest moment at which one of them can be exceeded.
    # It is set anew only when that comes earlier than thought, or when it went off too early: not with each request.

    def _arm(self) -> None:
        # No limit that begins now ends sooner than the shortest, and to those that had begun the timer was set.
        if self._timer is not None and self._timer_at <= self.loop.time() + self._pool.shortest_s:
            return
        at = self._deadline()
        if self._timer is not None:
            if self._timer_at <= at:
                return
            self._timer.cancel()
        self._timer_at = at
        self._timer = self.loop.call_at(at, self._check_time)

    def _deadline(self) -> float:
        if self._idle_until:
            return self._idle_until
        provider = self._pool.provider
        total_at = self._sent_at + provider.total_timeout_ms / 1000
        if self._is_sending and not self._status:
            # While the client is slow, only the whole is bounded here; a provider that takes nothing is silent.
            silent_at = total_at if self._blocked_at is None else self._blocked_at + provider.silence_timeout_ms / 1000
            return min(total_at, silent_at)
        if not self._status:
            return min(total_at, self._sent_at + provider.first_byte_timeout_ms / 1000)
        # A paused connection is silent because we do not listen.
        since = self.loop.time() if self._read_paused else self._read_at
        return min(total_at, since + provider.silence_timeout_ms / 1000)

    def _check_time(self) -> None:
        self._timer = None
        if self.loop.time() < self._deadline():
            self._arm()
        elif self._idle_until:
            self.abort()
        else:
            self._fail(GatewayError(UPSTREAM_TIMEOUT))

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask to be told when the last byte that waits has been sent."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=0)

    def resume_writing(self) -> None:
        """All that was written has been sent: the request, when no more of it is to come."""
        if self._room is not None:
            self._let_go_on()
        if self._is_sending:
            return
        self._has_left = True
        if self._sink is not None:
            self._sink.request_left()

    def _let_go_on(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Parse, which calls back; then let the sink write what it got."""
        sink = self._sink
        if sink is None or self._parser is None:  # nobody asked for anything: not to be trusted any more
            self.abort()
            return
        self._read_at = self.loop.time()
        if not self._status:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:  # not the provider's mistake, but ours
            logs.event("callback_failed", error=type(error.__context__).__name__)
            self._fail(GatewayError(INTERNAL))
            return
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            if not self._is_complete:
                self._fail(GatewayError(UPSTREAM_FAILED))
                return
            self._is_reusable = False  # a whole answer, and something after it
        if self._sink is None:  # it gave up in the middle of what was read
            return
        if self._is_complete:
            self._finish()
        elif self._status:
            self._sink.answer_paused()
        elif self._head_bytes > MAX_HEAD_BYTES:
            self._fail(GatewayError(UPSTREAM_FAILED))

    def connection_lost(self, exc: Exception | None) -> None:
        """The provider closed: the end of an answer that has no other end, else a failure."""
        self._transport = None
        self._is_reusable = False
        if self._timer is not None:
            self._timer.cancel()
        self._pool.closed(self)
        self._let_go_on()
        if self._sink is None:
            return
        if exc is None and self._status and self._ends_with_connection():
            self._finish()
        else:
            self._fail(GatewayError(UPSTREAM_FAILED))

    # --- callbacks of the parser

    def on_message_begin(self) -> None:
        """A second answer to one request cannot be trusted."""
        if self._is_complete:
            self._is_reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect the head."""
        if not self._status:
            self._headers.append((name.decode("latin-1").lower(), value.decode("utf-8", "surrogateescape")))

    def on_headers_complete(self) -> None:
        """Hand the head on, unless it only announces another one (1xx)."""
        if self._is_complete or self._parser is None or self._sink is None:
            return
        status = self._parser.get_status_code()
        if status < 200:
            self._headers = []
            return
        self._status = status
        self._arm()
        self._sink.answer_began(status, self._headers)

    def on_body(self, chunk: bytes) -> None:
        """Hand a piece on."""
        if self._sink is not None and not self._is_complete:
            self._sink.answer_continued(chunk)

    def on_message_complete(self) -> None:
        """Note the end; it is told when the read that brought it has been handed over."""
        if self._status and self._parser is not None and not self._is_complete:
            self._is_complete = True
            self._is_reusable = self._parser.should_keep_alive()

    def _ends_with_connection(self) -> bool:
        names = {name for name, _ in self._headers}
        return not names & {"content-length", "transfer-encoding"} and self._status not in _NO_BODY_STATUSES
