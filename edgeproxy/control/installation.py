"""What the verbs work on: one installation, with its two stores, its peppers and its partitions."""

import time
from dataclasses import dataclass

from edgeproxy.domain.keys import pepper_fingerprint
from edgeproxy.errors import StoreUnavailable
from edgeproxy.hotstate.calling import Caller
from edgeproxy.hotstate.events import EventStreams
from edgeproxy.hotstate.publishing import Publishing
from edgeproxy.store import installation
from edgeproxy.store.database import Database


@dataclass(frozen=True, slots=True)
class Control:
    """An installation as the verbs see it. The stores belong to whoever opened them.

    `peppers` are 32 bytes each: the one that new keys are issued under, and during a rotation the one before.
    `lease_ms` is how long a request that nothing is heard of stays open.
    """

    database: Database
    publishing: Publishing
    streams: EventStreams
    peppers: tuple[bytes, ...]
    partitions: int
    key_prefix: str
    lease_ms: int = 30_000

    @property
    def caller(self) -> Caller:
        """How Redis is asked for what needs no object that lasts."""
        return self.streams.caller

    def now_ms(self) -> int:
        """Return Unix time in ms by this machine's clock: for what people read, never for windows."""
        return time.time_ns() // 1_000_000


async def stores_away(control: Control) -> list[str]:
    """Return the names of the stores that do not answer now. Each is given its own time limits."""
    away = []
    for ask in (control.streams.now_ms, control.database.ping):
        try:
            await ask()
        except StoreUnavailable as error:
            away.append(error.store)
    return away


async def claim(control: Control) -> None:
    """Fix partitions and pepper at the first start, and refuse a start that disagrees with what was fixed.

    Raises OperatorError, which names the setting, or StoreUnavailable.
    """
    fingerprints = tuple(pepper_fingerprint(pepper) for pepper in control.peppers)
    async with control.database.transaction() as connection:
        await installation.claim(connection, control.partitions, fingerprints)
    await control.publishing.install(control.partitions, *fingerprints)
