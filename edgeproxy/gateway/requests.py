"""One request of a client, as far as the gateway looks at it, however its bytes came.

Most requests come whole, in one read and in plain form. `hygiene` has looked at every byte of those, so nothing is left
to be found out about them: they are taken apart here, and cost neither a parser nor a stream for their body. All others
are aiohttp's to parse, and hold what it found.
"""

import asyncio
import re
from collections.abc import Mapping
from typing import Any, Protocol, Self

from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from multidict import CIMultiDictProxy

_FIELD = re.compile(r"([^:]+):[ \t]*+([^\r]*+)\r\n")
_FOR_THE_PARSER = "sec-websocket-key1"  # aiohttp refuses it


class Relaying(Protocol):
    """Whoever writes an answer to a client has to hear of these."""

    def client_slow(self) -> None:
        """More is waiting for the client than should."""

    def client_ready(self) -> None:
        """The client took what was waiting."""

    def client_lost(self) -> None:
        """The client is gone."""


class Connected(Protocol):
    """What a request has to do with the connection on which it came. `relaying` is who hears of it."""

    transport: asyncio.Transport | None
    relaying: Relaying | None

    @property
    def peername(self) -> Any:
        """The address of the other end."""

    @property
    def writing_paused(self) -> bool:
        """Whether more is waiting for the client than should."""

    def abort(self) -> None:
        """Reset it, so that the client sees that the answer is not complete."""


class Request:
    """A request and where its body comes from: `whole` has all of it, or what has come is read from `content`.

    Names of headers are found in lower case.
    """

    __slots__ = (
        *("content", "content_length", "headers", "keep_alive", "method"),
        *("protocol", "raw_path", "version", "whole"),
    )

    def __init__(  # noqa: PLR0913 - what makes a request, one by one
        self,
        protocol: "Connected",
        method: str,
        raw_path: str,
        version: tuple[int, int],
        headers: Mapping[str, str],
        content: StreamReader,
        whole: bytes = b"",
        *,
        keep_alive: bool = True,
    ) -> None:
        self.protocol = protocol
        self.method = method
        self.raw_path = raw_path
        self.version = version
        self.headers = headers
        self.content = content
        self.whole = whole
        self.keep_alive = keep_alive
        length = headers.get("content-length")
        self.content_length = None if length is None else int(length)

    @classmethod
    def parsed(cls, protocol: "Connected", message: RawRequestMessage, content: StreamReader) -> Self:
        """Return what aiohttp found."""
        return cls(
            protocol,
            message.method,
            message.path,
            message.version,
            message.headers,
            content,
            keep_alive=not message.should_close,
        )

    @classmethod
    def refused(cls, protocol: "Connected", content: StreamReader) -> Self:
        """Return what stands for something that could not be read: an error is the answer to it, and the last one."""
        return cls(protocol, "UNKNOWN", "/", (1, 0), {}, content, keep_alive=False)

    @classmethod
    def plain(cls, protocol: "Connected", data: bytes, head_bytes: int) -> Self | None:
        """Return the request that these bytes are, None where the parser has a word in it.

        They have to be one whole request that `hygiene.Limits.plain` accepts. What stands twice in a head is the
        parser's: some of it may, some may not. So are spaces at the end of a value.
        """
        start, _, fields = data[: head_bytes - 2].decode("utf-8", "surrogateescape").partition("\r\n")
        found = _FIELD.findall(fields)
        headers = {name.lower(): value for name, value in found}
        if len(headers) < len(found) or _FOR_THE_PARSER in headers or " \r" in fields or "\t\r" in fields:
            return None
        method, path, _ = start.split(" ")
        return cls(protocol, method, path, (1, 1), headers, EMPTY_PAYLOAD, data[head_bytes:])

    @property
    def transport(self) -> asyncio.Transport | None:
        """The way back to the client; None when it is gone."""
        return self.protocol.transport

    @property
    def remote(self) -> str:
        """The address of whoever is at the other end of the connection, "" where it has none."""
        peer = self.protocol.peername
        return str(peer[0]) if isinstance(peer, tuple) else ""

    @property
    def is_read(self) -> bool:
        """Whether all of the body has come and was taken."""
        return not self.whole and self.content.at_eof()

    def values(self, name: str) -> list[str]:
        """Return a header as often as it stands in the head."""
        if isinstance(self.headers, CIMultiDictProxy):
            return self.headers.getall(name, [])
        return [self.headers[name]] if name in self.headers else []

    def take(self) -> bytes:
        """Return what of the body is here and was not taken yet, which may be nothing. Raises what became of it."""
        if self.whole:
            taken, self.whole = self.whole, b""
            return taken
        return self.content.read_nowait()

    def _cancel(self, error: BaseException) -> None:
        """Tell who reads the body that the rest will not come. aiohttp calls this by its name."""
        self.content.set_exception(error)
