"""Reading the configuration again while everything runs: checked whole, refused whole, applied whole.

A file that cannot be used changes nothing: it costs one line on standard error, and is counted.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

import click

from edgeproxy import logs
from edgeproxy.config import Settings
from edgeproxy.errors import OperatorError
from edgeproxy.metrics import Metrics
from edgeproxy.supervisor.notifying import Notifier
from edgeproxy.supervisor.signals import Signals

# What may change while we run; whatever is not named here needs a restart. A table stands for all that is in it, but
# for what somebody reads only once.
CHANGEABLE = {
    *("provider", "model", "bounds", "jobs"),
    *("listen.api_certificate", "listen.api_private_key", "listen.web_certificate", "listen.web_private_key"),
}
_READ_ONCE = {"bounds.handshake_timeout_ms"}

Reread = Callable[[], Settings]
Apply = Callable[[Settings], Awaitable[None]]


class Reloading:
    """The settings that are in force, and how others come into force.

    `given` is what the file and the environment said at the start, `running` the same with the addresses of the
    stores; `reread` returns what they say now, or raises OperatorError.
    """

    def __init__(self, given: Settings, running: Settings, reread: Reread) -> None:
        self._given = given
        self._reread = reread
        self.settings = running

    async def run(self, signals: Signals, apply: Apply, metrics: Metrics, notifier: Notifier) -> None:
        """Whenever it is asked for, read the configuration again and `apply` it; until cancelled.

        `apply` may refuse with OperatorError.
        """
        while True:
            await signals.reload.wait()
            signals.reload.clear()
            notifier.reloading()
            try:
                given, running = await asyncio.to_thread(self._fresh)
                await apply(running)
            except OperatorError as error:
                click.echo(f"edgeproxy: not reloaded, all stays as it was: {error}", err=True)
                metrics.reloads.labels("refused").inc()
                notifier.ready("serving; the last reload was refused, and the log says why")
            else:
                self._given, self.settings = given, running
                logs.event("reloaded")
                metrics.reloads.labels("applied").inc()
                notifier.ready()

    def _fresh(self) -> tuple[Settings, Settings]:
        """Return what the file says now, without and with the addresses of the stores. Raises OperatorError."""
        given = self._reread()
        if names := sorted(differences(self._given, given)):
            raise OperatorError(f"{', '.join(names)} cannot change while it runs; restart for that, or undo it")
        return given, replace(given, stores=self.settings.stores, secrets=self.settings.secrets)


def differences(old: Any, new: Any, table: str = "") -> Iterator[str]:
    """Yield the names of the settings that differ and cannot change while we run."""
    for each in fields(old):
        name = f"{table}.{each.name}".lstrip(".")
        before, after = getattr(old, each.name), getattr(new, each.name)
        if is_dataclass(before):
            yield from differences(before, after, name)
        elif before != after and (not CHANGEABLE & {table, name} or name in _READ_ONCE):
            yield name
