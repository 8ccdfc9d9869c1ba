"""Composition root: builds each role from its settings, and owns its start and stop. Only here are classes named.

By the time a role is built, `settings.stores` names real addresses: the embedded servers belong to whoever starts them.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

from aiohttp import web

from edgeproxy import tasks
from edgeproxy.config import Settings, environment
from edgeproxy.console.privacy import PrivacyPages
from edgeproxy.console.routes import make_runner
from edgeproxy.control.installation import Control, claim
from edgeproxy.embedded.secrets import read_pepper
from edgeproxy.errors import OperatorError, StoreUnavailable
from edgeproxy.gateway.answers import Written
from edgeproxy.gateway.authentication import Authentication
from edgeproxy.gateway.gate import open_listener
from edgeproxy.gateway.handler import Handler
from edgeproxy.gateway.heartbeats import Heartbeats
from edgeproxy.gateway.requests import Request
from edgeproxy.gateway.server import Server
from edgeproxy.gateway.settlement import Settlements
from edgeproxy.gateway.unconfirmed import Unconfirmed
from edgeproxy.gateway.upstream import Upstreams
from edgeproxy.hotstate.calling import Caller, open_client
from edgeproxy.hotstate.commands import HotState
from edgeproxy.hotstate.epochs import Epochs
from edgeproxy.hotstate.events import EventStreams
from edgeproxy.hotstate.publishing import Publishing
from edgeproxy.jobs.loops import run as run_jobs
from edgeproxy.metrics import Metrics
from edgeproxy.store.database import connect
from edgeproxy.tls import Certificates

_OPENING_S = 5.0  # `jobs` compares the stores at the first start, and after Redis was started again
_AT_ONCE_S = 0.05  # no time is no limit to aiohttp


class Running:
    """A role while it runs, and what can be asked of it. Where nothing has to be done for it, nothing is."""

    def drain(self) -> None:
        """Say from now on that nothing new should come; go on serving."""

    def hurry(self) -> None:
        """When the role ends, do not wait for what is open."""

    async def reload(self, settings: Settings) -> None:
        """Use these settings from now on; what is running finishes with the old ones.

        Raises OperatorError, and has changed nothing then.
        """


@asynccontextmanager
async def gateway_role(settings: Settings, sock: socket.socket, metrics: Metrics) -> AsyncIterator[Running]:
    """Serve the data plane on `sock` while the block runs; on exit open answers may finish within `bounds.drain_ms`."""
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(tasks.report)
    gateway = _Gateway(settings, metrics)
    await gateway.start()
    try:
        listener = await open_listener(settings, "api", sock, gateway.server, gateway.certificates, metrics)
        try:
            yield gateway
        finally:
            listener.close()
            await gateway.finish_answers()
    finally:
        await gateway.close()


class _Gateway(Running):
    """The data plane of one process. A reload builds anew what depends on settings, and lets the old run out."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        stores = settings.stores
        self._metrics = metrics
        self.certificates = Certificates(settings.listen, "api")
        self._hot = HotState(stores, metrics.redis_seconds, self._returned, self._announce)
        self._authentication = Authentication(self._hot, peppers(settings), settings.key_prefix, stores.key_cache)
        self._unconfirmed = Unconfirmed(self._hot, settings.data_dir / "journal", metrics)
        self._settlements = Settlements(self._unconfirmed, metrics)
        self._heartbeats = Heartbeats(self._hot, self._settlements, stores.lease_ms)
        self._hurry = asyncio.Event()
        self._is_draining = False
        self.server = Server(self._handle, settings.bounds, metrics)
        self._use(settings, Upstreams(settings, environment()))

    def _use(self, settings: Settings, upstreams: Upstreams) -> None:
        self._settings = settings
        self.upstreams = upstreams
        self._handler = Handler(settings, self._hot, self._authentication, upstreams, self._settlements, self._metrics)
        self._handler.is_draining = self._is_draining
        self.server.use(settings.bounds)

    async def start(self) -> None:
        """Connect to Redis; where it is there, wait a while until it may be trusted. Then serve, whatever it is."""
        await self._hot.start()
        self._unconfirmed.start()
        self._heartbeats.start()
        if self._hot.is_connected:
            await self._hot.watch.until_open(_OPENING_S)

    async def close(self) -> None:
        """Settle what is open, and let everything go."""
        await self._settlements.finish()
        await self._heartbeats.close()
        self.upstreams.close()
        await self._hot.close()

    def _returned(self, partitions: Collection[int]) -> None:
        """Tell a Redis that may have forgotten something what it was told before."""
        self._announce(partitions)
        self._unconfirmed.replay(partitions)

    def _announce(self, partitions: Collection[int]) -> None:
        self._heartbeats.announce(partitions)

    def _handle(self, request: Request) -> Awaitable[Written]:
        return self._handler.handle(request)

    def drain(self) -> None:
        """Turn `/readyz` into 503."""
        self._handler.is_draining = self._is_draining = True

    def hurry(self) -> None:
        """End open answers, and charge what passed."""
        self._hurry.set()

    async def reload(self, settings: Settings) -> None:
        """Take new requests by these settings, to the same connections where a provider is the same."""
        before = self.upstreams
        upstreams = Upstreams(settings, environment(), before)
        self.certificates.reload(settings.listen)  # the last that can fail: from here on everything changes
        self._use(settings, upstreams)
        before.close(successor=self.upstreams)

    async def finish_answers(self) -> None:
        """Return when open answers are over, the drain time is, or somebody is in a hurry."""
        closing = tasks.spawn("drain", self.server.shutdown(self._settings.bounds.drain_ms / 1000))
        with tasks.running("hurry", self._hurry.wait()) as hurrying:
            await asyncio.wait([closing, hurrying], return_when=asyncio.FIRST_COMPLETED)
        if not closing.done():
            closing.cancel()
            await asyncio.wait([closing])
            await self.server.shutdown(_AT_ONCE_S)


@asynccontextmanager
async def console_role(settings: Settings, sock: socket.socket, metrics: Metrics) -> AsyncIterator[Running]:
    """Serve pages and the JSON API on `sock` while the block runs."""
    async with open_control(settings) as control:
        console = _Console(settings)
        runner = make_runner(control, console.draining, console.privacy)
        await runner.setup()
        try:
            make = cast("web.Server", runner.server)
            listener = await open_listener(settings, "web", sock, make, console.certificates, metrics)
            try:
                yield console
            finally:
                listener.close()
        finally:
            await runner.cleanup()


class _Console(Running):
    """The console of one process."""

    def __init__(self, settings: Settings) -> None:
        self.certificates = Certificates(settings.listen, "web")
        self.privacy = PrivacyPages(settings)
        self.draining = asyncio.Event()

    async def reload(self, settings: Settings) -> None:
        """Show new connections the certificate that there is now, and people what is done now."""
        self.certificates.reload(settings.listen)
        self.privacy.use(settings)

    def drain(self) -> None:
        """Turn `/readyz` into 503."""
        self.draining.set()


@asynccontextmanager
async def jobs_role(settings: Settings, metrics: Metrics) -> AsyncIterator[Running]:
    """Do the background work while the block runs; what can be flushed at the end is.

    Raises OperatorError, also for a Redis that does not keep what it is told.
    """
    async with open_control(settings) as control:
        await Epochs(control.caller, control.partitions).refuse_forgetful()
        jobs = _Jobs(control, settings, metrics)
        try:
            yield jobs
        except asyncio.CancelledError:
            if jobs.have_failed:
                raise OperatorError("the background work failed; the log says what it was") from None
            raise
        finally:
            await jobs.end()


class _Jobs(Running):
    """The background work of one process. Made in the task that has to end when the work does."""

    def __init__(self, control: Control, settings: Settings, metrics: Metrics) -> None:
        self._control = control
        self._metrics = metrics
        self._owner = cast("asyncio.Task[None]", asyncio.current_task())
        self._has_ended = False
        self._begin(settings)

    @property
    def have_failed(self) -> bool:
        """Whether the work ended by itself."""
        return self._work.done()

    async def reload(self, settings: Settings) -> None:
        """Do a last round by the old settings, where they differ, and go on with the new ones."""
        if (settings.jobs, settings.provider) != (self._settings.jobs, self._settings.provider):
            await self._stop()
            if not self._has_ended:  # meanwhile
                self._begin(settings)

    async def end(self) -> None:
        """Do a last round, and end."""
        self._has_ended = True
        await self._stop()

    def _begin(self, settings: Settings) -> None:
        self._settings = settings
        self._work = tasks.spawn("jobs", run_jobs(self._control, settings.jobs, settings.provider, self._metrics))
        self._work.add_done_callback(self._failed)

    def _failed(self, _: object) -> None:
        self._owner.cancel()  # nothing would be flushed any more: the process has to end, and be started again

    async def _stop(self) -> None:
        self._work.remove_done_callback(self._failed)
        self._work.cancel()
        await asyncio.wait([self._work])


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
        async with open_client(stores.redis, timeout_s) as client:
            caller = Caller(client)
            control = Control(
                database,
                Publishing(caller),
                EventStreams(caller, stores.partitions),
                peppers(settings),
                stores.partitions,
                settings.key_prefix,
                stores.lease_ms,
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
