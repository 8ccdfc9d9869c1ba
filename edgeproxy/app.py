"""Composition root: builds each role from its settings, and owns its start and stop. Only here are classes named.

By the time a role is built, `settings.stores` names real addresses: the embedded servers belong to whoever starts them.
"""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

from aiohttp import web
from redis.asyncio import Redis

from edgeproxy import tasks
from edgeproxy.config import Settings, environment
from edgeproxy.console.routes import make_runner
from edgeproxy.control.installation import Control, claim
from edgeproxy.embedded.secrets import read_pepper
from edgeproxy.errors import OperatorError, StoreUnavailable
from edgeproxy.gateway.authentication import Authentication
from edgeproxy.gateway.handler import Handler
from edgeproxy.gateway.server import Server
from edgeproxy.gateway.settlement import Settlements
from edgeproxy.gateway.upstream import Upstreams
from edgeproxy.hotstate.commands import HotState
from edgeproxy.hotstate.events import EventStreams
from edgeproxy.hotstate.publishing import Publishing
from edgeproxy.jobs.loops import run as run_jobs
from edgeproxy.metrics import Metrics
from edgeproxy.store.database import connect

_BACKLOG = 1024


@asynccontextmanager
async def gateway_role(settings: Settings, sock: socket.socket, metrics: Metrics) -> AsyncIterator[None]:
    """Serve the data plane on `sock` while the block runs; on exit open answers may finish within `bounds.drain_ms`."""
    asyncio.get_running_loop().set_exception_handler(tasks.report)
    stores = settings.stores
    upstreams = Upstreams(settings, environment())
    hot = HotState(stores.redis, stores.redis_timeout_ms, stores.redis_waiting, metrics.redis_seconds)
    authentication = Authentication(hot, peppers(settings), settings.key_prefix, stores.key_cache)
    settlements = Settlements(hot, metrics)
    handler = Handler(settings, hot, authentication, upstreams, settlements, metrics)
    server = Server(handler.handle, settings.bounds, metrics)
    await hot.start()
    try:
        listener = await asyncio.get_running_loop().create_server(server, sock=sock, backlog=_BACKLOG)
        try:
            yield
        finally:
            listener.close()
            await server.shutdown(settings.bounds.drain_ms / 1000)
    finally:
        await settlements.finish()
        upstreams.close()
        await hot.close()


@asynccontextmanager
async def console_role(settings: Settings, sock: socket.socket, metrics: Metrics) -> AsyncIterator[None]:  # noqa: ARG001
    """Serve pages and the JSON API on `sock` while the block runs."""
    async with open_control(settings) as control:
        runner = make_runner(control)
        await runner.setup()
        try:
            await web.SockSite(runner, sock).start()
            yield
        finally:
            await runner.cleanup()


@asynccontextmanager
async def jobs_role(settings: Settings, metrics: Metrics) -> AsyncIterator[None]:
    """Do the background work while the block runs; what can be flushed at the end is."""
    async with open_control(settings) as control:
        work = tasks.spawn("jobs", run_jobs(control, settings.jobs, metrics))
        owner = cast("asyncio.Task[None]", asyncio.current_task())

        def ended(_: object) -> None:  # nothing would be flushed any more: the process has to end, and be started again
            owner.cancel()

        work.add_done_callback(ended)
        try:
            yield
        except asyncio.CancelledError:
            if work.done():
                raise OperatorError("the background work failed; the log says what it was") from None
            raise
        finally:
            work.remove_done_callback(ended)
            work.cancel()
            await asyncio.wait([work])


@asynccontextmanager
async def open_control(settings: Settings, *, without_redis: bool = False) -> AsyncIterator[Control]:
    """Give the control plane its stores while the block runs. Raises OperatorError or StoreUnavailable.

    `without_redis` lets a command go on while Redis is away: what it changes is published later. Never for the jobs,
    which have to know that this Redis belongs to this database.
    """
    stores = settings.stores
    timeout_s = stores.redis_timeout_ms / 1000
    database = await connect(stores.postgres)
    try:
        async with Redis.from_url(stores.redis, socket_timeout=timeout_s, socket_connect_timeout=timeout_s) as redis:
            control = Control(
                database,
                Publishing(redis),
                EventStreams(redis, stores.partitions),
                peppers(settings),
                stores.partitions,
                settings.key_prefix,
            )
            try:
                await claim(control)
            except StoreUnavailable as away:
                if not without_redis or away.store != "redis":
                    raise
            yield control
    finally:
        await database.close()


def peppers(settings: Settings) -> tuple[bytes, ...]:
    """Return the pepper, and the one before it during a rotation. Raises OperatorError."""
    files = (settings.secrets.pepper_file, settings.secrets.previous_pepper_file)
    if not files[0]:
        raise OperatorError("secrets.pepper_file is not set; named stores need one: openssl rand -hex 32")
    return tuple(read_pepper(Path(file)) for file in files if file)
