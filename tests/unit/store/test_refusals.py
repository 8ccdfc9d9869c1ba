from dataclasses import replace

import pytest

from edgeproxy.control.keys import create_key
from edgeproxy.store import refusals
from edgeproxy.store.database import RowRefused
from edgeproxy.store.refusals import RefusalCount

MINUTE_MS = 1_750_000_020_000


@pytest.fixture
async def count(control):
    issued = await create_key(control, name="counted")
    return RefusalCount(issued.key.id, MINUTE_MS, 429, 3)


async def add(database, *counts):
    async with database.transaction() as connection:
        await refusals.add(connection, counts)


async def test_counts_are_absolute_and_never_shrink(database, rows, count):
    await add(database, count, replace(count, status=403, count=1))
    await add(database, replace(count, count=5))
    await add(database, replace(count, count=4))
    found = await rows("SELECT status, count, extract(epoch FROM minute)::bigint AS s FROM refusals ORDER BY status")
    assert [tuple(row) for row in found] == [(403, 1, MINUTE_MS // 1000), (429, 5, MINUTE_MS // 1000)]


async def test_a_key_that_is_not_known_leaves_nothing(database, rows, count):
    await add(database, replace(count, key_id="0190a000-0000-7000-8000-000000000009"), count)
    assert len(await rows("SELECT * FROM refusals")) == 1


async def test_no_counts_are_no_rows(database, rows):
    await add(database)
    assert await rows("SELECT * FROM refusals") == []


async def test_what_is_no_count_is_refused(database, count):
    with pytest.raises(RowRefused):
        await add(database, replace(count, count=0))


async def test_the_counts_of_one_key_are_deleted_and_no_others(database, control, rows, count):
    other = await create_key(control, name="other")
    await add(database, count, replace(count, key_id=other.key.id))
    async with database.transaction() as connection:
        await refusals.delete(connection, count.key_id)
    assert [str(row["key_id"]) for row in await rows("SELECT key_id FROM refusals")] == [other.key.id]
