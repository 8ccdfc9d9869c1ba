"""Asks Redis and PostgreSQL for what they hold, keep about it, and are doing: their live side, beside their files.

What is asked for goes through the search and is forgotten. Where a login may not ask for something, the search says so.
"""

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, cast

import asyncpg
from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from redis.exceptions import MovedError, RedisClusterException, RedisError

from edgeproxy.canary.places import Reading, Search
from edgeproxy.domain.redis_addresses import is_cluster, node_address, redis_addresses
from edgeproxy.errors import OperatorError, StoreUnavailable
from edgeproxy.hotstate.calling import open_client
from edgeproxy.store.database import Connection, connect

_TIMEOUT_S = 10.0
_PAGE = 1000
_LONGEST_COPY_S = 3600.0  # of one table; the search itself has a deadline
REDIS_KEYS, _REDIS_SAYS = "keys of Redis", "what Redis says (slow log, access log, clients, state)"
TABLES, _POSTGRES_SAYS = "tables of PostgreSQL", "what PostgreSQL says (activity, statements)"
DECOY_KEY = b"canary:decoy"
_DECOY_SECONDS = 60
_ASKED = (("SLOWLOG", "GET", "-1"), ("ACL", "LOG"), ("CLIENT", "LIST"), ("INFO", "everything"), ("LATENCY", "LATEST"))
_RELATIONS = """
SELECT n.nspname AS schema, c.relname AS name
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'm') AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_toast'
ORDER BY 1, 2
"""
_VIEWS = {
    "pg_stat_activity": "SELECT query, application_name FROM pg_stat_activity",
    "pg_prepared_statements": "SELECT statement FROM pg_prepared_statements",
    "pg_stat_statements": "SELECT query FROM pg_stat_statements",
    "pg_settings": "SELECT name, setting FROM pg_settings WHERE name <> 'primary_conninfo'",
}


async def search_redis(search: Search, address: str, decoy: str, *, keeps_decoy: bool) -> None:
    """Search every key (its name, and its value as DUMP writes it), and the logs that Redis keeps in memory.

    A key of ours, whose text has to be found, comes first. In an installation of our own it stays for a while, so that
    it reaches the files; elsewhere it is gone at once, because a start refuses keys that nobody has declared.
    """
    try:
        for name, url in (await _servers(address)).items():
            async with _client(url) as client:
                await _ask(search, name, client, "SET", DECOY_KEY, decoy, "EX", _DECOY_SECONDS)
                await _key(search, name, client, DECOY_KEY)
                if not keeps_decoy:
                    await _ask(search, name, client, "DEL", DECOY_KEY)
                async for key in client.scan_iter(count=_PAGE):
                    await _key(search, name, client, key)
                for command in _ASKED:
                    told = await _ask(search, name, client, *command)
                    search.blocks(_REDIS_SAYS, f"{name}: {' '.join(command)}", _flat(told))
    except (RedisError, RedisClusterException, OSError) as error:
        search.not_read.append(f"Redis: {type(error).__name__}")


async def _key(search: Search, name: str, client: Redis, key: bytes) -> None:
    search.text(REDIS_KEYS, f"{name}: name of a key", key)
    dumped = await _ask(search, name, client, "DUMP", key)
    search.text(REDIS_KEYS, f"{name}: {_shown(key)}", dumped or b"")


@asynccontextmanager
async def _client(url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S) as client:
        yield client


async def _servers(address: str) -> dict[str, str]:
    """Return the addresses of Redis, or of each master of a cluster, by name. Raises what the library does."""
    if not is_cluster(address):
        return {"Redis": address}
    async with open_client(address, _TIMEOUT_S) as client:
        cluster = await cast("RedisCluster", client).initialize()
        nodes = [(str(node.host), int(node.port)) for node in cluster.get_primaries()]
    first = redis_addresses(address)[0]
    return {f"Redis {host}:{port}": node_address(first, host, port) for host, port in nodes}


async def _ask(search: Search, name: str, client: Redis, *command: str | bytes | int) -> Any:
    """Return the answer to a command; None where it is not to be had, which is told of once."""
    try:
        return await cast("Any", client).execute_command(*command)
    except MovedError:
        return None  # the decoy belongs to another node
    except RedisError as error:
        if (line := f"{name}: {command[0]!s} is refused, {type(error).__name__}") not in search.not_read:
            search.not_read.append(line)
        return None


def _flat(told: Any) -> Iterator[bytes]:
    """Yield what an answer of Redis is made of."""
    match told:
        case bytes():
            yield told + b"\n"
        case dict():
            for name, value in told.items():
                yield from _flat(name)
                yield from _flat(value)
        case list() | tuple():
            for each in told:
                yield from _flat(each)
        case None:
            pass
        case _:
            yield f"{told}\n".encode()


def _shown(key: bytes) -> str:
    """Return the name of a key without what could be somebody's."""
    return re.sub(rb"[0-9a-zA-Z_-]{16,}", b"...", key[:100]).decode("ascii", "replace")


async def search_postgres(search: Search, url: str, decoy: str, *, keeps_decoy: bool) -> None:
    """Search every table that the role may read, and what the server tells of statements.

    A table of ours is there meanwhile, whose text has to be found: in an installation of our own one that stays, so
    that its bytes reach the files; elsewhere one that ends with the connection.
    """
    try:
        database = await connect(url)
    except (OperatorError, StoreUnavailable) as error:
        search.not_read.append(f"PostgreSQL: {type(error).__name__}")
        return
    try:
        if keeps_decoy:
            async with database.transaction() as connection:
                await _leave_decoy(connection, "TABLE IF NOT EXISTS public.canary_decoy", decoy)
        async with database.transaction() as connection:
            if not keeps_decoy:
                await _leave_decoy(connection, "TEMPORARY TABLE canary_decoy", decoy)
            for row in await connection.fetch(_RELATIONS):
                await _table(search, connection, row["schema"], row["name"])
            for name, query in _VIEWS.items():
                await _view(search, connection, name, query)
    except (StoreUnavailable, asyncpg.PostgresError) as error:
        search.not_read.append(f"PostgreSQL: {type(error).__name__}")
    finally:
        await database.close()


async def _leave_decoy(connection: Connection, table: str, decoy: str) -> None:
    await connection.execute(f"CREATE {table} (decoy text)")
    name = table.rsplit(maxsplit=1)[-1]
    await connection.execute(f"INSERT INTO {name} VALUES ($1)", decoy)  # noqa: S608 - our own name


async def _table(search: Search, connection: Connection, schema: str, name: str) -> None:
    """Search a table as COPY writes it."""
    place = f"PostgreSQL: {'pg_temp' if schema.startswith('pg_temp') else schema}.{name}"
    reading = Reading(search, TABLES, place)

    async def take(data: bytes) -> None:
        if not reading.feed(data):
            raise TimeoutError

    try:
        async with connection.transaction():
            await connection.execute("SET LOCAL statement_timeout = 0")
            await connection.copy_from_table(name, schema_name=schema, output=take, timeout=_LONGEST_COPY_S)
    except asyncpg.InsufficientPrivilegeError:
        search.not_read.append(f"{place}: the role may not read it")
    reading.end()


async def _view(search: Search, connection: Connection, name: str, query: str) -> None:
    try:
        async with connection.transaction():
            rows = await connection.fetch(query)
    except (asyncpg.UndefinedTableError, asyncpg.ObjectNotInPrerequisiteStateError, asyncpg.InsufficientPrivilegeError):
        return  # not installed
    search.blocks(_POSTGRES_SAYS, f"PostgreSQL: {name}", (f"{tuple(row)}\n".encode() for row in rows))
