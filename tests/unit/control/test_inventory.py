"""A start that finds anything undeclared: each kind is put where the program would have it, and is refused by name."""

from dataclasses import replace

import pytest

from edgeproxy import logs
from edgeproxy.config import Listen, Provider, Secrets, Settings, Stores
from edgeproxy.control import inventory
from edgeproxy.control.inventory import check_inventory, files, metric_labels, named_files, refuse_undeclared
from edgeproxy.control.keys import create_key
from edgeproxy.domain.inventory import Kind
from edgeproxy.errors import OperatorError, StoreUnavailable
from edgeproxy.metrics import Metrics


@pytest.fixture
def settings(redis_url, migrated_url, tmp_path):
    return Settings(data_dir=tmp_path / "data", stores=Stores(redis_url, migrated_url))


async def refused(settings, cookies=()):
    with pytest.raises(OperatorError) as raised:
        await check_inventory(settings, cookies)
    return str(raised.value)


async def test_what_the_program_keeps_is_declared(settings, control, request_with, flusher):
    key = (await create_key(control, name="first", limits=["tokens=1000/1h"])).key
    await request_with(key)
    await request_with(key, settle=False)
    await flusher.flush_once()
    await request_with(key)
    await check_inventory(settings, ())


@pytest.mark.parametrize(
    ("statement", "name"),
    [
        ("ALTER TABLE usage_events ADD COLUMN prompt text", "usage_events.prompt"),
        ("CREATE TABLE visits (address inet)", "visits.address"),
        ("CREATE MATERIALIZED VIEW seen AS SELECT name FROM keys", "seen.name"),
    ],
)
async def test_a_column_that_is_not_declared_is_refused(settings, database, monkeypatch, statement, name):
    monkeypatch.setattr(inventory, "_columns", columns := Within(database, statement))
    said = await refused(settings)
    assert f"column {name} (drop it" in said
    assert columns.was_asked


class Within:
    """Reads the columns after a change that is undone again: other tests use the same database."""

    def __init__(self, database, statement):
        self._database, self._statement = database, statement
        self.was_asked = False

    async def __call__(self, _settings):
        self.was_asked = True
        async with self._database.transaction() as connection:
            change = connection.transaction()
            await change.start()
            await connection.execute(self._statement)
            found = await inventory.columns(connection)
            await change.rollback()
        return found


@pytest.mark.parametrize("name", ["session:1", "{p01}:prompts", "keyring", "{p1}:leases"])
async def test_a_redis_key_that_is_not_declared_is_refused(settings, redis, name):
    await redis.set(name, "x")
    said = await refused(settings)
    assert f"Redis key {name} (delete it, or give edgeproxy a Redis database of its own)" in said


async def test_a_log_field_that_is_not_declared_is_refused(settings, monkeypatch):
    monkeypatch.setitem(logs.FIELDS, "address", "where a request came from")
    assert "log field address (declare it in domain/inventory.py)" in await refused(settings)


async def test_a_metric_label_that_is_not_declared_is_refused(settings, monkeypatch):
    class Telling(Metrics):
        def __init__(self):
            super().__init__()
            self.by_key = self._counter("edgeproxy_by_key", "Requests by key.", "key")

    monkeypatch.setattr(inventory, "Metrics", Telling)
    assert "metric label key (declare it in domain/inventory.py)" in await refused(settings)


async def test_a_cookie_that_is_not_declared_is_refused(settings):
    assert "cookie session (declare it in domain/inventory.py)" in await refused(settings, ["session"])


@pytest.mark.parametrize("name", ["notes.txt", "prompts/today", "journal-2/a", "core"])
async def test_a_file_that_is_not_declared_is_refused(settings, name):
    path = settings.data_dir / name
    path.parent.mkdir(parents=True)
    path.write_text("x")
    assert f"file in data_dir {name} (move it to another folder)" in await refused(settings)


async def test_everything_is_told_at_once_and_long_lists_are_cut(settings, redis):
    await redis.mset({f"other:{number}": 1 for number in range(9)} | {"x" * 900 + "\n": 1})
    said = await refused(settings, ["session", "locale"])
    assert "other:4 and 5 more" in said
    assert "cookie locale, session" in said
    assert len(said) < 600


def test_a_name_with_control_characters_stays_on_one_line():
    with pytest.raises(OperatorError) as raised:
        refuse_undeclared({Kind.REDIS: ["a\nb\x1b"]})
    assert str(raised.value).isprintable()


def test_files_of_the_operator_and_of_the_file_system_may_lie_in_the_data_directory(tmp_path):
    for name in ("pepper", "tls.crt", "tls.key", "lock", "provider/secret", "lost+found/x", "secrets/pepper"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    settings = Settings(
        listen=Listen(api_certificate=f"{tmp_path}/tls.crt", api_private_key=f"{tmp_path}/tls.key"),
        secrets=Secrets(pepper_file=f"{tmp_path}/pepper"),
        provider=(Provider("a", secret_file=f"{tmp_path}/provider/secret"),),
    )
    assert set(files(tmp_path, named_files(settings))) == {"lock", "secrets/pepper"}
    assert set(files(tmp_path, set())) > {"pepper", "tls.crt", "provider/secret"}


def test_a_data_directory_that_is_not_there_holds_nothing(tmp_path):
    assert list(files(tmp_path / "none", set())) == []


def test_the_labels_are_those_of_all_metrics():
    assert {"provider", "status"} <= metric_labels(Metrics())


async def test_a_store_that_is_away_is_told(settings):
    away = replace(settings, stores=replace(settings.stores, redis="unix:///nonexistent/redis.sock"))
    with pytest.raises(StoreUnavailable):
        await check_inventory(away, ())
