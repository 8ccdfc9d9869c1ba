"""How an answer leaves: at its pace, in its pieces, and broken off where the request asked for it.

An answer that breaks off closes its connection and leaves the response unfinished, which is exactly what a dying
provider does; the HTTP server then finds the connection closed and has nothing to add.
"""

import asyncio
import socket
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from aiohttp import web

from edgeproxy.mock_provider.directives import Behaviour, Fault, FaultKind
from edgeproxy.mock_provider.endpoint import Bill

GARBAGE = b"\x00\xff\xfe{]garbage\r\n\r\ndata: {\n" * 8

_ODD_SIZES = (1, 2, 3, 5, 7, 11, 13, 61)  # bytes per write under `split`
_STALL_MAX_S = 600.0  # a stalled answer whose client never leaves ends all the same
_POLL_S = 0.02  # how often a buffer is looked at that is to be empty before a reset
_FLUSH_POLLS = 100  # after two seconds the reset comes all the same


@dataclass(frozen=True, slots=True)
class Answer:
    """What is to be sent. `pieces` are whole events of a stream, or slices of a body."""

    status: int
    headers: dict[str, str]
    pieces: Iterable[bytes]
    bill: Bill = field(default_factory=dict)
    error_event: bytes = b""


async def deliver(
    request: web.Request, answer: Answer, behaviour: Behaviour, interval_s: float
) -> tuple[web.StreamResponse, bool]:
    """Send the answer. Returns the response, and whether its last byte was handed to the transport."""
    response = web.StreamResponse(status=answer.status, headers=answer.headers)
    # A recording may be compressed already, as it travelled.
    compressor = None if "content-encoding" in response.headers else _compressor(request, behaviour)
    if compressor:
        response.headers["content-encoding"] = "gzip"
    delivery = _Delivery(request, response, answer, behaviour, compressor)
    try:
        await response.prepare(request)
        complete = await delivery.send(interval_s)
    except ConnectionError:  # the client left
        complete = False
    return response, complete


def close_without_answer(request: web.Request, raw: bytes = b"") -> web.StreamResponse:
    """Close the connection with no response, or with bytes that are none. Returns what a handler has to return."""
    if request.transport:
        request.transport.write(raw)
        request.transport.close()
    return web.Response()  # finds the connection closed


@dataclass(frozen=True, slots=True)
class _Delivery:
    """One answer on its way out."""

    request: web.Request
    response: web.StreamResponse
    answer: Answer
    behaviour: Behaviour
    compressor: "_Gzip | None"

    async def send(self, interval_s: float) -> bool:
        """Send every piece, or break off where the fault says; return whether the answer is complete."""
        behaviour, fault = self.behaviour, self.behaviour.fault
        sent = 0
        for piece in [b"".join(self.answer.pieces)] if behaviour.burst else self.answer.pieces:
            if fault and sent == fault.after:
                if behaviour.half:
                    await self._write(piece[: len(piece) // 2])
                await self._break_off(fault)
                return False
            if sent and interval_s:
                await asyncio.sleep(interval_s)
            for part in _odd_parts(piece) if behaviour.split else (piece,):
                await self._write(part)
            sent += 1
        if fault and sent == fault.after:
            await self._break_off(fault)
            return False
        await self._write_end()
        return True

    async def _write(self, part: bytes) -> None:
        await self.response.write(self.compressor.part(part) if self.compressor else part)

    async def _write_end(self) -> None:
        await self.response.write_eof(self.compressor.end() if self.compressor else b"")

    async def _break_off(self, fault: Fault) -> None:
        transport = self.request.transport
        if transport is None:
            return
        match fault.kind:
            case FaultKind.END:
                await self._write_end()
            case FaultKind.ERROR:
                await self._write(self.answer.error_event)
                await self._write_end()
            case FaultKind.CLOSE:
                transport.close()
            case FaultKind.FRAMING:
                await _flushed(transport)
                transport.write(b"not-a-number\r\nxx\r\n")
                transport.close()
            case FaultKind.STALL:
                await asyncio.sleep(_STALL_MAX_S)  # cancelled when the client leaves
                transport.close()
            case FaultKind.CUT:
                await _flushed(transport)
                _reset(transport)


async def _flushed(transport: asyncio.WriteTransport) -> None:
    """Wait until what was written has left, so that the fault cannot overtake it."""
    for _ in range(_FLUSH_POLLS):
        await asyncio.sleep(_POLL_S)  # at least once: it also overtakes what the peer has not read yet
        if not transport.get_write_buffer_size():
            return


def _reset(transport: asyncio.WriteTransport) -> None:
    """Make the close a TCP reset: with a linger time of zero the kernel sends RST instead of FIN."""
    connection: socket.socket | None = transport.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def _odd_parts(piece: bytes) -> Iterator[bytes]:
    start = turn = 0
    while start < len(piece):
        size = _ODD_SIZES[turn % len(_ODD_SIZES)]
        yield piece[start : start + size]
        start += size
        turn += 1


class _Gzip:
    """Compression that hands out every piece at once, as a provider that streams compressed events does."""

    __slots__ = ("_stream",)

    def __init__(self) -> None:
        self._stream = zlib.compressobj(wbits=31)  # 31 = gzip header and trailer

    def part(self, piece: bytes) -> bytes:
        return self._stream.compress(piece) + self._stream.flush(zlib.Z_SYNC_FLUSH)

    def end(self) -> bytes:
        return self._stream.flush(zlib.Z_FINISH)


def _compressor(request: web.Request, behaviour: Behaviour) -> _Gzip | None:
    return _Gzip() if behaviour.gzip and "gzip" in request.headers.get("accept-encoding", "") else None
