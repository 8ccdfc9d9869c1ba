"""The supervisor: stores first, then the schema, then the processes; and back in the opposite order.

A busy port is found before anything is started, a command line that never gets as far as `ready` leaves nothing
running, and whatever dies later is started again, the embedded stores included.
"""

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace

from edgeproxy import logs, tasks
from edgeproxy.config import EMBEDDED, ENVIRONMENT_PREFIX, Settings, environment
from edgeproxy.embedded.stores import EmbeddedStores
from edgeproxy.errors import OperatorError
from edgeproxy.store.migrate import migrate
from edgeproxy.supervisor.children import Child, Plan
from edgeproxy.supervisor.listeners import bind, metrics_listener, url_of
from edgeproxy.supervisor.roles import Role
from edgeproxy.supervisor.snapshots import Tally
from edgeproxy.supervisor.stopping import StopRequest

# Importing, connecting and loading scripts takes a second or two; a child that hangs has to end somewhere.
_START_TIMEOUT_S = 60.0

# Beyond the time that streams have to end: to settle them, and to write down what is waiting.
_STOP_MARGIN_S = 10.0

_POLL_S = 0.02
_WATCH_INTERVAL_S = 0.5
_COLLECT_INTERVAL_S = 1.0

# Between two attempts to start a store that does not come up.
_LONGEST_WAIT_S = 10.0

# Our settings, and what PostgreSQL's libraries read by themselves.
_NOT_FOR_CHILDREN = (ENVIRONMENT_PREFIX, "PG", "DATABASE_URL")


@dataclass(frozen=True, slots=True)
class Serving:
    """What runs once everything is ready: settings with the addresses of the stores, and where the listeners are."""

    settings: Settings
    api: str
    web: str
    metrics: str


def listener_lines(serving: Serving) -> list[str]:
    """Return what to print of the listeners: one line each."""
    return [f"api      {serving.api}", f"web      {serving.web}", f"metrics  {serving.metrics}/metrics"]


class _Listeners:
    """The sockets of all processes; they outlive each of them."""

    def __init__(self, settings: Settings) -> None:
        with ExitStack() as stack:
            self.api = [stack.enter_context(sock) for sock in bind(settings.listen.api, "listen.api", settings.workers)]
            (self.web,) = (stack.enter_context(sock) for sock in bind(settings.listen.web, "listen.web"))
            (self.metrics,) = (stack.enter_context(sock) for sock in bind(settings.listen.metrics, "listen.metrics"))
            self._open = stack.pop_all()

    def urls(self) -> tuple[str, str, str]:
        """Return where api, web and metrics are."""
        return url_of(self.api[0]), url_of(self.web), url_of(self.metrics)

    def close_api(self) -> None:
        """Close our own ends; the gateways close theirs."""
        for sock in self.api:
            sock.close()

    def close(self) -> None:
        """Close everything."""
        self._open.close()


Announce = Callable[[Serving], Awaitable[None]]


async def serve(settings: Settings, announce: Announce, mock: socket.socket | None = None) -> None:
    """Run everything until SIGTERM or Ctrl-C; `announce` is awaited when all listeners answer.

    `mock` is a listening socket for the mock provider. Raises OperatorError, StoreUnavailable.
    """
    stop = StopRequest()
    stores = EmbeddedStores(settings)
    try:
        # In threads: it may take a second or more, and signals are to be noticed meanwhile.
        await asyncio.to_thread(stores.claim)
        with closing(_Listeners(settings)) as listeners:
            running = await asyncio.to_thread(stores.serve)
            await migrate(running.stores.postgres)
            stores.share()
            if not stop.asked.is_set():
                await _Supervisor(listeners, stores, stop).run(running, announce, mock)
    finally:
        await asyncio.to_thread(stores.close)


class _Supervisor:
    """The children and the watch over them, between the start of the stores and their stop."""

    def __init__(self, listeners: _Listeners, stores: EmbeddedStores, stop: StopRequest) -> None:
        self._listeners = listeners
        self._stores = stores
        self._stop = stop
        self._tally = Tally()
        self._gateways: list[Child] = []
        self._others: list[Child] = []
        self._drain_s = 0.0

    async def run(self, settings: Settings, announce: Announce, mock: socket.socket | None) -> None:
        """Start the children, keep them running until a stop is asked for, stop them."""
        self._plan(settings, mock)
        self._drain_s = settings.bounds.drain_ms / 1000
        for child in self._children():
            tasks.spawn("child", child.keep())
        try:
            async with metrics_listener(self._listeners.metrics, self._render):
                await self._until_ready()
                if not self._stop.asked.is_set():
                    await announce(Serving(settings, *self._listeners.urls()))
                    await self._watch_until_stop()
        finally:
            await self._stop_children()

    def _children(self) -> list[Child]:
        return [*self._gateways, *self._others]

    def _plan(self, settings: Settings, mock: socket.socket | None) -> None:
        # A gateway never opens the database, so it is not told where it is.
        without_database = replace(settings, stores=replace(settings.stores, postgres=EMBEDDED))
        full, bare = child_environment(settings, Role.GATEWAY), child_environment(settings, Role.CONSOLE)
        for sock in self._listeners.api:
            plan = Plan(Role.GATEWAY, (Role.GATEWAY,), without_database, sock, full)
            self._gateways.append(Child(plan, self._tally))
        console = Plan(Role.CONSOLE, (Role.CONSOLE, "--with-jobs"), settings, self._listeners.web, bare)
        self._others.append(Child(console, self._tally))
        if mock is not None:
            plan = Plan(Role.MOCK_PROVIDER, (Role.MOCK_PROVIDER,), without_database, mock, bare)
            self._others.append(Child(plan, self._tally))

    async def _until_ready(self) -> None:
        """Return when all children serve or a stop was asked for. Raises OperatorError when one cannot."""
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._stop.asked.is_set() and not all(child.ready.is_set() for child in self._children()):
            for child in self._children():
                if child.hopeless:
                    raise OperatorError(child.hopeless)
            if time.monotonic() > deadline:
                raise OperatorError("not every process was ready in time; what they said stands above")
            await asyncio.sleep(_POLL_S)

    async def _watch_until_stop(self) -> None:
        watching = [
            tasks.spawn("watch-stores", self._watch_stores()),
            tasks.spawn("collect-metrics", self._collect_metrics()),
        ]
        await self._stop.asked.wait()
        for task in watching:
            task.cancel()

    async def _watch_stores(self) -> None:
        """Start embedded servers that have ended once more, however often it takes."""
        failures = 0
        while True:
            await asyncio.sleep(min(_LONGEST_WAIT_S, _WATCH_INTERVAL_S * 2 ** min(failures, 10)))
            for name in self._stores.dead():
                logs.event("store_ended", store=name, attempt=failures + 1)
                try:
                    await asyncio.to_thread(self._stores.revive, name)
                    failures = 0
                except OperatorError:
                    failures += 1
                    logs.event("store_not_started", store=name, attempt=failures)

    async def _collect_metrics(self) -> None:
        """Fetch what each process has counted, in case that it dies before the next scrape."""
        while True:
            await asyncio.sleep(_COLLECT_INTERVAL_S)
            await self._render()

    async def _render(self) -> bytes:
        snapshots = await asyncio.gather(*(child.snapshot() for child in self._children()))
        return self._tally.total(snapshots)

    async def _stop_children(self) -> None:
        """Gateways first, because the others write down what their last answers add."""
        hurrying = tasks.spawn("hurry", self._kill_on_hurry())
        for child in self._gateways:
            child.ask_to_stop()
        self._listeners.close_api()  # from here on a new connection is refused, not left waiting
        await asyncio.gather(*(child.stopped(self._drain_s + _STOP_MARGIN_S) for child in self._gateways))
        for child in self._others:
            child.ask_to_stop()
        await asyncio.gather(*(child.stopped(_STOP_MARGIN_S) for child in self._others))
        hurrying.cancel()

    async def _kill_on_hurry(self) -> None:
        await self._stop.hurry.wait()
        for child in self._gateways:  # the others end by themselves, and write down what there is
            child.kill()


def child_environment(settings: Settings, role: Role) -> dict[str, str]:
    """Return the environment of a child: none of our settings, which come over the channel, and no database's.

    The providers' secrets are for gateways alone.
    """
    secrets = {provider.secret_env for provider in settings.provider if provider.secret_env}
    kept = {}
    for name, value in environment().items():
        if name in secrets:
            if role is Role.GATEWAY:
                kept[name] = value
        elif not name.startswith(_NOT_FOR_CHILDREN):
            kept[name] = value
    return kept
