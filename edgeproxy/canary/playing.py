"""What is done to the installation of a run while markers pass through it: every way in which a request can end.

Each play leaves the installation serving again.
"""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from edgeproxy import tasks
from edgeproxy.canary.installation import Installation
from edgeproxy.canary.places import Search
from edgeproxy.canary.requests import Sent, Writer, behaving
from edgeproxy.canary.sending import Sending
from edgeproxy.canary.stores import search_redis
from edgeproxy.canary.upstream import Upstream

_SETTLING_S = 0.5  # for what runs behind an answer
_AWAY_S = 1.0
_ERRORS = (400, 401, 403, 404, 413, 429, 500, 503, 529)
OPEN_FILES = "open files of processes"


@dataclass(slots=True)
class Play:
    """One run through everything that can happen.

    `poor` writes requests with a key whose limit is used up at once; `decoy` is left in Redis when that is searched.
    """

    there: Installation
    upstream: Upstream
    rich: Writer
    poor: Writer
    sending: Sending
    search: Search
    decoy: str

    async def all(self) -> list[str]:
        """Do everything once, and return the names of what was done."""
        steps: dict[str, Callable[[], Awaitable[None]]] = {
            "success in every dialect": self.success,
            "errors of the provider": self.provider_fails,
            "requests that are refused": self.refused,
            "bytes that are no request, timeouts, clients that hang up": self.trouble,
            "a worker that is killed": lambda: self.worker_ends(signal.SIGKILL),
            "a worker that aborts": lambda: self.worker_ends(signal.SIGABRT),
            "Redis that is frozen": self.redis_freezes,
            "Redis that is killed": self.redis_ends,
            "PostgreSQL that is killed": lambda: self.store_ends("postgres"),
        }
        for step in steps.values():
            await step()
            await self.there.until_ready()
        return list(steps)

    async def success(self) -> None:
        """Every operation, unary, as a stream, and encoded; one that halts in the middle of its body."""
        self.sending.while_halted = self.look_at_open_files
        await self.sending.one(self.rich.halted(behaving("plain")))
        self.sending.while_halted = None
        await self.sending.all(self.rich.everything(behaving("plain")))
        await self._conversations("gzip")
        await self._conversations("stream", stream=True)
        await self.sending.all(self.rich.elsewhere())

    async def provider_fails(self) -> None:
        """Every status, and answers that are none."""
        for status in _ERRORS:
            await self._conversations(f"status-{status}", stream=status % 2 == 0)
        for behaviour in ("html", "broken", "head"):
            await self._conversations(behaviour)
        await self._conversations("cut", stream=True)

    async def refused(self) -> None:
        """What is not taken, and what does not fit a limit."""
        await self.sending.all(self.rich.refused(behaving("plain")))
        for _ in range(2):  # the first uses up what there is
            await self.sending.all(self.poor.conversations(behaving("plain"), stream=False))

    async def trouble(self) -> None:
        """What is not HTTP, a provider that does not answer, and clients that leave."""
        await asyncio.gather(self.sending.all(self.rich.malformed()), self._conversations("mute"), self._hang_up())

    async def _hang_up(self) -> None:
        """Clients that leave, while they are answered and while they ask."""
        sent = self.rich.conversations(behaving("slow"), stream=True)
        await asyncio.gather(*(self.sending.one(each, leaves_after=400) for each in sent))
        cut = [Sent("a client that leaves", each.data[: len(each.data) // 2]) for each in sent]
        await asyncio.gather(*(self._leave(each) for each in cut))

    async def worker_ends(self, number: signal.Signals) -> None:
        """All workers end, with streams open."""
        async with self._open("hold"):
            for pid in self.there.workers():
                self.there.kill(pid, number)

    async def redis_freezes(self) -> None:
        """Redis does nothing for a while, so that settlements wait in the journal."""
        pid = self.there.server("redis-server")
        async with self._open("slow"):
            self.there.kill(pid, signal.SIGSTOP)
            try:
                await self._conversations("plain")
                await asyncio.sleep(_AWAY_S)
                await self.look_at_open_files()
                self.search.folder("journal, while Redis is away", self.there.data_dir / "journal", shown="journal/")
            finally:
                self.there.kill(pid, signal.SIGCONT)

    async def redis_ends(self) -> None:
        """Redis is killed. Its slow log lives in its memory, so it is searched before."""
        await search_redis(self.search, self.there.stores.redis, self.decoy, keeps_decoy=True)
        await self.store_ends("redis-server")

    async def store_ends(self, name: str) -> None:
        """A store is killed under load."""
        async with self._open("slow"):
            self.there.kill(self.there.server(name))
            await self._conversations("plain")
            await self.sending.all(self.rich.elsewhere())

    async def look_at_open_files(self) -> None:
        """Search what the processes have open to write just now: files without a name are seen in no folder."""
        there = self.there
        pids, known = [there.process.pid, *there.children()], [there.data_dir, there.placement.stores, there.folder]
        await asyncio.to_thread(self.search.open_files, OPEN_FILES, pids, known)

    async def _conversations(self, behaviour: str, *, stream: bool = False) -> None:
        await self.sending.all(self.rich.conversations(behaving(behaviour), stream=stream))

    async def _leave(self, sent: Sent) -> None:
        """Send half of a request, and leave."""
        try:
            async with asyncio.timeout(_SETTLING_S):
                await self.sending.one(sent)
        except TimeoutError:
            return

    @asynccontextmanager
    async def _open(self, behaviour: str) -> AsyncIterator[None]:
        """Have a stream open in each dialect while the block begins; they end as they can."""
        sent = self.rich.conversations(behaving(behaviour), stream=True)
        asking = tasks.spawn("canary streams", self.sending.all(sent))
        await asyncio.sleep(_SETTLING_S)
        try:
            yield
            await asyncio.sleep(_SETTLING_S)
        finally:
            self.upstream.let_go()
            await asking
