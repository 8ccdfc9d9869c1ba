"""Who may come in, and with what first words: over real sockets, before a protocol that tells what it gets."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from edgeproxy.config import Bounds, Listen, Settings
from edgeproxy.domain.peers import Peers
from edgeproxy.gateway.gate import Gate, open_listener
from edgeproxy.metrics import Metrics
from edgeproxy.tls import Certificates
from tests.support.certificates import make_pair
from tests.support.raw import Client

LINE = b"PROXY TCP4 203.0.113.77 192.0.2.1 51234 443\r\n"
BINARY = b"\r\n\r\n\0\r\nQUIT\n\x21\x11" + struct.pack("!H4s4sHH", 12, bytes([203, 0, 113, 77]), bytes(4), 51234, 443)
HEALTH = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"


class Echo(asyncio.Protocol):
    """Says what it is told."""

    made = 0

    def __init__(self) -> None:
        type(self).made += 1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(b"hello ")

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def eof_received(self) -> None:
        self.transport.close()


@pytest.fixture(autouse=True)
def _nobody_yet() -> None:
    Echo.made = 0


@asynccontextmanager
async def listening(
    listen: Listen, name: str = "api", host: str = "127.0.0.1", **bounds: int
) -> AsyncIterator[tuple[str, Metrics]]:
    sock, metrics = socket.create_server((host, 0)), Metrics()
    settings = replace(Settings(), listen=listen, bounds=replace(Bounds(), **bounds))
    server = await open_listener(settings, name, sock, Echo, Certificates(listen, name), metrics)
    try:
        yield f"http://{host}:{sock.getsockname()[1]}", metrics
    finally:
        server.close()


def refused(metrics: Metrics, reason: str) -> float:
    return metrics.registry.get_sample_value("edgeproxy_connections_refused_total", {"reason": reason}) or 0


async def everything(client: Client, most: int = 1000) -> bytes:
    """What comes until the connection ends, in whatever way, or is enough."""
    received = b""
    async with asyncio.timeout(10):
        try:
            while len(received) < most and (chunk := await client.reader.read(most)):
                received += chunk
        except ConnectionResetError:
            return received
    return received


@pytest.fixture
def own_address() -> str:
    """An address of this machine that is not loopback. No packet is sent for it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no address but loopback")
        return str(sock.getsockname()[0])


class Strangers(Peers):
    """Nobody is known."""

    def may_speak_plain(self, host: str) -> bool:
        return False


@pytest.mark.claims("OL-4a")
async def test_a_stranger_is_closed_before_anything_is_read_and_counted() -> None:
    metrics, sock = Metrics(), socket.create_server(("127.0.0.1", 0))
    for header_timeout_s in (None, 5.0):
        gate = Gate(Echo, Strangers(), metrics, header_timeout_s)
        server = await asyncio.get_running_loop().create_server(gate, sock=sock.dup())
        async with Client(f"http://127.0.0.1:{sock.getsockname()[1]}") as client:
            client.send(LINE + HEALTH)
            assert await everything(client) == b""
        server.close()
    sock.close()
    assert refused(metrics, "untrusted_peer") == 2
    assert Echo.made == 0


@pytest.mark.parametrize("is_trusted", [True, False])
async def test_another_address_comes_in_when_it_is_trusted(own_address: str, *, is_trusted: bool) -> None:
    trusted = own_address if is_trusted else "198.51.100.0/24"
    async with listening(Listen(trusted_proxies=(trusted,)), host=own_address) as (url, metrics), Client(url) as client:
        client.send(b"one")
        assert await everything(client, 9) == (b"hello one" if is_trusted else b"")
        assert refused(metrics, "untrusted_peer") == (0 if is_trusted else 1)


async def test_over_tls_anybody_may_come(own_address: str, tmp_path: Path) -> None:
    pair = make_pair(tmp_path, hosts=(own_address,))
    listen = Listen(**pair.settings(), trusted_proxies=("198.51.100.0/24",))
    async with listening(listen, host=own_address) as (url, _), Client(url, pair.client_context()) as client:
        client.send(b"one")
        assert await everything(client, 9) == b"hello one"


@pytest.mark.parametrize("listen", [Listen(), Listen(trusted_proxies=("10.0.0.0/8",)), Listen(proxy_protocol=True)])
async def test_this_machine_comes_in(listen: Listen) -> None:
    async with listening(listen) as (url, metrics), Client(url) as client:
        client.send((LINE if listen.proxy_protocol else b"") + b"one")
        assert await client.reader.readexactly(9) == b"hello one"
        client.send(b" two")
        assert await client.reader.readexactly(4) == b" two"
        assert refused(metrics, "untrusted_peer") == refused(metrics, "proxy_header") == 0


@pytest.mark.parametrize("header", [LINE, BINARY, b"PROXY UNKNOWN\r\n"])
async def test_a_header_is_taken_away_however_it_comes(header: bytes) -> None:
    async with listening(Listen(proxy_protocol=True)) as (url, _):
        async with Client(url) as client:
            client.send(header + b"at once")
            assert await client.reader.readexactly(13) == b"hello at once"
        async with Client(url) as client:
            for number in range(len(header)):
                client.send(header[number : number + 1])
                await asyncio.sleep(0.001)
            assert await client.reader.readexactly(6) == b"hello "
            client.send(b"later")
            assert await client.reader.readexactly(5) == b"later"


@pytest.mark.parametrize("first", [HEALTH, b"\x16\x03\x01\x02\x00", LINE[:-2] + b"  \r\n", BINARY[:12] + b"\x30" * 20])
async def test_a_connection_without_a_header_is_closed_and_counted(first: bytes) -> None:
    async with listening(Listen(proxy_protocol=True)) as (url, metrics), Client(url) as client:
        client.send(first)
        assert await everything(client) == b""
        assert refused(metrics, "proxy_header") == 1
        assert Echo.made == 0


async def test_a_header_that_does_not_come_in_time_is_waited_for_no_longer() -> None:
    async with (
        listening(Listen(proxy_protocol=True), handshake_timeout_ms=100) as (url, metrics),
        Client(url) as client,
    ):
        client.send(LINE[:20])
        assert await everything(client) == b""
        assert refused(metrics, "proxy_header") == 1


async def test_a_client_that_leaves_before_its_header_is_forgotten() -> None:
    async with listening(Listen(proxy_protocol=True), handshake_timeout_ms=100) as (url, metrics):
        async with Client(url) as client:
            client.send(LINE[:20])
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.15)
        assert refused(metrics, "proxy_header") == 0
        assert Echo.made == 0


async def test_time_is_not_counted_once_a_connection_is_in() -> None:
    async with listening(Listen(proxy_protocol=True), handshake_timeout_ms=100) as (url, _), Client(url) as client:
        client.send(LINE)
        await asyncio.sleep(0.2)
        client.send(b"still here")
        assert await client.reader.readexactly(16) == b"hello still here"


async def test_the_header_is_for_the_data_plane_only() -> None:
    async with listening(Listen(proxy_protocol=True), "web") as (url, _), Client(url) as client:
        client.send(b"one")
        assert await client.reader.readexactly(9) == b"hello one"
