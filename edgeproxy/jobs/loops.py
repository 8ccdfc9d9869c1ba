"""Runs the background work: each kind in a loop of its own, so that none holds up another.

A round that fails for want of a store is repeated, later and later up to a bound; the first failure and the end of the
trouble are logged. Asked to stop, each loop finishes its round and does one more.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from edgeproxy import logs, tasks
from edgeproxy.config import Jobs, Provider
from edgeproxy.control.installation import Control
from edgeproxy.control.ledger import apply_pending
from edgeproxy.control.publish import publish_pending
from edgeproxy.control.upstreams import publish_limits
from edgeproxy.errors import OperatorError, StoreUnavailable
from edgeproxy.jobs.corrections import Corrector
from edgeproxy.jobs.flush import AHEAD_MS, Flusher
from edgeproxy.jobs.reaping import Sweeper
from edgeproxy.jobs.reconciliation import Reconciler
from edgeproxy.jobs.refusals import roll_up
from edgeproxy.metrics import Metrics
from edgeproxy.store import partitions

PUBLISH_INTERVAL_MS = 1_000  # what a command could not publish becomes true this soon after Redis is back
LEDGER_INTERVAL_MS = 1_000  # the same for credits and corrections
CORRECTIONS_INTERVAL_MS = 1_000
REAPING_INTERVAL_MS = 3_000  # a tenth of a lease: what it adds to the time that a dead worker's requests stay open
OPENING_INTERVAL_MS = 500  # how soon a Redis that was started again is looked at: until then it admits nothing
DRIFT_INTERVAL_MS = 10_000  # 500 keys each time
REFUSALS_INTERVAL_MS = 10_000  # a count lives for a minute, and is read a few times
PARTITIONS_INTERVAL_MS = 3_600_000  # months are created two ahead
MAX_BACKOFF_MS = 5_000
_FIRST_BACKOFF_MS = 200
STOP_S = 8.0  # how long the last rounds may take, less than what a supervisor waits


@dataclass(frozen=True, slots=True)
class Loop:
    """One kind of work: what it is called, how often it is looked for, and one round of it."""

    name: str
    interval_ms: int
    round: Callable[[], Awaitable[object]]


async def run(control: Control, settings: Jobs, providers: Sequence[Provider], metrics: Metrics) -> None:
    """Do all background work until cancelled; then do one last round of each, within a bound, and end.

    Ends by itself only when a loop fails for another reason than a store, and raises that.
    """
    stop = asyncio.Event()
    todo = loops(control, settings, providers, metrics)
    running = [tasks.spawn(f"jobs {loop.name}", repeat(loop, stop, metrics)) for loop in todo]
    try:
        ended, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            task.result()
    finally:
        stop.set()
        try:
            await asyncio.wait(running, timeout=STOP_S)
        finally:  # asked a second time, or too slow
            for task in running:
                task.cancel()
            await asyncio.wait(running)


def loops(control: Control, settings: Jobs, providers: Sequence[Provider], metrics: Metrics) -> list[Loop]:
    """Return what there is to do."""
    flusher = Flusher(
        control.database, control.streams, metrics, batch=settings.flush_batch, after_ms=settings.flush_after_ms
    )
    corrector = Corrector(control, metrics, after_ms=settings.flush_after_ms)
    sweeper = Sweeper(control, metrics)
    at_once = Flusher(control.database, control.streams, metrics, batch=settings.flush_batch, after_ms=0)
    reconciler = Reconciler(control, at_once, metrics)

    async def flush() -> None:
        try:
            await flusher.flush_once()
        finally:  # the lag matters most when the flush fails
            metrics.flush_lag_seconds.set(await flusher.lag_ms() / 1000)

    async def create_months() -> None:
        now_ms = control.now_ms()
        months = [partitions.month_of(at_ms) for at_ms in (now_ms, now_ms + AHEAD_MS // 2, now_ms + AHEAD_MS)]
        async with control.database.transaction() as connection:
            await partitions.ensure(connection, months)

    return [
        Loop("opening", OPENING_INTERVAL_MS, reconciler.open_once),
        Loop("drift", DRIFT_INTERVAL_MS, reconciler.watch_once),
        Loop("partitions", PARTITIONS_INTERVAL_MS, create_months),
        Loop("flush", settings.flush_interval_ms, flush),
        Loop("publish", PUBLISH_INTERVAL_MS, lambda: publish_pending(control)),
        Loop("upstreams", PUBLISH_INTERVAL_MS, lambda: publish_limits(control, providers)),
        Loop("ledger", LEDGER_INTERVAL_MS, lambda: apply_pending(control)),
        Loop("corrections", CORRECTIONS_INTERVAL_MS, corrector.correct_once),
        Loop("reaping", REAPING_INTERVAL_MS, sweeper.sweep_once),
        Loop("refusals", REFUSALS_INTERVAL_MS, lambda: roll_up(control.database, control.streams)),
    ]


async def repeat(loop: Loop, stop: asyncio.Event, metrics: Metrics) -> None:
    """Do a round, wait, and so on until `stop` is set; then do a last round."""
    failures = 0
    stopping = False
    while not stopping:
        stopping = stop.is_set()
        try:
            await loop.round()
        except (StoreUnavailable, OperatorError) as error:
            failures += 1
            metrics.job_failures.labels(loop.name).inc()
            if failures == 1:
                away = {"store": error.store} if isinstance(error, StoreUnavailable) else {}
                logs.event("job_failed", task=loop.name, error=type(error).__name__, **away)
        else:
            if failures:
                logs.event("job_recovered", task=loop.name, attempt=failures + 1)
            failures = 0
        if not stopping:
            await _wait(stop, _pause_ms(loop.interval_ms, failures))


def _pause_ms(interval_ms: int, failures: int) -> int:
    """Return how long to wait after that many failures in a row: twice as long after each, 5 s at most."""
    if not failures:
        return interval_ms
    return min(_FIRST_BACKOFF_MS << min(failures - 1, 10), MAX_BACKOFF_MS)


async def _wait(stop: asyncio.Event, pause_ms: int) -> None:
    try:
        async with asyncio.timeout(pause_ms / 1000):
            await stop.wait()
    except TimeoutError:
        return
