"""The provider's side of the wire, against servers that say whatever a test wants."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from edgeproxy.config import Provider
from edgeproxy.errors import (
    UPSTREAM_BUSY,
    UPSTREAM_FAILED,
    UPSTREAM_TIMEOUT,
    UPSTREAM_UNREACHABLE,
    ErrorKind,
    GatewayError,
)
from edgeproxy.gateway.connections import MAX_HEAD_BYTES, Connection, Pool
from edgeproxy.providers.base import Headers
from tests.support.raw import Script, read_request, scripted_provider

REQUEST = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"


class Sink:
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: Headers = []
        self.pieces: list[bytes] = []
        self.pauses = 0
        self.has_left = False
        self.over: asyncio.Future[ErrorKind | None] = asyncio.get_running_loop().create_future()

    def request_left(self) -> None:
        self.has_left = True

    def answer_began(self, status: int, headers: Headers) -> None:
        assert not self.status
        self.status, self.headers = status, headers

    def answer_continued(self, chunk: bytes) -> None:
        self.pieces.append(chunk)

    def answer_paused(self) -> None:
        self.pauses += 1

    def answer_ended(self) -> None:
        self.over.set_result(None)

    def answer_failed(self, error: GatewayError) -> None:
        self.over.set_result(error.kind)

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)


async def exchange(pool: Pool, outgoing: bytes = REQUEST) -> tuple[Sink, Connection, ErrorKind | None]:
    sink = Sink()
    connection = await pool.acquire()
    connection.send(outgoing, sink)
    async with asyncio.timeout(10):
        return sink, connection, await sink.over


def saying(*answers: bytes, close: bool = False) -> Script:
    """Answer each request on a connection with the next of `answers`; the last one again and again."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = 0
        while True:
            await read_request(reader)
            writer.write(answers[min(number, len(answers) - 1)])
            await writer.drain()
            number += 1
            if close:
                return

    return script


def pool_for(url: str, **settings: int) -> Pool:
    return Pool(Provider(name="p", base_url=url, secret_env="X", **settings))  # type: ignore[arg-type]


OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (OK, b"ok"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", b"ok"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2;x=y\r\nok\r\n0\r\ntrailer: 1\r\n\r\n", b"ok"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, b"ok"),
        (b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + OK, b"ok"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", b""),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 8000 + b"\r\ncontent-length: 2\r\n\r\nok", b"ok"),
    ],
)
async def test_an_answer_is_understood_however_it_is_framed_and_the_connection_used_again(
    answer: bytes, body: bytes
) -> None:
    async with scripted_provider(saying(answer)) as url:
        pool = pool_for(url)
        sink, first, error = await exchange(pool)
        assert (sink.body, error) == (body, None)
        assert all("link" not in name for name, _ in sink.headers)
        sink, second, error = await exchange(pool)
        assert (sink.body, error, second) == (body, None, first)
        pool.close()


@pytest.mark.parametrize("size", [1, 2, 3, 7])
async def test_an_answer_may_be_cut_anywhere(size: int) -> None:
    answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n"

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        for at in range(0, len(answer), size):
            writer.write(answer[at : at + size])
            await writer.drain()
            await asyncio.sleep(0.001)
        await reader.read()

    async with scripted_provider(script) as url:
        pool = pool_for(url)
        sink, _, error = await exchange(pool)
        assert (sink.status, sink.body, error) == (200, b"abcdefg", None)
        pool.close()


async def test_an_answer_may_end_with_the_connection() -> None:
    async with scripted_provider(saying(b"HTTP/1.1 200 OK\r\n\r\nall of it", close=True)) as url:
        sink, _, error = await exchange(pool_for(url))
        assert (sink.body, error) == (b"all of it", None)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\ncontent-le",
        b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nabc",
        b"SSH-2.0-OpenSSH\r\n",
        b"\x00" * 100,
    ],
)
async def test_an_answer_that_is_not_complete_or_not_http_is_a_failure(answer: bytes) -> None:
    async with scripted_provider(saying(answer, close=True)) as url:
        sink, _, error = await exchange(pool_for(url))
        assert error is UPSTREAM_FAILED
        assert sink.body in (b"", b"ok")


async def test_an_endless_head_is_a_failure() -> None:
    head = b"HTTP/1.1 200 OK\r\n" + b"".join(b"x-%d: y\r\n" % number for number in range(MAX_HEAD_BYTES // 8))
    async with scripted_provider(saying(head)) as url:
        _, _, error = await exchange(pool_for(url))
        assert error is UPSTREAM_FAILED


async def test_what_follows_an_answer_unasked_is_not_taken_for_the_next() -> None:
    async with scripted_provider(saying(OK + OK, OK)) as url:
        pool = pool_for(url)
        sink, first, error = await exchange(pool)
        assert (sink.body, error) == (b"ok", None)
        _, second, error = await exchange(pool)
        assert (second is first, error) == (False, None)
        pool.close()


async def test_what_follows_a_whole_answer_does_not_spoil_it() -> None:
    answer = OK.replace(b"OK\r", b"OK\r\nconnection: close\r", 1) + b"junk"
    async with scripted_provider(saying(answer)) as url:
        pool = pool_for(url)
        sink, _, error = await exchange(pool)
        assert (sink.body, error) == (b"ok", None)
        assert not pool._idle


async def test_a_connection_that_was_paused_at_the_very_end_reads_the_next_answer() -> None:
    class SlowAtTheEnd(Sink):
        def answer_ended(self) -> None:
            connection.pause()
            super().answer_ended()

    async with scripted_provider(saying(OK)) as url:
        pool = pool_for(url, first_byte_timeout_ms=1000)
        connection = await pool.acquire()
        slow = SlowAtTheEnd()
        connection.send(REQUEST, slow)
        await slow.over
        sink, again, error = await exchange(pool)
        assert (again is connection, sink.body, error) == (True, b"ok", None)
        pool.close()


async def test_a_connection_that_speaks_while_idle_is_dropped() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(OK)
        await asyncio.sleep(0.05)
        writer.write(OK)
        await reader.read()

    async with scripted_provider(script) as url:
        pool = pool_for(url)
        _, first, _ = await exchange(pool)
        await asyncio.sleep(0.15)
        _, second, error = await exchange(pool)
        assert (second is first, error) == (False, None)
        pool.close()


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", OK.replace(b"OK\r", b"OK\r\nconnection: close\r", 1)],
)
async def test_a_connection_that_the_provider_will_close_is_not_kept(answer: bytes) -> None:
    async with scripted_provider(saying(answer)) as url:
        pool = pool_for(url)
        _, first, _ = await exchange(pool)
        _, second, _ = await exchange(pool)
        assert second is not first


async def test_an_idle_connection_that_was_closed_is_replaced_silently() -> None:
    async with scripted_provider(saying(OK, close=True)) as url:
        pool = pool_for(url)
        for _ in range(5):
            sink, _, error = await exchange(pool)
            assert (sink.body, error) == (b"ok", None)
            await asyncio.sleep(0.02)


async def test_an_idle_connection_is_given_up_in_time() -> None:
    async with scripted_provider(saying(OK)) as url:
        pool = pool_for(url, idle_ms=50)
        _, first, _ = await exchange(pool)
        await asyncio.sleep(0.2)
        assert not pool._idle
        assert not pool._open
        _, second, error = await exchange(pool)
        assert (second is first, error) == (False, None)
        pool.close()


async def test_a_connection_that_is_used_again_and_again_is_idle_from_its_last_use() -> None:
    async with scripted_provider(saying(OK)) as url:
        pool = pool_for(url, idle_ms=300)
        _, first, _ = await exchange(pool)
        for _ in range(4):
            await asyncio.sleep(0.15)
            _, again, error = await exchange(pool)
            assert (again is first, error) == (True, None)
        await asyncio.sleep(0.6)
        assert not pool._open
        pool.close()


async def test_there_are_no_more_connections_than_allowed() -> None:
    async with scripted_provider(saying(OK)) as url:
        pool = pool_for(url, max_connections=2)
        held = [await pool.acquire() for _ in range(2)]
        with pytest.raises(GatewayError) as caught:
            await pool.acquire()
        assert caught.value.kind is UPSTREAM_BUSY
        held[0].abort()
        await asyncio.sleep(0.05)
        await exchange(pool)
        held[1].abort()
        pool.close()


async def test_a_provider_that_is_not_there_is_unreachable() -> None:
    with pytest.raises(GatewayError) as caught:
        await pool_for("http://127.0.0.1:1").acquire()
    assert caught.value.kind is UPSTREAM_UNREACHABLE
    with pytest.raises(GatewayError) as caught:
        await pool_for("https://host.invalid").acquire()
    assert caught.value.kind is UPSTREAM_UNREACHABLE


@pytest.fixture
def certificate() -> Path:
    return Path(__file__).parents[2] / "fixtures" / "localhost.pem"


@pytest.fixture
def tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@pytest.mark.claims("OL-4a")
async def test_a_certificate_that_nobody_vouches_for_is_not_accepted(tls: ssl.SSLContext) -> None:
    async with scripted_provider(saying(OK), tls) as url:
        with pytest.raises(GatewayError) as caught:
            await pool_for(url).acquire()
        assert caught.value.kind is UPSTREAM_UNREACHABLE


async def test_a_certificate_for_another_name_is_not_accepted(
    tls: ssl.SSLContext, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with scripted_provider(saying(OK), tls) as url:
        with pytest.raises(GatewayError) as caught:
            await pool_for(url.replace("127.0.0.1", "127.0.0.2")).acquire()
        assert caught.value.kind is UPSTREAM_UNREACHABLE


async def test_answers_come_over_tls_too(
    tls: ssl.SSLContext, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with scripted_provider(saying(OK), tls) as url:
        pool = pool_for(url)
        sink, first, error = await exchange(pool)
        assert (sink.body, error, first.written) == (b"ok", None, True)
        sink, second, error = await exchange(pool)
        assert (sink.body, error, second) == (b"ok", None, first)
        pool.close()


async def test_a_connection_that_nobody_waits_for_any_more_is_given_back_once(
    tls: ssl.SSLContext, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelled just when it is there."""

    def made(connection: Connection, transport: asyncio.BaseTransport) -> None:
        connection_made(connection, transport)
        waiting.cancel()

    connection_made = Connection.connection_made
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with scripted_provider(saying(OK), tls) as url:
        pool = pool_for(url, max_connections=1)
        with monkeypatch.context() as patch:
            patch.setattr(Connection, "connection_made", made)
            waiting = asyncio.ensure_future(pool.acquire())
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await asyncio.sleep(0.05)
        await pool.acquire()
        with pytest.raises(GatewayError) as caught:
            await pool.acquire()
        assert caught.value.kind is UPSTREAM_BUSY


def silent_after(said: bytes) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(said)
        await reader.read()

    return script


@pytest.mark.parametrize(
    ("said", "limits"),
    [
        (b"", {"first_byte_timeout_ms": 100}),
        (b"HTTP/1.1 100 Continue\r\n\r\n", {"first_byte_timeout_ms": 100}),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok", {"silence_timeout_ms": 100}),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok", {"total_timeout_ms": 100}),
        (b"", {"total_timeout_ms": 100}),
    ],
)
async def test_every_kind_of_silence_has_a_limit(said: bytes, limits: dict[str, int]) -> None:
    async with scripted_provider(silent_after(said)) as url:
        _, connection, error = await exchange(pool_for(url, **limits))
        assert error is UPSTREAM_TIMEOUT
        assert connection.written


async def test_a_stream_may_last_longer_than_any_silence_in_it() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n")
        for _ in range(6):
            await asyncio.sleep(0.1)
            writer.write(b"x")

    async with scripted_provider(script) as url:
        sink, _, error = await exchange(pool_for(url, silence_timeout_ms=300))
        assert (sink.body, error) == (b"x" * 6, None)


async def test_a_pause_is_no_silence_and_loses_nothing() -> None:
    body = b"z" * 30_000_000  # more than arrives at once

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        await reader.read()

    async with scripted_provider(script) as url:
        pool = pool_for(url, silence_timeout_ms=100)
        sink = Sink()
        connection = await pool.acquire()
        connection.send(REQUEST, sink)
        while not sink.pieces:
            await asyncio.sleep(0.001)
        connection.pause()
        held = len(sink.body)
        await asyncio.sleep(0.4)
        assert len(sink.body) == held < len(body)
        connection.resume()
        assert await sink.over is None
        assert sink.body == body
        pool.close()


async def test_it_is_known_whether_the_whole_request_has_left() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(10)
        await asyncio.sleep(0.2)

    async with scripted_provider(script) as url:
        large = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 60000000\r\n\r\n" + b"x" * 60_000_000
        sink, connection, error = await exchange(pool_for(url), large)
        assert (error, connection.written, sink.has_left) == (UPSTREAM_FAILED, False, False)
        sink, connection, error = await exchange(pool_for(url))
        assert (error, connection.written, sink.has_left) == (UPSTREAM_FAILED, True, True)


async def test_a_connection_that_is_used_again_has_not_sent_its_next_request_yet() -> None:
    async with scripted_provider(saying(OK)) as url:
        pool = pool_for(url)
        _, first, _ = await exchange(pool)
        assert first.written
        second = await pool.acquire()
        assert (second is first, second.written) == (True, False)
        second.abort()
