"""The supervisor: stores first, then the schema, then the processes; and back in the opposite order.

A busy port is found before anything is started, a command line that never gets as far as `ready` leaves nothing
running, and whatever dies later is started again, the embedded stores included.
"""

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace

from edgeproxy import logs, tasks
from edgeproxy.config import EMBEDDED, ENVIRONMENT_PREFIX, Settings, environment
from edgeproxy.console.routes import COOKIES
from edgeproxy.control.inventory import check_inventory
from edgeproxy.embedded.stores import EmbeddedStores
from edgeproxy.errors import OperatorError
from edgeproxy.metrics import Metrics
from edgeproxy.policy.claims import refuse_unkept
from edgeproxy.store.migrate import migrate
from edgeproxy.supervisor.children import Child, Plan
from edgeproxy.supervisor.hardening import harden
from edgeproxy.supervisor.listeners import bind, metrics_listener, url_of
from edgeproxy.supervisor.notifying import Notifier
from edgeproxy.supervisor.reloading import Reloading, Reread
from edgeproxy.supervisor.roles import Role
from edgeproxy.supervisor.signals import Signals, wait
from edgeproxy.supervisor.snapshots import Tally
from edgeproxy.tls import Certificates

# Importing, connecting and loading scripts takes a second or two; a child that hangs has to end somewhere.
_START_TIMEOUT_S = 60.0

# Beyond the time that streams have to end: to settle them, and to write down what is waiting.
_STOP_MARGIN_S = 10.0

_POLL_S = 0.02
_WATCH_INTERVAL_S = 0.5
_COLLECT_INTERVAL_S = 1.0

# Between two attempts to start a store that does not come up.
_LONGEST_WAIT_S = 10.0

# How long a gateway that does not wait for its streams may take to settle them.
_HURRY_S = 3.0

# Our settings, what PostgreSQL's libraries read by themselves, and what systemd asks of the supervisor alone.
_NOT_FOR_CHILDREN = (ENVIRONMENT_PREFIX, "PG", "DATABASE_URL", "NOTIFY_SOCKET", "WATCHDOG_")


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
        # Only tried here, so that a bad one is known before anything starts: each process reads its own.
        self._is_secure = [Certificates(settings.listen, name).context is not None for name in ("api", "web")]
        with ExitStack() as stack:
            self.api = [stack.enter_context(sock) for sock in bind(settings.listen.api, "listen.api", settings.workers)]
            (self.web,) = (stack.enter_context(sock) for sock in bind(settings.listen.web, "listen.web"))
            (self.metrics,) = (stack.enter_context(sock) for sock in bind(settings.listen.metrics, "listen.metrics"))
            self._open = stack.pop_all()

    def urls(self) -> tuple[str, str, str]:
        """Return where api, web and metrics are."""
        api, web = self._is_secure
        return url_of(self.api[0], secure=api), url_of(self.web, secure=web), url_of(self.metrics)

    def close_api(self) -> None:
        """Close our own ends; the gateways close theirs."""
        for sock in self.api:
            sock.close()

    def close(self) -> None:
        """Close everything."""
        self._open.close()


Announce = Callable[[Serving], Awaitable[None]]


async def serve(settings: Settings, reread: Reread, announce: Announce, mock: socket.socket | None = None) -> None:
    """Run everything until SIGTERM or Ctrl-C; `announce` is awaited when all listeners answer.

    `reread` returns the settings as they are now, when a reload is asked for. `mock` is a listening socket for the mock
    provider. Raises OperatorError, StoreUnavailable.
    """
    refuse_unkept(settings.profile)
    signals = Signals()
    stores = EmbeddedStores(settings)
    try:
        # In threads: it may take a second or more, and signals are to be noticed meanwhile.
        await asyncio.to_thread(stores.claim)
        harden()  # not before the data directory is there: as root, another account has to get through it
        with closing(_Listeners(settings)) as listeners:
            running = await asyncio.to_thread(stores.serve)
            await migrate(running.stores.postgres)
            await check_inventory(running, COOKIES)
            stores.share()
            if not signals.stop.is_set():
                reloading = Reloading(settings, running, reread)
                await _Supervisor(listeners, stores, signals, reloading, mock).run(announce)
    finally:
        await asyncio.to_thread(stores.close)


class _Supervisor:
    """The children and the watch over them, between the start of the stores and their stop."""

    def __init__(
        self,
        listeners: _Listeners,
        stores: EmbeddedStores,
        signals: Signals,
        reloading: Reloading,
        mock: socket.socket | None,
    ) -> None:
        self._listeners = listeners
        self._mock = mock
        self._stores = stores
        self._signals = signals
        self._reloading = reloading
        self._notifier = Notifier(environment())
        self._metrics = Metrics()  # of this process, which does little
        self._tally = Tally()
        self._gateways: list[Child] = []
        self._others: list[Child] = []

    async def run(self, announce: Announce) -> None:
        """Start the children, keep them running until a stop is asked for, stop them."""
        settings = self._reloading.settings
        for role, plan in self._plans(settings):
            place = self._gateways if role is Role.GATEWAY else self._others
            place.append(Child(plan, self._tally))
        with (
            tasks.running("watchdog", self._notifier.keep_alive()),
            tasks.running("watch-stores", self._watch_stores()),
            tasks.running("collect-metrics", self._collect_metrics()),
        ):
            for child in self._children():
                tasks.spawn("child", child.keep())
            async with metrics_listener(self._listeners.metrics, self._render):
                try:
                    await self._until_ready()
                    if not self._signals.stop.is_set():
                        await announce(Serving(settings, *self._listeners.urls()))
                        self._notifier.ready()
                        await self._serve_until_stop()
                finally:
                    await self._stop_children()

    def _children(self) -> list[Child]:
        return [*self._gateways, *self._others]

    def _plans(self, settings: Settings) -> Iterator[tuple[Role, Plan]]:
        """Yield what each child is, in the order of the children."""
        # A gateway never opens the database, so it is not told where it is.
        without_database = replace(settings, stores=replace(settings.stores, postgres=EMBEDDED))
        full, bare = child_environment(settings, Role.GATEWAY), child_environment(settings, Role.CONSOLE)
        for sock in self._listeners.api:
            yield Role.GATEWAY, Plan(Role.GATEWAY, (Role.GATEWAY,), without_database, sock, full)
        yield Role.CONSOLE, Plan(Role.CONSOLE, (Role.CONSOLE, "--with-jobs"), settings, self._listeners.web, bare)
        if self._mock is not None:
            mock = Plan(Role.MOCK_PROVIDER, (Role.MOCK_PROVIDER,), without_database, self._mock, bare)
            yield Role.MOCK_PROVIDER, mock

    async def _until_ready(self) -> None:
        """Return when all children serve or a stop was asked for. Raises OperatorError when one cannot."""
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._signals.stop.is_set() and not all(child.ready.is_set() for child in self._children()):
            for child in self._children():
                if child.hopeless:
                    raise OperatorError(child.hopeless)
            if time.monotonic() > deadline:
                raise OperatorError("not every process was ready in time; what they said stands above")
            await asyncio.sleep(_POLL_S)

    async def _serve_until_stop(self) -> None:
        """Return when a stop was asked for, and whoever sends requests here has had the time to notice."""
        with tasks.running("reload", self._reloading.run(self._signals, self._reload, self._metrics, self._notifier)):
            await self._signals.stop.wait()
        self._notifier.stopping()
        for child in self._children():
            child.drain()
        await wait(self._signals.hurry, self._reloading.settings.bounds.drain_delay_ms / 1000)

    async def _reload(self, settings: Settings) -> None:
        """Let all children use these settings, or none. Raises OperatorError."""
        try:
            await self._tell_all(settings)
        except OperatorError:
            with suppress(OperatorError):  # who did not take the new ones still has the old
                await self._tell_all(self._reloading.settings)
            raise

    async def _tell_all(self, settings: Settings) -> None:
        plans = (plan for _, plan in self._plans(settings))
        told = [child.reload(plan) for child, plan in zip(self._children(), plans, strict=True)]
        for outcome in await asyncio.gather(*told, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

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
        return self._tally.total([*snapshots, self._metrics.render()])

    async def _stop_children(self) -> None:
        """Gateways first, because the others write down what their last answers add."""
        patience_s = self._reloading.settings.bounds.drain_ms / 1000 + _STOP_MARGIN_S
        with tasks.running("hurry", self._hurry_gateways()):
            for child in self._gateways:
                child.ask_to_stop()
            self._listeners.close_api()  # from here on a new connection is refused, not left waiting
            await asyncio.gather(*(child.stopped(patience_s) for child in self._gateways))
            for child in self._others:
                child.ask_to_stop()
            await asyncio.gather(*(child.stopped(_STOP_MARGIN_S) for child in self._others))

    async def _hurry_gateways(self) -> None:
        """When asked to hurry, have open answers ended; the others end by themselves, and write down what there is."""
        await self._signals.hurry.wait()
        for child in self._gateways:
            child.hurry()
        await asyncio.sleep(_HURRY_S)
        for child in self._gateways:
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
