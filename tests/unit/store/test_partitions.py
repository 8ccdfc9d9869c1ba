import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeproxy.domain.times import to_ms
from edgeproxy.store import partitions
from edgeproxy.store.partitions import Month, month_of

MONTHS = [Month(2026, 12), Month(2026, 11)]


@given(st.integers(0, 4_000_000_000_000))
def test_every_time_lies_in_its_month_and_in_no_other(at_ms):
    month = month_of(at_ms)
    assert month.begin_ms <= at_ms < month.next.begin_ms
    assert month_of(month.next.begin_ms) == month.next


async def test_missing_months_are_created_once(database):
    async with database.transaction() as connection:
        assert await partitions.ensure(connection, MONTHS) == sorted(MONTHS)
    async with database.transaction() as connection:
        assert await partitions.ensure(connection, [*MONTHS, Month(2027, 1)]) == [Month(2027, 1)]


async def test_creations_at_once_do_not_collide(database):
    async def create():
        async with database.transaction() as connection:
            return await partitions.ensure(connection, MONTHS)

    created = await asyncio.gather(*(create() for _ in range(6)))
    assert sorted(created, key=len) == [[]] * 5 + [sorted(MONTHS)]


async def test_a_month_takes_the_ids_of_its_time_only(database, make_event, rows):
    async with database.transaction() as connection:
        await partitions.ensure(connection, MONTHS)
    bounds = await rows(
        "SELECT c.relname, pg_get_expr(c.relpartbound, c.oid) AS bound FROM pg_inherits i"
        " JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'usage_events'::regclass ORDER BY 1"
    )
    assert [row["relname"] for row in bounds] == ["usage_events_2026_11", "usage_events_2026_12"]
    assert bounds[0]["bound"].partition(" TO ")[2].strip("()'") == bounds[1]["bound"].split("'")[1]


@pytest.mark.parametrize("name", ["usage_events_2026_11_pkey", "usage_events_2026_11_key_id_id_idx"])
async def test_a_month_has_the_indexes_of_the_whole(database, rows, name):
    async with database.transaction() as connection:
        await partitions.ensure(connection, MONTHS)
    attached = await rows(
        "SELECT inhparent::regclass::text AS whole FROM pg_inherits WHERE inhrelid = $1::regclass", name
    )
    assert [row["whole"] for row in attached] in (["usage_events_pkey"], ["usage_events_by_key"])


def test_a_month_begins_in_utc():
    assert Month(1970, 2).begin_ms == 31 * 86_400_000 == to_ms(partitions.to_datetime(31 * 86_400_000))
