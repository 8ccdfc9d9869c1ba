"""The client's side of the wire: aiohttp's low-level server, with the loop over requests and their answers left to us.

aiohttp keeps connections and parses what is not plain (see `requests`); it sees only what `hygiene` lets pass. What
goes back is written straight to the transport, so that a chunk of an answer costs one write. aiohttp's own error pages
and logs, which quote what they choke on, are never reached.

Time limits of a connection: aiohttp's own timer closes an idle one. A second one runs only when something is late: a
head that has begun and is not complete, or an answer that waits for its client.
"""

import asyncio
import socket
import struct
import sys
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, cast

from aiohttp import web
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web import PayloadAccessError, RequestPayloadError
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from edgeproxy import logs
from edgeproxy.config import Bounds
from edgeproxy.errors import BAD_HTTP, HEAD_TIMEOUT, OVERLOADED, ErrorKind, GatewayError
from edgeproxy.gateway.answers import Written, encode_head, write
from edgeproxy.gateway.hygiene import Limits, Sieve
from edgeproxy.gateway.requests import Relaying, Request
from edgeproxy.metrics import Metrics

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: on, for no time: closing sends RST instead of FIN
_LINGER_S = 5.0  # how long the rest of what is refused is read, so that its sender sees the answer
_MAX_TURNED_AWAY = 1000  # connections beyond the bound that are being told so
_TURN_AWAY_S = 1.0  # how long that may take
_ACKED_AT = 120  # tcpi_bytes_acked in Linux' struct tcp_info (linux/tcp.h), 8 bytes
_WRITE_BUFFER_BYTES = 64 * 1024  # for one client; over TLS a transport would hold eight times as much by itself


Handle = Callable[[Request], Awaitable[Written]]


class ClientConnection(RequestHandler):
    """One client's connection."""

    __slots__ = (
        "_bounds",
        "_head_until",
        "_is_refused",
        "_metrics",
        "_newest_body",
        "_sieve",
        "_slow_until",
        "_taken_bytes",
        "_timer",
        "_wire",
        "relaying",
    )

    def __init__(self, *arguments: Any, bounds: Bounds, limits: Limits, metrics: Metrics, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._bounds = bounds
        self._metrics = metrics
        self._sieve = Sieve(limits)
        self._is_refused = False  # nothing that still comes is read
        self._newest_body: StreamReader = EMPTY_PAYLOAD  # of the request that came last
        self._wire: asyncio.Transport | None = None  # to the end: aiohttp forgets it when it closes
        self._timer: asyncio.TimerHandle | None = None
        self._head_until = 0.0  # of the loop's clock; 0 when no head is incomplete
        self._slow_until = 0.0  # 0 when nothing waits for the client
        self._taken_bytes = 0
        self.relaying: Relaying | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Serve it within bounds, unless as many as may be are open."""
        self._wire = cast("asyncio.Transport", transport)
        self._wire.set_write_buffer_limits(_WRITE_BUFFER_BYTES)
        server = cast("Server", self._manager)
        if server.may_open():
            super().connection_made(transport)
            return
        self._is_refused = True
        self._metrics.connections_refused.labels("full").inc()
        server.turn_away(self._wire)

    def eof_received(self) -> None:
        """Take a client that will send nothing more for one that left.

        Should it listen on, an orderly close would show it a part of an answer as the whole.
        """
        super().eof_received()
        if self.relaying is not None:
            self.abort()

    def data_received(self, data: bytes) -> None:
        """Parse what is fit to be parsed."""
        if not data:  # aiohttp goes on with what its parser put by
            super().data_received(data)
            self._note_messages()
        if not data or self._is_refused:
            return
        passed = self._sieve.feed(data)
        if self._sieve.plain_bytes and self._takes_plain(data):
            return
        if passed:
            super().data_received(passed)
            self._note_messages()
        if self._sieve.refusal is not None and not self._is_refused:
            self._metrics.malformed.labels(self._sieve.refusal.name).inc()
            self._refuse(self._sieve.refusal.kind, breaks_body=self._sieve.is_in_body)
        if not self._sieve.holds_head:
            self._head_until = 0.0  # a timer that still runs finds nothing to do
        elif passed or not self._head_until:
            self._head_until = self._loop.time() + self._bounds.head_timeout_ms / 1000
            self._set_timer()

    def _takes_plain(self, data: bytes) -> bool:
        """Take one whole request, if one is waited for: then aiohttp's parser is between two requests, and stays so."""
        waiter = self._waiter
        if waiter is None or waiter.done() or self._messages:
            return False
        request = Request.plain(self, data, self._sieve.plain_bytes)
        if request is None:
            return False
        self._newest_body = EMPTY_PAYLOAD
        self._head_until = 0.0
        self._messages.append((request, EMPTY_PAYLOAD))  # type: ignore[arg-type]  # `_answer_next` knows both
        waiter.set_result(None)
        return True

    def _note_messages(self) -> None:
        """Remember whose body is coming. What the parser did not take for HTTP is no more read than what we did not."""
        if not self._messages or self._is_refused:
            return
        message, body = self._messages[-1]
        if isinstance(message, _ErrInfo):
            self._messages.pop()
            self._metrics.malformed.labels("parser").inc()
            self._refuse(BAD_HTTP, breaks_body=True)
        else:
            self._newest_body = body

    def _refuse(self, kind: ErrorKind, *, breaks_body: bool = False) -> None:
        """Answer what cannot be read, after the requests before it, and read no more.

        Where it is the body of a request, who is reading it hears of it, and answers.
        """
        self._is_refused = True
        if breaks_body and not self._newest_body.is_eof() and self._newest_body.exception() is None:
            self._newest_body.set_exception(RequestPayloadError())
        self._newest_body = StreamReader(self, self._read_bufsize, loop=self._loop)
        error = _ErrInfo(status=kind.status, exc=GatewayError(kind), message="")
        self._messages.append((error, self._newest_body))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def pause_writing(self) -> None:
        """Pass it on: the transport holds enough."""
        super().pause_writing()
        self._watch_taking()
        if self.relaying is not None:
            self.relaying.client_slow()

    def resume_writing(self) -> None:
        """Pass it on: the transport has room again."""
        super().resume_writing()
        if self.relaying is not None:
            self.relaying.client_ready()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Pass it on: the client is gone."""
        if self._timer is not None:
            self._timer.cancel()
        self._head_until = self._slow_until = 0.0
        self._wire = None
        if self._waiter is not None and self._waiter.done() and self._task_handler is not None:
            self._task_handler.cancel()  # for a request of this very turn aiohttp calls what it forgets now
        super().connection_lost(exc)
        if self._is_refused:
            self._newest_body.feed_eof()  # it has seen the answer, or never will
        if self.relaying is not None:
            self.relaying.client_lost()

    # --- one request after another

    async def start(self) -> None:
        """Answer requests until the connection closes. aiohttp's own way makes a task and two objects for each."""
        handle = cast("Handle", self._request_handler)
        loop = self._loop
        while not self._force_close:
            if not self._messages:
                self._waiter = loop.create_future()
                try:
                    await self._waiter
                finally:
                    self._waiter = None
            try:
                is_kept = await self._answer_next(handle)
            except asyncio.CancelledError:
                self.force_close()
                raise
            except Exception as error:  # noqa: BLE001 - the last resort: it ends one connection, not the worker
                self.log_exception(exc_info=error)
                self.force_close()
                return
            if not is_kept or self._close:
                break
            self._next_keepalive_close_time = loop.time() + self._keepalive_timeout
            if self._keepalive_handle is None:
                self._keepalive_handle = loop.call_at(self._next_keepalive_close_time, self._process_keepalive)
        if not self._force_close:
            self._task_handler = None
            if self.transport is not None:
                self.transport.close()

    async def _answer_next(self, handle: Handle) -> bool:
        """Answer the request that came first; return whether there may be another."""
        messages: deque[Any] = self._messages  # of aiohttp's, and of `_takes_plain`'s
        message, content = messages.popleft()
        if isinstance(message, Request):
            request = message
        else:
            self._make_room()
            if isinstance(message, _ErrInfo):
                request = Request.refused(self, content)
            else:
                request = Request.parsed(self, message, content)
        self._request_in_progress = True
        self._current_request = request  # type: ignore[assignment]  # of which aiohttp only calls `_cancel`
        try:
            written = self._explain(request, message) if isinstance(message, _ErrInfo) else await handle(request)
            self._current_request = None
            if self._is_refused or (self.transport is not None and self.transport.get_write_buffer_size()):
                await self._answered(request)
        except ConnectionError:
            return False
        finally:
            self._current_request = None
            self._request_in_progress = False
            if self._handler_waiter is not None:
                self._handler_waiter.set_result(None)
        self._keepalive = written.keep_alive
        if content is not EMPTY_PAYLOAD:
            await self._read_rest(content)
        return written.keep_alive

    def _make_room(self) -> None:
        """Let the parser go on with requests that it has put by, now that one less waits."""
        if self._parser is not None:
            self._parser.message_consumed()
        if self._buffer_paused and len(self._messages) <= self._msg_queue_resume_size:
            self._resume_reading_if_drained()

    async def _answered(self, request: Request) -> None:
        """Return when the client has taken most of the answer: answers must not pile up. Raises ConnectionError.

        From a client that was refused, read on for a while and drop it: closing at once could destroy the answer.
        """
        if self.transport is not None and self.transport.get_write_buffer_size():
            self._watch_taking()
            await self._drain_helper()
        if self._is_refused and not request.content.is_eof():
            with suppress(TimeoutError):
                async with asyncio.timeout(_LINGER_S):
                    await self._newest_body.wait_eof()
            self._newest_body.feed_eof()

    async def _read_rest(self, content: StreamReader) -> None:
        """Read what still comes of a body that nobody needed, and after it, until its sender has seen the answer.

        For a while: the answer has told that this connection ends.
        """
        if not content.is_eof() and not self._force_close:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LINGER_S):
                    while not content.is_eof():
                        await content.readany()
                    if self.transport is not None and self.transport.can_write_eof():
                        self.transport.write_eof()  # as RFC 9112, 9.6 says: close in two steps
                        self._is_refused = True
                        self._newest_body = StreamReader(self, self._read_bufsize, loop=self._loop)
                        await self._newest_body.wait_eof()
            self.close()
        content.set_exception(PayloadAccessError())

    # --- time limits: one timer, set to the earliest moment at which one of them can be exceeded

    def _watch_taking(self) -> None:
        """Something waits for the client: from now on it has to be taken."""
        if self._wire is not None and not self._slow_until:
            self._taken_bytes = _acknowledged_bytes(self._wire)
            self._slow_until = self._loop.time() + self._bounds.client_slow_ms / 1000
            self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        due = min((each for each in (self._head_until, self._slow_until) if each), default=None)
        self._timer = None if due is None else self._loop.call_at(due, self._check_time)

    def _check_time(self) -> None:
        now = self._loop.time()
        if 0 < self._head_until <= now:
            self._check_head(now)
        if 0 < self._slow_until <= now:
            self._check_taking(now)
        self._set_timer()

    def _check_head(self, now: float) -> None:
        if self._reading_paused or self._buffer_paused:  # late because we do not listen
            self._head_until = now + self._bounds.head_timeout_ms / 1000
        else:
            self._head_until = 0.0
            self._refuse(HEAD_TIMEOUT)

    def _check_taking(self, now: float) -> None:
        """Disconnect a client for which an answer waits, and which took too little of it."""
        self._slow_until = 0.0
        if self._wire is None or not self._wire.get_write_buffer_size():
            return
        taken = _acknowledged_bytes(self._wire)
        window_s = self._bounds.client_slow_ms / 1000
        if taken - self._taken_bytes < self._bounds.min_bytes_per_s * window_s:
            self._metrics.slow_clients.inc()
            _reset(self._wire)
        else:
            self._taken_bytes, self._slow_until = taken, now + window_s

    def _process_keepalive(self) -> None:
        """Close when it is idle: not in the middle of a head, for which there is a limit of its own."""
        self._next_keepalive_close_time = max(self._next_keepalive_close_time, self._head_until)
        super()._process_keepalive()

    def force_close(self) -> None:
        """Close at once; an answer that this cuts off must not look whole."""
        if self.relaying is not None:
            self.abort()
        super().force_close()

    async def shutdown(self, timeout: float | None = 15.0) -> None:  # noqa: ASYNC109 - aiohttp's
        """Wait `timeout` seconds for an open answer. aiohttp waits as long a second time, so each time gets half."""
        await super().shutdown(None if timeout is None else timeout / 2)

    def abort(self) -> None:
        """Reset the connection, so that the client sees that the answer is not complete.

        An ordinary close would look like the end of an answer that ends with its connection.
        """
        if self.transport is not None:
            _reset(self.transport)

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Log that something failed, and of what type."""
        error = kw.get("exc_info")
        if isinstance(error, RequestPayloadError):  # of a body that nobody needed
            return
        logs.event("connection_failed", error=type(error).__name__)

    def _explain(self, request: Request, fault: _ErrInfo) -> Written:
        """Answer what cannot be read as HTTP with one fixed body; the connection is of no use any more."""
        kind = fault.exc.kind if isinstance(fault.exc, GatewayError) else BAD_HTTP
        self._metrics.refusals.labels(kind.code).inc()
        return write(request, kind.status, [("content-type", "text/plain")], _page(kind))


def _page(kind: ErrorKind) -> bytes:
    return f"{kind.message}\n".encode()


def _reset(transport: asyncio.Transport) -> None:
    """Close at once, so that the other side sees that it did not get everything."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport.abort()


def _acknowledged_bytes(transport: asyncio.Transport) -> int:
    """Return how many bytes the other side has taken so far. What waits in the kernel could be megabytes."""
    info = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ACKED_AT + 8)
    return int.from_bytes(info[_ACKED_AT:], sys.byteorder)


class Server(web.Server):
    """Makes a `ClientConnection` for every client."""

    def __init__(self, handler: Handle, bounds: Bounds, metrics: Metrics) -> None:
        super().__init__(cast("Any", handler))  # called by `ClientConnection.start` alone
        self._metrics = metrics
        self._turned_away = 0
        self.use(bounds)

    def use(self, bounds: Bounds) -> None:
        """Hold connections that come from now on to these bounds; those that are open keep theirs."""
        self._bounds = bounds
        self._limits = Limits(bounds.max_header_bytes, bounds.max_headers)
        self._kwargs = {
            "logger": logs.silent(),
            "access_log": None,
            "auto_decompress": False,
            "keepalive_timeout": bounds.keepalive_ms / 1000,
            "lingering_time": _LINGER_S,
            "max_line_size": bounds.max_header_bytes,
            "max_field_size": bounds.max_header_bytes,
            "max_headers": bounds.max_headers,
        }

    def __call__(self) -> ClientConnection:
        """Make the protocol of a new connection."""
        loop = asyncio.get_running_loop()
        return ClientConnection(
            self, loop=loop, bounds=self._bounds, limits=self._limits, metrics=self._metrics, **self._kwargs
        )

    def may_open(self) -> bool:
        """Whether one more connection can be served."""
        return len(self._connections) < self._bounds.max_client_connections

    def turn_away(self, transport: asyncio.Transport) -> None:
        """Tell a client that there is no room, if there is room for that."""
        if self._turned_away >= _MAX_TURNED_AWAY:
            transport.abort()
            return
        body = _page(OVERLOADED)
        headers = [("content-type", "text/plain"), ("retry-after", "1"), ("content-length", str(len(body)))]
        transport.write(encode_head(OVERLOADED.status, headers, keep_alive=False) + body)
        if transport.can_write_eof():
            transport.write_eof()
        self._turned_away += 1
        asyncio.get_running_loop().call_later(_TURN_AWAY_S, self._let_go, transport)

    def _let_go(self, transport: asyncio.Transport) -> None:
        self._turned_away -= 1
        transport.abort()

    async def shutdown(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - aiohttp's
        """Close idle connections now, the others when their answers are over, after `timeout` seconds at the latest."""
        self.pre_shutdown()
        await super().shutdown(timeout)
