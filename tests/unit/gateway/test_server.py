"""The client's side of the wire: framing, keep-alive, and silence about what was sent."""

import asyncio
import gc
import json
from contextlib import suppress
from pathlib import Path

import pytest
import redis.asyncio as redis_asyncio

from edgeproxy.config import Bounds
from edgeproxy.gateway.answers import Written, write
from edgeproxy.gateway.requests import Request
from edgeproxy.gateway.server import Server
from edgeproxy.metrics import Metrics
from tests.support.gateway import Gateway, StartGateway, chat, run_gateway
from tests.support.raw import Client, read_request, scripted_provider

CHAT = "/v1/chat/completions"
GET = "GET /healthz HTTP/1.1\r\nhost: x\r\n"


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"canary-9f2 nonsense\r\n\r\n",
        b"POST /v1/messages HTTP/1.1\r\nhost: x\r\nuser-agent: canary-9f2\r\nuser-agent: canary-9f2\r\n\r\n",
        b"GET / HTTP/9.9\r\nhost: x\r\n\r\n",
        b"POST /v1/messages HTTP/1.1\r\nhost: x\r\ncanary-9f2\r\n\r\n",
        b"POST /v1/messages HTTP/1.1\r\nauthorization: Bearer canary-9f2\r\ncontent-length: x\r\n\r\n",
        b"POST /v1/messages HTTP/1.1\r\nhost: x\r\ntransfer-encoding: junk, chunked\r\ncontent-length: 1\r\n\r\n0",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 canary-9f2\r\n\r\n",
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


async def test_an_idle_connection_does_not_hold_up_a_stop(
    redis_url: str, operator_secret: Path, pepper_file: Path, tmp_path: Path
) -> None:
    bounds = {"drain_ms": 600_000}
    async with asyncio.timeout(60):
        async with run_gateway(redis_url, operator_secret, pepper_file, tmp_path, bounds=bounds) as gateway:
            client = await Client(gateway.url).__aenter__()
            client.send("GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
            await client.answer()
    assert await client.reader.read() == b""
    client.close()


async def test_an_answer_goes_on_during_a_stop_and_is_reset_and_counted_when_it_outlasts_it(
    redis_url: str, operator_secret: Path, pepper_file: Path, tmp_path: Path, redis: redis_asyncio.Redis
) -> None:
    has_stopped_listening = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: first\n\n")
        await has_stopped_listening.wait()
        writer.write(b"data: second\n\n")
        await reader.read()

    async def watch(client: Client) -> None:
        with suppress(ConnectionRefusedError):
            while True:
                async with Client(gateway.url):
                    await asyncio.sleep(0.01)
        has_stopped_listening.set()
        await client.reader.readuntil(b"second")
        with pytest.raises(ConnectionResetError):
            await client.reader.read()

    async with asyncio.timeout(60), scripted_provider(script) as url:
        bounds = {"drain_ms": 2000}
        async with run_gateway(
            redis_url, operator_secret, pepper_file, tmp_path, bounds=bounds, base_url=url
        ) as gateway:
            secret = await gateway.issue()
            raw = json.dumps(chat(stream=True)).encode()
            client = await Client(gateway.url).__aenter__()
            # To an HTTP/1.0 client an ordinary close would be the end of a whole answer.
            client.send(f"POST {CHAT} HTTP/1.0\r\nx-api-key: {secret}\r\ncontent-length: {len(raw)}\r\n\r\n")
            client.send(raw)
            await client.reader.readuntil(b"first")
            watching = asyncio.create_task(watch(client))
        await watching
    client.close()
    gateway.redis = redis
    (event,) = await gateway.events(secret)
    assert (event.status, event.usage.estimated) == (200, True)


async def test_a_stop_waits_once_for_an_answer_though_aiohttp_does_so_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = []

    async def shutdown(_: object, timeout: float | None) -> None:
        waits.append(timeout)

    monkeypatch.setattr("edgeproxy.gateway.server.RequestHandler.shutdown", shutdown)
    connection = Server(lambda _: asyncio.sleep(0, Written(keep_alive=False)), Bounds(), Metrics())()
    await connection.shutdown(8)
    await connection.shutdown(None)
    assert waits == [4, None]


async def test_a_client_that_leaves_in_the_turn_of_its_request_is_no_mistake_of_ours() -> None:
    answered, failures = [], []

    async def handle(request: Request) -> Written:
        answered.append(request)
        return write(request, 200, [], b"")

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: failures.append(context))
    server = Server(handle, Bounds(), Metrics())
    listener = await loop.create_server(server, "127.0.0.1", 0)
    async with listener, Client(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}") as client:
        client.send(GET + "\r\n")
        await client.answer()
        (connection,) = server.connections
        connection.data_received((GET + "\r\n").encode())
        connection.connection_lost(None)
        await asyncio.sleep(0.01)
        gc.collect()
    assert (len(answered), failures) == (1, [])


# --- a refused client sees why


async def test_an_answer_to_what_cannot_be_read_survives_what_its_client_still_sends(gateway: Gateway) -> None:
    async with Client(gateway.url) as client:
        client.send("nonsense\r\n\r\n")
        for _ in range(50):
            client.send(b"x" * 100_000)
            await asyncio.sleep(0.001)
        head, body = await client.answer()
        assert (head[:12], body) == (b"HTTP/1.1 400", b"The request is not valid HTTP/1.1.\n")
        assert await client.reader.read() == b""


async def test_a_client_beyond_the_bound_is_told_so_and_one_that_leaves_makes_room(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(bounds={"max_client_connections": 2})
    async with Client(gateway.url) as first:
        async with Client(gateway.url) as second:
            for client in (first, second):
                client.send(GET + "\r\n")
                await client.answer()
            async with Client(gateway.url) as third:
                third.send(GET + "\r\n")
                head, body = await third.answer()
                assert head.startswith(b"HTTP/1.1 503")
                assert b"retry-after: 1" in head
                assert body == b"This gateway holds as much as it may. Try again shortly.\n"
                assert await third.reader.read() == b""
            first.send(GET + "\r\n")
            assert (await first.answer())[1] == b"ok\n"
        async with asyncio.timeout(10):
            while True:
                async with Client(gateway.url) as fourth:
                    fourth.send(GET + "\r\n")
                    if (await fourth.answer())[0].startswith(b"HTTP/1.1 200"):
                        break
    assert 'edgeproxy_connections_refused_total{reason="full"}' in gateway.metrics.render().decode()


# --- clients that are late


@pytest.mark.parametrize("before", ["", GET + "\r\n"], ids=["first", "on a kept connection"])
async def test_a_head_that_trickles_in_is_given_up(start_gateway: StartGateway, before: str) -> None:
    gateway = await start_gateway(bounds={"head_timeout_ms": 300})
    async with Client(gateway.url) as client:
        if before:
            client.send(before)
            await client.answer()
            await asyncio.sleep(0.4)  # being idle is another matter
        client.send(GET)
        trickling = asyncio.get_running_loop().time()
        while not client.reader._buffer and asyncio.get_running_loop().time() < trickling + 10:
            client.send("a")
            await asyncio.sleep(0.02)
        head, body = await client.answer()
        assert head.startswith(b"HTTP/1.1 408")
        assert body == b"The request's headers did not arrive in time. Send it again.\n"
        assert await client.reader.read() == b""
    assert 'edgeproxy_refusals_total{reason="head_timeout"} 1.0' in gateway.metrics.render().decode()


async def test_a_head_has_its_whole_time_where_a_connection_was_about_to_be_closed(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(bounds={"keepalive_ms": 600})
    async with Client(gateway.url) as client:
        client.send(GET + "\r\n")
        await client.answer()
        client.send(GET)
        await asyncio.sleep(1)
        client.send("\r\n")
        assert (await client.answer())[1] == b"ok\n"


async def test_an_idle_connection_is_closed(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(bounds={"keepalive_ms": 200})
    async with Client(gateway.url) as client, asyncio.timeout(10):
        assert await client.reader.read() == b""


async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A provider whose answer does not end."""
    await read_request(reader)
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
    while True:
        writer.write(b'data: {"choices": [{"delta": {"content": "%b"}}]}\n\n' % (b"x" * 100_000))
        await writer.drain()


async def test_a_client_that_takes_nothing_is_disconnected_and_its_answer_settled(start_gateway: StartGateway) -> None:
    async with scripted_provider(endless) as url:
        gateway = await start_gateway(base_url=url, bounds={"client_slow_ms": 300}, on_hang_up="close")
        secret = await gateway.issue()
        raw = json.dumps(chat(stream=True)).encode()
        async with Client(gateway.url) as client:
            client.send(f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nx-api-key: {secret}\r\ncontent-length: {len(raw)}\r\n\r\n")
            client.send(raw)
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # of a transport that reads
            event = await gateway.settled(secret)
            assert (event.status, event.usage.estimated) == (200, True)
            assert "edgeproxy_slow_clients_total 1.0" in gateway.metrics.render().decode()
            client.writer.transport.resume_reading()  # type: ignore[attr-defined]  # as above
            with pytest.raises(ConnectionResetError):
                await client.reader.read()


async def test_a_client_that_takes_its_answer_is_left_alone(start_gateway: StartGateway) -> None:
    async with scripted_provider(endless) as url:
        gateway = await start_gateway(base_url=url, bounds={"client_slow_ms": 100})
        secret = await gateway.issue()
        raw = json.dumps(chat(stream=True)).encode()
        async with Client(gateway.url) as client:
            client.send(f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nx-api-key: {secret}\r\ncontent-length: {len(raw)}\r\n\r\n")
            client.send(raw)
            for _ in range(20):
                assert await client.reader.read(500_000)
                await asyncio.sleep(0.05)
        assert "edgeproxy_slow_clients_total 0.0" in gateway.metrics.render().decode()


async def test_answers_do_not_pile_up_for_a_client_that_only_asks() -> None:
    answered = 0

    async def handle(request: Request) -> Written:
        nonlocal answered
        answered += 1
        return write(request, 200, [], b"x" * 100_000)

    metrics = Metrics()
    server = Server(handle, Bounds(client_slow_ms=500), metrics)
    listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    async with listener, Client(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}") as client:
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # of a transport that reads
        client.send((GET + "\r\n") * 2000)
        async with asyncio.timeout(10):
            while server.connections:
                await asyncio.sleep(0.05)
    assert answered < 500
    assert b"edgeproxy_slow_clients_total 1.0" in metrics.render()


async def test_many_requests_in_a_row_are_all_answered(gateway: Gateway) -> None:
    async with Client(gateway.url) as client:
        client.send((GET + "\r\n") * 5000)
        for _ in range(5000):
            _, body = await client.answer()
            assert body == b"ok\n"


async def test_an_answer_that_did_not_wait_for_its_question_survives_what_is_sent_after_it(gateway: Gateway) -> None:
    async with Client(gateway.url) as client:
        client.send("GET /healthz HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n")
        await asyncio.sleep(0.05)
        client.send("abcde")
        for _ in range(20):
            client.send(GET + "\r\n")
            await asyncio.sleep(0.005)
        head, body = await client.answer()
        assert (b"connection: close" in head, body) == (True, b"ok\n")
        assert await client.reader.read() == b""
