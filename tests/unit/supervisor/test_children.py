"""A child process: ready, asked, killed and replaced, stopped, and given up when there is no use."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import replace

import aiohttp
import pytest

from edgeproxy import tasks
from edgeproxy.config import Settings, Stores, environment
from edgeproxy.errors import OperatorError
from edgeproxy.supervisor import children
from edgeproxy.supervisor.children import Child, Plan
from edgeproxy.supervisor.listeners import bind, url_of
from edgeproxy.supervisor.snapshots import Tally

Start = Callable[..., Awaitable[Child]]


@pytest.fixture
def listener():
    (sock,) = bind("127.0.0.1:0", "listen.api")
    yield sock
    sock.close()


@pytest.fixture
async def start(listener: socket.socket) -> AsyncIterator[Start]:
    """Start a child; the mock provider is the one that needs no stores."""
    started: list[Child] = []

    async def begin(*arguments: str, settings: Settings | None = None) -> Child:
        environ = dict(environment())
        plan = Plan("mock-provider", arguments or ("mock-provider",), settings or Settings(), listener, environ)
        child = Child(plan, Tally())
        started.append(child)
        tasks.spawn("child", child.keep())
        return child

    yield begin
    for child in started:
        child.ask_to_stop()
        await child.stopped(10)


async def status_of(listener: socket.socket) -> int:
    async with aiohttp.ClientSession() as session, session.get(f"{url_of(listener)}/__count") as answer:
        return answer.status


async def until(condition: Callable[[], object], timeout_s: float = 20) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


def pid_of(child: Child) -> int:
    assert child._process is not None
    return child._process.pid


async def test_a_child_serves_on_the_socket_that_it_inherits(start: Start, listener: socket.socket):
    child = await start()
    await asyncio.wait_for(child.ready.wait(), 20)
    assert await status_of(listener) == 200
    assert b"edgeproxy_requests" in await child.snapshot()
    assert os.getsid(pid_of(child)) == pid_of(child), "Ctrl-C in a terminal does not reach it"


async def test_a_killed_child_is_replaced_and_a_connection_made_meanwhile_is_answered(
    start: Start, listener: socket.socket, capsys: pytest.CaptureFixture[str]
):
    child = await start()
    await asyncio.wait_for(child.ready.wait(), 20)
    first = pid_of(child)
    os.kill(first, signal.SIGKILL)
    assert await status_of(listener) == 200
    assert pid_of(child) != first
    assert '"event": "child_ended"' in capsys.readouterr().err


async def test_a_child_stops_when_it_is_asked_to(start: Start):
    child = await start()
    await asyncio.wait_for(child.ready.wait(), 20)
    pid = pid_of(child)
    child.ask_to_stop()
    await child.stopped(10)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert child._process is not None
    assert child._process.returncode == 0


async def test_a_child_that_does_not_stop_is_killed_when_patience_ends(start: Start):
    child = await start()
    await asyncio.wait_for(child.ready.wait(), 20)
    os.kill(pid_of(child), signal.SIGSTOP)
    child.ask_to_stop()
    await child.stopped(0.2)
    assert child._process is not None
    assert child._process.returncode == -signal.SIGKILL


async def test_a_frozen_child_delays_a_scrape_but_shortly_and_is_asked_once(
    start: Start, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(children, "_SNAPSHOT_TIMEOUT_S", 0.1)
    child = await start()
    await asyncio.wait_for(child.ready.wait(), 20)
    before = await child.snapshot()
    os.kill(pid_of(child), signal.SIGSTOP)
    assert await child.snapshot() == before
    assert await child.snapshot() == before
    os.kill(pid_of(child), signal.SIGCONT)
    await until(lambda: not child._asked)
    assert await child.snapshot()


async def test_a_child_goes_by_other_settings_and_who_replaces_it_does_too(start: Start):
    child = await start()
    await asyncio.wait_for(child.ready.wait(), 20)
    other = replace(child._plan, settings=Settings(workers=2))
    await child.reload(other)
    first = pid_of(child)
    os.kill(first, signal.SIGKILL)
    await until(lambda: pid_of(child) != first and child._channel is not None)
    assert child._told is other.settings


async def test_a_child_that_was_starting_meanwhile_is_told_as_soon_as_it_serves(start: Start):
    child = await start()
    other = replace(child._plan, settings=Settings(workers=2))
    await until(lambda: child._told is not None)
    await child.reload(other)
    child.drain()
    assert child._told is not other.settings
    await asyncio.wait_for(child.ready.wait(), 20)
    await asyncio.wait_for(child._reloaded.wait(), 20)
    assert child._told is other.settings
    assert await child.snapshot(), "it took the settings, and goes on serving"


async def test_a_child_that_cannot_use_other_settings_says_why(start: Start):
    child = await start()
    await asyncio.wait_for(child.ready.wait(), 20)
    with pytest.raises(OperatorError, match="mock-provider goes on with the old settings: profile = 'none'"):
        await child.reload(replace(child._plan, settings=Settings(profile="none")))
    await child.reload(replace(child._plan, settings=Settings()))


async def test_a_child_that_is_frozen_holds_up_a_reload_but_for_a_while(start: Start, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(children, "_RELOAD_TIMEOUT_S", 0.1)
    child = await start()
    await asyncio.wait_for(child.ready.wait(), 20)
    os.kill(pid_of(child), signal.SIGSTOP)
    with pytest.raises(OperatorError, match="does not answer"):
        await child.reload(replace(child._plan, settings=Settings(workers=2)))
    os.kill(pid_of(child), signal.SIGCONT)


async def test_a_child_that_is_told_to_hurry_goes_on_until_it_is_asked_to_stop(start: Start):
    child = await start()
    child.hurry()
    await asyncio.wait_for(child.ready.wait(), 20)
    child.hurry()
    assert await child.snapshot()
    child.ask_to_stop()
    await child.stopped(10)


async def test_a_child_ends_when_its_supervisor_is_gone(start: Start):
    child = await start()
    await asyncio.wait_for(child.ready.wait(), 20)
    pid = pid_of(child)
    assert child._channel is not None
    await child._channel.close()
    child._stopping.set()

    def ended() -> bool:
        with suppress(ProcessLookupError):
            os.kill(pid, 0)
            return False
        return True

    await until(ended)


async def test_a_refusal_before_anything_served_ends_it_with_the_childs_own_line(start: Start):
    child = await start("gateway", settings=Settings(stores=Stores("redis://127.0.0.1:1", "postgresql://nowhere")))
    await until(lambda: child.hopeless)
    assert "secrets.pepper_file is not set" in child.hopeless
    await child.stopped(0)


async def test_a_child_that_keeps_dying_is_given_up_when_it_has_never_served(
    start: Start, capfd: pytest.CaptureFixture[str]
):
    child = await start("check-config", "--no-such-option")
    await until(lambda: child.hopeless)
    assert child.hopeless == "mock-provider does not start; what it said stands above"
    assert capfd.readouterr().err.count("No such option") == children._START_ATTEMPTS


async def test_a_stop_between_two_starts_is_a_stop(start: Start, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(children, "_FIRST_WAIT_S", 60)
    monkeypatch.setattr(children, "_LONGEST_WAIT_S", 60)
    child = await start("check-config", "--no-such-option")
    await until(lambda: child._process is not None and child._process.returncode is not None)
    await asyncio.sleep(0.1)
    child.ask_to_stop()
    await asyncio.wait_for(child.stopped(5), 10)
