import asyncio

import pytest

from edgeproxy.canary.requests import Sent
from edgeproxy.canary.sending import Sending
from edgeproxy.errors import OperatorError
from tests.support.raw import scripted_provider


async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    line = await reader.readline()
    if line.startswith(b"close"):
        return
    writer.write(b"HTTP/1.1 418 no\r\n\r\n" + line)
    await writer.drain()


async def test_statuses_are_counted_and_a_closed_connection_is_one():
    async with scripted_provider(reply) as url:
        sending = Sending({"api": url})
        await sending.all([Sent("a", b"one\r\n"), Sent("b", b"close\r\n"), Sent("c", b"any\r\n", "web")])
        assert sending.statuses == {418: 1, 0: 1}


async def test_a_request_can_halt_and_something_is_done_meanwhile():
    halted = []

    async def look() -> None:
        halted.append(True)

    async with scripted_provider(reply) as url:
        sending = Sending({"api": url}, while_halted=look)
        await sending.one(Sent("a", b"one\r\n", pauses_at=2))
        assert (halted, sending.statuses) == ([True], {418: 1})


async def test_who_hangs_up_does_not_wait_for_the_end():
    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            await writer.drain()
            await asyncio.sleep(0.01)

    async with scripted_provider(endless) as url:
        sending = Sending({"api": url})
        await asyncio.wait_for(sending.one(Sent("a", b"x"), leaves_after=100), 10)
        assert sending.statuses == {200: 1}


async def test_a_page_is_fetched_whole_and_a_server_that_is_away_is_told_of():
    async with scripted_provider(reply) as url:
        assert b"418" in await Sending({"metrics": url}).text("metrics", "/metrics")
    with pytest.raises(OperatorError, match="nobody answers"):
        await Sending({"metrics": "http://127.0.0.1:9"}).text("metrics", "/metrics")
