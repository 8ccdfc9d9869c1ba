import asyncio
from datetime import date
from urllib.parse import urlsplit

import asyncpg
import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from edgeproxy.errors import OperatorError, StoreUnavailable
from edgeproxy.store import migrate as module
from edgeproxy.store.migrate import check_current, migrate, steps

# What is kept, as the design says it: a column that is not here must not exist.
COLUMNS = {
    "install": "only_row partitions pepper_fingerprint created_at",
    "keys": "id name prefix digest status version limits concurrency models created_at expires_at revoked_at"
    " mode reserve on_limit prepaid",
    "outbox": "key_id version action digest created_at",
    "usage_events": "id key_id at model status input_uncached cache_read cache_write output reasoning latency_ms"
    " estimated",
    "usage_daily": "key_id day model requests input_uncached cache_read cache_write output reasoning",
    "usage_totals": "key_id requests input_tokens output_tokens",
    "ledger": "key_id seq kind request_id requests input_tokens output_tokens tokens reference at applied",
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
    monkeypatch.setattr(module, "steps", lambda: ["0001", "9998"])
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


async def test_what_was_stored_before_there_were_totals_and_modes_is_taken_along(postgres_url, monkeypatch):
    key, other = (f"0190a000-0000-7000-8000-{n:012x}" for n in (1, 2))
    with monkeypatch.context() as patch:
        patch.setattr("alembic.command.upgrade", lambda config, _, upgrade=command.upgrade: upgrade(config, "0001"))
        await migrate(postgres_url)
    connection = await asyncpg.connect(postgres_url, server_settings={"search_path": "edgeproxy"})
    await connection.execute(
        "INSERT INTO keys VALUES ($1, 'old', 'ep-', $2, 'active', 1, '{}', NULL, '{}', now(), NULL, NULL)",
        key,
        "0" * 64,
    )
    for key_id, day, requests in ((key, 1, 2), (key, 2, 3), (other, 1, 1)):
        await connection.execute(
            "INSERT INTO usage_daily VALUES ($1, $2, 'm', $3, 10, 20, 30, 7, 5)", key_id, date(2026, 1, day), requests
        )
    assert await migrate(postgres_url) == steps()[1:]
    totals = await connection.fetch("SELECT * FROM usage_totals ORDER BY key_id")
    assert [(str(row[0]), *row[1:]) for row in totals] == [(key, 5, 120, 14), (other, 1, 60, 7)]
    kept = await connection.fetchrow("SELECT mode, reserve, on_limit, prepaid FROM keys")
    assert tuple(kept) == ("enforce", "estimate", "refuse", False)
    await connection.close()


def test_file_numbers_are_what_alembic_calls_the_steps():
    config = Config()
    config.set_main_option("script_location", "edgeproxy:store/migrations")
    revisions = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
    assert sorted(revisions) == steps()
    assert ScriptDirectory.from_config(config).get_heads() == [steps()[-1]]
