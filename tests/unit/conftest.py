"""An installation on real stores, as the verbs, the jobs and the console work on it, and events to fill it with."""

import asyncio
import random
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
import redis.asyncio as redis_asyncio

from edgeproxy.control.installation import Control
from edgeproxy.domain.identifiers import uuid7
from edgeproxy.domain.keys import KeyId, partition_of
from edgeproxy.domain.reservations import Outcome, ReserveReply, ReserveStatus, SettleStatus, encode_note
from edgeproxy.domain.usage import Usage, UsageEvent, encode_event
from edgeproxy.hotstate import keyspace, scripts
from edgeproxy.hotstate.calling import Caller
from edgeproxy.hotstate.events import EventStreams
from edgeproxy.hotstate.publishing import Publishing
from edgeproxy.jobs.flush import Flusher
from edgeproxy.metrics import Metrics
from edgeproxy.store.database import Database, connect
from edgeproxy.store.keys import StoredKey
from edgeproxy.store.migrate import migrate

PARTITIONS = 4
KEPT_OF_USAGE = ("input_uncached", "cache_read", "cache_write", "output", "reasoning", "estimated")
EMPTY = """
DO $$
DECLARE name text;
BEGIN
    FOR name IN SELECT inhrelid::regclass FROM pg_inherits WHERE inhparent = 'edgeproxy.usage_events'::regclass LOOP
        EXECUTE 'DROP TABLE ' || name;
    END LOOP;
    FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'edgeproxy' AND tablename <> 'alembic_version' LOOP
        EXECUTE 'TRUNCATE edgeproxy.' || name;
    END LOOP;
END $$
"""
NOWHERE = "unix:///nonexistent/redis.sock"  # where no Redis answers


async def administer(server: str, statement: str) -> None:
    admin = await asyncpg.connect(server)
    try:
        await admin.execute(statement)
    finally:
        await admin.close()


def at_database(server: str, name: str) -> str:
    return urlsplit(server)._replace(path=f"/{name}").geturl()


@pytest.fixture(scope="session")
def installation_url(postgres_server: str) -> Iterator[str]:
    """A database with the current schema. It is emptied for each test, which is quicker than making one."""
    name = f"installation_{uuid.uuid4().hex}"
    asyncio.run(administer(postgres_server, f"CREATE DATABASE {name}"))
    url = at_database(postgres_server, name)
    asyncio.run(migrate(url))
    yield url
    asyncio.run(administer(postgres_server, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def missing_database_url(postgres_server: str) -> str:
    """A database that is not there, on a server that is."""
    return at_database(postgres_server, "no_such_database")


@pytest.fixture
async def migrated_url(installation_url: str) -> str:
    """A database with the current schema and no rows."""
    await administer(installation_url, EMPTY)
    return installation_url


@pytest.fixture
async def database(migrated_url: str) -> AsyncIterator[Database]:
    opened = await connect(migrated_url)
    yield opened
    await opened.close()


@pytest.fixture
def streams(redis: redis_asyncio.Redis) -> EventStreams:
    return EventStreams(Caller(redis), PARTITIONS)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def control(database: Database, redis: redis_asyncio.Redis, streams: EventStreams) -> Control:
    return Control(database, Publishing(Caller(redis)), streams, (bytes(range(32)),), PARTITIONS, "ep-")


@pytest.fixture
async def control_without_redis(database: Database) -> AsyncIterator[Control]:
    """The same installation while its Redis is away."""
    async with redis_asyncio.Redis.from_url(NOWHERE, retry=None) as client:
        yield Control(
            database,
            Publishing(Caller(client)),
            EventStreams(Caller(client), PARTITIONS),
            (bytes(range(32)),),
            PARTITIONS,
            "ep-",
        )


@pytest.fixture
def make_flusher(control: Control, metrics: Metrics) -> Callable[..., Flusher]:
    """Return a flusher that stores at once, in batches of 100, unless told otherwise."""

    def make(*, database: Database = control.database, batch: int = 100, after_ms: int = 0) -> Flusher:
        return Flusher(database, control.streams, metrics, batch=batch, after_ms=after_ms)

    return make


@pytest.fixture
def flusher(make_flusher: Callable[..., Flusher]) -> Flusher:
    return make_flusher()


@pytest.fixture
def make_event() -> Callable[..., UsageEvent]:
    """Return an event of a key: `at_ms` now unless given, other fields as named."""

    def make(key_id: KeyId, *, at_ms: int | None = None, **fields: Any) -> UsageEvent:
        moment = time.time_ns() // 1_000_000 if at_ms is None else at_ms
        counts = {name: fields.pop(name) for name in KEPT_OF_USAGE if name in fields}
        usage = Usage(**({"input_uncached": 10, "cache_read": 3, "output": 7, "reasoning": 2} | counts))
        known = {"id": uuid7(moment, random.getrandbits(74)), "model": "gpt-mock", "status": 200, "latency_ms": 12}
        return UsageEvent(key_id=key_id, usage=usage, **(known | fields))

    return make


@pytest.fixture
def add_events(redis: redis_asyncio.Redis) -> Callable[..., Awaitable[None]]:
    """Add events to their partitions' streams, as a settle does."""

    async def add(*events: UsageEvent) -> None:
        async with redis.pipeline(transaction=False) as pipeline:
            for event in events:
                stream = keyspace.events(partition_of(event.key_id, PARTITIONS))
                pipeline.xadd(stream, {"e": encode_event(event)})
            await pipeline.execute()

    return add


@pytest.fixture
def request_with(redis: redis_asyncio.Redis, make_event: Callable[..., UsageEvent]) -> Callable[..., Awaitable[Any]]:
    """Reserve with a key and settle, as the gateway does; returns the event, or what refused the request."""
    loaded = scripts.load()

    async def run(name: str, arguments: scripts.Arguments) -> Any:
        await redis.script_load(loaded[name].source)
        return await redis.execute_command(*loaded[name].command(arguments))

    async def request(
        key: StoredKey, *, settle: bool = True, lease_ms: int = 30_000, note: bytes | None = None, **fields: Any
    ) -> UsageEvent | ReserveReply:
        record = key.record(PARTITIONS)
        event = make_event(key.id, **fields)
        scopes, amounts = [scripts.scope_of(record)], event.usage.amounts
        note = encode_note(key.id, "gpt-*") if note is None else note
        arguments = scripts.reserve_args(record.partition, event.id, scopes, amounts, lease_ms, note)
        reply = scripts.decode_reserve(await run("reserve", arguments))
        if reply.status is not ReserveStatus.ADMITTED:
            return reply
        if settle:
            raw = encode_event(event)
            arguments = scripts.settle_args(record.partition, event.id, scopes, Outcome.POST, amounts, raw)
            assert (await run("settle", arguments))[0] == SettleStatus.RESOLVED
        return event

    return request


@pytest.fixture
def rows(database: Database) -> Callable[..., Awaitable[list[Any]]]:
    """Return the rows of a query."""

    async def run(query: str, *arguments: object) -> list[Any]:
        async with database.transaction() as connection:
            return list(await connection.fetch(query, *arguments))

    return run
