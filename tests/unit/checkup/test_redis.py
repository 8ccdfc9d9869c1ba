"""A Redis that would lose counts, or let others in, is found: real ones, configured badly and put right again."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis.asyncio as redis_asyncio

from edgeproxy.checkup import redis as checks
from edgeproxy.checkup.findings import Finding, Level
from edgeproxy.checkup.redis import RedisFacts, read_redis

USERS = Path(__file__).parents[3] / "config" / "redis" / "users.conf"
ALL: tuple[Callable[[RedisFacts], Any], ...] = (
    *(checks.reachable, checks.version, checks.memory, checks.persistence),
    *(checks.topology, checks.access, checks.encryption, checks.slow_log),
)


def judged(facts: RedisFacts | Finding) -> dict[str, list[tuple[Level, str]]]:
    """What every check says, by its name."""
    assert isinstance(facts, RedisFacts), facts
    found = {check.__name__: list(check(facts)) for check in ALL}
    assert all(finding.remedy or finding.level is Level.OK for row in found.values() for finding in row)
    return {name: [(finding.level, finding.found) for finding in row] for name, row in found.items()}


@pytest.fixture
async def facts(redis_url: str) -> RedisFacts:
    found = await read_redis(redis_url, 1000, is_embedded=True)
    assert isinstance(found, RedisFacts)
    return found


@asynccontextmanager
async def configured(redis: redis_asyncio.Redis, **settings: str) -> AsyncIterator[None]:
    """Redis with these settings, and with those of before when the block ends."""
    names = {name: name.replace("_", "-") for name in settings}
    before = {names[name]: (await redis.config_get(names[name]))[names[name]] for name in settings}
    try:
        for name, value in settings.items():
            await redis.config_set(names[name], value)
        yield
    finally:
        for name, value in before.items():
            await redis.config_set(name, value)


async def test_an_embedded_redis_is_well(facts: RedisFacts):
    found = judged(facts)
    assert all(len(row) == 1 and row[0][0] is Level.OK for row in found.values()), found
    assert abs(facts.clock.ahead_ms) <= 1000
    assert facts.install is None


@pytest.mark.parametrize(
    ("settings", "check", "level", "words"),
    [
        ({"maxmemory_policy": "allkeys-lru"}, "memory", Level.ERROR, "maxmemory-policy is allkeys-lru"),
        ({"maxmemory": "1mb"}, "memory", Level.WARNING, "% of maxmemory"),
        ({"appendonly": "no"}, "persistence", Level.ERROR, "appendonly is off"),
        ({"appendfsync": "no"}, "persistence", Level.WARNING, "appendfsync is no"),
        ({"appendfsync": "always"}, "persistence", Level.OK, "always"),
        ({"slowlog_log_slower_than": "10000"}, "slow_log", Level.WARNING, "keeps arguments"),
    ],
)
async def test_a_setting_that_loses_or_keeps_what_it_should_not(
    redis_url: str, redis: redis_asyncio.Redis, settings: dict[str, str], check: str, level: Level, words: str
):
    async with configured(redis, **settings):
        found = judged(await read_redis(redis_url, 1000, is_embedded=True))
    ((found_level, text),) = found.pop(check)
    assert (found_level, words in text) == (level, True)
    assert all(row[0][0] is Level.OK for row in found.values())


async def test_a_replica_is_an_error(redis_url: str, redis: redis_asyncio.Redis):
    await redis.execute_command("REPLICAOF", "127.0.0.1", "1")
    try:
        found = judged(await read_redis(redis_url, 1000, is_embedded=True))
    finally:
        await redis.execute_command("REPLICAOF", "NO", "ONE")
    assert found["topology"] == [(Level.ERROR, "it is a replica and takes no writes")]


@pytest.mark.parametrize(
    ("info", "check", "level", "words"),
    [
        ({"redis_version": "6.0.16"}, "version", Level.ERROR, "Redis 6.0.16 is too old"),
        ({"redis_version": "5.9"}, "version", Level.ERROR, "too old"),
        ({"redis_version": "6.2.0"}, "version", Level.OK, "Redis 6.2.0"),
        ({"redis_version": "10.0.1"}, "version", Level.OK, "Redis 10.0.1"),
        ({"redis_version": "unstable"}, "version", Level.ERROR, "too old"),
        ({"redis_version": "7.2.4", "valkey_version": "8.1.0"}, "version", Level.OK, "Valkey 8.1.0"),
        ({"aof_last_write_status": "err"}, "persistence", Level.ERROR, "could not write"),
        ({"rdb_last_bgsave_status": "err"}, "persistence", Level.ERROR, "could not write"),
        ({"cluster_enabled": 1}, "topology", Level.ERROR, "a node of a Redis Cluster"),
        ({"connected_slaves": 2}, "topology", Level.OK, "replicas (2)"),
    ],
)
def test_what_info_says_is_judged(facts: RedisFacts, info: dict[str, Any], check: str, level: Level, words: str):
    found = judged(replace(facts, info={**facts.info, **info}))[check]
    assert (found[0][0], words in found[0][1]) == (level, True)


@pytest.mark.parametrize(
    ("changes", "check", "level", "words"),
    [
        ({"host": "", "has_password": False, "rights": None}, "access", Level.OK, "may not administer"),
        ({"host": "10.0.0.9", "has_password": False}, "access", Level.ERROR, "without a password"),
        ({"host": "127.0.0.1", "has_password": False}, "access", Level.WARNING, "without a password"),
        ({"host": "10.0.0.9"}, "access", Level.WARNING, "user default may administer"),
        ({"host": "10.0.0.9", "rights": None, "user": "ep"}, "access", Level.OK, "user ep may not"),
        ({"host": "10.0.0.9"}, "encryption", Level.WARNING, "not encrypted"),
        ({"host": "10.0.0.9", "is_encrypted": True}, "encryption", Level.OK, "over TLS"),
        ({"host": "localhost"}, "encryption", Level.OK, "on this machine"),
        ({"round_trip_ms": 300.0}, "reachable", Level.WARNING, "300.0 ms"),
        ({"config": None}, "slow_log", Level.WARNING, "not visible"),
    ],
)
def test_the_way_there_is_judged(facts: RedisFacts, changes: dict[str, Any], check: str, level: Level, words: str):
    found = judged(replace(facts, is_embedded=False, **changes))[check]
    assert (found[0][0], words in found[0][1]) == (level, True)


@pytest.fixture
async def user(redis: redis_asyncio.Redis) -> AsyncIterator[Callable[..., Any]]:
    """Make a user with these rights."""

    async def make(*rights: str) -> None:
        await redis.execute_command("ACL", "SETUSER", "checked", "reset", "on", ">Zq7-password", *rights)

    yield make
    await redis.execute_command("ACL", "DELUSER", "checked")


def as_user(url: str, password: str = "Zq7-password") -> str:
    """The same address for the user of these tests."""
    parts = urlsplit(url)
    return parts._replace(netloc=f"checked:{password}@{parts.netloc.rpartition('@')[2]}").geturl()


def recommended() -> list[str]:
    """The rights of the user `control`, as the sample gives them."""
    (line,) = (line for line in USERS.read_text().splitlines() if line.startswith("user control "))
    return line.partition(" resetchannels ")[2].split()


@pytest.mark.claims("OL-8b")
async def test_a_user_with_the_rights_that_are_recommended_is_enough_and_no_more(redis_url: str, user: Any):
    await user(*recommended())
    found = judged(await read_redis(as_user(redis_url), 1000, is_embedded=False))
    assert found["access"] == [(Level.OK, "user checked may not administer it")]
    assert all(row[0][0] is Level.OK for row in found.values()), found


async def test_a_user_without_a_look_at_the_configuration_is_told_so(redis_url: str, user: Any):
    await user(*recommended(), "-config")
    found = judged(await read_redis(as_user(redis_url), 1000, is_embedded=False))
    assert found.pop("slow_log")[0][0] is Level.WARNING
    assert all(row[0][0] is Level.OK for row in found.values()), found


async def test_a_user_that_may_not_ask_is_no_failure(redis_url: str, user: Any):
    await user("~*", "+get", "+time", "+@connection")
    found = judged(await read_redis(as_user(redis_url), 1000, is_embedded=False))
    assert found["version"] == [(Level.WARNING, "its version is not visible to this user")]
    assert found["memory"] == found["persistence"] == found["topology"] == []


async def test_a_user_that_may_do_nothing_is_an_error(redis_url: str, user: Any):
    await user("~*", "+@connection")
    finding = await read_redis(as_user(redis_url), 1000, is_embedded=False)
    assert isinstance(finding, Finding)
    assert (finding.level, "may not do what is needed" in finding.found) == (Level.ERROR, True)


async def test_a_refused_login_is_told_without_the_password(redis_url: str):
    finding = await read_redis(as_user(redis_url, "Zq7-wrong"), 1000, is_embedded=False)
    assert isinstance(finding, Finding)
    assert (finding.level, finding.found) == (Level.ERROR, "it refused the login")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis://:Zq7@127.0.0.1:1", "cannot be reached"),
        ("unix://:Zq7@/nonexistent/redis.sock", "cannot be reached"),
        ("redis://:Zq7@127.0.0.1:1?socket_timeout=Zq7", "an option that is not understood"),
        ("redis://:Zq7@127.0.0.1:1?Zq7=1", "an option that is not understood"),
    ],
)
async def test_one_that_does_not_answer_is_told_without_its_address(url: str, words: str):
    finding = await read_redis(url, 200, is_embedded=False)
    assert isinstance(finding, Finding)
    assert (finding.level, words in finding.found) == (Level.ERROR, True)
    assert "Zq7" not in finding.found + finding.remedy


async def test_one_that_is_frozen_is_given_up(redis_url: str, redis: redis_asyncio.Redis):
    await redis.client_pause(600)
    finding = await read_redis(redis_url, 100, is_embedded=True)
    await redis.client_unpause()
    assert isinstance(finding, Finding)
    assert "does not answer" in finding.found
