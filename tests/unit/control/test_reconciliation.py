import asyncio
import time
from dataclasses import replace

import pytest

from edgeproxy.control import reconciliation as module
from edgeproxy.control.key_rules import KeyChanges
from edgeproxy.control.keys import create_key, delete_key, set_key
from edgeproxy.control.ledger import credit
from edgeproxy.control.reconciliation import (
    all_keys,
    by_partition,
    cancel_stored,
    compare,
    drift_of,
    mend,
    rebuild,
    reconcile,
)
from edgeproxy.domain.keys import KeyId
from edgeproxy.domain.limits import Amounts, Dimension, Limit
from edgeproxy.domain.reservations import encode_note
from edgeproxy.errors import OperatorError, StoreUnavailable
from edgeproxy.hotstate import keyspace, scripts

PARTITIONS = 4


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    monkeypatch.setattr(module, "_PAUSE_S", 0.001)


@pytest.fixture
async def key(control):
    return (await create_key(control, name="k", limits=["requests=10/1h"])).key


@pytest.fixture
def set_totals(control, redis):
    """Let the state of a key have other totals (each below 128)."""

    async def set_totals(key, before, after):
        name = keyspace.state(key.record(PARTITIONS).partition, key.id)
        state = await redis.get(name)
        changed = state.replace(bytes(before), bytes(after), 1)
        assert changed != state
        await redis.set(name, changed)

    return set_totals


def place(key):
    return key.record(PARTITIONS).partition


async def found(control, key):
    return [(drift.what, drift.redis, drift.postgresql, drift.is_behind) for drift in await compare_one(control, key)]


async def compare_one(control, key):
    return await compare(control, place(key), [key.id])


async def test_what_is_on_its_way_is_no_difference(control, key, request_with, flusher):
    assert await found(control, key) == []
    for _ in range(3):
        await request_with(key)
        await request_with(key, settle=False)
        assert await found(control, key) == [], "it waits in the stream"
        await flusher.flush_once()
        assert await found(control, key) == [], "it is stored"


async def test_what_redis_has_forgotten_and_what_it_has_more_are_told_apart(
    control, key, request_with, flusher, set_totals
):
    for _ in range(2):
        await request_with(key)
    await flusher.flush_once()
    await set_totals(key, (2, 26, 14), (1, 26, 15))
    assert await found(control, key) == [
        ("requests", 1, 2, True),
        ("output_tokens", 15, 14, False),
        ("balance", -40, -41, True),
    ]


async def test_an_absent_state_or_record_and_older_and_newer_versions_are_found(control, key, redis):
    await redis.delete(keyspace.key_record(key.digest))
    assert await found(control, key) == [("record", None, 1, True)]
    await redis.delete(keyspace.state(place(key), key.id))
    assert await found(control, key) == [("state", None, 1, True), ("record", None, 1, True)]
    newer = replace(key, version=5)
    await control.publishing.publish(newer.record(PARTITIONS), key.digest)
    assert await found(control, key) == [("record", 5, 1, False), ("version", 5, 1, False)]


async def test_a_change_that_could_not_be_published_is_found_and_published(control, control_without_redis, key):
    with pytest.raises(OperatorError):
        await set_key(control_without_redis, key.id, KeyChanges(concurrency=3))
    drift = await compare_one(control, key)
    assert [(each.what, each.is_behind) for each in drift] == [("record", True), ("version", True)]
    assert await mend(control, place(key), drift) == []
    assert await found(control, key) == []
    assert (await control.publishing.read_record(key.digest)).concurrency == 3


async def test_a_record_comes_back_without_a_state_where_redis_was_emptied_since_the_look(control, key, redis):
    await redis.delete(keyspace.key_record(key.digest))
    drift = await compare(control, place(key), [key.id])
    await redis.flushdb()
    assert await mend(control, place(key), drift) == []
    assert (await control.publishing.read_record(key.digest)).id == key.id
    assert await control.publishing.inspect(key.record(PARTITIONS)) is None


async def test_entries_of_the_ledger_that_redis_was_not_given_yet_are_on_their_way(
    control, control_without_redis, redis, flusher, request_with
):
    key = (await create_key(control, name="k", prepaid=True)).key
    await credit(control, key.id, 100)
    assert not (await credit(replace(control, streams=control_without_redis.streams), key.id, 30)).applied
    await request_with(key)
    await flusher.flush_once()
    assert await found(control, key) == []
    assert await rebuild(control, place(key), [key.id]) == []
    counted = await control.publishing.inspect(key.record(PARTITIONS))
    assert (counted.ledger, counted.balance) == (2, 110)
    assert await found(control, key) == []


async def test_entries_that_redis_had_and_lost_are_missing(control, redis, rows):
    key = (await create_key(control, name="k", prepaid=True)).key
    before = await redis.get(keyspace.state(place(key), key.id))
    await credit(control, key.id, 100)
    after = await redis.get(keyspace.state(place(key), key.id))
    await redis.set(keyspace.state(place(key), key.id), before)
    assert await found(control, key) == [("ledger", 0, 1, True)]
    await redis.set(keyspace.state(place(key), key.id), after)
    await rows("DELETE FROM ledger")
    assert await found(control, key) == [("ledger", 1, 0, False)], "its balance has nothing to be held against"


async def test_a_correction_that_redis_was_not_given_yet_is_none_of_its_totals(
    control, key, request_with, flusher, rows, redis
):
    await request_with(key)
    await flusher.flush_once()
    await rows("UPDATE usage_totals SET input_tokens = input_tokens + 5")
    assert await found(control, key) == [("input_tokens", 13, 18, True)]
    await rows(
        "INSERT INTO ledger (key_id, seq, kind, request_id, input_tokens) VALUES ($1, 1, 'correction', $1, 5)", key.id
    )
    assert await found(control, key) == []
    await rebuild(control, place(key), [key.id])
    assert (await control.publishing.inspect(key.record(PARTITIONS))).totals == Amounts(1, 18, 7)


async def test_a_difference_that_is_gone_at_the_second_look_is_none(
    control, key, request_with, flusher, set_totals, monkeypatch
):
    await request_with(key)
    await flusher.flush_once()
    await set_totals(key, (1, 13, 7), (2, 13, 7))
    assert len(await drift_of(control, place(key), [key.id])) == 1
    looks = 0
    look = module._look

    async def right_at_second(*arguments):
        nonlocal looks
        looks += 1
        if looks == 2:
            await set_totals(key, (2, 13, 7), (1, 13, 7))
        return await look(*arguments)

    monkeypatch.setattr(module, "_look", right_at_second)
    assert await drift_of(control, place(key), [key.id]) == []


async def test_a_key_that_never_holds_still_is_left_out(control, key, set_totals, monkeypatch):
    other = (await create_key(control, name="other")).key
    looked = []

    async def restless(_control, _partition, ids):
        looked.append(list(ids))
        return {other.id} & set(ids), []

    monkeypatch.setattr(module, "_look", restless)
    assert await compare(control, 0, [key.id, other.id]) == []
    assert looked == [[key.id, other.id], *[[key.id]] * (module._LOOKS - 1)]


async def test_traffic_and_flushes_at_once_never_look_like_drift(control, request_with, flusher):
    keys = [(await create_key(control, name=f"k{n}")).key for n in range(4)]
    over = asyncio.Event()

    async def traffic(key):
        for _ in range(40):
            await request_with(key)

    async def flushes():
        while not over.is_set():
            await flusher.flush_once()
            await asyncio.sleep(0)

    async def looks():
        seen = []
        while not over.is_set():
            for key in keys:
                seen += await drift_of(control, place(key), [key.id])
        return seen

    async with asyncio.TaskGroup() as group:
        looking = group.create_task(looks())
        group.create_task(flushes())
        for task in [group.create_task(traffic(key)) for key in keys]:
            await task
        over.set()
    assert looking.result() == []
    assert not (await reconcile(control)).found


async def test_a_window_is_made_of_what_still_counts_by_when_it_was_admitted(
    control, request_with, add_events, flusher, make_event, redis
):
    key = (await create_key(control, name="k", limits=["tokens=1000/1m", "requests=50/1h", "input_tokens=900/1m"])).key
    now_ms = time.time_ns() // 1_000_000
    ages_ms = (3_900_000, 3_000_000, 90_000, 30_000, 1_000, -5_000)  # the last one by a clock that was ahead
    await add_events(*(make_event(key.id, at_ms=now_ms - age) for age in ages_ms[:4]))
    await flusher.flush_once()
    await add_events(*(make_event(key.id, at_ms=now_ms - age) for age in ages_ms[4:]))
    await request_with(key, settle=False, input_uncached=100, output=1)
    assert await rebuild(control, place(key), [key.id]) == []
    counted = await control.publishing.inspect(key.record(PARTITIONS))
    assert counted.totals == Amounts(6, 78, 42)
    assert counted.open == 1
    assert [window.used for window in counted.windows] == [3 * 20 + 104, 6, 3 * 13 + 103]
    await flusher.flush_once()
    assert await found(control, key) == []


async def test_an_event_that_is_stored_and_still_waits_counts_once(control, key, request_with, flusher, monkeypatch):
    await request_with(key)

    async def keep(*_):
        return None

    monkeypatch.setattr(type(control.streams), "remove", keep)
    assert (await flusher.flush_once()).stored == 1
    assert await found(control, key) == []
    assert await rebuild(control, place(key), [key.id]) == []
    assert await found(control, key) == []
    assert (await control.publishing.inspect(key.record(PARTITIONS))).windows[0].used == 1


async def test_an_event_that_is_stored_meanwhile_counts_once(control, key, request_with, flusher, redis, monkeypatch):
    await request_with(key)
    await redis.delete(keyspace.state(place(key), key.id))
    stored_ids = module.reconciliation.stored_ids

    async def then_flush(connection, ids):
        known = await stored_ids(connection, ids)
        await flusher.flush_once()
        return known

    monkeypatch.setattr(module.reconciliation, "stored_ids", then_flush)
    assert await module._rebuild(control, place(key), [key.id]) == []
    assert (await control.publishing.inspect(key.record(PARTITIONS))).totals == Amounts(1, 13, 7)


def test_buckets_that_have_left_are_dropped_and_those_of_the_future_are_those_of_now():
    limit = Limit(Dimension.TOKENS, 1000, 60_000)
    now, oldest = 1_000_000, 1_000_000 - limit.buckets
    stored = [
        (oldest - 1, Amounts(1, 1, 0)),
        (oldest, Amounts(1, 2, 0)),
        (now, Amounts(1, 0, 4)),
        (now + 9, Amounts(1, 8, 0)),
    ]
    stored.append((now - 1, Amounts(1, 0, 0)))
    ring = module._Charges([], []).ring(limit, stored, now * limit.bucket_ms + 5)
    assert ring == ((oldest, 2), (now, 12))


async def test_requests_that_have_ended_are_cancelled_and_others_stay(
    control, key, request_with, add_events, flusher, redis
):
    ended, waits = [await request_with(key, settle=False) for _ in range(2)]
    shared = await request_with(key, settle=False, note=encode_note(KeyId("provider:p"), ""))
    await add_events(ended, shared)
    await flusher.flush_once()
    assert await cancel_stored(control, place(key)) == 1
    assert await cancel_stored(control, place(key)) == 0
    counted = await control.publishing.inspect(key.record(PARTITIONS))
    assert (counted.open, counted.windows[0].used) == (2, 2)
    assert await redis.exists(keyspace.reservation(place(key), waits.id))
    assert await redis.zscore(keyspace.leases(place(key)), ended.id) is None


async def test_a_key_that_is_gone_is_neither_compared_nor_rebuilt(control, key, redis):
    await delete_key(control, key.id)
    assert await found(control, key) == []
    assert await rebuild(control, place(key), [key.id]) == []
    assert not await redis.exists(keyspace.state(place(key), key.id))
    assert await rebuild(control, place(key), []) == []


async def test_a_deletion_waits_for_a_rebuilding_that_has_begun(control, key, redis, monkeypatch):
    wanted, begun, go_on = module._wanted, asyncio.Event(), asyncio.Event()

    async def slow(*arguments):
        begun.set()
        await go_on.wait()
        return await wanted(*arguments)

    monkeypatch.setattr(module, "_wanted", slow)
    async with asyncio.TaskGroup() as group:
        group.create_task(rebuild(control, place(key), [key.id]))
        await begun.wait()
        deletion = group.create_task(delete_key(control, key.id))
        await asyncio.sleep(0.2)
        assert not deletion.done()
        go_on.set()
    assert not await redis.exists(keyspace.state(place(key), key.id), keyspace.key_record(key.digest))


async def test_keys_are_taken_in_pages_by_partition(control, monkeypatch):
    monkeypatch.setattr(module, "_IDS", 2)
    made = [(await create_key(control, name=f"k{n}")).key for n in range(5)]
    keys = await all_keys(control)
    assert keys == by_partition(control, [key.id for key in made])
    assert sorted(key_id for ids in keys.values() for key_id in ids) == sorted(key.id for key in made)
    assert all(scripts.scope_of(key.record(PARTITIONS)).holder in keys[place(key)] for key in made)


async def test_all_keys_or_the_named_ones_are_compared(control, key, request_with, flusher, set_totals):
    other = (await create_key(control, name="other")).key
    await request_with(key)
    await flusher.flush_once()
    await set_totals(key, (1, 13, 7), (1, 12, 7))
    everything = await reconcile(control)
    assert everything.compared == 2
    assert everything.to_json()["left"] == [
        {"key_id": key.id, "what": "input_tokens", "redis": 12, "postgresql": 13},
        {"key_id": key.id, "what": "balance", "redis": -20, "postgresql": -19},
    ]
    assert (await reconcile(control, ["k"])).found == everything.found
    assert await reconcile(control, [other.prefix, "other"]) == module.Reconciled(1, (), ())
    with pytest.raises(OperatorError, match="no key has this id"):
        await reconcile(control, ["nobody"])


async def test_a_repair_gives_and_takes_away(control, request_with, flusher, set_totals, rows, redis):
    made = [(await create_key(control, name=f"k{n}", limits=["requests=10/1h"])).key for n in range(3)]
    for key in made:
        await request_with(key)
    await flusher.flush_once()
    less, more, ahead = made
    await set_totals(less, (1, 13, 7), (0, 0, 0))
    await rows("DELETE FROM usage_events WHERE key_id = $1", more.id)
    await rows("DELETE FROM usage_totals WHERE key_id = $1", more.id)
    await control.publishing.publish(replace(ahead, version=9).record(PARTITIONS), ahead.digest)
    told = await reconcile(control)
    assert {drift.key_id for drift in told.left} == {key.id for key in made}
    assert told.left == told.found
    repaired = await reconcile(control, repair=True)
    assert repaired.found == told.found
    assert repaired.left == ()
    assert await reconcile(control) == module.Reconciled(3, (), ())
    assert (await control.publishing.inspect(more.record(PARTITIONS))).totals == Amounts()
    assert (await control.publishing.read_record(ahead.digest)).version == 1
    assert hasattr(await request_with(ahead), "usage"), "its version is the one that workers know"


async def test_with_a_store_away_nothing_is_found_out(control_without_redis, control, key):
    with pytest.raises(StoreUnavailable, match="redis"):
        await reconcile(replace(control, streams=control_without_redis.streams))
