"""Opens a listener: over TLS, or in clear with a gate before it, which says who may come in and with what first words.

Loopback needs no gate, unless proxies are trusted or a PROXY header is wanted. What is turned away is closed before any
of it was read as HTTP, and counted; nothing of it is kept.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import cast

from edgeproxy.config import Settings
from edgeproxy.domain.peers import Peers
from edgeproxy.gateway.proxying import header_length
from edgeproxy.metrics import Metrics
from edgeproxy.tls import Certificates

_BACKLOG = 4096  # as the socket had before: `listen` sets it anew


async def open_listener(
    settings: Settings,
    name: str,
    sock: socket.socket,
    make: Callable[[], asyncio.Protocol],
    certificates: Certificates,
    metrics: Metrics,
) -> asyncio.Server:
    """Serve `api` or `web` on a socket, each connection with a protocol that `make` makes."""
    loop = asyncio.get_running_loop()
    timeout_s = settings.bounds.handshake_timeout_ms / 1000
    if certificates.context is not None:
        return await loop.create_server(
            make, sock=sock, backlog=_BACKLOG, ssl=certificates.context, ssl_handshake_timeout=timeout_s
        )
    wants_header = name == "api" and settings.listen.proxy_protocol
    if wants_header or settings.listen.trusted_proxies:
        peers = Peers(settings.listen.trusted_proxies)
        make = Gate(make, peers, metrics, timeout_s if wants_header else None)
    return await loop.create_server(make, sock=sock, backlog=_BACKLOG)


class Gate:
    """Makes what stands between a new connection and the protocol that will serve it."""

    def __init__(
        self, make: Callable[[], asyncio.Protocol], peers: Peers, metrics: Metrics, header_timeout_s: float | None
    ) -> None:
        """`header_timeout_s` is how long a PROXY header may take, None where there is none."""
        self.make = make
        self.peers = peers
        self.metrics = metrics
        self.header_timeout_s = header_timeout_s

    def __call__(self) -> asyncio.Protocol:
        """Make the protocol of a new connection."""
        return _Entering(self)


class _Entering(asyncio.Protocol):
    """A connection that is not in yet."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._header = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Turn strangers away; let a peer in, or wait for its header."""
        self._transport = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        if not peer or not self._gate.peers.may_speak_plain(peer[0]):
            self._refuse("untrusted_peer")
        elif self._gate.header_timeout_s is None:
            self._enter(b"")
        else:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._gate.header_timeout_s, self._refuse, "proxy_header")

    def data_received(self, data: bytes) -> None:
        """Take the header, and hand on what follows it."""
        if self._transport is None:
            return  # turned away
        self._header += data
        try:
            length = header_length(self._header)
        except ValueError:
            self._refuse("proxy_header")
            return
        if length is not None:
            self._enter(self._header[length:])

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._leave()

    def _enter(self, first: bytes) -> None:
        transport = self._leave()
        if transport is None:
            return
        protocol = self._gate.make()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        if first:
            protocol.data_received(first)

    def _refuse(self, reason: str) -> None:
        transport = self._leave()
        if transport is not None:
            self._gate.metrics.connections_refused.labels(reason).inc()
            transport.abort()

    def _leave(self) -> asyncio.Transport | None:
        if self._timer is not None:
            self._timer.cancel()
        transport, self._transport = self._transport, None
        return transport
