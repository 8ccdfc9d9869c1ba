"""Bodies are taken in within bounds, and refused before they are read where that is possible."""

import asyncio
import hashlib
import io
import json

import pytest

from tests.support.gateway import Gateway, StartGateway, chat
from tests.support.raw import Client, scripted_provider

CHAT = "/v1/chat/completions"


async def test_a_body_over_the_bound_is_refused_before_it_is_sent(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(bounds={"max_body_bytes": 1000})
    secret = await gateway.issue()
    async with Client(gateway.url) as client:
        client.send(f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nx-api-key: {secret}\r\ncontent-length: 1001\r\n\r\n")
        head, body = await client.answer()
    assert head.startswith(b"HTTP/1.1 413")
    assert b"connection: close" in head
    assert json.loads(body)["error"]["code"] == "body_too_large"


async def test_a_chunked_body_over_the_bound_is_refused_while_it_comes(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(bounds={"max_body_bytes": 1000})
    secret = await gateway.issue()
    async with Client(gateway.url) as client:
        client.send(f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nx-api-key: {secret}\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(11):
            client.send(b"64\r\n" + b"x" * 100 + b"\r\n")
        head, _ = await client.answer()
    assert head.startswith(b"HTTP/1.1 413")
    assert gateway.mock.counts.total.requests == 0


async def test_a_body_of_just_the_bound_is_accepted(start_gateway: StartGateway) -> None:
    raw = json.dumps(chat()).encode()
    gateway = await start_gateway(bounds={"max_body_bytes": len(raw)})
    secret = await gateway.issue()
    async with gateway.post(CHAT, secret, raw) as answer:
        assert answer.status == 200
    async with gateway.post(CHAT, secret, raw + b" ") as answer:
        assert answer.status == 413


async def test_a_large_body_reaches_the_provider_whole(gateway: Gateway) -> None:
    secret = await gateway.issue()
    raw = json.dumps(chat(padding="x" * 20_000_000)).encode()
    headers = {"x-api-key": secret}
    async with gateway.session.post(gateway.url + CHAT, data=io.BytesIO(raw), headers=headers) as answer:
        assert answer.status == 200
    assert gateway.mock.counts.last.body_sha256 == hashlib.sha256(raw).hexdigest()


async def test_all_bodies_together_stay_under_a_bound(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(bounds={"max_buffered_bytes": 3000, "max_body_bytes": 2500})
    secret = await gateway.issue()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nx-api-key: {secret}\r\ncontent-length: 2500\r\n\r\n"
    async with Client(gateway.url) as first, Client(gateway.url) as second:
        first.send(head)
        first.send(b"{" + b" " * 2000)
        await asyncio.sleep(0.2)
        second.send(head)
        second.send(b"{" + b" " * 2000)
        answer, body = await second.answer()
        assert answer.startswith(b"HTTP/1.1 503")
        assert json.loads(body)["error"]["code"] == "overloaded"
        first.close()
    await asyncio.sleep(0.2)
    async with gateway.post(CHAT, secret, chat()) as again:
        assert again.status == 200


async def test_a_body_counts_until_the_provider_has_taken_it(start_gateway: StartGateway) -> None:
    has_begun, may_end = asyncio.Event(), asyncio.Event()

    async def script(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.readexactly(10)
        has_begun.set()
        await may_end.wait()

    async with scripted_provider(script) as url:
        gateway = await start_gateway(base_url=url, bounds={"max_buffered_bytes": 30_000_000})
        secret = await gateway.issue()
        raw = json.dumps(chat(pad="x" * 20_000_000)).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nx-api-key: {secret}\r\ncontent-length: {len(raw)}\r\n\r\n"
        async with Client(gateway.url) as first, Client(gateway.url) as second:
            first.send(head.encode() + raw)
            await has_begun.wait()
            second.send(head.encode() + raw)
            answer, _ = await second.answer()
            assert answer.startswith(b"HTTP/1.1 503")
            may_end.set()
            answer, _ = await first.answer()
            assert answer.startswith(b"HTTP/1.1 502")
        async with Client(gateway.url) as again:
            again.send(head.encode() + raw)
            answer, _ = await again.answer()
            assert answer.startswith(b"HTTP/1.1 502")


async def test_a_body_that_does_not_come_is_given_up(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(bounds={"body_timeout_ms": 200})
    secret = await gateway.issue()
    async with Client(gateway.url) as client:
        client.send(f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nx-api-key: {secret}\r\ncontent-length: 10\r\n\r\n{{")
        head, _ = await client.answer()
    assert head.startswith(b"HTTP/1.1 408")


async def test_a_compressed_body_is_refused(gateway: Gateway) -> None:
    secret = await gateway.issue()
    async with gateway.post(CHAT, secret, b"\x1f\x8b", headers={"content-encoding": "gzip"}) as answer:
        assert answer.status == 415
    assert gateway.mock.counts.total.requests == 0


@pytest.mark.parametrize("chunk", [b"zz\r\n", b"-1\r\n", b"4\r\nabcdef\r\n"])
async def test_a_body_with_broken_framing_is_refused(gateway: Gateway, chunk: bytes) -> None:
    secret = await gateway.issue()
    async with Client(gateway.url) as client:
        client.send(f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nx-api-key: {secret}\r\ntransfer-encoding: chunked\r\n\r\n")
        await asyncio.sleep(0.05)
        client.send(chunk)
        head, _ = await client.answer()
    assert head.startswith(b"HTTP/1.1 400")
    assert gateway.mock.counts.total.requests == 0


async def test_a_client_that_asks_whether_to_continue_is_told_to(gateway: Gateway) -> None:
    secret = await gateway.issue()
    raw = json.dumps(chat()).encode()
    async with Client(gateway.url) as client:
        client.send(
            f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nx-api-key: {secret}\r\nexpect: 100-continue\r\n"
            f"content-length: {len(raw)}\r\n\r\n"
        )
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(raw)
        head, _ = await client.answer()
    assert head.startswith(b"HTTP/1.1 200")


async def test_a_client_without_a_valid_key_is_not_told_to_continue(gateway: Gateway) -> None:
    async with Client(gateway.url) as client:
        client.send(f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 1000000\r\n\r\n")
        head, _ = await client.answer()
    assert head.startswith(b"HTTP/1.1 401")


async def test_a_client_that_leaves_while_it_sends_costs_nothing(gateway: Gateway) -> None:
    secret = await gateway.issue()
    async with Client(gateway.url) as client:
        client.send(f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nx-api-key: {secret}\r\ncontent-length: 1000\r\n\r\n{{")
        await asyncio.sleep(0.1)
    await asyncio.sleep(0.1)
    assert await gateway.events(secret) == []
    async with gateway.post(CHAT, secret, chat()) as answer:
        assert answer.status == 200
