from dataclasses import replace

import pytest

from edgeproxy.domain.keys import KeyId, KeyRecord, KeyStatus, Mode, OnLimit, Reserve, partition_of
from edgeproxy.domain.limits import parse_limit
from edgeproxy.store import keys
from edgeproxy.store.database import RowRefused
from edgeproxy.store.keys import StoredKey


def a_key(number=1, **fields):
    return StoredKey(
        **(
            {
                "id": KeyId(f"0190a000-0000-7000-8000-{number:012x}"),
                "name": "build",
                "prefix": f"ep-{number:08}",
                "digest": f"{number:064x}",
                "status": KeyStatus.ACTIVE,
                "version": 1,
                "limits": (parse_limit("tokens=1000/90s"), parse_limit("requests=5/30d")),
                "concurrency": 8,
                "models": ("claude-*", "gpt-4o"),
                "created_ms": 1_750_000_000_123,
                "expires_ms": 1_800_000_000_456,
                "mode": Mode.OBSERVE,
                "reserve": Reserve.STRICT,
                "on_limit": OnLimit.SHRINK,
                "prepaid": True,
            }
            | fields
        )
    )


async def stored(database, *each):
    async with database.transaction() as connection:
        for key in each:
            await keys.insert(connection, key)


@pytest.mark.parametrize(
    "key",
    [a_key(), a_key(limits=(), concurrency=None, models=(), expires_ms=None), a_key(name="ключ 🔑 'quoted' \\")],
    ids=["everything", "nothing", "any words"],
)
async def test_a_key_is_read_as_it_was_written(database, key):
    await stored(database, key)
    async with database.transaction() as connection:
        assert await keys.read(connection, key.id) == key
        assert await keys.read_to_publish(connection, key.id) == key
        assert await keys.read_to_change(connection, key.id) == key


async def test_a_change_is_read_as_it_was_written(database):
    old = a_key()
    new = replace(
        old,
        name="other",
        status=KeyStatus.REVOKED,
        version=2,
        limits=(parse_limit("requests=1/1m"),),
        concurrency=None,
        models=(),
        expires_ms=None,
        revoked_ms=1_760_000_000_789,
        mode=Mode.ENFORCE,
        reserve=Reserve.ESTIMATE,
        on_limit=OnLimit.REFUSE,
    )
    await stored(database, old)
    async with database.transaction() as connection:
        await keys.update(connection, new)
        assert await keys.read(connection, new.id) == new


async def test_what_is_not_there_is_none(database):
    async with database.transaction() as connection:
        assert await keys.read(connection, a_key().id) is None
        assert await keys.find(connection, "build") == []


async def test_a_key_is_found_by_prefix_and_by_name_and_two_say_so(database):
    first, second = a_key(1), a_key(2)
    await stored(database, first, second)
    async with database.transaction() as connection:
        assert await keys.find(connection, first.prefix) == [first.id]
        assert sorted(await keys.find(connection, "build")) == [first.id, second.id]
        assert await keys.find(connection, "buil") == []


async def test_pages_follow_each_other_in_order_of_creation(database):
    each = [a_key(number) for number in range(1, 6)]
    await stored(database, *reversed(each))
    async with database.transaction() as connection:
        assert await keys.page(connection, keys.FIRST_ID, 2) == each[:2]
        assert await keys.page(connection, each[1].id, 10) == each[2:]


@pytest.mark.parametrize(
    "fields",
    [{"digest": "not a digest"}, {"name": ""}, {"name": "x" * 201}, {"concurrency": 0}, {"mode": "x"}],
    ids=str,
)
async def test_the_database_itself_refuses_what_no_key_is(database, fields):
    with pytest.raises(RowRefused):
        await stored(database, a_key(**fields))


async def test_two_keys_never_share_a_digest(database):
    with pytest.raises(RowRefused):
        await stored(database, a_key(1), a_key(2, digest=a_key(1).digest))


async def test_a_deleted_key_is_gone(database):
    await stored(database, a_key())
    async with database.transaction() as connection:
        await keys.delete(connection, a_key().id)
        assert await keys.read(connection, a_key().id) is None


def test_the_published_record_holds_what_a_worker_needs_and_no_name():
    key = a_key()
    assert key.record(16) == KeyRecord(
        *(key.id, 1, KeyStatus.ACTIVE, partition_of(key.id, 16), key.limits, 8, key.expires_ms, key.models),
        *(Mode.OBSERVE, Reserve.STRICT, OnLimit.SHRINK, True),
    )
