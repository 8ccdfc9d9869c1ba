"""Answers are handed on as they come, and broken ones never look whole."""

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from edgeproxy.domain.keys import OnLimit, Reserve
from tests.support.gateway import Gateway, StartGateway, chat, message
from tests.support.raw import Client, read_request, scripted_provider

CHAT = "/v1/chat/completions"
MESSAGES = "/v1/messages"
LONG_WORDS = "gpt-mock:chunks-90.big-4000.interval-1"


async def settled(gateway: Gateway, secret: str, count: int = 1) -> list[Any]:
    """Return the key's events as soon as there are `count`."""
    async with asyncio.timeout(10):
        while len(events := await gateway.events(secret)) < count:
            await asyncio.sleep(0.01)
    assert len(events) == count
    assert (await gateway.usage(secret)).open == 0
    return events


@pytest.mark.claims("OL-4c")
@pytest.mark.parametrize(("path", "body"), [(CHAT, chat), (MESSAGES, message)])
async def test_the_first_piece_is_there_before_the_second_is_sent(gateway: Gateway, path: str, body: Any) -> None:
    secret = await gateway.issue()
    model = ("gpt-mock" if path == CHAT else "claude-mock") + ":stall-after-1"
    async with gateway.post(path, secret, body(model, stream=True)) as answer:
        async with asyncio.timeout(10):
            assert await answer.content.readany()
        assert gateway.mock.counts.open == 1
        assert gateway.mock.counts.total.completed == 0


@pytest.mark.parametrize("fault", ["cut-after-3", "close-after-3", "framing-after-3", "cut-after-3.half"])
@pytest.mark.parametrize(("path", "body"), [(CHAT, chat), (MESSAGES, message)])
@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_that_breaks_off_breaks_off_for_the_client_too(
    gateway: Gateway, path: str, body: Any, fault: str, *, stream: bool
) -> None:
    secret = await gateway.issue("tokens=100000/1h")
    name = "gpt-mock" if path == CHAT else "claude-mock"
    async with gateway.post(path, secret, body(f"{name}:chunks-9.{fault}", stream=stream)) as answer:
        assert answer.status == 200
        with pytest.raises((aiohttp.ClientPayloadError, aiohttp.ClientOSError)):
            await answer.read()
    (event,) = await settled(gateway, secret)
    assert event.status == 200
    assert event.usage.estimated
    assert event.usage.input_total > 0
    usage = await gateway.usage(secret)
    assert usage.windows[0].used == event.usage.input_total + event.usage.output


async def test_an_answer_with_a_length_that_breaks_off_breaks_off_too(gateway: Gateway) -> None:
    secret = await gateway.issue()
    async with gateway.post(CHAT, secret, chat("gpt-mock:length.cut-after-1")) as answer:
        with pytest.raises((aiohttp.ClientPayloadError, aiohttp.ClientOSError)):
            await answer.read()
    assert (await settled(gateway, secret))[0].usage.estimated


async def test_a_stream_whose_last_events_are_missing_is_charged_an_estimate(gateway: Gateway) -> None:
    secret = await gateway.issue()
    async with gateway.post(CHAT, secret, chat("gpt-mock:chunks-9.end-after-5", stream=True)) as answer:
        await answer.read()
    async with gateway.post(MESSAGES, secret, message("claude-mock:chunks-9.end-after-7", stream=True)) as answer:
        await answer.read()
    async with gateway.post(CHAT, secret, chat("gpt-mock:chunks-9.error-after-5", stream=True)) as answer:
        assert b"error" in await answer.read()
    events = await settled(gateway, secret, 3)
    assert [event.usage.estimated for event in events] == [True, True, True]
    assert all(event.usage.output > 0 for event in events)


@pytest.mark.parametrize("manner", ["garbage", "no-usage"])
@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_without_usage_passes_and_is_charged_an_estimate(
    gateway: Gateway, manner: str, *, stream: bool
) -> None:
    secret = await gateway.issue()
    async with gateway.post(CHAT, secret, chat(f"gpt-mock:{manner}", stream=stream)) as answer:
        assert answer.status == 200
        assert await answer.read()
    (event,) = await settled(gateway, secret)
    assert event.usage.estimated
    assert event.usage.input_total > 0


@pytest.mark.parametrize(
    ("model", "status", "code"),
    [("gpt-mock:no-head", 502, "upstream_failed"), ("gpt-mock:garbage-head", 502, "upstream_failed")],
)
async def test_no_answer_after_the_request_was_sent_is_charged_its_input(
    gateway: Gateway, model: str, status: int, code: str
) -> None:
    secret = await gateway.issue("tokens=100000/1h")
    async with gateway.post(CHAT, secret, chat(model)) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (status, code)
    (event,) = await settled(gateway, secret)
    assert (event.status, event.usage.estimated, event.usage.output) == (status, True, 0)
    assert event.model == "gpt-*"  # the provider never accepted the name
    assert (await gateway.usage(secret)).windows[0].used == event.usage.input_total > 0
    assert gateway.mock.counts.total.requests == 1  # never repeated


async def test_a_provider_that_is_down_costs_no_tokens_but_the_request(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(base_url="http://127.0.0.1:1")
    secret = await gateway.issue("tokens=100000/1h", "requests=10/1h")
    async with gateway.post(MESSAGES, secret, message()) as answer:
        assert answer.status == 502
        assert (await answer.json())["error"]["details"]["error_code"] == "upstream_unreachable"
    (event,) = await settled(gateway, secret)
    assert (event.status, event.usage.input_total, event.usage.estimated) == (502, 0, False)
    assert [window.used for window in (await gateway.usage(secret)).windows] == [0, 1]


async def test_a_slow_provider_is_a_504_and_costs_the_input(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(first_byte_timeout_ms=150)
    secret = await gateway.issue()
    async with gateway.post(CHAT, secret, chat("gpt-mock:first-byte-ms-5000")) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (504, "upstream_timeout")
    (event,) = await settled(gateway, secret)
    assert (event.status, event.usage.estimated) == (504, True)


async def test_a_stream_that_falls_silent_is_reset(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(silence_timeout_ms=150)
    secret = await gateway.issue()
    async with gateway.post(CHAT, secret, chat("gpt-mock:stall-after-3", stream=True)) as answer:
        with pytest.raises((aiohttp.ClientPayloadError, aiohttp.ClientOSError)):
            await answer.read()
    assert (await settled(gateway, secret))[0].usage.estimated


@pytest.mark.parametrize("status", [400, 404, 422, 429, 500, 503, 529])
async def test_an_error_of_the_provider_passes_and_costs_no_tokens(gateway: Gateway, status: int) -> None:
    secret = await gateway.issue("tokens=100000/1h", "requests=10/1h")
    async with gateway.post(MESSAGES, secret, message(f"claude-mock:status-{status}.retry-after-7")) as answer:
        assert answer.status == status
        assert (await answer.json())["type"] == "error"
        assert answer.headers.get("retry-after") == ("7" if status in (429, 503, 529) else None)
    (event,) = await settled(gateway, secret)
    assert (event.status, event.usage.input_total, event.model) == (status, 0, "claude-*")
    assert [window.used for window in (await gateway.usage(secret)).windows] == [0, 1]


@pytest.mark.parametrize("status", [401, 402, 403])
@pytest.mark.parametrize(("path", "body"), [(CHAT, chat), (MESSAGES, message)])
async def test_the_operators_trouble_with_the_provider_is_not_shown(
    gateway: Gateway, path: str, body: Any, status: int
) -> None:
    secret = await gateway.issue("tokens=100000/1h")
    name = "gpt-mock" if path == CHAT else "claude-mock"
    async with gateway.post(path, secret, body(f"{name}:status-{status}")) as answer:
        text = await answer.text()
        assert (answer.status, answer.headers["x-should-retry"]) == (502, "false")
    assert "upstream_credentials" in text
    assert "oper" not in text
    (event,) = await settled(gateway, secret)
    assert (event.status, event.usage.input_total) == (502, 0)


@pytest.mark.parametrize(("path", "body"), [(CHAT, chat), (MESSAGES, message)])
async def test_a_client_that_hangs_up_is_charged_exactly_when_the_answer_is_read_on(
    gateway: Gateway, path: str, body: Any
) -> None:
    secret = await gateway.issue()
    name = "gpt-mock" if path == CHAT else "claude-mock"
    async with gateway.post(path, secret, body(f"{name}:chunks-20.interval-ms-5", stream=True)) as answer:
        await answer.content.readany()
        answer.close()
    (event,) = await settled(gateway, secret)
    assert (event.usage.input_total, event.usage.output, event.usage.estimated) == (3, 20, False)
    assert gateway.mock.counts.total.completed == 1


async def test_reading_on_for_a_client_that_left_has_a_bound(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(drain_ms=200)
    secret = await gateway.issue()
    async with gateway.post(CHAT, secret, chat("gpt-mock:stall-after-4", stream=True)) as answer:
        await answer.content.readany()
        answer.close()
    (event,) = await settled(gateway, secret)
    assert event.usage.estimated
    assert event.usage.output > 0


async def test_the_answer_of_a_client_that_left_is_stopped_where_the_provider_is_set_so(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(on_hang_up="close")
    secret = await gateway.issue()
    slow = message("claude-mock:chunks-1000.interval-ms-20", stream=True)
    async with gateway.post(MESSAGES, secret, slow) as answer:
        await answer.content.readany()
        answer.close()
    (event,) = await settled(gateway, secret)
    assert event.usage.estimated
    assert 0 < event.usage.output < 1000
    async with asyncio.timeout(10):
        while gateway.mock.counts.open:
            await asyncio.sleep(0.01)
    assert gateway.mock.counts.total.broken == 1


class Flowing:
    """A provider whose answers do not end: each sends a piece of 1,000 bytes when it is told to."""

    def __init__(self) -> None:
        self.open: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
        self.send(writer)
        self.open.append(writer)
        await reader.read()  # until the gateway closes
        self.open.remove(writer)

    def send(self, writer: asyncio.StreamWriter) -> None:
        event = b'data: {"choices": [{"delta": {"content": "%b"}}]}\n\n'
        writer.write(event % (b"x" * (1002 - len(event))))

    async def until_open(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.open) != count:
                await asyncio.sleep(0.01)


async def test_so_many_bytes_are_read_on_for_a_client_that_left_and_no_more(start_gateway: StartGateway) -> None:
    provider = Flowing()
    async with scripted_provider(provider.serve) as url:
        gateway = await start_gateway(base_url=url, drain_bytes=5000)
        secret, other = await gateway.issue(), await gateway.issue()
        async with gateway.post(CHAT, other, chat(stream=True)) as staying:
            await staying.content.readany()
            async with gateway.post(CHAT, secret, chat(stream=True)) as answer:
                await answer.content.readany()
                answer.close()
            leaving = provider.open[1]
            for _ in range(5):
                provider.send(leaving)
                await asyncio.sleep(0.05)
            assert not await gateway.events(secret)
            async with asyncio.timeout(10):
                while leaving in provider.open:
                    provider.send(leaving)
                    await asyncio.sleep(0.01)
            (event,) = await settled(gateway, secret)
            assert (event.status, event.usage.estimated) == (200, True)
            assert event.usage.output > 5000 // 10  # what was read on counts too
            provider.send(provider.open[0])
            assert await staying.content.readany()
            assert not await gateway.events(other)


async def test_so_many_answers_are_read_on_at_once_and_one_that_ends_makes_room(start_gateway: StartGateway) -> None:
    provider = Flowing()
    async with scripted_provider(provider.serve) as url:
        gateway = await start_gateway(base_url=url, bounds={"max_drained": 2})
        secret, other = await gateway.issue(), await gateway.issue()
        async with gateway.post(CHAT, other, chat(stream=True)) as staying:
            await staying.content.readany()
            for _ in range(5):
                async with gateway.post(CHAT, secret, chat(stream=True)) as answer:
                    await answer.content.readany()
                    answer.close()
            await provider.until_open(3)
            events = await gateway.events(secret)
            assert [(event.status, event.usage.estimated) for event in events] == [(200, True)] * 3
            assert all(event.usage.output > 0 for event in events)
            provider.open[1].close()  # the end of that answer, in order
            await provider.until_open(2)
            async with gateway.post(CHAT, secret, chat(stream=True)) as answer:
                await answer.content.readany()
                answer.close()
            await asyncio.sleep(0.1)
            assert len(provider.open) == 3
            assert len(await gateway.events(secret)) == 4
            provider.send(provider.open[0])
            assert await staying.content.readany()
            assert not await gateway.events(other)


async def test_a_client_that_leaves_before_there_is_an_answer_is_charged(gateway: Gateway) -> None:
    secret = await gateway.issue()
    waiting = asyncio.ensure_future(gateway.post(CHAT, secret, chat("gpt-mock:first-byte-ms-400")))
    await asyncio.sleep(0.15)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    (event,) = await settled(gateway, secret)
    assert (event.status, event.usage.input_total, event.usage.output) == (200, 3, 5)


async def test_a_client_that_leaves_before_anything_was_sent_costs_no_tokens(gateway: Gateway) -> None:
    """Also when the connection that was to carry the request has carried another one."""
    secret = await gateway.issue()
    async with gateway.post(CHAT, secret, chat()) as answer:
        await answer.read()
    await gateway.redis.client_pause(300)
    raw = json.dumps(chat()).encode()
    async with Client(gateway.url) as client:
        client.send(f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nx-api-key: {secret}\r\ncontent-length: {len(raw)}\r\n\r\n")
        client.send(raw)
        await asyncio.sleep(0.1)
    _, event = await settled(gateway, secret, 2)
    assert (event.status, event.usage.input_total, event.usage.output) == (499, 0, 0)
    assert gateway.mock.counts.total.requests == 1


@pytest.mark.parametrize("method", ["feed", "end"])
async def test_a_mistake_of_ours_in_the_middle_of_an_answer_ends_it_and_is_logged(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], method: str
) -> None:
    secret = await gateway.issue(concurrency=1)

    def broken(*_: object) -> None:
        raise RuntimeError("canary-54")

    monkeypatch.setattr(f"edgeproxy.gateway.metering.Meter.{method}", broken)
    async with asyncio.timeout(5):
        with pytest.raises(aiohttp.ClientError):
            async with gateway.post(CHAT, secret, chat()) as answer:
                await answer.read()
    await settled(gateway, secret)
    err = capfd.readouterr().err
    assert '"callback_failed"' in err
    assert "RuntimeError" in err
    assert "canary-54" not in err


async def test_a_slow_reader_holds_up_the_provider_and_misses_nothing(start_gateway: StartGateway) -> None:
    piece = b"data: " + b"x" * 65_000 + b"\n\n"
    total = 400
    sent = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-type: text/event-stream\r\n\r\n")
        for _ in range(total):
            writer.write(b"%x\r\n" % len(piece) + piece + b"\r\n")
            await writer.drain()
            sent += 1
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        await reader.read()

    async with scripted_provider(script) as url:
        gateway = await start_gateway(base_url=url)
        secret = await gateway.issue()
        raw = json.dumps(message(stream=True)).encode()
        async with Client(gateway.url) as client:
            client.send(
                f"POST {MESSAGES} HTTP/1.1\r\nhost: x\r\nx-api-key: {secret}\r\ncontent-length: {len(raw)}\r\n\r\n"
            )
            client.send(raw)
            await client.reader.readuntil(b"\r\n\r\n")
            before = -1
            async with asyncio.timeout(20):
                while sent != before:
                    before = sent
                    await asyncio.sleep(0.3)
            assert sent < total  # the provider waits
            received = 0
            while not (chunk := await client.reader.read(2**20)).endswith(b"0\r\n\r\n"):
                received += len(chunk)
            received += len(chunk)
        assert received >= total * len(piece)
    await settled(gateway, secret)


async def test_an_http_1_0_client_gets_a_body_that_ends_with_the_connection(gateway: Gateway) -> None:
    secret = await gateway.issue()
    raw = json.dumps(chat(stream=True)).encode()
    async with Client(gateway.url) as client:
        client.send(f"POST {CHAT} HTTP/1.0\r\nx-api-key: {secret}\r\ncontent-length: {len(raw)}\r\n\r\n")
        client.send(raw)
        async with asyncio.timeout(10):
            whole = await client.reader.read()
    head, _, body = whole.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert body.startswith(b"data: ")
    assert body.endswith(b"data: [DONE]\n\n")


async def test_an_http_1_0_client_can_tell_a_broken_answer_from_a_whole_one(gateway: Gateway) -> None:
    secret = await gateway.issue()
    raw = json.dumps(chat("gpt-mock:cut-after-3", stream=True)).encode()
    async with Client(gateway.url) as client:
        client.send(f"POST {CHAT} HTTP/1.0\r\nx-api-key: {secret}\r\ncontent-length: {len(raw)}\r\n\r\n")
        client.send(raw)
        with pytest.raises(ConnectionResetError):
            await client.reader.read()


async def test_a_client_that_says_no_more_does_not_get_a_part_as_the_whole(gateway: Gateway) -> None:
    secret = await gateway.issue()
    raw = json.dumps(chat("gpt-mock:stall-after-2", stream=True)).encode()
    async with Client(gateway.url) as client:
        client.send(f"POST {CHAT} HTTP/1.0\r\nx-api-key: {secret}\r\ncontent-length: {len(raw)}\r\n\r\n")
        client.send(raw)
        await client.reader.readuntil(b"data:")
        client.writer.write_eof()
        with pytest.raises(ConnectionResetError):
            await client.reader.read()


async def test_requests_on_one_connection_are_answered_in_order(gateway: Gateway) -> None:
    secret = await gateway.issue()
    async with Client(gateway.url) as client:
        for number in range(1, 6):
            raw = json.dumps(chat(f"gpt-mock:length.chunks-{number}")).encode()
            client.send(f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nx-api-key: {secret}\r\ncontent-length: {len(raw)}\r\n\r\n")
            client.send(raw)
        for number in range(1, 6):
            head, body = await client.answer()
            assert head.startswith(b"HTTP/1.1 200")
            assert json.loads(body)["usage"]["completion_tokens"] == number
    await settled(gateway, secret, 5)


async def test_a_stream_is_counted_before_its_last_word_is_sent(gateway: Gateway) -> None:
    """Whoever has read `[DONE]` or `message_stop` finds the request counted, though the stream is still open."""
    secret = await gateway.issue()
    async with gateway.post(MESSAGES, secret, message("claude-mock:chunks-3", stream=True)) as answer:
        seen = b""
        while b"message_stop" not in seen:
            seen += await answer.content.readany()
        assert len(await gateway.events(secret)) == 1


@pytest.mark.parametrize(
    ("limit", "settings"),
    [("tokens=8000/1h", {"reserve": Reserve.STRICT}), ("tokens=60/1h", {"on_limit": OnLimit.SHRINK})],
)
async def test_a_provider_that_does_not_keep_to_the_maximum_is_cut_off(
    gateway: Gateway, limit: str, settings: dict[str, Any]
) -> None:
    """The mock provider says that it sends few tokens, and sends long words instead."""
    secret = await gateway.issue(limit, **settings)
    async with gateway.post(CHAT, secret, chat(LONG_WORDS, stream=True, max_tokens=100)) as answer:
        assert answer.status == 200
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.read()
    (event,) = await settled(gateway, secret)
    assert event.usage.estimated
    assert event.usage.output > 100


async def test_an_estimate_is_no_maximum(gateway: Gateway) -> None:
    secret = await gateway.issue("tokens=8000/1h")
    async with gateway.post(CHAT, secret, chat(LONG_WORDS, stream=True, max_tokens=100)) as answer:
        assert (await answer.read()).endswith(b"data: [DONE]\n\n")
    await settled(gateway, secret)
