import asyncio
import socket

import asyncpg
import pytest

from edgeproxy.errors import OperatorError, StoreUnavailable
from edgeproxy.store import database as module
from edgeproxy.store.database import RowRefused, connect


async def test_what_a_block_did_is_kept(database):
    async with database.transaction() as connection:
        await connection.execute("INSERT INTO install (partitions, pepper_fingerprint) VALUES (4, 'f')")
    async with database.transaction() as connection:
        assert await connection.fetchval("SELECT count(*) FROM install") == 1


async def test_what_a_failed_block_did_is_undone(database):
    async def fail():
        async with database.transaction() as connection:
            await connection.execute("INSERT INTO install (partitions, pepper_fingerprint) VALUES (4, 'f')")
            raise KeyError

    with pytest.raises(KeyError):
        await fail()
    async with database.transaction() as connection:
        assert await connection.fetchval("SELECT count(*) FROM install") == 0


@pytest.mark.parametrize(
    ("statement", "arguments"),
    [
        ("SELECT $1::smallint", [70_000]),
        ("SELECT $1::uuid", ["not an id"]),
        ("SELECT $1::text", ["nul \0"]),
        ("INSERT INTO install (partitions, pepper_fingerprint) VALUES ($1, 'f')", [0]),
        ("INSERT INTO install (partitions, pepper_fingerprint) VALUES (4, $1)", [None]),
    ],
    ids=["too large", "not an id", "nul", "against a check", "null"],
)
async def test_a_value_that_no_column_holds_is_refused_without_its_text(database, statement, arguments):
    with pytest.raises(RowRefused) as caught:
        async with database.transaction() as connection:
            await connection.fetch(statement, *arguments)
    assert str(caught.value) == ""
    assert caught.value.__suppress_context__


async def test_a_statement_that_does_not_fit_the_schema_is_seen_as_the_mistake_it_is(database):
    with pytest.raises(asyncpg.UndefinedTableError):
        async with database.transaction() as connection:
            await connection.execute("SELECT * FROM no_such_table")


async def test_a_slow_statement_counts_as_away(database):
    with pytest.raises(StoreUnavailable, match=r"^postgresql$"):
        async with database.transaction() as connection:
            await connection.execute("SET LOCAL statement_timeout = 20; SELECT pg_sleep(5)")


async def test_a_connection_that_is_cut_counts_as_away_and_the_next_one_works(database, migrated_url):
    admin = await asyncpg.connect(migrated_url)
    with pytest.raises(StoreUnavailable):
        async with database.transaction() as connection:
            assert await admin.fetchval("SELECT pg_terminate_backend($1, 2000)", connection.get_server_pid())
    await admin.close()
    async with database.transaction() as connection:
        assert await connection.fetchval("SELECT 1") == 1


async def test_connections_are_bounded_and_a_wait_for_one_ends(database, monkeypatch):
    monkeypatch.setattr(module, "CONNECT_TIMEOUT_S", 0.05)
    release = asyncio.Event()
    holding = []

    async def hold():
        async with database.transaction():
            holding.append(1)
            await release.wait()

    async with asyncio.TaskGroup() as group:
        for _ in range(module.POOL_SIZE):
            group.create_task(hold())
        while len(holding) < module.POOL_SIZE:
            await asyncio.sleep(0.01)
        with pytest.raises(StoreUnavailable):
            async with database.transaction():
                pass
        release.set()


async def test_a_server_that_is_away_is_unavailable(unused_tcp_port):
    with pytest.raises(StoreUnavailable, match=r"^postgresql$"):
        await connect(f"postgresql://nobody@127.0.0.1:{unused_tcp_port}/none")


async def test_a_server_that_never_answers_is_unavailable(monkeypatch):
    monkeypatch.setattr(module, "CONNECT_TIMEOUT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(StoreUnavailable):
        await connect(f"postgresql://nobody@127.0.0.1:{silent.getsockname()[1]}/none")


async def test_a_database_that_does_not_exist_is_a_mistake_of_the_configuration(missing_database_url):
    with pytest.raises(OperatorError, match=r"check stores\.postgres"):
        await connect(missing_database_url)


async def test_a_closed_pool_is_unavailable(migrated_url):
    database = await connect(migrated_url)
    await database.ping()
    await database.close()
    with pytest.raises(StoreUnavailable):
        await database.ping()
    with pytest.raises(StoreUnavailable):
        async with database.transaction():
            pass


@pytest.mark.parametrize(
    "error", [asyncpg.InternalClientError, asyncpg.InterfaceError, ConnectionResetError, TimeoutError]
)
def test_a_connection_that_breaks_in_any_way_counts_as_away(error):
    with pytest.raises(StoreUnavailable, match=r"^postgresql$"), module.mapped_errors():
        raise error("canary")
