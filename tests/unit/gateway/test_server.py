"""The client's side of the wire: framing, keep-alive, and silence about what was sent."""

import json
import time
from pathlib import Path

import pytest
import redis.asyncio as redis_asyncio

from edgeproxy.gateway.server import encode_head
from tests.support.gateway import Gateway, chat, run_gateway
from tests.support.raw import Client

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"canary-9f2 nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\nhost: x\r\n\r\n",
        b"POST /v1/messages HTTP/1.1\r\nhost: x\r\ncanary-9f2\r\n\r\n",
        b"POST /v1/messages HTTP/1.1\r\nauthorization: Bearer canary-9f2\r\ncontent-length: x\r\n\r\n",
        b"POST /v1/messages HTTP/1.1\r\nhost: x\r\ntransfer-encoding: junk, chunked\r\ncontent-length: 1\r\n\r\n0",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 canary-9f2\r\n\r\n",
        b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nx-canary-9f2: " + b"y" * 70_000 + b"\r\n\r\n",
    ],
)
async def test_what_is_not_http_gets_one_fixed_answer_and_leaves_no_trace(
    gateway: Gateway, request_bytes: bytes, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    async with Client(gateway.url) as client:
        client.send(request_bytes)
        head, body = await client.answer()
        assert await client.reader.read() == b""  # closed
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert body == b"The request is not valid HTTP/1.1.\n"
    out, err = capfd.readouterr()
    assert "canary-9f2" not in out + err + caplog.text + head.decode()
    assert 'edgeproxy_refusals_total{reason="bad_http"} 1.0' in gateway.metrics.render().decode()


async def test_a_connection_is_kept_unless_the_client_wants_it_closed(gateway: Gateway) -> None:
    async with Client(gateway.url) as client:
        for _ in range(3):
            client.send("GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
            head, body = await client.answer()
            assert (b"connection: keep-alive" in head, body) == (True, b"ok\n")
        client.send("GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        head, body = await client.answer()
        assert (b"connection: close" in head, body) == (True, b"ok\n")
        assert await client.reader.read() == b""


async def test_head_gets_no_body(gateway: Gateway) -> None:
    async with Client(gateway.url) as client:
        client.send("HEAD /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        whole = await client.reader.read()
    assert whole.endswith(b"\r\n\r\n")
    assert b"content-length: 3" in whole


async def test_no_answer_sets_a_cookie_or_names_its_software(gateway: Gateway) -> None:
    async with gateway.session.get(gateway.url + "/healthz") as answer:
        assert "set-cookie" not in answer.headers
        assert "server" not in answer.headers


def test_a_head_is_one_block_of_lines() -> None:
    head = encode_head(429, [("a", "b"), ("c", "d")], keep_alive=False)
    assert head == b"HTTP/1.1 429 Too Many Requests\r\na: b\r\nc: d\r\nconnection: close\r\n\r\n"
    assert encode_head(599, [], keep_alive=True) == b"HTTP/1.1 599 \r\nconnection: keep-alive\r\n\r\n"


async def test_an_idle_connection_does_not_hold_up_a_stop(
    redis_url: str, operator_secret: Path, pepper_file: Path, tmp_path: Path
) -> None:
    bounds = {"drain_ms": 3000}
    async with run_gateway(redis_url, operator_secret, pepper_file, tmp_path, bounds=bounds) as gateway:
        client = await Client(gateway.url).__aenter__()
        client.send("GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        await client.answer()
        stopping = time.monotonic()
    assert time.monotonic() - stopping < 1.5
    assert await client.reader.read() == b""
    client.close()


async def test_an_answer_that_outlasts_a_stop_is_reset_in_time_and_counted(
    redis_url: str, operator_secret: Path, pepper_file: Path, tmp_path: Path, redis: redis_asyncio.Redis
) -> None:
    bounds = {"drain_ms": 1000}
    async with run_gateway(redis_url, operator_secret, pepper_file, tmp_path, bounds=bounds) as gateway:
        secret = await gateway.issue()
        raw = json.dumps(chat("gpt-mock:stall-after-2", stream=True)).encode()
        client = await Client(gateway.url).__aenter__()
        # To an HTTP/1.0 client an ordinary close would be the end of a whole answer.
        client.send(f"POST {CHAT} HTTP/1.0\r\nx-api-key: {secret}\r\ncontent-length: {len(raw)}\r\n\r\n")
        client.send(raw)
        await client.reader.readuntil(b"data:")
        stopping = time.monotonic()
    assert 0.9 < time.monotonic() - stopping < 1.9
    with pytest.raises(ConnectionResetError):
        await client.reader.read()
    client.close()
    gateway.redis = redis
    (event,) = await gateway.events(secret)
    assert (event.status, event.usage.estimated) == (200, True)
