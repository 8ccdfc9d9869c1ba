"""The multiplexed connection: order, one write per turn, silence, loss and return."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import redis.asyncio as redis_asyncio

from edgeproxy.errors import StoreUnavailable
from edgeproxy.hotstate.connection import CommandFailed, RedisConnection
from tests.support.raw import scripted_provider


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
        writer.write(b"+PONG\r\n")
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
