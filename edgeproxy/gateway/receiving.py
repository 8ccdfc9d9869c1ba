"""Takes in the body of a request, within bounds. It is held in memory until it has been sent on, and nowhere else."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

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

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_RETRY_MS = 1000


class ClientGoneError(Exception):
    """The client left; there is nobody to answer."""


class Bodies:
    """All request bodies that this worker holds; together they stay under a bound."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._held_bytes = 0

    @contextmanager
    def holding(self) -> Iterator["Body"]:
        """Hold one body; what it took is given back when the block ends."""
        body = Body(self)
        try:
            yield body
        finally:
            body.release()

    async def read(self, request: web.BaseRequest, body: "Body") -> None:
        """Read the whole body into `body`.

        Raises GatewayError: 413 as soon as it is known to be too large, 408, 415, 503, 400 for broken framing; and
        ClientGoneError.
        """
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise GatewayError(UNSUPPORTED_ENCODING)
        if (request.content_length or 0) > self._bounds.max_body_bytes:
            raise GatewayError(BODY_TOO_LARGE)
        if request.headers.get("expect", "").lower() == "100-continue" and request.transport is not None:
            request.transport.write(_CONTINUE)
        try:
            async with asyncio.timeout(self._bounds.body_timeout_ms / 1000):
                await self._read(request, body)
        except TimeoutError:
            raise GatewayError(BODY_TIMEOUT) from None
        except (OSError, ClientError):
            raise ClientGoneError from None
        except (RequestPayloadError, web.PayloadAccessError):
            if request.transport is None:
                raise ClientGoneError from None
            raise GatewayError(BAD_HTTP) from None

    async def _read(self, request: web.BaseRequest, body: "Body") -> None:
        parts = []
        while chunk := await request.content.readany():  # ends: every chunk counts against the bound
            self.change(len(chunk))
            body.size += len(chunk)
            if body.size > self._bounds.max_body_bytes:
                raise GatewayError(BODY_TOO_LARGE)
            parts.append(chunk)
        body.content = parts[0] if len(parts) == 1 else b"".join(parts)

    def change(self, size: int) -> None:
        """Take `size` more bytes, or give them back. Raises GatewayError (503) when it would be too much."""
        if self._held_bytes + size > self._bounds.max_buffered_bytes:
            raise GatewayError(OVERLOADED, retry_after_ms=_RETRY_MS)
        self._held_bytes += size


class Body:
    """One request's body while it is held, and how much it takes."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self.content = b""
        self.size = 0

    def take(self) -> bytes:
        """Return the content, which is in memory until `release`, although not here."""
        content, self.content = self.content, b""
        return content

    def release(self) -> None:
        """Hold nothing any more, and give back what it took."""
        self.content = b""
        self._bodies.change(-self.size)
        self.size = 0
