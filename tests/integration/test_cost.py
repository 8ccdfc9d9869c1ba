"""What a request costs, counted and not timed: Python functions called, and reads and writes of sockets, on its way.

Each ceiling has a little room above what was counted when it was written. What exceeds one is either made cheaper, or
the ceiling is raised and the commit says why. How long it all takes is for the bench to say.
"""

import asyncio
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType
from typing import Any, cast

import orjson
import pytest

import edgeproxy
from tests.support.gateway import StartGateway, chat

UNARY_CALLS = 215
UNARY_READS = 4  # its client, its provider, Redis for its reservation and for the one that was settled before it
UNARY_WRITES = 4  # to Redis, the provider, Redis again, the client: the answer's head and body in one
CHUNK_CALLS = 13

IO = Path("/proc/self/io")
REQUESTS = 50
CHUNKS = 50
PACKAGE = str(Path(edgeproxy.__file__).parent)
OURS = (
    PACKAGE,
    *(f"site-packages{os.sep}{name}{os.sep}" for name in ("aiohttp", "multidict", "yarl", "prometheus_client")),
)
EVENT = b'data: {"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"lorem"}}]}\n\n'
LAST = b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":12,"completion_tokens":50}}\n\ndata: [DONE]\n\n'
ANSWER = orjson.dumps(
    {
        "id": "c",
        "model": "gpt-mock",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "lorem"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 12, "completion_tokens": 64, "total_tokens": 76},
    }
)


class Provider(asyncio.Protocol):
    """Answers each request, which comes in one piece, with one object or a stream."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if b'"stream":true' not in data:
            head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(ANSWER)
            self.transport.write(head + ANSWER)
            return
        self.transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        self._next(CHUNKS)

    def _next(self, left: int) -> None:
        """Send one event at a time, far enough from the one before to be read by itself."""
        event = EVENT if left else LAST
        self.transport.write(b"%x\r\n%b\r\n%b" % (len(event), event, b"" if left else b"0\r\n\r\n"))
        if left:
            asyncio.get_running_loop().call_later(0.001, self._next, left - 1)


@asynccontextmanager
async def provider() -> AsyncIterator[str]:
    server = await asyncio.get_running_loop().create_server(Provider, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"


class Client(asyncio.Protocol):
    """Sends a request in one piece, and waits until the answer has ended as it should."""

    def __init__(self) -> None:
        self.answer = b""
        self.answered: asyncio.Future[bytes]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.answer += data
        if self.answer.endswith((ANSWER, b"\r\n0\r\n\r\n")):
            self.answered.set_result(self.answer)
            self.answer = b""

    async def ask(self, request: bytes) -> bytes:
        self.answered = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        async with asyncio.timeout(10):
            return await self.answered


class Calls:
    """Counts the calls of Python functions of the gateway, and of the libraries that it serves with."""

    def __init__(self) -> None:
        self.counted: Counter[str] = Counter()

    def __enter__(self) -> Counter[str]:
        sys.setprofile(self._note)
        return self.counted

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _note(self, frame: FrameType, event: str, _argument: Any) -> None:
        if event == "call" and any(place in frame.f_code.co_filename for place in OURS):
            self.counted[frame.f_code.co_qualname] += 1


@asynccontextmanager
async def asking(start_gateway: StartGateway) -> AsyncIterator[Callable[..., Any]]:
    """Have a function that asks for one answer with a key of three windows, over a connection that is in use."""
    async with provider() as base_url:
        gateway = await start_gateway(base_url=base_url)
        secret = await gateway.issue("requests=1000000/1m", "tokens=1000000000/1h", "tokens=1000000000/1d")
        host, _, port = gateway.url.removeprefix("http://").partition(":")
        _, client = await asyncio.get_running_loop().create_connection(Client, host, int(port))

        async def ask(**fields: Any) -> bytes:
            body = orjson.dumps(chat(**fields))
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secret}\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            answer = await client.ask(head.encode() + body)
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
            return answer

        for _ in range(3):  # connections are opened, and the key is looked up
            await ask()
        yield ask
        client.transport.close()


def io_so_far() -> tuple[int, int]:
    """Return how often this process has called the system to read and to write."""
    rows = dict(line.split(": ") for line in IO.read_text().splitlines())
    return int(rows["syscr"]), int(rows["syscw"])


def told(counted: Counter[str], times: int) -> str:
    return "\n".join(f"{count / times:6.2f} {name}" for name, count in counted.most_common() if count >= times / 2)


async def test_a_request_calls_few_functions(start_gateway: StartGateway) -> None:
    async with asking(start_gateway) as ask:
        with Calls() as counted:
            for _ in range(REQUESTS):
                await ask()
    each = counted.total() / REQUESTS
    assert each <= UNARY_CALLS, told(counted, REQUESTS)
    assert each > UNARY_CALLS / 2, "lower the ceiling"


@pytest.mark.skipif(not IO.exists(), reason="the system does not count reads and writes here")
async def test_a_request_takes_few_reads_and_writes(start_gateway: StartGateway) -> None:
    async with asking(start_gateway) as ask:
        before = io_so_far()
        for _ in range(REQUESTS):
            await ask()
        reads, writes = (now - then for now, then in zip(io_so_far(), before, strict=True))
    both_sides = 2 * REQUESTS  # the client and the provider of this test are in the process, too
    background = 10  # the partitions are asked about once a second, and the count itself is read from a file
    assert reads <= both_sides + UNARY_READS * REQUESTS + background
    assert writes <= both_sides + UNARY_WRITES * REQUESTS + background


async def test_a_chunk_of_a_stream_calls_few_functions(start_gateway: StartGateway) -> None:
    async with asking(start_gateway) as ask:
        await ask(stream=True, stream_options={"include_usage": True})
        with Calls() as counted:
            await ask(stream=True, stream_options={"include_usage": True})
    for name, count in list(counted.items()):
        if count < CHUNKS / 2:  # of the request, not of its chunks
            del counted[name]
    each = counted.total() / CHUNKS
    assert each <= CHUNK_CALLS, told(counted, CHUNKS)
    assert each > CHUNK_CALLS / 2, "lower the ceiling"
