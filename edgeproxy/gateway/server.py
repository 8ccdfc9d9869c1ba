"""The client's side of the wire: aiohttp's low-level server, with the answer's bytes left to us.

aiohttp parses requests and keeps connections; what goes back is written straight to the transport, so that a chunk of
an answer costs one write. aiohttp's own error pages and logs, which quote what they choke on, are never reached.
"""

import asyncio
import logging
import socket
import struct
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, Protocol

from aiohttp import web
from aiohttp.web import RequestPayloadError
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from edgeproxy import logs
from edgeproxy.config import Bounds
from edgeproxy.errors import BAD_HTTP
from edgeproxy.metrics import Metrics
from edgeproxy.providers.base import Headers

# What aiohttp would log is made of the request's own bytes.
_SILENT = logging.Logger("edgeproxy.silent")  # noqa: LOG001 - outside the hierarchy on purpose: it has no handler
_SILENT.disabled = True

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: on, for no time: closing sends RST instead of FIN
_LINGER_S = 5.0  # how long the rest of a refused upload is read, so that its sender sees the answer
_REASONS = {status.value: status.phrase for status in HTTPStatus}


class Relaying(Protocol):
    """Whoever writes an answer to a client has to hear of these."""

    def client_slow(self) -> None:
        """More is waiting for the client than should."""

    def client_ready(self) -> None:
        """The client took what was waiting."""

    def client_lost(self) -> None:
        """The client is gone."""


class ClientConnection(RequestHandler):
    """One client's connection."""

    __slots__ = ("_metrics", "relaying")

    def __init__(self, *arguments: Any, metrics: Metrics, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._metrics = metrics
        self.relaying: Relaying | None = None

    def data_received(self, data: bytes) -> None:
        """Parse; when the framing of a body turns out to be broken, tell who is reading it, which aiohttp does not."""
        super().data_received(data)
        request = self._current_request
        if request is not None and self._messages and isinstance(self._messages[-1][0], _ErrInfo):
            content = request.content
            if not content.is_eof() and content.exception() is None:
                content.set_exception(RequestPayloadError())

    def pause_writing(self) -> None:
        """Pass it on: the transport holds enough."""
        super().pause_writing()
        if self.relaying is not None:
            self.relaying.client_slow()

    def resume_writing(self) -> None:
        """Pass it on: the transport has room again."""
        super().resume_writing()
        if self.relaying is not None:
            self.relaying.client_ready()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Pass it on: the client is gone."""
        super().connection_lost(exc)
        if self.relaying is not None:
            self.relaying.client_lost()

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
        if self.transport is None:
            return
        sock = self.transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.transport.abort()

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Log that something failed, and of what type."""
        error = kw.get("exc_info")
        logs.event("connection_failed", error=type(error).__name__)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is not HTTP with one fixed body; the connection is of no use any more."""
        self._metrics.refusals.labels(BAD_HTTP.code).inc()
        body = f"{BAD_HTTP.message}\n".encode()
        return write(request, 400, [("content-type", "text/plain")], body, close=True)


class Server(web.Server):
    """Makes a `ClientConnection` for every client."""

    def __init__(
        self, handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]], bounds: Bounds, metrics: Metrics
    ) -> None:
        super().__init__(
            handler,
            logger=_SILENT,
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=bounds.keepalive_ms / 1000,
            lingering_time=_LINGER_S,
            max_line_size=bounds.max_header_bytes,
            max_field_size=bounds.max_header_bytes,
        )
        self._metrics = metrics

    def __call__(self) -> ClientConnection:
        """Make the protocol of a new connection."""
        return ClientConnection(self, loop=asyncio.get_running_loop(), metrics=self._metrics, **self._kwargs)

    async def shutdown(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - aiohttp's
        """Close idle connections now, the others when their answers are over, after `timeout` seconds at the latest."""
        self.pre_shutdown()
        await super().shutdown(timeout)


class Written(web.StreamResponse):
    """Tells aiohttp that the answer is on the wire already."""

    def __init__(self, *, keep_alive: bool) -> None:
        super().__init__()
        self._keep_alive = keep_alive

    async def prepare(self, request: web.BaseRequest) -> None:
        """Nothing is left to prepare."""

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing is left to write."""


def write(request: web.BaseRequest, status: int, headers: Headers, body: bytes, *, close: bool = False) -> Written:
    """Write a whole answer of ours. `close` ends the connection after it."""
    keep_alive = request.keep_alive and not close
    head = encode_head(status, [*headers, ("content-length", str(len(body)))], keep_alive=keep_alive)
    if request.transport is not None:
        request.transport.write(head + (b"" if request.method == "HEAD" else body))
    return Written(keep_alive=keep_alive)


def encode_head(status: int, headers: Headers, *, keep_alive: bool) -> bytes:
    """Return the status line and the headers of an answer, up to and with the empty line."""
    lines = [f"HTTP/1.1 {status} {_REASONS.get(status, '')}"]
    lines += [f"{name}: {value}" for name, value in headers]
    lines.append(f"connection: {'keep-alive' if keep_alive else 'close'}\r\n\r\n")
    return "\r\n".join(lines).encode("utf-8", "surrogateescape")
