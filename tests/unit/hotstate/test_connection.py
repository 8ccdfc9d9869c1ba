"""The multiplexed connection: order, one write per turn, what has left, silence, loss and return."""

import asyncio
import select
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import hiredis
import pytest
import redis.asyncio as redis_asyncio
import uvloop

from edgeproxy.errors import StoreUnavailable
from edgeproxy.hotstate.connection import CommandFailed, Redirected, RedisConnection
from tests.support.certificates import make_pair
from tests.support.raw import scripted_provider

LARGE = bytes(20_000_000)  # more than a socket takes
INFO = b"$19\r\n# Server\r\nrun_id:r1\r\n"


@pytest.fixture
async def connection(redis_url: str) -> AsyncIterator[RedisConnection]:
    opened = RedisConnection(redis_url, timeout_ms=2000, waiting_max=1000, preamble=[])
    await opened.start()
    yield opened
    await opened.close()


async def test_replies_come_back_to_those_who_asked(connection: RedisConnection) -> None:
    replies = await asyncio.gather(*(connection.send("ECHO", str(number)) for number in range(500)))
    assert replies == [str(number).encode() for number in range(500)]


async def test_commands_of_one_turn_leave_in_one_write(connection: RedisConnection) -> None:
    protocol = connection._protocol
    assert protocol is not None
    writes: list[bytes] = []
    transport = protocol._transport
    assert transport is not None

    class Counting:
        def write(self, data: bytes) -> None:
            writes.append(data)
            transport.write(data)

        def get_write_buffer_size(self) -> int:
            return transport.get_write_buffer_size()

        def abort(self) -> None:
            transport.abort()

    protocol._transport = Counting()  # type: ignore[assignment]
    await asyncio.gather(*(connection.send("PING") for _ in range(50)))
    assert len(writes) == 1
    last = connection.send("PING")
    connection.flush()
    assert len(writes) == 2
    await last
    assert len(writes) == 2


async def test_an_error_of_one_command_is_that_commands_own(connection: RedisConnection) -> None:
    good, bad, again = connection.send("PING"), connection.send("EVALSHA", "0" * 40, 0), connection.send("PING")
    assert await good == await again == b"PONG"
    with pytest.raises(CommandFailed) as caught:
        await bad
    assert (caught.value.code, str(caught.value)) == ("NOSCRIPT", "NOSCRIPT")


async def test_binary_and_numbers_pass_unharmed(connection: RedisConnection) -> None:
    blob = bytes(range(256)) * 100
    await connection.send("SET", "k", blob)
    assert await connection.send("GET", "k") == blob
    assert await connection.send("SET", "n", 2**53) == b"OK"
    assert await connection.send("INCR", "n") == 2**53 + 1
    assert await connection.send("GET", "absent") is None
    assert await connection.send("EVAL", "return {1, {2, 'x'}, false}", 0) == [1, [2, b"x"], None]


async def test_it_starts_without_redis_and_finds_it_later(redis_url: str, capfd: pytest.CaptureFixture[str]) -> None:
    connection = RedisConnection("unix:///nonexistent.sock", timeout_ms=100, waiting_max=10, preamble=[])
    await connection.start()
    assert not connection.is_connected
    with pytest.raises(StoreUnavailable):
        connection.send("PING")
    connection._target = RedisConnection(redis_url, 1, 1, [])._target
    async with asyncio.timeout(10):
        while not connection.is_connected:
            await asyncio.sleep(0.01)
    assert await connection.send("PING") == b"PONG"
    await connection.close()
    err = capfd.readouterr().err
    assert "store_unreachable" in err
    assert "store_found" in err


async def test_a_connection_that_is_lost_fails_what_waits_and_comes_back(
    connection: RedisConnection, redis: redis_asyncio.Redis
) -> None:
    number = await connection.send("CLIENT", "ID")
    waiting = connection.send("BLPOP", "nothing", 1)
    connection.flush()
    await redis.client_kill_filter(_id=str(number))
    with pytest.raises(StoreUnavailable):
        await waiting
    async with asyncio.timeout(10):
        while not connection.is_connected:
            await asyncio.sleep(0.01)
    assert await connection.send("PING") == b"PONG"


async def test_a_frozen_redis_is_away_within_the_deadline() -> None:
    async def frozen(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with scripted_provider(answering_first(frozen)) as url:
        connection = greeted(url, 200)
        await connection.start()
        assert connection.is_connected
        started = time.monotonic()
        replies = [connection.send("PING") for _ in range(20)]
        results = await asyncio.gather(*replies, return_exceptions=True)
        assert all(isinstance(result, StoreUnavailable) for result in results)
        assert 0.15 < time.monotonic() - started < 5
        await connection.close()


async def test_an_early_reply_does_not_end_the_watch_over_a_later_command() -> None:
    async def answers_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"PING\r\n")
        writer.write(b"+PONG\r\n")
        await reader.read()

    async with scripted_provider(answering_first(answers_once)) as url:
        connection = greeted(url, 200)
        await connection.start()
        assert await connection.send("PING") == b"PONG"
        with pytest.raises(StoreUnavailable):
            async with asyncio.timeout(5):
                await connection.send("PING")
        await connection.close()


@pytest.mark.parametrize("nonsense", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"+PONG\r\n+PONG\r\n+PONG\r\n", b"\x00\x01"])
async def test_what_is_not_redis_is_given_up(nonsense: bytes) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"PING\r\n")
        writer.write(nonsense)
        await reader.read()

    async with scripted_provider(script) as url:
        connection = greeted(url, 300)
        await connection.start()
        async with asyncio.timeout(5):
            while connection.is_connected:
                await asyncio.sleep(0.01)
        await connection.close()


async def test_no_more_commands_wait_than_allowed(redis_url: str) -> None:
    connection = RedisConnection(redis_url, timeout_ms=2000, waiting_max=3, preamble=[])
    await connection.start()
    replies = [connection.send("PING") for _ in range(3)]
    with pytest.raises(StoreUnavailable):
        connection.send("PING")
    assert await asyncio.gather(*replies) == [b"PONG"] * 3
    assert await connection.send("PING") == b"PONG"
    await connection.close()


async def test_a_reply_nobody_waits_for_any_more_harms_nobody(connection: RedisConnection) -> None:
    given_up = connection.send("ECHO", "a")
    given_up.cancel()
    assert await connection.send("ECHO", "b") == b"b"


async def test_a_wrong_password_is_not_connected(redis_url: str, capfd: pytest.CaptureFixture[str]) -> None:
    target = RedisConnection(redis_url, 1, 1, [])._target
    connection = RedisConnection("unix:///x", timeout_ms=500, waiting_max=3, preamble=[])
    connection._target = {**target, "username": "nobody", "password": "canary-31"}
    await connection.start()
    assert not connection.is_connected
    await connection.close()
    assert "canary-31" not in capfd.readouterr().err


def greeted(url: str, timeout_ms: int) -> RedisConnection:
    """Make a connection that says PING first."""
    return RedisConnection(url.replace("http", "redis"), timeout_ms, waiting_max=100, preamble=[("PING",)])


Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def answering_first(script: Script) -> Script:
    """Answer the greeting as Redis does, then follow the script."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"PING\r\n")
        await reader.readuntil(b"server\r\n")
        writer.write(b"+PONG\r\n" + INFO)
        await script(reader, writer)

    return serve


async def test_a_connection_that_is_being_made_is_closed_too() -> None:
    opened, closed = [], []

    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        opened.append(await reader.read(1))
        closed.append(await reader.read())

    async with scripted_provider(silent) as url:
        connection = RedisConnection(url.replace("http", "redis"), 1000, 10, [("PING",)])
        await connection.start()  # in vain
        async with asyncio.timeout(5):
            while len(opened) < 2:  # the second try has connected
                await asyncio.sleep(0.01)
        await connection.close()
        async with asyncio.timeout(0.5):  # not only when its time is over
            while len(closed) < 2:
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
@pytest.mark.parametrize("tls", [False, True])
def test_a_flush_tells_whether_the_system_has_everything(run, tls, tmp_path, monkeypatch) -> None:
    """Whatever the loop, and whatever lies between: what has not left is lost when the process is killed."""
    pair = make_pair(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(pair.certificate))
    reading = asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"PING\r\n")
        writer.write(b"+PONG\r\n")
        await reading.wait()
        await reader.readexactly(len(hiredis.pack_command(("SET", "k", LARGE))))
        writer.write(b"+OK\r\n")
        await reader.read()

    async def scenario() -> None:
        async with scripted_provider(answering_first(slow), pair.server_context() if tls else None) as url:
            connection = greeted(url.replace("127.0.0.1", "localhost"), 20_000)
            assert not connection.flush()
            await connection.start()
            assert connection.flush()
            small = connection.send("PING")
            assert connection.flush()
            await small
            large = connection.send("SET", "k", LARGE)
            assert not connection.flush()
            reading.set()
            await large
            assert connection.flush()
            await connection.close()
            assert not connection.flush()

    run(scenario())


async def test_it_knows_which_server_it_has_while_it_has_one(connection: RedisConnection) -> None:
    told = dict(line.split(b":", 1) for line in (await connection.send("INFO", "server")).split() if b":" in line)
    assert connection.run_id == told[b"run_id"].decode()
    await connection.close()
    assert connection.run_id == ""


@pytest.mark.parametrize("info", [b"$0\r\n\r\n", b"+OK\r\n", b"*0\r\n", b"$-1\r\n"])
async def test_a_server_that_does_not_name_itself_is_not_known(info: bytes) -> None:
    async def nameless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"server\r\n")
        writer.write(b"+PONG\r\n" + info)
        await reader.read()

    async with scripted_provider(nameless) as url:
        connection = greeted(url, 1000)
        await connection.start()
        assert (connection.is_connected, connection.run_id) == (True, "")
        await connection.close()


async def test_whoever_wants_to_be_told_of_a_connection_sends_first(redis_url: str) -> None:
    told: list[asyncio.Future[object]] = []
    connection = RedisConnection(redis_url, 2000, 10, [], lambda: told.append(connection.send("CLIENT", "ID")))
    await connection.start()
    async with asyncio.timeout(10):
        first = await told[0]
        connection.send("CLIENT", "KILL", "ID", str(first), "SKIPME", "no")
        while len(told) < 2:
            await asyncio.sleep(0.01)
        assert await told[1] != first
    await connection.close()


async def test_a_node_that_points_elsewhere_says_where() -> None:
    async def pointing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"GET")
        writer.write(b"-MOVED 866 10.0.0.7:7001\r\n-ASK 866 :7002\r\n")
        await reader.read()

    async with scripted_provider(answering_first(pointing)) as url:
        connection = greeted(url, 1000)
        await connection.start()
        results = await asyncio.gather(connection.send("GET", "k"), connection.send("GET", "k"), return_exceptions=True)
        found = [(error.code, error.address) for error in results if isinstance(error, Redirected)]
        assert found == [("MOVED", "10.0.0.7:7001"), ("ASK", ":7002")]
        await connection.close()


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
@pytest.mark.parametrize("tls", [False, True])
def test_what_was_flushed_is_on_its_way_before_the_loop_turns(run, tls, tmp_path, monkeypatch) -> None:
    """Asked of the other end, because a loop may keep what it was given."""
    pair = make_pair(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(pair.certificate))
    accepted: list[socket.socket] = []

    def accept_one(listener: socket.socket) -> None:
        peer, _ = listener.accept()
        peer = pair.server_context().wrap_socket(peer, server_side=True) if tls else peer
        heard = b""
        while not heard.endswith(b"server\r\n"):
            heard += peer.recv(1000)
        accepted.append(peer)
        peer.sendall(INFO)

    async def scenario(url: str) -> None:
        connection = RedisConnection(url, 5000, 10, [])
        await connection.start()
        reply = connection.send("PING")
        assert connection.flush()
        assert select.select(accepted, [], [], 5)[0] == accepted
        reply.cancel()
        await connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept_one, args=(listener,))
        thread.start()
        run(scenario(f"redis{'s' if tls else ''}://localhost:{listener.getsockname()[1]}"))
        thread.join()
        accepted[0].close()
