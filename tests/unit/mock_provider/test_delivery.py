import asyncio
import gzip
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import orjson
import pytest

from edgeproxy.mock_provider import openai
from edgeproxy.mock_provider.exchange import exchange_of
from edgeproxy.mock_provider.server import RunningMock, running

HEADERS = {"authorization": "Bearer secret"}


@pytest.fixture
async def mock() -> AsyncIterator[RunningMock]:
    async with running() as started:
        yield started


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(headers=HEADERS, auto_decompress=False) as session:
        yield session


def body(model: str, *, stream: bool = True) -> dict[str, Any]:
    return {"model": model, "stream": stream, "messages": [{"role": "user", "content": "one two"}]}


def expected(model: str) -> list[bytes]:
    return list(openai.events(exchange_of(orjson.dumps(body(model)))))


async def received(client: aiohttp.ClientSession, mock: RunningMock, model: str) -> tuple[bytes, Exception | None]:
    """What arrived before the answer ended, and how it ended."""
    arrived = b""
    async with client.post(f"{mock.url}/v1/chat/completions", json=body(model)) as response:
        try:
            async for part in response.content.iter_any():
                arrived += part
        except (aiohttp.ClientError, ConnectionError) as error:
            return arrived, error
    return arrived, None


@pytest.mark.parametrize("style", ["chunks-6", "chunks-6.split", "chunks-6.burst", "chunks-6.interval-1"])
async def test_the_bytes_are_the_same_however_they_are_cut(
    client: aiohttp.ClientSession, mock: RunningMock, style: str
) -> None:
    arrived, error = await received(client, mock, f"m:{style}")
    assert error is None
    assert arrived == b"".join(expected(f"m:{style}"))
    assert mock.counts.total.completed == 1


@pytest.mark.parametrize("fault", ["cut-after", "close-after"])
async def test_a_broken_stream_is_no_finished_one(client: aiohttp.ClientSession, mock: RunningMock, fault: str) -> None:
    arrived, error = await received(client, mock, f"m:{fault}-3")
    assert error is not None
    assert arrived == b"".join(expected("m")[:3])
    assert (mock.counts.total.completed, mock.counts.total.broken, mock.counts.open) == (0, 1, 0)


async def test_half_an_event_can_come_before_the_break(client: aiohttp.ClientSession, mock: RunningMock) -> None:
    arrived, error = await received(client, mock, "m:close-after-2.half")
    events = expected("m")
    assert error is not None
    assert arrived == b"".join(events[:2]) + events[2][: len(events[2]) // 2]


async def test_a_stream_can_end_well_without_its_last_events(client: aiohttp.ClientSession, mock: RunningMock) -> None:
    arrived, error = await received(client, mock, "m:end-after-3")
    assert error is None
    assert arrived == b"".join(expected("m")[:3])
    assert mock.counts.total.completed == 0


async def test_an_error_can_come_in_the_middle(client: aiohttp.ClientSession, mock: RunningMock) -> None:
    arrived, error = await received(client, mock, "m:error-after-2")
    assert error is None
    assert arrived == b"".join(expected("m")[:2]) + openai.error_event()


async def raw_answer(mock: RunningMock, model: str) -> bytes:
    reader, writer = await asyncio.open_connection(mock.host, mock.port)
    raw = orjson.dumps(body(model))
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer s\r\n"
    writer.write(f"{head}content-length: {len(raw)}\r\n\r\n".encode() + raw)
    try:
        return await asyncio.wait_for(reader.read(), 5)
    finally:
        writer.close()


async def test_a_reset_is_a_reset(mock: RunningMock) -> None:
    with pytest.raises(ConnectionResetError):
        await raw_answer(mock, "m:cut-after-1")


async def test_a_chunk_header_can_be_no_number(mock: RunningMock) -> None:
    answer = await raw_answer(mock, "m:framing-after-2")
    assert answer.endswith(b"\r\nnot-a-number\r\nxx\r\n")
    assert answer.count(b"data: {") == 2
    assert mock.counts.total.broken == 1


async def test_a_stalled_stream_ends_when_the_client_leaves(client: aiohttp.ClientSession, mock: RunningMock) -> None:
    async with client.post(f"{mock.url}/v1/chat/completions", json=body("m:stall-after-2")) as response:
        first = await response.content.readuntil(b"\n\n")
        assert first == expected("m")[0]
        assert mock.counts.open == 1
        response.close()
    async with asyncio.timeout(5):
        while mock.counts.open:
            await asyncio.sleep(0.01)
    assert (mock.counts.total.completed, mock.counts.total.broken) == (0, 1)


async def test_a_client_that_hangs_up_is_not_counted_as_served(
    client: aiohttp.ClientSession, mock: RunningMock
) -> None:
    async with client.post(f"{mock.url}/v1/chat/completions", json=body("m:chunks-500.interval-5")) as response:
        await response.content.readany()
        response.close()
    async with asyncio.timeout(5):
        while mock.counts.open:
            await asyncio.sleep(0.01)
    assert (mock.counts.total.started, mock.counts.total.completed, mock.counts.total.broken) == (1, 0, 1)
    assert mock.counts.total.output_tokens == 0


async def test_events_come_at_their_pace(client: aiohttp.ClientSession, mock: RunningMock) -> None:
    start = time.monotonic()
    async with client.post(
        f"{mock.url}/v1/chat/completions", json=body("m:chunks-3.interval-ms-40.first-byte-ms-100")
    ) as response:
        first_ms = (time.monotonic() - start) * 1000
        await response.read()
    total_ms = (time.monotonic() - start) * 1000
    assert first_ms >= 95
    assert total_ms >= first_ms + 5 * 40 * 0.95  # role, 3 deltas, finish, [DONE]: 5 pauses


async def test_compression_needs_the_clients_consent_and_streams(
    client: aiohttp.ClientSession, mock: RunningMock
) -> None:
    url, asked = f"{mock.url}/v1/chat/completions", body("m:gzip.chunks-3")
    async with client.post(url, json=asked, headers={"accept-encoding": "identity"}) as response:
        assert "content-encoding" not in response.headers
        plain = await response.read()
    async with client.post(url, json=asked, headers={"accept-encoding": "gzip, deflate"}) as response:
        assert response.headers["content-encoding"] == "gzip"
        assert gzip.decompress(await response.read()) == plain
    assert mock.counts.last.accept_encoding == "gzip, deflate"


async def test_a_unary_answer_can_break_off_too(client: aiohttp.ClientSession, mock: RunningMock) -> None:
    for model in ("m:close-after-2", "m:close-after-2.length"):
        asked = body(model, stream=False)
        async with client.post(f"{mock.url}/v1/chat/completions", json=asked) as response:
            assert ("content-length" in response.headers) == model.endswith("length")
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.read()
    assert mock.counts.total.completed == 0
