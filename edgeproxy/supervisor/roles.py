"""What runs inside a process of `serve`, and what `gateway`, `console` and `jobs` are when they are started alone.

Both build the same roles; they differ in where settings and sockets come from, and in who is told that they serve.
"""

import contextlib
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from enum import StrEnum

import click
from aiohttp import web

from edgeproxy import app, logs, tasks
from edgeproxy.app import Running
from edgeproxy.config import Settings, certificate_files, environment
from edgeproxy.console.routes import COOKIES
from edgeproxy.control.inventory import check_inventory
from edgeproxy.errors import OperatorError, StoreUnavailable, operator_line
from edgeproxy.metrics import Metrics
from edgeproxy.mock_provider.server import Options, make_app
from edgeproxy.policy.claims import refuse_unkept
from edgeproxy.store.migrate import check_current
from edgeproxy.supervisor.channel import Channel, Kind, decode_settings
from edgeproxy.supervisor.hardening import harden
from edgeproxy.supervisor.listeners import bind, metrics_listener, url_of
from edgeproxy.supervisor.notifying import Notifier
from edgeproxy.supervisor.reloading import Reloading
from edgeproxy.supervisor.signals import Signals, wait

_MOCK_INTERVAL_MS = 40


class Role(StrEnum):
    """What a process can be; several fit into one process."""

    GATEWAY = "gateway"
    CONSOLE = "console"
    JOBS = "jobs"
    MOCK_PROVIDER = "mock-provider"  # in `demo` only


async def run_alone(role: Role, reloading: Reloading) -> None:
    """Serve one role until SIGTERM or Ctrl-C; the settings name running stores.

    Raises OperatorError, StoreUnavailable.
    """
    harden()
    refuse_unkept(reloading.settings.profile)
    signals, metrics, notifier = Signals(), Metrics(), Notifier(environment())
    settings = reloading.settings
    if role is not Role.GATEWAY:
        await check_current(settings.stores.postgres)
        await check_inventory(settings, COOKIES)

    async def render() -> bytes:
        return metrics.render()

    async with AsyncExitStack() as stack:
        running: list[Running] = []
        stack.enter_context(tasks.running("hurry", _pass_hurry_on(signals, running)))
        stack.enter_context(tasks.running("watchdog", notifier.keep_alive()))
        sock = None
        lines = []
        if role is not Role.JOBS:
            name = "api" if role is Role.GATEWAY else "web"
            address = settings.listen.api if role is Role.GATEWAY else settings.listen.web
            (sock,) = bind(address, f"listen.{name}")
            secure = any(certificate_files(settings.listen, name))
            lines.append(f"{name:<8} {url_of(stack.enter_context(sock), secure=secure)}")
        (metrics_socket,) = bind(settings.listen.metrics, "listen.metrics")
        lines.append(f"metrics  {url_of(stack.enter_context(metrics_socket))}/metrics")
        await stack.enter_async_context(metrics_listener(metrics_socket, render))
        running.append(await stack.enter_async_context(_opened(role, settings, sock, metrics)))
        for line in (*lines, f"ready    {role}"):
            click.echo(line)
        notifier.ready()
        with tasks.running("reload", reloading.run(signals, running[0].reload, metrics, notifier)):
            await signals.stop.wait()
        notifier.stopping()
        running[0].drain()
        if role is not Role.JOBS:
            await wait(signals.hurry, reloading.settings.bounds.drain_delay_ms / 1000)


async def run_child(roles: Sequence[Role], listener_fd: int | None, channel_fd: int) -> int:
    """Serve roles for a supervisor until it says so or is gone; return the exit status."""
    harden()
    signals = Signals()
    metrics = Metrics()
    channel = await Channel.open(socket.socket(fileno=channel_fd))
    sock = None if listener_fd is None else socket.socket(fileno=listener_fd)
    try:
        frame = await channel.receive()
        if frame is None:
            return 0
        settings = decode_settings(frame[1])
        async with AsyncExitStack() as stack:
            running: list[Running] = []
            stack.enter_context(tasks.running("hurry", _pass_hurry_on(signals, running)))
            running += [await stack.enter_async_context(_opened(role, settings, sock, metrics)) for role in roles]
            channel.send(Kind.READY)
            answering = tasks.spawn("control-channel", _answer(channel, metrics, signals, running))
            await signals.stop.wait()
            for each in running:
                each.drain()
        channel.send(Kind.SNAPSHOT, metrics.render())  # what the last answers added
        answering.cancel()
    except (OperatorError, StoreUnavailable) as error:
        channel.send(Kind.REFUSED, operator_line(error).encode())
        return 2
    finally:
        if sock is not None:
            sock.close()
        await channel.close()
    return 0


async def _pass_hurry_on(signals: Signals, running: Sequence[Running]) -> None:
    await signals.hurry.wait()
    for role in running:
        role.hurry()


async def _answer(channel: Channel, metrics: Metrics, signals: Signals, running: Sequence[Running]) -> None:
    """Do what the supervisor says; without it there is nothing to serve for."""
    with contextlib.suppress(ValueError):
        while frame := await channel.receive():
            match frame:
                case Kind.SETTINGS, payload:
                    channel.send(Kind.RELOADED, await _reload(payload, running))
                case Kind.DRAIN, _:
                    for role in running:
                        role.drain()
                case Kind.HURRY, _:
                    for role in running:
                        role.hurry()
                case _:
                    channel.send(Kind.SNAPSHOT, metrics.render())
    signals.stop.set()


async def _reload(payload: bytes, running: Sequence[Running]) -> bytes:
    """Let all roles of this process use other settings; return why not, nothing if they do."""
    try:
        settings = decode_settings(payload)
        for role in running:
            await role.reload(settings)
    except OperatorError as error:
        return operator_line(error).encode()
    return b""


@asynccontextmanager
async def _opened(
    role: Role, settings: Settings, sock: socket.socket | None, metrics: Metrics
) -> AsyncIterator[Running]:
    """Run a role while the block runs."""
    match role, sock:
        case Role.GATEWAY, socket.socket():
            context = app.gateway_role(settings, sock, metrics)
        case Role.CONSOLE, socket.socket():
            context = app.console_role(settings, sock, metrics)
        case Role.MOCK_PROVIDER, socket.socket():
            context = _mock_provider(sock)
        case _:
            context = app.jobs_role(settings, metrics)
    async with context as running:
        yield running


@asynccontextmanager
async def _mock_provider(sock: socket.socket) -> AsyncIterator[Running]:
    """Answer as the providers do, slowly enough that a stream is seen to be one."""
    mock = make_app(Options(interval_ms=_MOCK_INTERVAL_MS))
    runner = web.AppRunner(mock, access_log=None, logger=logs.silent(), shutdown_timeout=1)
    await runner.setup()
    try:
        await web.SockSite(runner, sock).start()
        yield Running()
    finally:
        await runner.cleanup()
