"""A provider is tried as the gateway would reach it, and nothing is sent there."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from edgeproxy.checkup.findings import Level
from edgeproxy.checkup.providers import probe
from edgeproxy.config import Provider
from tests.support.certificates import Pair, make_pair


def provider(url: str, timeout_ms: int = 5000) -> Provider:
    return Provider("p", base_url=url, connect_timeout_ms=timeout_ms)


@asynccontextmanager
async def listening(tls: Pair | None = None) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server that keeps the first byte that it is sent, and says something that is no TLS."""
    received: list[bytes] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            received.append(await reader.read(1))
            writer.write(b"hello")
            writer.close()
            await writer.wait_closed()

    context = None if tls is None else tls.server_context()
    server = await asyncio.start_server(take, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1], received
        while tls is None and not received:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)  # for connections to be closed on this side, too


async def test_one_that_listens_is_well_and_is_sent_nothing():
    async with listening() as (port, received):
        finding = await probe(provider(f"http://127.0.0.1:{port}/v1"))
    assert (finding.level, f"p: 127.0.0.1:{port} over plain TCP in " in finding.found) == (Level.OK, True)
    assert received == [b""]


async def test_a_certificate_is_checked_as_the_gateway_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files = make_pair(tmp_path, hosts=("localhost",))
    async with listening(files) as (port, _):
        finding = await probe(provider(f"https://localhost:{port}"))
        assert (finding.level, "its certificate is not accepted: self-signed" in finding.found) == (Level.ERROR, True)
        monkeypatch.setenv("SSL_CERT_FILE", str(files.certificate))
        finding = await probe(provider(f"https://localhost:{port}"))
        assert (finding.level, "over TLSv1.3" in finding.found) == (Level.OK, True)
        finding = await probe(provider(f"https://127.0.0.1:{port}"))
        assert (finding.level, "IP address mismatch" in finding.found) == (Level.ERROR, True)


async def test_a_server_without_tls_is_told():
    async with listening() as (port, _):
        finding = await probe(provider(f"https://127.0.0.1:{port}"))
    assert (finding.level, f"p: 127.0.0.1:{port}: no TLS there" in finding.found) == (Level.ERROR, True)


async def test_nobody_there_and_no_such_host_are_told():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    refused = await probe(provider(f"http://127.0.0.1:{port}"))
    assert (refused.level, "nothing listens there" in refused.found) == (Level.ERROR, True)
    unknown = await probe(provider("https://nobody.invalid"))
    assert (unknown.level, "nobody.invalid:443: no such host" in unknown.found) == (Level.ERROR, True)


async def test_one_that_says_nothing_is_given_up():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        finding = await probe(provider(f"https://127.0.0.1:{silent.getsockname()[1]}", 100))
    assert (finding.level, "no answer in 0.1 s" in finding.found) == (Level.ERROR, True)


async def test_an_authority_of_ones_own_is_trusted_where_the_gateway_trusts_it(tmp_path: Path):
    pair = make_pair(tmp_path)
    async with listening(pair) as (port, _):
        own = provider(f"https://127.0.0.1:{port}")
        assert (await probe(replace(own, ca_file=str(pair.certificate)))).level is Level.OK
        assert "ca_file" in (await probe(own)).remedy
        assert "no certificates in ca_file absent" in (await probe(replace(own, ca_file="absent"))).found
