"""A PostgreSQL that would lose what it confirmed, or tell it to its log, is found."""

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from edgeproxy.checkup import postgres as checks
from edgeproxy.checkup.findings import Finding, Level
from edgeproxy.checkup.postgres import PostgresFacts, read_postgres
from edgeproxy.store.migrate import steps

ALL: tuple[Callable[[PostgresFacts], Any], ...] = (
    *(checks.version, checks.schema, checks.durability),
    *(checks.parameter_log, checks.rights, checks.encryption),
)
SOUND = {"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on"}


def judged(facts: PostgresFacts | Finding) -> dict[str, list[tuple[Level, str]]]:
    """What every check says, by its name."""
    assert isinstance(facts, PostgresFacts), facts
    found = {check.__name__: list(check(facts)) for check in ALL}
    assert all(finding.remedy or finding.level is Level.OK for row in found.values() for finding in row)
    return {name: [(finding.level, finding.found) for finding in row] for name, row in found.items()}


@pytest.fixture
async def facts(migrated_url: str) -> PostgresFacts:
    """Those of the test's own server, with what the tests have taken off it put on again."""
    found = await read_postgres(migrated_url, is_embedded=True)
    assert isinstance(found, PostgresFacts)
    return replace(found, settings={**found.settings, **SOUND}, powers=())


async def test_a_server_of_ours_is_well(facts: PostgresFacts):
    found = judged(facts)
    assert all(len(row) == 1 and row[0][0] is Level.OK for row in found.values()), found
    assert found["encryption"] == [(Level.OK, "on this machine")]
    assert abs(facts.clock.ahead_ms) <= 1000
    assert facts.install is None


async def test_what_was_fixed_at_the_first_start_is_read(migrated_url: str, database: Any):
    async with database.transaction() as connection:
        await connection.execute("INSERT INTO install (partitions, pepper_fingerprint) VALUES (8, 'ab')")
    found = await read_postgres(migrated_url, is_embedded=True)
    assert isinstance(found, PostgresFacts)
    assert found.install == (8, "ab")


async def test_a_database_without_a_schema_is_for_its_administrator_to_migrate(postgres_url: str):
    found = await read_postgres(postgres_url, is_embedded=False)
    assert judged(found)["schema"] == [(Level.ERROR, f"schema none, wanted {steps()[-1]}")]
    found = await read_postgres(postgres_url, is_embedded=True)
    assert judged(found)["schema"][0][0] is Level.OK


@pytest.mark.parametrize(
    ("changes", "check", "level", "words"),
    [
        ({"revision": "9999"}, "schema", Level.ERROR, "of a newer edgeproxy"),
        ({"revision": "0000", "is_embedded": False}, "schema", Level.ERROR, "schema 0000, wanted"),
        ({"revision": None}, "schema", Level.ERROR, "may not read the schema"),
        ({"is_standby": True}, "version", Level.ERROR, "is a standby"),
        (
            {"powers": ("SUPERUSER", "CREATEDB")},
            "rights",
            Level.WARNING,
            "has SUPERUSER, CREATEDB, which are not needed",
        ),
        ({"host": "10.0.0.9"}, "encryption", Level.WARNING, "not encrypted"),
        ({"host": "10.0.0.9", "is_encrypted": True}, "encryption", Level.WARNING, "whoever answers is believed"),
        ({"host": "10.0.0.9", "is_encrypted": True, "verifies": True}, "encryption", Level.OK, "over TLS"),
        ({"host": "localhost"}, "encryption", Level.OK, "on this machine"),
    ],
)
def test_what_it_is_and_the_way_there_are_judged(
    facts: PostgresFacts, changes: dict[str, Any], check: str, level: Level, words: str
):
    ((found, text),) = judged(replace(facts, **changes))[check]
    assert (found, words in text) == (level, True)


@pytest.mark.parametrize(
    ("settings", "check", "level", "words"),
    [
        ({"server_version_num": "140011"}, "version", Level.ERROR, "is too old"),
        ({"server_version_num": "150000"}, "version", Level.OK, "PostgreSQL"),
        ({"fsync": "off"}, "durability", Level.ERROR, "fsync off"),
        ({"synchronous_commit": "off"}, "durability", Level.WARNING, "synchronous_commit"),
        ({"log_statement": "all"}, "parameter_log", Level.OK, "no parameters"),
        ({"log_statement": "ddl", "log_parameter_max_length": "-1"}, "parameter_log", Level.OK, "no parameters"),
        ({"log_parameter_max_length": "-1"}, "parameter_log", Level.OK, "no parameters"),
        ({"log_parameter_max_length_on_error": "-1"}, "parameter_log", Level.WARNING, "logged with errors"),
        *(
            ({name: value, "log_parameter_max_length": "-1"}, "parameter_log", Level.WARNING, f"{name} = {value}")
            for name, value in (
                ("log_statement", "mod"),
                ("log_min_duration_statement", "0"),
                ("log_min_duration_sample", "100"),
                ("log_transaction_sample_rate", "0.1"),
            )
        ),
    ],
)
def test_its_settings_are_judged(facts: PostgresFacts, settings: dict[str, str], check: str, level: Level, words: str):
    ((found, text),) = judged(replace(facts, settings={**facts.settings, **settings}))[check]
    assert (found, words in text) == (level, True)


async def test_the_settings_that_are_judged_are_those_of_the_server(migrated_url: str):
    """The tests' server runs without fsync, and its role may make databases."""
    found = await read_postgres(migrated_url, is_embedded=True)
    assert isinstance(found, PostgresFacts)
    assert set(checks._SETTING_NAMES) == set(found.settings)
    administrator = await asyncpg.connect(migrated_url)
    try:
        fsync = await administrator.fetchval("SHOW fsync")
        may_create = await administrator.fetchval("SELECT rolcreatedb FROM pg_roles WHERE rolname = current_user")
    finally:
        await administrator.close()
    assert found.settings["fsync"] == fsync
    assert ("CREATEDB" in found.powers) is may_create


@pytest.fixture
async def setting_of_role(postgres_url: str) -> AsyncIterator[str]:
    """An address whose sessions log parameters with errors."""
    connection = await asyncpg.connect(postgres_url)
    name = urlsplit(postgres_url).path[1:]
    try:
        await connection.execute(
            f"ALTER ROLE CURRENT_USER IN DATABASE {name} SET log_parameter_max_length_on_error = 9"
        )
    finally:
        await connection.close()
    return postgres_url


async def test_a_setting_of_our_role_counts(setting_of_role: str):
    found = judged(await read_postgres(setting_of_role, is_embedded=True))
    assert found["parameter_log"] == [(Level.WARNING, "parameters are logged with errors")]


async def test_one_that_does_not_answer_or_refuses_is_told_without_its_address(missing_database_url: str):
    refused = await read_postgres(missing_database_url, is_embedded=False)
    away = await read_postgres("postgresql://u:Zq7@127.0.0.1:1/d", is_embedded=False)
    wrong = await read_postgres("postgresql://u:Zq7@127.0.0.1:port/d", is_embedded=False)
    for finding, words in ((refused, "knows no such database"), (away, "does not answer"), (wrong, "not a usable")):
        assert isinstance(finding, Finding)
        assert (finding.level, words in finding.found) == (Level.ERROR, True)
        assert "Zq7" not in finding.found + finding.remedy
