"""Bodies are taken in within bounds, and refused before they are read where that is possible."""

import asyncio
import contextlib
import hashlib
import io
import json

import pytest

from edgeproxy.gateway import receiving
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


async def test_a_body_that_falls_silent_is_given_up(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(bounds={"body_silence_ms": 300})
    secret = await gateway.issue()
    async with Client(gateway.url) as client:
        client.send(f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nx-api-key: {secret}\r\ncontent-length: 100\r\n\r\n")
        for _ in range(8):
            client.send(b" ")
            await asyncio.sleep(0.1)
        assert not client.reader._buffer
        head, _ = await client.answer()
    assert head.startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize(("bytes_per_s", "status"), [(100_000, b"408"), (10, b"200")])
async def test_a_body_has_to_come_at_a_rate(
    start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch, bytes_per_s: int, status: bytes
) -> None:
    monkeypatch.setattr(receiving, "_HEAD_START_S", 0.2)
    gateway = await start_gateway(bounds={"min_bytes_per_s": bytes_per_s})
    secret = await gateway.issue()
    raw = json.dumps(chat()).encode() + b" " * 20
    async with Client(gateway.url) as client:
        client.send(f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nx-api-key: {secret}\r\ncontent-length: {len(raw)}\r\n\r\n")
        client.send(raw[:-20])
        for _ in range(20):
            client.send(b" ")
            await asyncio.sleep(0.03)
        head, _ = await client.answer()
    assert head[9:12] == status


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


# --- forms: only their beginning is held

FORMS = "/v1/audio/transcriptions"


def form(*parts: tuple[str, bytes], boundary: str = "edge") -> bytes:
    """A multipart body; the part named `file` is a file."""
    pieces = []
    for name, value in parts:
        more = '; filename="a.wav"\r\nContent-Type: audio/wav' if name == "file" else ""
        pieces.append(f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + value)
    return b"\r\n".join(pieces) + f"\r\n--{boundary}--\r\n".encode()


def form_head(secret: str, length: int | None) -> str:
    framing = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
    kind = "content-type: multipart/form-data; boundary=edge"
    return f"POST {FORMS} HTTP/1.1\r\nhost: x\r\nx-api-key: {secret}\r\n{kind}\r\n{framing}\r\n\r\n"


async def until(condition: object) -> None:
    assert callable(condition)
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("chunked", [True, False])
async def test_a_form_reaches_the_provider_while_its_client_still_sends(gateway: Gateway, *, chunked: bool) -> None:
    secret = await gateway.issue("tokens=1000000/1h")
    body = form(("model", b"gpt-mock"), ("file", b"s" * 200_000))
    half = len(body) // 2

    def framed(piece: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece

    async with Client(gateway.url) as client:
        client.send(form_head(secret, None if chunked else len(body)))
        client.send(framed(body[:half]))
        await until(lambda: gateway.mock.counts.receiving_bytes == half)
        assert (await gateway.usage(secret)).open == 1
        client.send(framed(body[half:]) + (b"0\r\n\r\n" if chunked else b""))
        head = await client.reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert b"connection: keep-alive" in head
    assert gateway.mock.counts.last.body_sha256 == hashlib.sha256(body).hexdigest()
    assert "transfer-encoding" in gateway.mock.counts.last.headers if chunked else True
    (event,) = await gateway.events(secret)
    counted = gateway.mock.counts.total
    assert (event.usage.input_total, event.usage.output) == (counted.input_tokens, counted.output_tokens)


async def test_a_form_may_name_its_model_after_its_file(gateway: Gateway) -> None:
    secret = await gateway.issue()
    body = form(("file", b"s" * 100_000), ("model", b"gpt-mock"), ("language", b"en"))
    async with Client(gateway.url) as client:
        client.send(form_head(secret, len(body)).encode() + body)
        assert (await client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    assert gateway.mock.counts.last.body_sha256 == hashlib.sha256(body).hexdigest()


async def test_another_name_of_a_model_stands_in_the_form_too(gateway: Gateway) -> None:
    secret = await gateway.issue()
    body = form(("model", b"renamed"), ("file", b"s" * 100_000))
    async with Client(gateway.url) as client:
        client.send(form_head(secret, len(body)).encode() + body)
        assert (await client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    sent = body.replace(b"renamed", b"gpt-real")
    assert gateway.mock.counts.last.body_sha256 == hashlib.sha256(sent).hexdigest()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (form(("file", b"s" * 1000)), 400),
        (form(("model", b""), ("file", b"s")), 400),
        (form(("model", b"gpt-mock"), ("file", b"s"), ("model", b"gpt-dear")), 400),
        (form(("model", b"nobody-serves"), ("file", b"s")), 404),
        (form(("model", b"gpt-mock"), ("file", b"s" * 1000)).removesuffix(b"--edge--\r\n"), 400),
        (form(("model", b"gpt-mock"), ("file", b"s" * 500_000)).removesuffix(b"--edge--\r\n"), 400),
        (b"not a form", 400),
        (b"", 400),
    ],
)
async def test_a_form_that_cannot_be_charged_is_not_sent(gateway: Gateway, body: bytes, status: int) -> None:
    secret = await gateway.issue()
    async with Client(gateway.url) as client:
        client.send(form_head(secret, len(body)).encode() + body)
        head, answer = await client.answer()
    assert head.startswith(b"HTTP/1.1 %d" % status)
    assert "error" in json.loads(answer)
    assert gateway.mock.counts.total.completed == 0


async def test_a_second_model_that_comes_later_ends_the_request_before_the_provider_has_all_of_it(
    gateway: Gateway,
) -> None:
    secret = await gateway.issue("tokens=1000000/1h")
    body = form(("model", b"gpt-mock"), ("file", b"s" * 100_000), ("model", b"gpt-dear"))
    async with Client(gateway.url) as client:
        client.send(form_head(secret, len(body)).encode() + body[:50_000])
        await until(lambda: gateway.mock.counts.receiving_bytes > 40_000)
        client.send(body[50_000:])
        head, _ = await client.answer()
    assert head.startswith(b"HTTP/1.1 400")
    await until(lambda: gateway.mock.counts.open == 0)
    assert gateway.mock.counts.total.started == 0
    assert (await gateway.usage(secret)).windows[0].used == 0


async def test_a_form_with_a_wrong_type_is_refused(gateway: Gateway) -> None:
    secret = await gateway.issue()
    async with gateway.post(FORMS, secret, {"model": "gpt-mock"}) as answer:
        assert answer.status == 400


async def test_a_form_that_grows_beyond_the_bound_is_ended(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(bounds={"max_body_bytes": 50_000})
    secret = await gateway.issue("tokens=1000000/1h")
    body = form(("model", b"gpt-mock"), ("file", b"s" * 100_000))
    async with Client(gateway.url) as client:
        client.send(form_head(secret, None))
        for at in range(0, len(body), 10_000):
            piece = body[at : at + 10_000]
            client.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        head, _ = await client.answer()
    assert head.startswith(b"HTTP/1.1 413")
    assert b"connection: close" in head
    assert (await gateway.usage(secret)).windows[0].used == 0


async def test_a_form_whose_rest_does_not_come_is_given_up(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(bounds={"body_timeout_ms": 300})
    secret = await gateway.issue("tokens=1000000/1h")
    async with Client(gateway.url) as client:
        client.send(form_head(secret, 100_000).encode() + form(("model", b"gpt-mock"), ("file", b"s" * 500)))
        head, _ = await client.answer()
    assert head.startswith(b"HTTP/1.1 408")
    usage = await gateway.usage(secret)
    assert (usage.open, usage.windows[0].used) == (0, 0)


async def test_a_client_that_leaves_in_the_middle_of_a_form_is_charged_the_request_only(gateway: Gateway) -> None:
    secret = await gateway.issue("tokens=1000000/1h", "requests=10/1h")
    async with Client(gateway.url) as client:
        client.send(form_head(secret, 100_000).encode() + form(("model", b"gpt-mock"), ("file", b"s" * 500)))
        await until(lambda: gateway.mock.counts.receiving_bytes > 0)
    await until(lambda: gateway.mock.counts.open == 0)
    (event,) = await gateway.events(secret)
    assert (event.status, event.usage.input_total, event.usage.output) == (499, 0, 0)
    usage = await gateway.usage(secret)
    assert (usage.open, [window.used for window in usage.windows]) == (0, [0, 1])


async def test_a_provider_that_refuses_before_it_has_the_form_is_heard(start_gateway: StartGateway) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 5\r\nconnection: close\r\n\r\nlarge")
        await writer.drain()
        await asyncio.sleep(0.3)

    async with scripted_provider(script) as url:
        gateway = await start_gateway(base_url=url)
        secret = await gateway.issue("tokens=1000000/1h")
        async with Client(gateway.url) as client:
            client.send(form_head(secret, 100_000).encode() + form(("model", b"gpt-mock"), ("file", b"s" * 500)))
            head, body = await client.answer()
    assert (head.split()[1], body) == (b"413", b"large")
    assert b"connection: close" in head
    assert (await gateway.usage(secret)).windows[0].used == 0


async def test_a_provider_that_reads_slowly_slows_down_the_client(start_gateway: StartGateway) -> None:
    may_read = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await may_read.wait()
        while await reader.read(2**20):
            pass

    async with scripted_provider(script) as url:
        gateway = await start_gateway(base_url=url, bounds={"max_body_bytes": 200 * 2**20, "max_buffered_bytes": 2**20})
        secret = await gateway.issue()
        async with Client(gateway.url) as client:
            size = 100 * 2**20
            head = form_head(secret, size + 1000)
            client.send(head.encode() + form(("model", b"gpt-mock"), ("file", b""))[:-12])
            sent = 0
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    while sent < size:
                        client.send(b"s" * 2**16)
                        await client.writer.drain()
                        sent += 2**16
            assert sent < 30 * 2**20
            may_read.set()


async def test_a_form_that_does_not_say_how_long_it_is_is_charged_by_what_came(gateway: Gateway) -> None:
    used = []
    body = form(("model", b"gpt-mock"), ("response_format", b"text"), ("file", b"s" * 3_000_000))
    for is_chunked in (False, True):
        secret = await gateway.issue("tokens=1000000/1h")
        async with Client(gateway.url) as client:
            client.send(form_head(secret, None if is_chunked else len(body)))
            for at in range(0, len(body), 100_000):
                piece = body[at : at + 100_000]
                client.send(b"%x\r\n%b\r\n" % (len(piece), piece) if is_chunked else piece)
            client.send(b"0\r\n\r\n" if is_chunked else b"")
            assert (await client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        await until(lambda: gateway.mock.counts.open == 0)
        (event,) = await gateway.events(secret)
        assert event.usage.estimated
        used.append(event.usage.input_total)
    assert used[0] == used[1] > 2000


async def test_a_form_that_is_cut_short_never_reaches_the_provider_whole(start_gateway: StartGateway) -> None:
    received = bytearray()

    async def script(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        while piece := await reader.read(2**16):
            received.extend(piece)

    body = form(("model", b"gpt-mock"), ("file", b"s" * 300_000)).removesuffix(b"--\r\n")
    async with scripted_provider(script) as url:
        gateway = await start_gateway(base_url=url)
        secret = await gateway.issue("tokens=1000000/1h")
        async with Client(gateway.url) as client:
            client.send(form_head(secret, len(body)).encode() + body[:100_000])
            await until(lambda: len(received) > 50_000)
            client.send(body[100_000:])
            head, _ = await client.answer()
    assert head.startswith(b"HTTP/1.1 400")
    assert len(received) < len(body)
    assert (await gateway.usage(secret)).windows[0].used == 0


async def test_a_provider_that_takes_no_more_of_a_form_is_given_up(start_gateway: StartGateway) -> None:
    is_over = asyncio.Event()

    async def script(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await is_over.wait()

    async with scripted_provider(script) as url:
        gateway = await start_gateway(base_url=url, silence_timeout_ms=300)
        secret = await gateway.issue()
        async with Client(gateway.url) as client:
            body = form(("model", b"gpt-mock"), ("file", b"s" * 20_000_000))
            client.send(form_head(secret, len(body)).encode() + body)
            head, _ = await client.answer()
            is_over.set()
    assert head.startswith(b"HTTP/1.1 504")


async def test_uploads_that_stall_leave_room_for_everybody_else(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(max_connections=4)
    stalling, other = await gateway.issue(), await gateway.issue()
    clients = [Client(gateway.url) for _ in range(3)]
    for begun, client in enumerate(clients, 1):
        await client.__aenter__()
        client.send(form_head(stalling, 100_000).encode() + form(("model", b"gpt-mock"), ("file", b"s" * 500)))
        await until(lambda begun=begun: gateway.metrics.open_streams.collect()[0].samples[0].value == min(begun, 2))
    try:
        head, _ = await clients[2].answer()
        assert head.startswith(b"HTTP/1.1 503")
        async with gateway.post(CHAT, other, chat()) as answer:
            assert answer.status == 200
    finally:
        for client in clients:
            client.close()
