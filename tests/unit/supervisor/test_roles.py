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
from redis.asyncio import Redis

from edgeproxy import tasks
from edgeproxy.config import Bounds, Listen, Secrets, Settings, Stores
from edgeproxy.errors import OperatorError, StoreUnavailable
from edgeproxy.supervisor import roles
from edgeproxy.supervisor.channel import Channel, Kind, encode_settings
from edgeproxy.supervisor.listeners import bind, url_of
from edgeproxy.supervisor.reloading import Reloading
from edgeproxy.supervisor.roles import Role, run_alone, run_child
from tests.support.gateway import open_partitions

NOWHERE = Stores("redis://127.0.0.1:1", "postgresql://127.0.0.1:1/none")


@pytest.fixture(autouse=True)
async def _opened(request: pytest.FixtureRequest) -> None:
    """Redis may be trusted, where a test has one: in production `jobs` says so."""
    if "redis_url" in request.fixturenames:
        async with Redis.from_url(request.getfixturevalue("redis_url")) as redis:
            await open_partitions(redis)


@pytest.fixture(autouse=True)
def hardened(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the process was hardened. The one that runs the tests is not: what it does later would suffer."""
    calls: list[bool] = []
    monkeypatch.setattr(roles, "harden", lambda: calls.append(True))
    return calls


def alone(settings: Settings) -> Reloading:
    return Reloading(settings, settings, lambda: settings)


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


async def test_a_child_says_that_it_serves_answers_and_ends_with_its_supervisor(
    supervisor, listener: socket.socket, hardened: list[bool]
):
    channel, theirs = supervisor
    running = tasks.spawn("child", run_child([Role.MOCK_PROVIDER], os.dup(listener.fileno()), theirs))
    channel.send(Kind.SETTINGS, encode_settings(Settings()))
    assert await channel.receive() == (Kind.READY, b"")
    async with aiohttp.ClientSession() as session, session.get(f"{url_of(listener)}/__count") as answer:
        assert answer.status == 200
    channel.send(Kind.SNAPSHOT)
    kind, snapshot = await channel.receive() or (None, b"")
    assert (kind, b"edgeproxy_requests" in snapshot) == (Kind.SNAPSHOT, True)
    assert hardened
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


async def told(channel: Channel, kind: Kind, payload: bytes = b"") -> tuple[Kind, bytes] | None:
    channel.send(kind, payload)
    return await asyncio.wait_for(channel.receive(), 10)


async def test_a_child_uses_other_settings_drains_and_hurries_when_it_is_told_to(
    supervisor, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
):
    asked: list[object] = []

    class Recorded(roles.Running):
        def drain(self) -> None:
            asked.append("drain")

        def hurry(self) -> None:
            asked.append("hurry")

        async def reload(self, settings: Settings) -> None:
            if settings.workers == 1:
                raise OperatorError("one is not enough")
            asked.append(settings)

    monkeypatch.setattr(roles, "Running", Recorded)
    channel, theirs = supervisor
    running = tasks.spawn("child", run_child([Role.MOCK_PROVIDER], os.dup(listener.fileno()), theirs))
    assert await told(channel, Kind.SETTINGS, encode_settings(Settings())) == (Kind.READY, b"")
    other = Settings(workers=2)
    assert await told(channel, Kind.SETTINGS, encode_settings(other)) == (Kind.RELOADED, b"")
    refused = await told(channel, Kind.SETTINGS, encode_settings(Settings()))
    assert refused == (Kind.RELOADED, b"one is not enough")
    channel.send(Kind.DRAIN)
    channel.send(Kind.HURRY)
    await told(channel, Kind.SNAPSHOT)
    assert asked == [other, "drain", "hurry"]
    await channel.close()
    assert await asyncio.wait_for(running, 10) == 0


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
        await run_alone(role, alone(settings))


@pytest.mark.parametrize("role", [Role.CONSOLE, Role.JOBS])
async def test_a_role_alone_refuses_a_database_that_is_not_up_to_date(
    settings: Settings, role: Role, redis_url: str, postgres_url: str
):
    with pytest.raises(OperatorError, match="edgeproxy migrate"):
        await run_alone(role, alone(replace(settings, stores=Stores(redis_url, postgres_url))))


@pytest.mark.parametrize("role", [Role.CONSOLE, Role.JOBS])
async def test_a_role_alone_refuses_stores_that_hold_what_nobody_declared(
    settings: Settings, role: Role, redis_url: str, migrated_url: str
):
    async with Redis.from_url(redis_url) as redis:
        await redis.set("visits", 1)
    with pytest.raises(OperatorError, match="Redis key visits"):
        await run_alone(role, alone(replace(settings, stores=Stores(redis_url, migrated_url))))


@pytest.mark.parametrize("role", [Role.GATEWAY, Role.CONSOLE, Role.JOBS])
async def test_a_role_alone_refuses_a_profile_that_this_version_cannot_keep(settings: Settings, role: Role):
    with pytest.raises(OperatorError, match="does not keep what profile opusgate promises"):
        await run_alone(role, alone(replace(settings, profile="opusgate")))


async def test_a_gateway_alone_serves_until_it_is_asked_to_stop_and_never_opens_the_database(
    settings: Settings, redis_url: str, capsys: pytest.CaptureFixture[str], hardened: list[bool]
):
    running = tasks.spawn("gateway", run_alone(Role.GATEWAY, alone(with_redis(settings, redis_url))))
    api, metrics = await listeners(capsys)
    assert await status(f"{api}/healthz") == await status(metrics) == 200
    assert hardened
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.wait_for(running, 10)


async def test_a_gateway_alone_takes_requests_for_a_while_after_it_was_asked_to_stop_and_says_that_it_is_not_ready(
    settings: Settings, redis_url: str, capsys: pytest.CaptureFixture[str]
):
    settings = replace(with_redis(settings, redis_url), bounds=Bounds(drain_delay_ms=60_000))
    running = tasks.spawn("gateway", run_alone(Role.GATEWAY, alone(settings)))
    api, _ = await listeners(capsys)
    assert await status(f"{api}/readyz") == 200
    os.kill(os.getpid(), signal.SIGTERM)
    async with asyncio.timeout(10):
        while await status(f"{api}/readyz") != 503:
            await asyncio.sleep(0.01)
    assert await status(f"{api}/healthz") == 200
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(running, 10)


async def test_a_gateway_alone_reads_its_configuration_again(
    settings: Settings, redis_url: str, capsys: pytest.CaptureFixture[str]
):
    now = settings = with_redis(settings, redis_url)
    running = tasks.spawn("gateway", run_alone(Role.GATEWAY, Reloading(settings, settings, lambda: now)))
    _, metrics = await listeners(capsys)
    now = replace(settings, workers=2)
    os.kill(os.getpid(), signal.SIGHUP)
    await until_counted(metrics, "refused")
    now = replace(settings, bounds=Bounds(drain_ms=100))
    os.kill(os.getpid(), signal.SIGHUP)
    await until_counted(metrics, "applied")
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(running, 10)


def with_redis(settings: Settings, url: str) -> Settings:
    return replace(settings, stores=replace(NOWHERE, redis=url))


async def listeners(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Addresses of what has said that it is ready."""
    said = ""
    while "ready" not in said:
        await asyncio.sleep(0.01)
        said += capsys.readouterr().out
    return [line.split()[1] for line in said.splitlines()[:2]]


async def status(url: str) -> int:
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return answer.status


async def until_counted(metrics: str, outcome: str) -> None:
    line = f'edgeproxy_reloads_total{{outcome="{outcome}"}} 1.0'
    async with asyncio.timeout(10), aiohttp.ClientSession() as session:
        while True:
            async with session.get(metrics) as answer:
                if line in await answer.text():
                    return
            await asyncio.sleep(0.01)
