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

from edgeproxy import app, tasks
from edgeproxy.config import Settings
from edgeproxy.errors import OperatorError, StoreUnavailable, operator_line
from edgeproxy.metrics import Metrics
from edgeproxy.mock_provider.server import Options, make_app
from edgeproxy.store.migrate import check_current
from edgeproxy.supervisor.channel import Channel, Kind, decode_settings
from edgeproxy.supervisor.listeners import bind, metrics_listener, url_of
from edgeproxy.supervisor.stopping import StopRequest

_MOCK_INTERVAL_MS = 40


class Role(StrEnum):
    """What a process can be; several fit into one process."""

    GATEWAY = "gateway"
    CONSOLE = "console"
    JOBS = "jobs"
    MOCK_PROVIDER = "mock-provider"  # in `demo` only


async def run_alone(role: Role, settings: Settings) -> None:
    """Serve one role until SIGTERM or Ctrl-C; `settings` name running stores.

    Raises OperatorError, StoreUnavailable.
    """
    stop = StopRequest()
    metrics = Metrics()
    if role is not Role.GATEWAY:
        await check_current(settings.stores.postgres)

    async def render() -> bytes:
        return metrics.render()

    async with AsyncExitStack() as stack:
        sock = None
        lines = []
        if role is not Role.JOBS:
            name = "api" if role is Role.GATEWAY else "web"
            address = settings.listen.api if role is Role.GATEWAY else settings.listen.web
            (sock,) = bind(address, f"listen.{name}")
            lines.append(f"{name:<8} {url_of(stack.enter_context(sock))}")
        (metrics_socket,) = bind(settings.listen.metrics, "listen.metrics")
        lines.append(f"metrics  {url_of(stack.enter_context(metrics_socket))}/metrics")
        await stack.enter_async_context(metrics_listener(metrics_socket, render))
        await stack.enter_async_context(_opened(role, settings, sock, metrics))
        for line in (*lines, f"ready    {role}"):
            click.echo(line)
        await stop.asked.wait()


async def run_child(roles: Sequence[Role], listener_fd: int | None, channel_fd: int) -> int:
    """Serve roles for a supervisor until it says so or is gone; return the exit status."""
    stop = StopRequest()
    metrics = Metrics()
    channel = await Channel.open(socket.socket(fileno=channel_fd))
    sock = None if listener_fd is None else socket.socket(fileno=listener_fd)
    try:
        frame = await channel.receive()
        if frame is None:
            return 0
        settings = decode_settings(frame[1])
        async with AsyncExitStack() as stack:
            for role in roles:
                await stack.enter_async_context(_opened(role, settings, sock, metrics))
            channel.send(Kind.READY)
            answering = tasks.spawn("control-channel", _answer(channel, metrics, stop))
            await stop.asked.wait()
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


async def _answer(channel: Channel, metrics: Metrics, stop: StopRequest) -> None:
    """Answer the supervisor; without it there is nothing to serve for."""
    with contextlib.suppress(ValueError):
        while await channel.receive() is not None:
            channel.send(Kind.SNAPSHOT, metrics.render())
    stop.ask()


@asynccontextmanager
async def _opened(role: Role, settings: Settings, sock: socket.socket | None, metrics: Metrics) -> AsyncIterator[None]:
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
    async with context:
        yield


@asynccontextmanager
async def _mock_provider(sock: socket.socket) -> AsyncIterator[None]:
    """Answer as the providers do, slowly enough that a stream is seen to be one."""
    runner = web.AppRunner(make_app(Options(interval_ms=_MOCK_INTERVAL_MS)), access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.SockSite(runner, sock).start()
        yield
    finally:
        await runner.cleanup()
