"""What runs inside a process: told by a supervisor over the channel, or alone."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from edgeproxy import tasks
from edgeproxy.config import Listen, Secrets, Settings, Stores
from edgeproxy.errors import OperatorError, StoreUnavailable
from edgeproxy.supervisor.channel import Channel, Kind, encode_settings
from edgeproxy.supervisor.listeners import bind, url_of
from edgeproxy.supervisor.roles import Role, run_alone, run_child

NOWHERE = Stores("redis://127.0.0.1:1", "postgresql://127.0.0.1:1/none")


@pytest.fixture
async def supervisor() -> AsyncIterator[tuple[Channel, int]]:
    """The supervisor's end of a channel, and the descriptor of the child's."""
    ours, theirs = socket.socketpair()
    channel = await Channel.open(ours)
    yield channel, theirs.detach()
    await channel.close()


@pytest.fixture
def listener():
    (sock,) = bind("127.0.0.1:0", "listen.api")
    yield sock
    sock.close()


async def test_a_child_says_that_it_serves_answers_and_ends_with_its_supervisor(supervisor, listener: socket.socket):
    channel, theirs = supervisor
    running = tasks.spawn("child", run_child([Role.MOCK_PROVIDER], os.dup(listener.fileno()), theirs))
    channel.send(Kind.SETTINGS, encode_settings(Settings()))
    assert await channel.receive() == (Kind.READY, b"")
    async with aiohttp.ClientSession() as session, session.get(f"{url_of(listener)}/__count") as answer:
        assert answer.status == 200
    channel.send(Kind.SNAPSHOT)
    kind, snapshot = await channel.receive() or (None, b"")
    assert (kind, b"edgeproxy_requests" in snapshot) == (Kind.SNAPSHOT, True)
    await channel.close()
    assert await asyncio.wait_for(running, 10) == 0


async def test_a_child_gives_its_last_metrics_when_it_is_asked_to_stop(supervisor, listener: socket.socket):
    channel, theirs = supervisor
    running = tasks.spawn("child", run_child([Role.MOCK_PROVIDER], os.dup(listener.fileno()), theirs))
    channel.send(Kind.SETTINGS, encode_settings(Settings()))
    assert await channel.receive() == (Kind.READY, b"")
    os.kill(os.getpid(), signal.SIGTERM)
    kind, _ = await asyncio.wait_for(channel.receive(), 10) or (None, b"")
    assert kind is Kind.SNAPSHOT
    assert await channel.receive() is None
    assert await running == 0


async def test_a_child_that_cannot_serve_says_why(supervisor, listener: socket.socket):
    channel, theirs = supervisor
    running = tasks.spawn("child", run_child([Role.GATEWAY], os.dup(listener.fileno()), theirs))
    channel.send(Kind.SETTINGS, encode_settings(Settings(stores=NOWHERE)))
    kind, line = await channel.receive() or (None, b"")
    assert (kind, b"pepper_file" in line) == (Kind.REFUSED, True)
    assert await running == 2


async def test_a_child_whose_supervisor_is_gone_before_it_said_anything_ends(supervisor):
    channel, theirs = supervisor
    await channel.close()
    assert await asyncio.wait_for(run_child([Role.JOBS], None, theirs), 10) == 0


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    pepper = tmp_path / "pepper"
    pepper.write_text("ab" * 32)
    pepper.chmod(0o600)
    anywhere = Listen("127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0")
    return Settings(stores=NOWHERE, secrets=Secrets(str(pepper)), listen=anywhere)


@pytest.mark.parametrize("role", [Role.CONSOLE, Role.JOBS])
async def test_a_role_that_needs_the_database_says_when_it_is_not_there(settings: Settings, role: Role):
    with pytest.raises(StoreUnavailable):
        await run_alone(role, settings)


@pytest.mark.parametrize("role", [Role.CONSOLE, Role.JOBS])
async def test_a_role_alone_refuses_a_database_that_is_not_up_to_date(
    settings: Settings, role: Role, redis_url: str, postgres_url: str
):
    with pytest.raises(OperatorError, match="edgeproxy migrate"):
        await run_alone(role, replace(settings, stores=Stores(redis_url, postgres_url)))


async def test_a_gateway_alone_serves_until_it_is_asked_to_stop_and_never_opens_the_database(
    settings: Settings, redis_url: str, capsys: pytest.CaptureFixture[str]
):
    stores = replace(NOWHERE, redis=redis_url)
    running = tasks.spawn("gateway", run_alone(Role.GATEWAY, replace(settings, stores=stores)))
    told = ""
    while "ready" not in told:
        await asyncio.sleep(0.01)
        told += capsys.readouterr().out
    api, metrics = (line.split()[1] for line in told.splitlines()[:2])
    async with aiohttp.ClientSession() as session:
        for url in (f"{api}/healthz", metrics):
            async with session.get(url) as answer:
                assert answer.status == 200
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.wait_for(running, 10)
