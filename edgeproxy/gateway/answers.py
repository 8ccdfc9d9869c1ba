"""Heads of answers, and whole answers of ours, as they are written to a client."""

from dataclasses import dataclass
from http import HTTPStatus

from edgeproxy.gateway.requests import Request
from edgeproxy.providers.base import Headers

_REASONS = {status.value: status.phrase for status in HTTPStatus}


@dataclass(slots=True)
class Written:
    """An answer is on the wire. `keep_alive` says whether the connection may carry another request."""

    keep_alive: bool


def write(request: Request, status: int, headers: Headers, body: bytes) -> Written:
    """Write a whole answer of ours."""
    # What of the request was not read cannot be told from the next one.
    is_read = request.content.is_eof()
    keep_alive = request.keep_alive and is_read
    head = encode_head(status, [*headers, ("content-length", str(len(body)))], keep_alive=keep_alive)
    if request.transport is not None:
        request.transport.write(head + (b"" if request.method == "HEAD" else body))
        if not is_read and request.transport.can_write_eof():
            request.transport.write_eof()  # RFC 9112, 9.6: close in two steps, or the answer may be lost
    return Written(keep_alive=keep_alive)


def encode_head(status: int, headers: Headers, *, keep_alive: bool) -> bytes:
    """Return the status line and the headers of an answer, up to and with the empty line."""
    head = f"HTTP/1.1 {status} {_REASONS.get(status, '')}\r\n"
    for name, value in headers:
        head += f"{name}: {value}\r\n"
    head += "connection: keep-alive\r\n\r\n" if keep_alive else "connection: close\r\n\r\n"
    return head.encode("utf-8", "surrogateescape")
