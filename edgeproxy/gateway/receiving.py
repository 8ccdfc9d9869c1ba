"""Takes in the body of a request, within bounds. It is held in memory until it has been sent on, and nowhere else.

A JSON body is read as a whole, because it says what the request may cost. Of a form only the beginning is held, as far
as the model's name; what follows, such as a recording, is handed on as it comes.

A body may be late in three ways: silent, slow, or long in coming. Only time in which somebody waited for the client
counts: a provider that is slow in taking an upload does not make its client late. One timer serves all three.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from aiohttp import ClientError, web
from aiohttp.web import RequestPayloadError

from edgeproxy.config import Bounds
from edgeproxy.errors import (
    BAD_HTTP,
    BODY_TIMEOUT,
    BODY_TOO_LARGE,
    OVERLOADED,
    UNSUPPORTED_ENCODING,
    GatewayError,
)
from edgeproxy.gateway.requests import Request
from edgeproxy.providers.multipart import FormScanner

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_RETRY_MS = 1000
_HEAD_START_S = 10.0  # before the rate of a body is looked at


def _never(_chunk: bytes) -> bool:
    return False


class ClientGoneError(Exception):
    """The client left; there is nobody to answer."""


class Bodies:
    """All request bodies that this worker holds; together they stay under a bound."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self.held_bytes = 0

    def read_whole(self, request: Request, body: "Body") -> None:
        """Do what `read` does for a body that came whole, where nothing has to be waited for. Raises GatewayError."""
        self._begin(request)
        content, request.whole = request.whole, b""
        size = len(content)
        if size > self._bounds.max_body_bytes:
            raise GatewayError(BODY_TOO_LARGE)
        if self.held_bytes + size > self._bounds.max_buffered_bytes:
            raise GatewayError(OVERLOADED, retry_after_ms=_RETRY_MS)
        self.held_bytes += size
        body.has_begun, body.content, body.size, body.received = True, content, size, size

    async def read(self, request: Request, body: "Body", is_enough: Callable[[bytes], bool] = _never) -> None:
        """Read into `body` until `is_enough`, which is shown each chunk, says so; without it, to the end.

        Raises GatewayError: 413 as soon as it is known to be too large, 408, 415, 503, 400 for broken framing; and
        ClientGoneError.
        """
        parts = []
        while chunk := await self.next_chunk(request, body):  # ends: every chunk counts against the bound
            self.change(len(chunk))
            body.size += len(chunk)
            parts.append(chunk)
            if is_enough(chunk):
                break
        body.content = parts[0] if len(parts) == 1 else b"".join(parts)

    async def next_chunk(self, request: Request, body: "Body") -> bytes:
        """Return what came next, without holding it; b"" at the end. Raises as `read` does."""
        if not body.has_begun:
            self._begin(request)
            body.has_begun = True
        try:
            # Mostly it is here already, and nothing has to be waited for.
            chunk = request.take() or await self._wait(request, body)
        except TimeoutError:
            raise GatewayError(BODY_TIMEOUT) from None
        except (OSError, ClientError):
            raise ClientGoneError from None
        except (RequestPayloadError, web.PayloadAccessError):
            if request.transport is None:
                raise ClientGoneError from None
            raise GatewayError(BAD_HTTP) from None
        body.received += len(chunk)
        if body.received > self._bounds.max_body_bytes:
            raise GatewayError(BODY_TOO_LARGE)
        return chunk

    async def _wait(self, request: Request, body: "Body") -> bytes:
        """Return what comes next, b"" at the end. Raises TimeoutError when it is late."""
        if request.is_read:
            return b""
        bounds = self._bounds
        time = asyncio.get_running_loop().time
        slow_s = _HEAD_START_S + body.received / bounds.min_bytes_per_s
        left_s = min(slow_s, bounds.body_timeout_ms / 1000) - body.waited_s
        since = time()
        async with asyncio.timeout_at(since + min(left_s, bounds.body_silence_ms / 1000)):
            chunk = await request.content.readany()
        body.waited_s += time() - since
        return chunk

    def _begin(self, request: Request) -> None:
        """Refuse what is known to be of no use, before any of it is read; then ask for it, where that is waited for."""
        headers = request.headers
        if "content-encoding" in headers and headers["content-encoding"].lower() != "identity":
            raise GatewayError(UNSUPPORTED_ENCODING)
        if (request.content_length or 0) > self._bounds.max_body_bytes:
            raise GatewayError(BODY_TOO_LARGE)
        # RFC 9110, 10.1.1: not for 1.0, and not needed when the body is on its way already.
        is_asked = "expect" in headers and headers["expect"].lower() == "100-continue" and request.version >= (1, 1)
        if is_asked and not request.whole and not request.content.total_bytes and request.transport is not None:
            request.transport.write(_CONTINUE)

    def change(self, size: int) -> None:
        """Take `size` more bytes, or give them back. Raises GatewayError (503) when it would be too much."""
        if self.held_bytes + size > self._bounds.max_buffered_bytes:
            raise GatewayError(OVERLOADED, retry_after_ms=_RETRY_MS)
        self.held_bytes += size


class Body:
    """One request's body while it is held, and how much it takes: given back when the block ends that it is for."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self.content = b""
        self.size = 0
        self.received = 0  # bytes that came, those that are not held included
        self.has_begun = False
        self.waited_s = 0.0  # for the client, altogether

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def take(self) -> bytes:
        """Return the content, which is in memory until `release`, although not here."""
        content, self.content = self.content, b""
        return content

    def release(self) -> None:
        """Hold nothing any more, and give back what it took."""
        self.content = b""
        if self.size:
            self._bodies.held_bytes -= self.size
            self.size = 0


@dataclass(frozen=True, slots=True)
class Upload:
    """The part of a body that is not held, but handed on as it comes. A form is read along, and may be refused."""

    bodies: Bodies
    request: Request
    body: Body
    form: FormScanner | None
    is_chunked: bool  # its length is not known beforehand

    async def next_piece(self) -> bytes:
        """Return what to send next, framed for HTTP; b"" when nothing is left. Raises as `Bodies.read` does.

        The last piece of a form is given out only when the form has been found to be whole: with it, the provider has
        all of the request.
        """
        chunk = await self.bodies.next_chunk(self.request, self.body)
        if self.form is not None and chunk:
            self.form.feed(chunk)
        if self.form is not None and self.request.is_read:
            self.form.end()
        return self.framed(chunk)

    def framed(self, chunk: bytes) -> bytes:
        """Return a chunk as it is sent."""
        return b"%x\r\n%b\r\n" % (len(chunk), chunk) if self.is_chunked and chunk else chunk
