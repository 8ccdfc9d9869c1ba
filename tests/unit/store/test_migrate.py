import asyncio
from urllib.parse import urlsplit

import asyncpg
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from edgeproxy.errors import OperatorError, StoreUnavailable
from edgeproxy.store import migrate as module
from edgeproxy.store.migrate import check_current, migrate, steps

# What is kept, as the design says it: a column that is not here must not exist.
COLUMNS = {
    "install": "only_row partitions pepper_fingerprint created_at",
    "keys": "id name prefix digest status version limits concurrency models created_at expires_at revoked_at",
    "outbox": "key_id version action digest created_at",
    "usage_events": "id key_id at model status input_uncached cache_read cache_write output reasoning latency_ms"
    " estimated",
    "usage_daily": "key_id day model requests input_uncached cache_read cache_write output reasoning",
    "refusals": "key_id minute status count",
    "dead_letters": "partition stream_id key_id reason created_at",
    "alembic_version": "version_num",
}


async def columns(url):
    connection = await asyncpg.connect(url)
    found = await connection.fetch(
        "SELECT table_name, string_agg(column_name, ' ' ORDER BY ordinal_position) AS columns"
        " FROM information_schema.columns WHERE table_schema = 'edgeproxy' GROUP BY table_name"
    )
    await connection.close()
    return dict(found)


async def test_an_empty_database_gets_exactly_the_declared_tables(postgres_url):
    assert await migrate(postgres_url) == steps()
    assert await columns(postgres_url) == COLUMNS
    await check_current(postgres_url)


async def test_a_second_migration_finds_nothing_to_do(postgres_url):
    await migrate(postgres_url)
    before = await columns(postgres_url)
    assert await migrate(postgres_url) == []
    assert await columns(postgres_url) == before


async def test_migrations_at_once_wait_for_each_other(postgres_url):
    done = await asyncio.gather(*(migrate(postgres_url) for _ in range(4)))
    assert sorted(done) == [[], [], [], steps()]
    await check_current(postgres_url)


async def test_a_database_without_schema_is_refused_with_the_remedy(postgres_url):
    with pytest.raises(OperatorError, match="run: edgeproxy migrate"):
        await check_current(postgres_url)


async def test_an_older_schema_is_refused_with_the_remedy(postgres_url, monkeypatch):
    await migrate(postgres_url)
    monkeypatch.setattr(module, "steps", lambda: ["0001", "0002"])
    with pytest.raises(OperatorError, match="run: edgeproxy migrate"):
        await check_current(postgres_url)


async def test_a_newer_schema_is_refused_by_check_and_by_migration(postgres_url):
    await migrate(postgres_url)
    connection = await asyncpg.connect(postgres_url)
    await connection.execute("UPDATE edgeproxy.alembic_version SET version_num = '9999'")
    await connection.close()
    for call in (check_current, migrate):
        with pytest.raises(OperatorError, match="schema 9999 of a newer edgeproxy"):
            await call(postgres_url)


async def test_a_failing_step_leaves_nothing_behind(postgres_url, monkeypatch):
    connection = await asyncpg.connect(postgres_url)
    # The last table of the step is there already, as somebody else's.
    await connection.execute("CREATE SCHEMA edgeproxy; CREATE TABLE edgeproxy.dead_letters (x int)")
    await connection.close()
    with pytest.raises(asyncpg.DuplicateTableError):
        await migrate(postgres_url)
    assert await columns(postgres_url) == {"dead_letters": "x"}


@pytest.fixture
async def powerless_url(postgres_url):
    """A database in which the user may not create: the server's own one, or with a superuser's server another user."""
    parts = urlsplit(postgres_url)
    connection = await asyncpg.connect(postgres_url)
    if await connection.fetchval("SELECT rolsuper FROM pg_roles WHERE rolname = current_user"):
        role = f"reader_{connection.get_server_pid()}"
        await connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
        yield parts._replace(netloc=f"{role}:x@{parts.netloc.rpartition('@')[2]}").geturl()
        await connection.execute(f"DROP ROLE {role}")
    else:
        yield parts._replace(path="/postgres").geturl()
    await connection.close()


async def test_a_user_that_may_not_create_is_told_so(powerless_url):
    with pytest.raises(OperatorError, match="may not create tables"):
        await migrate(powerless_url)


@pytest.mark.parametrize("call", [migrate, check_current])
async def test_a_server_that_is_away_is_unavailable(call, unused_tcp_port):
    with pytest.raises(StoreUnavailable, match=r"^postgresql$"):
        await call(f"postgresql://nobody@127.0.0.1:{unused_tcp_port}/none")


@pytest.mark.parametrize("call", [migrate, check_current])
async def test_a_database_that_does_not_exist_is_named_as_the_mistake(call, missing_database_url):
    with pytest.raises(OperatorError, match=r"check stores\.postgres"):
        await call(missing_database_url)


async def test_an_address_that_is_none_is_named_as_the_mistake():
    with pytest.raises(OperatorError, match="not a usable address"):
        await migrate("postgresql://host:port:port/x?sslmode=maybe")


def test_file_numbers_are_what_alembic_calls_the_steps():
    config = Config()
    config.set_main_option("script_location", "edgeproxy:store/migrations")
    revisions = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
    assert sorted(revisions) == steps()
    assert ScriptDirectory.from_config(config).get_heads() == [steps()[-1]]
