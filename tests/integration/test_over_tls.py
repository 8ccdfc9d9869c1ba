"""The data plane over TLS: all that holds over plain connections holds here, and the certificate can be replaced."""

import asyncio
import io
import json
import socket
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import aiohttp
import pytest

from edgeproxy.app import gateway_role
from edgeproxy.config import Bounds, Settings
from edgeproxy.errors import OperatorError
from edgeproxy.gateway.answers import write
from edgeproxy.gateway.gate import open_listener
from edgeproxy.gateway.server import Server
from edgeproxy.metrics import Metrics
from edgeproxy.tls import Certificates
from tests.support.certificates import CLIENT, DAY, Pair, make_pair
from tests.support.gateway import Gateway, StartGateway, chat, generate, message, run_gateway
from tests.support.raw import Client, read_request, scripted_provider

CHAT = "/v1/chat/completions"
STREAMS = [
    (CHAT, chat("gpt-mock:chunks-50", stream=True)),
    ("/v1/messages", message("claude-mock:chunks-50", stream=True)),
    ("/v1beta/models/gemini-mock:chunks-50:streamGenerateContent?alt=sse", generate()),
]
HEALTH = "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return make_pair(tmp_path)


@pytest.fixture
async def start(start_gateway: StartGateway, pair: Pair) -> Callable[..., Awaitable[Gateway]]:
    async def run(**options: Any) -> Gateway:
        return await start_gateway(listen=pair.settings(), **options)

    return run


@pytest.fixture
async def secure(start: Callable[..., Awaitable[Gateway]]) -> Gateway:
    return await start()


@pytest.fixture
def trusting(pair: Pair) -> ssl.SSLContext:
    return pair.client_context()


def question(secret: str, body: Any, *, version: str = "1.1", path: str = CHAT) -> bytes:
    raw = json.dumps(body).encode()
    head = f"POST {path} HTTP/{version}\r\nhost: x\r\nx-api-key: {secret}\r\ncontent-length: {len(raw)}\r\n\r\n"
    return head.encode() + raw


# --- what is answered


@pytest.mark.parametrize(("path", "body"), STREAMS)
async def test_a_stream_is_whole_and_counted(
    secure: Gateway, trusting: ssl.SSLContext, path: str, body: dict[str, Any]
) -> None:
    secret = await secure.issue()
    async with secure.post(path, secret, body, ssl=trusting) as answer:
        text = await answer.text()
    assert answer.status == 200
    assert text.count("data:") >= 50
    event = await secure.settled(secret)
    assert (event.usage.output, event.usage.estimated) == (50, False)


@pytest.mark.claims("OL-4c")
async def test_the_first_piece_is_there_before_the_second_is_sent(secure: Gateway, trusting: ssl.SSLContext) -> None:
    secret = await secure.issue()
    async with secure.post(CHAT, secret, chat("gpt-mock:stall-after-1", stream=True), ssl=trusting) as answer:
        async with asyncio.timeout(10):
            assert await answer.content.readany()
        assert secure.mock.counts.open == 1


async def test_connections_are_kept_and_requests_on_one_are_answered_in_order(
    secure: Gateway, trusting: ssl.SSLContext
) -> None:
    secret = await secure.issue()
    async with Client(secure.url, trusting) as client:
        for number in range(1, 6):
            client.send(question(secret, chat(f"gpt-mock:length.chunks-{number}")))
        for number in range(1, 6):
            _, body = await client.answer()
            assert json.loads(body)["usage"]["completion_tokens"] == number


async def test_a_large_upload_is_handed_on(secure: Gateway, trusting: ssl.SSLContext) -> None:
    secret = await secure.issue()
    form = aiohttp.FormData()
    form.add_field("model", "whisper-mock")
    form.add_field("file", io.BytesIO(b"\x07" * 5_000_000), filename="a.wav", content_type="audio/wav")
    headers = {"authorization": f"Bearer {secret}"}
    async with secure.session.post(
        f"{secure.url}/v1/audio/transcriptions", data=form, headers=headers, ssl=trusting
    ) as answer:
        assert answer.status == 200, await answer.text()
    await secure.settled(secret)


async def test_a_large_body_is_taken_in(secure: Gateway, trusting: ssl.SSLContext) -> None:
    secret = await secure.issue()
    raw = json.dumps({"model": "gpt-mock", "messages": [{"role": "user", "content": "word " * 1_000_000}]}).encode()
    headers = {"authorization": f"Bearer {secret}"}
    async with secure.session.post(secure.url + CHAT, data=io.BytesIO(raw), headers=headers, ssl=trusting) as answer:
        assert answer.status == 200
        assert (await answer.json())["usage"]["prompt_tokens"] == 1_000_000


async def test_a_slow_reader_holds_up_the_provider_and_misses_nothing(
    start: Callable[..., Awaitable[Gateway]], trusting: ssl.SSLContext
) -> None:
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
        gateway = await start(base_url=url)
        secret = await gateway.issue()
        async with Client(gateway.url, trusting) as client:
            client.send(question(secret, chat(stream=True)))
            await client.reader.readuntil(b"\r\n\r\n")
            before = -1
            async with asyncio.timeout(20):
                while sent != before:
                    before = sent
                    await asyncio.sleep(0.3)
            assert sent < total  # the provider waits
            received = 0
            async with asyncio.timeout(20):
                while not (chunk := await client.reader.read(2**20)).endswith(b"0\r\n\r\n"):
                    received += len(chunk)
            received += len(chunk)
        assert received >= total * len(piece)
    await gateway.settled(secret)


async def test_as_little_waits_for_a_slow_reader_as_without_tls(pair: Pair, trusting: ssl.SSLContext) -> None:
    async def answer(request: aiohttp.web.BaseRequest) -> aiohttp.web.StreamResponse:
        assert request.transport is not None
        return write(request, 200, [], str(request.transport.get_write_buffer_limits()[1]).encode())

    for settings, tls in ((Settings(), None), (Settings(listen=pair.listen()), trusting)):
        sock, metrics = socket.create_server(("127.0.0.1", 0)), Metrics()
        server = Server(answer, Bounds(), metrics)
        certificates = Certificates(settings.listen, "api")
        listener = await open_listener(settings, "api", sock, server, certificates, metrics)
        async with Client(f"http://127.0.0.1:{sock.getsockname()[1]}", tls) as client:
            client.send(HEALTH)
            _, limit = await client.answer()
        listener.close()
        await server.shutdown(0.1)
        assert limit == b"65536"


async def test_a_client_that_leaves_is_charged(secure: Gateway, trusting: ssl.SSLContext) -> None:
    secret = await secure.issue()
    async with Client(secure.url, trusting) as client:
        client.send(question(secret, chat("gpt-mock:chunks-20.interval-20", stream=True)))
        await client.reader.readuntil(b"data:")
    event = await secure.settled(secret)  # read on to its end
    assert (event.usage.output, event.usage.estimated) == (20, False)


# --- what breaks off


class Listener:
    """A client that sees TCP and TLS apart, as Python's own sockets do not."""

    def __init__(self, url: str, tls: ssl.SSLContext) -> None:
        self._raw = socket.create_connection((urlsplit(url).hostname, urlsplit(url).port), timeout=20)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = tls.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._raw.close()

    def ask(self, request: bytes) -> bytes:
        """Send a request; return what comes first."""
        self._do(self._tls.do_handshake)
        self._do(lambda: self._tls.write(request))
        return self._read()

    def ask_and_listen(self, request: bytes) -> tuple[bytes, str]:
        """What comes for a request, and how that ends: `whole` is an end that TLS vouches for."""
        received = b""
        try:
            received += self.ask(request)
            while chunk := self._read():
                received += chunk
        except ConnectionResetError:
            return received, "reset"
        except EOFError:
            return received, "cut"
        return received, "whole"

    def say_no_more(self) -> None:
        """End our own side, and wait for the other one to do the same."""
        self._do(self._tls.unwrap)

    def _read(self) -> bytes:
        return bytes(self._do(lambda: self._tls.read(65536)))

    def _do(self, action: Callable[[], Any]) -> Any:
        while True:
            try:
                result = action()
            except ssl.SSLWantReadError:
                self._raw.sendall(self._outgoing.read())
                chunk = self._raw.recv(65536)
                if not chunk:
                    raise EOFError from None
                self._incoming.write(chunk)
            except ssl.SSLZeroReturnError:
                return b""
            else:
                self._raw.sendall(self._outgoing.read())
                return result


def end_of_answer(url: str, tls: ssl.SSLContext, request: bytes) -> tuple[bytes, str]:
    """What a client receives, and how that ends."""
    with Listener(url, tls) as client:
        return client.ask_and_listen(request)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("fault", ["cut-after-3", "close-after-3", "framing-after-3", "length.cut-after-1"])
async def test_a_broken_answer_never_ends_in_order(
    secure: Gateway, trusting: ssl.SSLContext, fault: str, version: str
) -> None:
    """To a client of HTTP/1.0 the end of the connection is the end of the answer, if TLS says that it is one."""
    secret = await secure.issue()
    body = chat(f"gpt-mock:chunks-9.{fault}", stream=not fault.startswith("length"))
    request = question(secret, body, version=version)
    received, end = await asyncio.to_thread(end_of_answer, secure.url, trusting, request)
    assert b"HTTP/1.1 200".startswith(received[:12])  # a reset may overtake what comes before it
    assert end == "reset"


async def test_a_whole_answer_ends_in_order(secure: Gateway, trusting: ssl.SSLContext) -> None:
    secret = await secure.issue()
    request = question(secret, chat(stream=True), version="1.0")
    received, end = await asyncio.to_thread(end_of_answer, secure.url, trusting, request)
    assert received.endswith(b"data: [DONE]\n\n")
    assert end == "whole"


async def test_a_client_that_says_no_more_does_not_get_a_part_as_the_whole(
    secure: Gateway, trusting: ssl.SSLContext
) -> None:
    """TLS lets a client end its own side and listen on. What it would hear then is an orderly end of ours."""
    secret = await secure.issue()

    body = chat("gpt-mock:stall-after-2", stream=True)

    def listen_on() -> None:
        with Listener(secure.url, trusting) as client:
            assert client.ask(question(secret, body, version="1.0")).startswith(b"HTTP/1.1 200")
            client.say_no_more()

    with pytest.raises(ConnectionResetError):
        await asyncio.to_thread(listen_on)


async def test_an_answer_that_outlasts_a_stop_is_reset(
    redis_url: str, operator_secret: Path, pepper_file: Path, tmp_path: Path, pair: Pair
) -> None:
    async with run_gateway(
        redis_url, operator_secret, pepper_file, tmp_path, bounds={"drain_ms": 300}, listen=pair.settings()
    ) as gateway:
        request = question(await gateway.issue(), chat("gpt-mock:stall-after-2", stream=True), version="1.0")
        ending = asyncio.create_task(asyncio.to_thread(end_of_answer, gateway.url, pair.client_context(), request))
        async with asyncio.timeout(10):
            while gateway.mock.counts.open == 0:
                await asyncio.sleep(0.01)
    received, end = await ending
    assert (received[:12], end) == (b"HTTP/1.1 200", "reset")


# --- handshakes


async def test_a_handshake_that_is_not_finished_in_time_is_ended(start: Callable[..., Awaitable[Gateway]]) -> None:
    gateway = await start(bounds={"handshake_timeout_ms": 300})
    async with Client(gateway.url) as client:
        client.send(b"\x16\x03\x01\x02\x00\x01\x00")
        async with asyncio.timeout(10):
            assert not await ended(client)


@pytest.mark.parametrize(
    "first",
    [
        HEALTH.encode(),
        b"\0" * 2000,
        b"\x16\x03\x01\x40\x00\x01\xff\xff\xff\x03\x03" + b"x" * 100_000,  # a hello of 16 MB
        b"\x15\x03\x01\x00\x02\x01\x00" * 1000,  # warnings without end
        b"\x16\x03\x01\x00\x00" * 1000,  # empty pieces without end
    ],
)
async def test_what_is_no_handshake_is_ended_at_once_and_leaves_no_trace(
    secure: Gateway, first: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    async with Client(secure.url) as client:
        client.send(first)
        async with asyncio.timeout(5):  # half of the time that a handshake may take
            assert len(await ended(client)) < 100  # an alert of TLS, no word of HTTP
    assert capfd.readouterr().err == ""


async def ended(client: Client) -> bytes:
    """What comes until the connection ends, in whatever way."""
    try:
        return await client.reader.read()
    except ConnectionResetError:
        return b""


async def test_a_hello_of_tls_1_1_is_refused(secure: Gateway) -> None:
    hello = b"\x03\x02" + bytes(32) + b"\0" + b"\x00\x04\xc0\x13\xc0\x14" + b"\x01\x00"
    shake = b"\x01" + len(hello).to_bytes(3) + hello
    async with Client(secure.url) as client:
        client.send(b"\x16\x03\x01" + len(shake).to_bytes(2) + shake)
        async with asyncio.timeout(5):
            assert await ended(client) in (b"", b"\x15\x03\x02\x00\x02\x02\x46")  # the alert protocol_version


# --- reload


def serial(client: Client) -> int:
    return int(client.writer.get_extra_info("peercert")["serialNumber"], 16)


async def test_a_stream_goes_on_while_new_connections_get_the_new_certificate(
    secure: Gateway, pair: Pair, tmp_path: Path
) -> None:
    secret = await secure.issue()
    old_context = pair.client_context()
    async with Client(secure.url, old_context) as old:
        old.send(question(secret, chat("gpt-mock:chunks-30.interval-20", stream=True)))
        received = await old.reader.readuntil(b"data:")
        renewed = make_pair(tmp_path)
        await secure.role.reload(secure.settings)
        async with Client(secure.url, renewed.client_context()) as new:
            assert (serial(old), serial(new)) == (pair.serial, renewed.serial)
            new.send(HEALTH)
            assert (await new.answer())[1] == b"ok\n"
        async with asyncio.timeout(20):
            received += await old.reader.readuntil(b"data: [DONE]\n\n")
        assert received.count(b'"content":') >= 30
        await old.reader.readuntil(b"0\r\n\r\n")
        old.send(HEALTH)  # and the connection can still be used
        assert (await old.answer())[1] == b"ok\n"
    with pytest.raises(ssl.SSLCertVerificationError):
        await Client(secure.url, old_context).__aenter__()


async def test_a_bad_certificate_changes_nothing(secure: Gateway, pair: Pair, trusting: ssl.SSLContext) -> None:
    pair.certificate.write_bytes(b"nonsense")
    with pytest.raises(OperatorError, match="check both files"):
        await secure.role.reload(secure.settings)
    async with Client(secure.url, trusting) as client:
        client.send(HEALTH)
        assert (await client.answer())[1] == b"ok\n"


async def test_a_gateway_does_not_start_with_a_bad_certificate(pair: Pair) -> None:
    pair.key.chmod(0o644)
    with socket.create_server(("127.0.0.1", 0)) as sock, pytest.raises(OperatorError, match="chmod 600"):
        async with gateway_role(Settings(listen=pair.listen()), sock, Metrics()):
            pass


# --- the providers' side


async def answer_ok(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}")
    await reader.read()


async def test_a_provider_of_an_authority_of_ones_own_is_trusted_where_it_is_named(
    start_gateway: StartGateway, pair: Pair
) -> None:
    async with scripted_provider(answer_ok, pair.server_context()) as url:
        gateway = await start_gateway(base_url=url, ca_file=str(pair.certificate))
        async with gateway.post(CHAT, await gateway.issue(), chat()) as answer:
            assert (answer.status, await answer.read()) == (200, b"{}")


@pytest.mark.parametrize(
    ("made", "is_known"),
    [
        ({}, False),
        ({"hosts": ("provider.example",)}, True),
        ({"begins": -2 * DAY, "ends": -DAY}, True),
        ({"begins": DAY, "ends": 2 * DAY}, True),
        ({"purpose": CLIENT}, True),
    ],
    ids=["unknown", "another name", "expired", "of the future", "another purpose"],
)
async def test_a_provider_whose_certificate_is_not_right_is_not_spoken_to(
    start_gateway: StartGateway, tmp_path: Path, made: dict[str, Any], *, is_known: bool
) -> None:
    asked = []

    async def script(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        asked.append(await reader.read())

    pair, other = make_pair(tmp_path, "provider", **made), make_pair(tmp_path, "other")
    async with scripted_provider(script, pair.server_context()) as url:
        gateway = await start_gateway(base_url=url, ca_file=str((pair if is_known else other).certificate))
        async with gateway.post(CHAT, await gateway.issue(), chat()) as answer:
            assert answer.status == 502
            assert (await answer.json())["error"]["code"] == "upstream_unreachable"
    assert not any(asked)


async def test_a_large_upload_waits_for_a_slow_provider_over_tls(start_gateway: StartGateway, pair: Pair) -> None:
    received = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal received
        await reader.readuntil(b"\r\n\r\n")
        while received < 3_000_000:
            received += len(await reader.read(50_000))
            await asyncio.sleep(0.001)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}")
        await reader.read()

    async with scripted_provider(script, pair.server_context()) as url:
        gateway = await start_gateway(listen=pair.settings(), base_url=url, ca_file=str(pair.certificate))
        form = aiohttp.FormData()
        form.add_field("model", "whisper-mock")
        form.add_field("file", io.BytesIO(b"\x07" * 3_000_000), filename="a.wav", content_type="audio/wav")
        headers = {"authorization": f"Bearer {await gateway.issue()}"}
        address = f"{gateway.url}/v1/audio/transcriptions"
        async with gateway.session.post(address, data=form, headers=headers, ssl=pair.client_context()) as answer:
            assert answer.status == 200
