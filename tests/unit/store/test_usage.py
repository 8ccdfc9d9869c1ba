import asyncio
from datetime import date, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeproxy.control.keys import create_key
from edgeproxy.domain.identifiers import uuid7
from edgeproxy.domain.keys import KeyId
from edgeproxy.domain.limits import Amounts
from edgeproxy.domain.times import parse_time, to_datetime
from edgeproxy.domain.usage import Usage, UsageEvent, decode_event, encode_event
from edgeproxy.store import keys, partitions, usage
from edgeproxy.store.database import RowRefused
from edgeproxy.store.ledger import Difference
from edgeproxy.store.usage import Added, DailySum, DeadLetter, UsageSum

NOON_MS = parse_time("2026-07-15T12:00:00Z")
LONG_AGO = date(2000, 1, 1)
UNKNOWN = KeyId("0190a000-0000-7000-8000-000000000009")


@pytest.fixture
async def key_id(control, database):
    async with database.transaction() as connection:
        await partitions.ensure(connection, [partitions.month_of(NOON_MS)])
    return (await create_key(control, name="counted")).key.id


async def add(database, *events):
    async with database.transaction() as connection:
        return await usage.add_events(connection, events)


async def delete_key_row(database, key_id):
    async with database.transaction() as connection:
        await keys.delete(connection, key_id)


async def test_a_batch_is_stored_and_summed_by_day_and_model(database, key_id, make_event):
    events = [
        make_event(key_id, at_ms=NOON_MS),
        make_event(key_id, at_ms=NOON_MS + 1, cache_write=5, reasoning=0),
        make_event(key_id, at_ms=NOON_MS + 2, model="claude-mock"),
        make_event(key_id, at_ms=NOON_MS + 86_400_000, estimated=True),
    ]
    assert await add(database, *events) == Added(4, 0, 0)
    async with database.transaction() as connection:
        assert await usage.recent(connection, key_id, 10) == events[::-1]
        assert await usage.recent(connection, key_id, 2) == [events[3], events[2]]
        day, one = to_datetime(NOON_MS).date(), Usage(10, 3, 0, 7, 2)
        sums = [
            DailySum(day + timedelta(1), "gpt-mock", UsageSum(1, one)),
            DailySum(day, "claude-mock", UsageSum(1, one)),
            DailySum(day, "gpt-mock", UsageSum(2, Usage(20, 6, 5, 14, 2))),
        ]
        assert await usage.daily(connection, key_id, LONG_AGO) == sums
        assert await usage.daily(connection, key_id, day + timedelta(1)) == sums[:1]
        assert await usage.totals(connection, key_id) == Amounts(4, 57, 28)


async def test_what_is_repeated_adds_nothing(database, key_id, make_event):
    event, other = make_event(key_id, at_ms=NOON_MS), make_event(key_id, at_ms=NOON_MS)
    assert await add(database, event, event) == Added(1, 1, 0)
    assert await add(database, event, other) == Added(1, 1, 0)
    async with database.transaction() as connection:
        assert (await usage.totals(connection, key_id)).requests == 2


async def test_the_same_events_from_two_sides_at_once_are_stored_once(database, key_id, make_event):
    events = [make_event(key_id, at_ms=NOON_MS + i) for i in range(300)]
    added = await asyncio.gather(*(add(database, *part) for part in (events, events[::-1], events[100:], events[:200])))
    assert sum(each.added for each in added) == 300
    async with database.transaction() as connection:
        assert await usage.totals(connection, key_id) == Amounts(300, 3900, 2100)


async def test_two_sides_that_hold_each_others_events_wait_in_one_direction(database, key_id, make_event):
    early, late = make_event(key_id, at_ms=NOON_MS), make_event(key_id, at_ms=NOON_MS + 1)
    async with asyncio.TaskGroup() as group, database.transaction() as connection:
        assert (await usage.add_events(connection, [early])).added == 1
        other = group.create_task(add(database, late, early))  # waits for `early`, and must not hold `late` meanwhile
        await asyncio.sleep(0.1)
        assert (await usage.add_events(connection, [late])).added == 1
    assert other.result() == Added(0, 2, 0)


async def test_an_erasure_waits_for_a_flush_that_has_begun(database, key_id, make_event, rows):
    async with asyncio.TaskGroup() as group, database.transaction() as connection:
        await usage.add_events(connection, [make_event(key_id, at_ms=NOON_MS)])
        erasure = group.create_task(delete_key_row(database, key_id))
        await asyncio.sleep(0.1)
        assert not erasure.done()
    assert await rows("SELECT * FROM keys") == []


async def test_a_flush_that_waited_for_an_erasure_stores_nothing(database, key_id, make_event, rows):
    async with asyncio.TaskGroup() as group, database.transaction() as connection:
        await keys.delete(connection, key_id)
        flush = group.create_task(add(database, make_event(key_id, at_ms=NOON_MS)))
        await asyncio.sleep(0.1)
        assert not flush.done()
    assert flush.result() == Added(0, 0, 1)
    assert await rows("SELECT * FROM usage_events") == []


async def test_events_of_a_key_that_is_not_known_are_left_out(database, key_id, make_event, rows):
    assert await add(database, make_event(UNKNOWN, at_ms=NOON_MS), make_event(key_id, at_ms=NOON_MS)) == Added(1, 0, 1)
    assert [str(row["key_id"]) for row in await rows("SELECT key_id FROM usage_events")] == [key_id]
    assert len(await rows("SELECT * FROM usage_daily")) == 1


@pytest.mark.parametrize(
    "fields",
    [{"status": 70_000}, {"status": 99}, {"model": "nul\0"}, {"model": "m" * 257}, {"output": 2**63}, {"at_ms": 0}],
    ids=str,
)
async def test_one_event_that_cannot_be_stored_refuses_the_whole_batch(database, key_id, make_event, rows, fields):
    with pytest.raises(RowRefused):
        await add(database, make_event(key_id, at_ms=NOON_MS), make_event(key_id, **({"at_ms": NOON_MS} | fields)))
    for table in ("usage_events", "usage_daily", "usage_totals"):
        assert await rows(f"SELECT * FROM {table}") == []  # noqa: S608 - our own names


def events_of(key_id):
    counts = st.integers(0, 2**53 - 1)
    return st.builds(
        UsageEvent,
        id=st.builds(uuid7, st.integers(NOON_MS, NOON_MS + 1_000_000), st.integers(0, 2**74 - 1)),
        key_id=st.just(key_id),
        model=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=64),
        status=st.integers(100, 599),
        usage=st.builds(Usage, counts, counts, counts, counts, counts, st.booleans()),
        latency_ms=counts,
    )


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_an_event_comes_out_of_the_stream_and_the_database_as_it_went_in(data, database, key_id):
    event = data.draw(events_of(key_id))
    waiting = decode_event(encode_event(event))
    assert waiting == event
    await add(database, waiting)
    async with database.transaction() as connection:
        assert await usage.recent(connection, key_id, 1) == [event]
        await connection.execute("DELETE FROM usage_events")


async def sums(rows):
    """Return the sums of all rows, which have to be those of the days and the totals."""
    columns = "count(*), sum(input_uncached + cache_read + cache_write), sum(output)"
    of_rows = await rows(f"SELECT {columns} FROM usage_events")  # noqa: S608 - our own names
    of_days = await rows(f"SELECT {columns.replace('count(*)', 'sum(requests)')} FROM usage_daily")  # noqa: S608
    of_keys = await rows("SELECT sum(requests), sum(input_tokens), sum(output_tokens) FROM usage_totals")
    assert tuple(of_rows[0]) == tuple(of_days[0]) == tuple(of_keys[0])
    return tuple(of_rows[0])


@pytest.mark.parametrize("model", ["gpt-*", "gpt-mock"])
async def test_an_estimate_is_replaced_in_the_rows_and_in_all_sums(database, key_id, make_event, rows, model):
    estimate = make_event(key_id, at_ms=NOON_MS, model=model, status=500, output=0, estimated=True)
    final = make_event(key_id, id=estimate.id, input_uncached=4, cache_write=9, output=90)
    await add(database, estimate, make_event(key_id, at_ms=NOON_MS))
    async with database.transaction() as connection:
        assert await usage.read_to_correct(connection, estimate.id) == estimate
        assert await usage.correct(connection, estimate, final) == Difference(0, 3, 90)
        assert await usage.read_to_correct(connection, estimate.id) == final
        assert [day.model for day in await usage.daily(connection, key_id, LONG_AGO)] == ["gpt-mock"]
    assert await sums(rows) == (2, 29, 97)


async def test_a_correction_and_a_flush_of_the_same_day_lose_nothing(database, key_id, make_event, rows):
    """A day's sum of which nothing is left goes away while another transaction waits to add to it."""
    estimate = make_event(key_id, at_ms=NOON_MS, model="gpt-*", estimated=True)
    await add(database, estimate)
    async with asyncio.TaskGroup() as group, database.transaction() as connection:
        await usage.correct(connection, estimate, make_event(key_id, id=estimate.id))
        flush = group.create_task(add(database, make_event(key_id, at_ms=NOON_MS, model="gpt-*")))
        await asyncio.sleep(0.1)
        assert not flush.done()
    assert await sums(rows) == (2, 26, 14)


async def test_what_is_not_stored_is_read_as_none(database):
    async with database.transaction() as connection:
        assert await usage.read_to_correct(connection, UNKNOWN) is None
        assert await usage.totals(connection, UNKNOWN) == Amounts()


async def test_dead_letters_are_noted_once_and_name_only_known_keys(database, key_id, rows):
    letters = [
        DeadLetter("1-0", key_id, "refused"),
        DeadLetter("2-0", UNKNOWN, "refused"),
        DeadLetter("3-0", None, "undecodable"),
    ]
    for noted in (3, 0):
        async with database.transaction() as connection:
            assert await usage.add_dead_letters(connection, 7, letters) == noted
    found = await rows(
        "SELECT partition, stream_id, key_id::text AS key_id, reason FROM dead_letters ORDER BY stream_id"
    )
    assert [tuple(row) for row in found] == [
        (7, "1-0", key_id, "refused"),
        (7, "2-0", None, "refused"),
        (7, "3-0", None, "undecodable"),
    ]


async def test_a_key_is_removed_in_bounded_batches_and_others_stay(
    database, control, key_id, make_event, rows, monkeypatch
):
    monkeypatch.setattr(usage, "ERASE_BATCH", 4)
    other = (await create_key(control, name="other")).key.id
    await add(database, *(make_event(each, at_ms=NOON_MS) for each in [key_id, other] * 10))
    async with database.transaction() as connection:
        await usage.add_dead_letters(connection, 0, [DeadLetter("1-0", key_id, "refused")])
        assert [await usage.delete_events(connection, key_id) for _ in range(3)] == [True, True, False]
        assert await usage.delete_events(connection, key_id) is False
        await usage.delete_sums(connection, key_id)
    for table in ("usage_events", "usage_daily", "usage_totals"):
        query = f"SELECT key_id FROM {table}"  # noqa: S608 - our own names
        assert {str(row["key_id"]) for row in await rows(query)} == {other}
    assert await rows("SELECT * FROM dead_letters") == []
    assert len(await rows("SELECT * FROM usage_events")) == 10
