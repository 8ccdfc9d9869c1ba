import pytest

from edgeproxy.control.keys import create_key
from edgeproxy.domain.keys import KeyId, partition_of
from edgeproxy.errors import StoreUnavailable
from edgeproxy.hotstate import keyspace
from edgeproxy.jobs import refusals as module
from edgeproxy.jobs.refusals import read_count, roll_up
from edgeproxy.store.database import connect
from edgeproxy.store.refusals import RefusalCount

UNKNOWN = KeyId("0190a000-0000-7000-8000-000000000009")


@pytest.fixture
async def key_id(control):
    return (await create_key(control, name="refused")).key.id


@pytest.fixture
def refuse(redis, streams):
    """Count refusals of a key as the gateway does, in the minute given."""

    async def refuse(key_id, minute, status=429, count=1):
        name = keyspace.refusals(partition_of(key_id, streams.partitions))
        await redis.hincrby(name, f"{key_id}:{minute}:{status}", count)

    return refuse


@pytest.fixture
def stored(rows):
    async def stored():
        found = await rows(
            "SELECT (extract(epoch FROM minute) / 60)::bigint AS m, status, count FROM refusals ORDER BY 1, 2"
        )
        return [tuple(row) for row in found]

    return stored


async def fields(redis, streams):
    return [f for p in range(streams.partitions) for f in await redis.hkeys(keyspace.refusals(p))]


async def test_a_minute_that_is_over_is_stored_and_leaves_redis(database, streams, redis, key_id, refuse, stored):
    await refuse(key_id, 29_000_000, 429, 5)
    await refuse(key_id, 29_000_000, 403)
    assert await roll_up(database, streams) == 2
    assert await stored() == [(29_000_000, 403, 1), (29_000_000, 429, 5)]
    assert await fields(redis, streams) == []


async def test_a_minute_that_goes_on_is_stored_and_stays(database, streams, redis, key_id, refuse, stored):
    minute = await streams.now_ms() // 60_000 + 1  # it cannot end during the test
    await refuse(key_id, minute, count=2)
    for _ in range(3):
        await roll_up(database, streams)
    assert await stored() == [(minute, 429, 2)]
    await refuse(key_id, minute, count=3)
    await roll_up(database, streams)
    assert await stored() == [(minute, 429, 5)]
    assert len(await fields(redis, streams)) == 1


async def test_a_crash_before_the_removal_counts_nothing_twice(database, streams, key_id, refuse, stored, monkeypatch):
    await refuse(key_id, 29_000_000, count=5)

    async def die(_partition, _names):
        raise StoreUnavailable("redis")

    with monkeypatch.context() as patch:
        patch.setattr(streams, "remove_refusals", die)
        with pytest.raises(StoreUnavailable):
            await roll_up(database, streams)
    await roll_up(database, streams)
    assert await stored() == [(29_000_000, 429, 5)]


async def test_a_key_that_is_gone_leaves_no_count(database, streams, redis, key_id, refuse, stored):
    await refuse(UNKNOWN, 29_000_000)
    await roll_up(database, streams)
    assert await stored() == []
    assert await fields(redis, streams) == []


async def test_what_is_no_count_is_taken_away(database, streams, redis, stored):
    await redis.hset(keyspace.refusals(0), mapping={"junk": 1, f"{UNKNOWN}:1:99999": 1, ":::": 1})
    await roll_up(database, streams)
    assert await fields(redis, streams) == []
    assert await stored() == []


async def test_many_counts_are_stored_in_batches(database, streams, redis, key_id, refuse, stored, monkeypatch):
    monkeypatch.setattr(module, "_BATCH", 7)
    for minute in range(30):
        await refuse(key_id, 29_000_000 + minute, count=minute + 1)
    assert await roll_up(database, streams) == 30
    assert [count for _, _, count in await stored()] == list(range(1, 31))
    assert await fields(redis, streams) == []


async def test_without_postgresql_counts_go_on_waiting(streams, redis, key_id, refuse, migrated_url):
    away = await connect(migrated_url)
    await away.close()
    await refuse(key_id, 29_000_000)
    with pytest.raises(StoreUnavailable, match=r"^postgresql$"):
        await roll_up(away, streams)
    assert len(await fields(redis, streams)) == 1


def test_a_field_names_key_minute_and_status():
    assert read_count(f"{UNKNOWN}:2:429", 7) == RefusalCount(UNKNOWN, 120_000, 429, 7)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("", 1),
        (f"{UNKNOWN}", 1),
        (f"{UNKNOWN}:2", 1),
        (f"{UNKNOWN}:2:", 1),
        (f"{UNKNOWN}:x:429", 1),
        (f"{UNKNOWN}:-1:429", 1),
        (f"{UNKNOWN}:99999999999:429", 1),
        (f"{UNKNOWN}:2:42", 1),
        (f"{UNKNOWN}:2:429:1", 1),
        ("nobody:2:429", 1),
        (f"{UNKNOWN}:2:429", 0),
        (f"{UNKNOWN}:2:429", 2**63),
    ],
)
def test_what_is_no_field_of_ours_is_no_count(name, count):
    assert read_count(name, count) is None
