import asyncio
import random
from dataclasses import replace

import pytest

from edgeproxy.control.keys import create_key
from edgeproxy.domain.identifiers import uuid7
from edgeproxy.domain.keys import KeyId, partition_of
from edgeproxy.domain.times import parse_time
from edgeproxy.domain.usage import encode_event
from edgeproxy.errors import StoreUnavailable
from edgeproxy.hotstate import keyspace
from edgeproxy.jobs import flush as module
from edgeproxy.jobs.flush import Flushed, Flusher
from edgeproxy.store.database import connect

UNKNOWN = KeyId("0190a000-0000-7000-8000-000000000009")


@pytest.fixture
async def key_id(control):
    return (await create_key(control, name="counted")).key.id


@pytest.fixture
def put(redis, streams):
    """Add raw payloads to the stream of a key's partition."""

    async def put(key_id, *payloads):
        for payload in payloads:
            await redis.xadd(keyspace.events(partition_of(key_id, streams.partitions)), {"e": payload})

    return put


@pytest.fixture
def stored(rows):
    """Return what PostgreSQL holds of all keys: requests, input and output by row, and by daily sum."""

    async def stored():
        of_rows = await rows(
            "SELECT count(*) AS n, coalesce(sum(input_uncached + cache_read + cache_write), 0)::bigint AS i,"
            " coalesce(sum(output), 0)::bigint AS o FROM usage_events"
        )
        of_days = await rows(
            "SELECT coalesce(sum(requests), 0)::bigint AS n, coalesce(sum(output), 0)::bigint AS o,"
            " coalesce(sum(input_uncached + cache_read + cache_write), 0)::bigint AS i FROM usage_daily"
        )
        assert dict(of_rows[0]) == dict(of_days[0])
        return of_rows[0]["n"], of_rows[0]["i"], of_rows[0]["o"]

    return stored


@pytest.fixture
def waiting(redis, streams):
    """Return how many entries wait in all streams."""

    async def waiting():
        return sum([await redis.xlen(keyspace.events(p)) for p in range(streams.partitions)])

    return waiting


def expected(events):
    return len(events), sum(e.usage.input_total for e in events), sum(e.usage.output for e in events)


async def test_events_of_all_partitions_arrive_once_and_leave_the_streams(
    control, flusher, make_event, add_events, stored, waiting
):
    each = [(await create_key(control, name=f"k{n}")).key.id for n in range(8)]
    events = [make_event(key_id, output=n) for n, key_id in enumerate(each * 40)]
    await add_events(*events)
    assert await flusher.flush_once() == Flushed(stored=320)
    assert await stored() == expected(events)
    assert await waiting() == 0
    assert await flusher.flush_once() == Flushed()


async def test_entries_that_are_not_old_enough_wait(make_flusher, key_id, make_event, add_events, waiting):
    flusher = make_flusher(after_ms=300)
    await add_events(make_event(key_id))
    assert await flusher.flush_once() == Flushed()
    assert 0 <= await flusher.lag_ms() < 300
    await asyncio.sleep(0.35)
    assert await flusher.lag_ms() >= 300
    assert await flusher.flush_once() == Flushed(stored=1)
    assert await flusher.lag_ms() == 0
    assert await waiting() == 0


async def test_one_partition_is_drained_however_much_waits_in_it(
    control, make_flusher, make_event, add_events, streams, monkeypatch
):
    monkeypatch.setattr(module, "MAX_BATCHES", 2)
    each = [(await create_key(control, name=f"k{n}")).key.id for n in range(8)]
    await add_events(*(make_event(key_id) for key_id in each * 10))
    home = partition_of(each[0], streams.partitions)
    here = sum(partition_of(key_id, streams.partitions) == home for key_id in each) * 10
    assert await make_flusher(batch=3).drain(home) == Flushed(stored=here)
    assert await make_flusher().drain(home) == Flushed()
    assert await make_flusher().flush_once() == Flushed(stored=80 - here)


async def test_entries_from_before_the_clock_was_set_back_do_not_wait_for_its_return(
    redis, streams, make_flusher, key_id, make_event, waiting
):
    now_ms, stream = await streams.now_ms(), keyspace.events(partition_of(key_id, streams.partitions))
    for ahead_ms in (30_000, 3_600_000, 3_600_000 + 50):
        await redis.xadd(stream, {"e": encode_event(make_event(key_id))}, id=f"{now_ms + ahead_ms}-0")
    await redis.xadd(stream, {"e": encode_event(make_event(key_id))})  # now, in the order of the stream
    assert await make_flusher(after_ms=2000, batch=2).flush_once() == Flushed(stored=3)
    assert await waiting() == 1  # it may be from now


async def test_two_flushers_at_once_double_nothing_and_lose_nothing(
    control, make_flusher, make_event, add_events, stored, waiting
):
    each = [(await create_key(control, name=f"k{n}")).key.id for n in range(6)]
    events = [make_event(random.Random(n).choice(each), output=n) for n in range(4000)]
    await add_events(*events)
    flushers = [make_flusher(batch=batch) for batch in (97, 250, 33)]
    flushed = await asyncio.gather(*(flusher.flush_once() for flusher in flushers))
    while await waiting():
        flushed.append(await flushers[0].flush_once())
    assert sum(each.stored for each in flushed) == 4000
    assert await stored() == expected(events)


async def test_events_that_arrive_during_the_flush_are_not_lost(
    flusher, key_id, make_event, add_events, stored, waiting
):
    events = [make_event(key_id) for _ in range(1000)]

    async def arrive():
        for begin in range(0, 1000, 50):
            await add_events(*events[begin : begin + 50])
            await asyncio.sleep(0)

    async def flush():
        while not arriving.done() or await waiting():
            await flusher.flush_once()

    arriving = asyncio.ensure_future(arrive())
    await asyncio.gather(arriving, flush())
    assert await stored() == expected(events)


async def test_what_was_stored_before_a_crash_is_only_removed_after_it(
    flusher, key_id, make_event, add_events, stored, waiting
):
    events = [make_event(key_id) for _ in range(150)]
    await add_events(*events)
    await flusher.flush_once()
    await add_events(*events)  # as if the process had died between commit and removal
    assert await flusher.flush_once() == Flushed(repeated=150)
    assert await stored() == expected(events)
    assert await waiting() == 0


async def test_a_crash_before_the_removal_leaves_all_entries(
    streams, flusher, key_id, make_event, put, stored, monkeypatch
):
    await put(key_id, *(encode_event(make_event(key_id)) for _ in range(10)))

    async def die(_partition, _ids):
        raise StoreUnavailable("redis")

    with monkeypatch.context() as patch:
        patch.setattr(streams, "remove", die)
        with pytest.raises(StoreUnavailable):
            await flusher.flush_once()
    assert (await stored())[0] == 10
    assert await flusher.flush_once() == Flushed(repeated=10)  # they were all still there


async def test_entries_that_cannot_be_stored_are_noted_and_block_nobody(
    flusher, key_id, make_event, put, waiting, rows, capfd
):
    content = b"the prompt of somebody"
    await put(key_id, *(encode_event(make_event(key_id)) for _ in range(30)))
    await put(key_id, content, b"", b"[]", b'{"id": "x"}', encode_event(replace(make_event(key_id), key_id="no id")))
    await put(key_id, *(encode_event(make_event(key_id, **bad)) for bad in ({"status": 9}, {"model": "nul\0"})))
    await put(key_id, encode_event(make_event(key_id, at_ms=parse_time("2019-01-01"))))
    await put(key_id, encode_event(make_event(key_id, at_ms=parse_time("9000-01-01"))))
    await put(key_id, *(encode_event(make_event(key_id)) for _ in range(30)))
    assert await flusher.flush_once() == Flushed(stored=60, dead=9)
    assert len(await rows("SELECT * FROM usage_events")) == 60
    assert await waiting() == 0
    letters = await rows("SELECT reason, key_id::text AS key_id, count(*) AS n FROM dead_letters GROUP BY 1, 2")
    assert sorted(map(tuple, letters), key=str) == [
        ("refused", key_id, 2),
        ("time_out_of_range", key_id, 2),
        ("undecodable", None, 5),
    ]
    everything = str([dict(row) for row in await rows("SELECT * FROM dead_letters")]) + capfd.readouterr().err
    assert content.decode() not in everything


async def test_a_batch_of_nothing_but_bad_entries_ends(flusher, key_id, make_event, put, waiting, rows):
    await put(key_id, *(encode_event(make_event(key_id, status=7)) for _ in range(64)))
    assert await flusher.flush_once() == Flushed(dead=64)
    assert await waiting() == 0


async def test_events_of_unknown_keys_are_dropped_and_counted(
    flusher, key_id, make_event, add_events, stored, waiting, metrics
):
    await add_events(*(make_event(UNKNOWN) for _ in range(7)), *(make_event(key_id) for _ in range(3)))
    assert await flusher.flush_once() == Flushed(stored=3, dropped=7)
    assert (await stored())[0] == 3
    assert await waiting() == 0
    assert metrics.registry.get_sample_value("edgeproxy_flushed_events_total", {"outcome": "dropped"}) == 7
    assert metrics.registry.get_sample_value("edgeproxy_flushed_events_total", {"outcome": "stored"}) == 3


async def test_a_month_that_has_no_table_gets_one(flusher, key_id, make_event, add_events, stored, rows):
    await add_events(
        *(make_event(key_id, at_ms=parse_time(day)) for day in ("2024-02-29", "2024-03-01", "2024-02-01", "2024-12-31"))
    )
    assert await flusher.flush_once() == Flushed(stored=4)
    tables = await rows("SELECT tableoid::regclass::text AS t, count(*) AS n FROM usage_events GROUP BY 1 ORDER BY 1")
    assert [tuple(row) for row in tables] == [
        ("usage_events_2024_02", 2),
        ("usage_events_2024_03", 1),
        ("usage_events_2024_12", 1),
    ]


async def test_the_last_id_of_a_month_and_the_first_of_the_next_lie_apart(
    flusher, key_id, make_event, add_events, rows
):
    turn_ms = parse_time("2026-08-01")
    last, first = uuid7(turn_ms - 1, 2**74 - 1), uuid7(turn_ms, 0)
    await add_events(make_event(key_id, id=last), make_event(key_id, id=first))
    assert await flusher.flush_once() == Flushed(stored=2)
    found = await rows("SELECT id::text AS id, tableoid::regclass::text AS t, at FROM usage_events ORDER BY id")
    assert [(row["id"], row["t"]) for row in found] == [(last, "usage_events_2026_07"), (first, "usage_events_2026_08")]


async def test_a_busy_partition_does_not_keep_the_others_waiting(
    control, make_flusher, make_event, add_events, monkeypatch, waiting
):
    monkeypatch.setattr(module, "MAX_BATCHES", 2)
    busy = (await create_key(control, name="busy")).key.id
    await add_events(*(make_event(busy) for _ in range(100)))
    assert await make_flusher(batch=10).flush_once() == Flushed(stored=20)
    assert await waiting() == 80


async def test_without_postgresql_events_go_on_waiting(
    make_flusher, migrated_url, key_id, make_event, add_events, waiting
):
    away = await connect(migrated_url)
    await away.close()
    await add_events(make_event(key_id))
    with pytest.raises(StoreUnavailable, match=r"^postgresql$"):
        await make_flusher(database=away).flush_once()
    assert await waiting() == 1
    assert await make_flusher().flush_once() == Flushed(stored=1)


async def test_without_redis_it_says_so(database, control_without_redis, metrics):
    with pytest.raises(StoreUnavailable, match=r"^redis$"):
        await Flusher(database, control_without_redis.streams, metrics, batch=10, after_ms=0).flush_once()
