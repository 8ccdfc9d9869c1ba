"""A whole installation whose parts can be killed one by one: stores of the test's own, behind proxies, and `serve`."""

import asyncio
import json
import os
import random
import shutil
import signal
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import asyncpg
import redis as redis_sync
import redis.asyncio as redis_asyncio

from edgeproxy.embedded.placement import Placement, make_data_dir, place
from edgeproxy.embedded.postgres import EmbeddedPostgres
from edgeproxy.embedded.redis import EmbeddedRedis
from edgeproxy.embedded.secrets import PEPPER, own_secret
from tests.conftest import reachable_folder
from tests.support.processes import (
    ANY_PORT,
    MODELS,
    Program,
    Refused,
    Started,
    children_of,
    fetch,
    is_running,
    processes_with,
    program_in,
    wait_until,
)
from tests.support.stepping import Postgres, Resp, Stepping, kill

LEASE_MS = 1000
PARTITIONS = 16
CONFIGURATION = """
workers = 2
{listeners}
{models}
[stores]
redis = {redis}
postgres = {postgres}
lease_ms = {lease_ms}
redis_timeout_ms = 500
[secrets]
pepper_file = {pepper}
[jobs]
flush_interval_ms = 100
flush_after_ms = {flush_after_ms}
"""


def seed() -> int:
    """Return what the random part of a test begins with: it is printed, and can be given again."""
    given = os.environ.get("EDGEPROXY_TEST_SEED")
    return int(given) if given else random.SystemRandom().randrange(2**32)


def tell(text: str, end: str = "\n") -> None:
    print(text, end=end, flush=True)  # noqa: T201 - what `make evidence` is run for


@dataclass
class Installation:
    """What runs, and how to end it. `serving` is None while the program does not run."""

    program: Program
    mock: str
    placement: Placement
    redis: EmbeddedRedis
    postgres: EmbeddedPostgres
    redis_proxy: Stepping
    postgres_proxy: Stepping
    lease_ms: int
    serving: Started | None = None
    listeners: dict[str, str] = field(default_factory=dict)  # where they were last
    keys: dict[str, str] = field(default_factory=dict)  # ids by secret
    spared: set[int] = field(default_factory=set)  # processes that are not killed

    @property
    def api(self) -> str:
        return self.listeners["api"]

    @property
    def web(self) -> str:
        return self.listeners["web"]

    @property
    def running(self) -> Started:
        assert self.serving is not None
        return self.serving

    def workers(self) -> list[int]:
        return sorted(pid for pid, command in self.running.children().items() if " gateway " in command)

    def console(self) -> int:
        """Return the process with the jobs, 0 while there is none."""
        return next((pid for pid, command in self.running.children().items() if " console " in command), 0)

    def create_key(self, *arguments: str) -> str:
        """Create a key and return its secret; `keys` knows its id."""
        created = self.program.json("keys", "create", "--name", f"key {len(self.keys)}", *arguments)
        self.keys[created["key"]] = created["id"]
        return str(created["key"])

    def is_complete(self) -> bool:
        """Whether all processes run and serve, and may admit."""
        return len(self.running.children()) == 3 and [self.ready(name) for name in ("api", "web")] == [200, 200]

    def ready(self, listener: str) -> int:
        """Return the status of /readyz, 0 while nobody answers."""
        try:
            fetch(f"{self.listeners[listener]}/readyz")
        except Refused as refused:
            return int(refused.args[0])
        except Exception:  # noqa: BLE001 - whatever a dying server does to a client
            return 0
        return 200

    def until_complete(self) -> None:
        wait_until(self.is_complete, self.running)

    def start(self) -> None:
        """Start the program, and return when it is ready."""
        self.serving = self.program.begin("serve")
        wait_until(lambda: any(line.startswith("ready") for line in self.running.lines), self.running)
        pairs = (line.split() for line in self.running.lines)
        self.listeners.update(pair for pair in pairs if len(pair) == 2 and pair[1].startswith("http"))

    def stop(self) -> int:
        """Stop the program in order."""
        status = self.running.stop()
        self.serving = None
        return status

    def kill_supervisor(self) -> None:
        """Kill the program's first process, and return when all of them are gone."""
        children = self.running.children()
        self.running.process.kill()
        self.running.process.wait()
        wait_until(lambda: not any(is_running(pid) for pid in children))
        self.serving = None

    # --- the stores

    @property
    def redis_pid(self) -> int:
        pid = self.redis._server.pid
        assert pid is not None
        return pid

    @property
    def postgres_pids(self) -> list[int]:
        pid = self.postgres._server.pid
        return [] if pid is None else [pid, *children_of(pid)]

    def kill_redis(self, _peer: int = 0) -> None:
        kill(self.redis_pid)
        wait_until(lambda: not self.redis.is_alive())  # its other threads have ended, too

    def kill_postgres(self, _peer: int = 0) -> None:
        """End all of its processes at once, as a power cut does."""
        os.kill(self.postgres_pids[0], signal.SIGSTOP)  # from now on it starts no others
        pids = self.postgres_pids
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not self.postgres.is_alive() and not any(is_running(pid) for pid in pids))

    @contextmanager
    def frozen(self, *pids: int) -> Iterator[None]:
        """Let processes do nothing while the block runs."""
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in reversed(pids):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def redis_client(self) -> redis_sync.Redis:
        """A client that goes past the proxy."""
        return redis_sync.Redis.from_url(self.redis.url(), socket_timeout=5)

    def in_redis(self, ask: Callable[[redis_asyncio.Redis], Awaitable[Any]]) -> Any:
        async def run() -> Any:
            async with redis_asyncio.Redis.from_url(self.redis.url()) as client:
                return await ask(client)

        return asyncio.run(run())

    def rows(self, query: str, *arguments: object) -> list[dict[str, Any]]:
        """Ask PostgreSQL, past the proxy."""

        async def run() -> list[dict[str, Any]]:
            connection = await asyncpg.connect(self.postgres.url(), timeout=10)
            try:
                return [dict(row) for row in await connection.fetch(query, *arguments, timeout=30)]
            finally:
                await connection.close()

        return asyncio.run(run())

    def journals(self) -> list[Path]:
        return sorted((self.program.data_dir / "journal").glob("*"))


@contextmanager
def installed(mock: str, *, flush_after_ms: int = 300, lease_ms: int = LEASE_MS) -> Iterator[Installation]:
    """Have everything run while the block does; nothing is left afterwards."""
    with reachable_folder() as folder:
        stores, at = folder / "stores", Path(tempfile.mkdtemp(prefix="ep-"))
        placement = place(make_data_dir(stores))
        placement.make_runtime()
        redis, postgres = EmbeddedRedis(stores, placement), EmbeddedPostgres(stores, placement)
        redis_url, postgres_url = redis.start(), postgres.start()
        name = Path(".s.PGSQL.5432")
        redis_proxy = Stepping(at / "redis.sock", placement.sockets / "redis.sock", Resp)
        postgres_proxy = Stepping(at / name, placement.sockets / name, Postgres)
        (folder / "program").mkdir()
        program = program_in(folder / "program")
        program.configure(
            CONFIGURATION.format(
                listeners=ANY_PORT,
                models=MODELS.format(mock=mock),
                redis=json.dumps(redis_url.replace(quote(str(placement.sockets)), quote(str(at)))),
                postgres=json.dumps(postgres_url.replace(quote(str(placement.sockets)), quote(str(at)))),
                pepper=json.dumps(str(own_secret(stores, PEPPER))),
                lease_ms=lease_ms,
                flush_after_ms=flush_after_ms,
            ).replace("workers = 2\n\n[listen]", "workers = 2\n[listen]")
        )
        there = Installation(program, mock, placement, redis, postgres, redis_proxy, postgres_proxy, lease_ms)
        try:
            there.start()
            yield there
        finally:
            if there.serving is not None and there.serving.process.poll() is None:
                there.serving.stop()
            redis_proxy.close()
            postgres_proxy.close()
            postgres.stop()
            redis.stop()
            placement.remove_runtime()
            shutil.rmtree(at)
        assert not processes_with(str(folder)), "a process was left behind"


@contextmanager
def mock_provider() -> Iterator[str]:
    """Address of a mock provider that has served nothing yet."""
    with (
        reachable_folder() as folder,
        program_in(folder).started("mock-provider", "--listen", "127.0.0.1:0") as started,
    ):
        yield started.listeners["mock"]


def port_of(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return str(parts.hostname), parts.port or 0
