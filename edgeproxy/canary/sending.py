"""Sends bytes and takes what comes back, without a library that would mend them. Answers are counted, not kept."""

import asyncio
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from edgeproxy.canary.requests import Sent
from edgeproxy.errors import OperatorError

_AT_ONCE = 32
_TIMEOUT_S = 30.0
_SILENCE_S = 1.5  # after which a connection to which no request was sent is taken to wait for more
_PAUSE_S = 0.5


@dataclass(slots=True)
class Sending:
    """Connections to the listeners (addresses by `api`, `web`, `metrics`), and the statuses of their answers.

    A connection that was closed without an answer counts as 0.
    """

    listeners: Mapping[str, str]
    statuses: Counter[int] = field(default_factory=Counter)
    while_halted: Callable[[], Awaitable[None]] | None = None
    _gate: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE))

    async def all(self, sent: Iterable[Sent]) -> None:
        """Send all of them, some at once, to their ends."""
        await asyncio.gather(*(self.one(each) for each in sent))

    async def one(self, sent: Sent, leaves_after: int = 0) -> None:
        """Send one request and read its answer; `leaves_after`: hang up when so many bytes have come."""
        if sent.listener not in self.listeners:
            return
        async with self._gate:
            status = 0
            with suppress(OSError, asyncio.IncompleteReadError, TimeoutError, ssl.SSLError):
                async with asyncio.timeout(_TIMEOUT_S):
                    status = await self._exchange(sent, leaves_after)
            self.statuses[status] += 1

    async def _exchange(self, sent: Sent, leaves_after: int) -> int:
        reader, writer = await self._connect(sent.listener)
        try:
            if sent.pauses_at:
                writer.write(sent.data[: sent.pauses_at])
                await writer.drain()
                await asyncio.sleep(_PAUSE_S)
                if self.while_halted is not None:
                    await self.while_halted()
            writer.write(sent.data[sent.pauses_at :])
            await writer.drain()
            patience_s = _SILENCE_S if sent.name.startswith("malformed") else _TIMEOUT_S
            head = await asyncio.wait_for(reader.read(1 << 16), patience_s)
            status = _status(head)
            left = leaves_after - len(head)
            while not leaves_after or left > 0:
                part = await asyncio.wait_for(reader.read(1 << 16), patience_s)
                if not part:
                    break
                left -= len(part)
            return status
        finally:
            writer.transport.abort()

    async def _connect(self, listener: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        parts = urlsplit(self.listeners[listener])
        secure = parts.scheme == "https"
        port = parts.port or (443 if secure else 80)
        return await asyncio.open_connection(parts.hostname, port, ssl=ssl.create_default_context() if secure else None)

    async def text(self, listener: str, path: str) -> bytes:
        """Return the answer to a plain GET, head and all. Raises OperatorError when nobody answers."""
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                reader, writer = await self._connect(listener)
                writer.write(f"GET {path} HTTP/1.1\r\nhost: canary.invalid\r\nconnection: close\r\n\r\n".encode())
                answer = await reader.read(-1)
                writer.close()
                return answer
        except (OSError, TimeoutError):
            raise OperatorError(f"nobody answers at {self.listeners[listener]}; check that it runs") from None


def _status(head: bytes) -> int:
    words = head.split(b" ", 2)
    return int(words[1]) if len(words) > 1 and words[0].startswith(b"HTTP/") and words[1].isdigit() else 0
