import asyncio
import json
import math
import random
from collections import Counter
from dataclasses import replace

import pytest

from edgeproxy.control.keys import create_key, delete_key
from edgeproxy.control.ledger import apply_pending, credit
from edgeproxy.domain.keys import KeyId, partition_of
from edgeproxy.domain.limits import Amounts
from edgeproxy.domain.reservations import Outcome
from edgeproxy.domain.usage import Usage, encode_event
from edgeproxy.errors import StoreUnavailable
from edgeproxy.hotstate import keyspace, scripts
from edgeproxy.jobs import corrections as module
from edgeproxy.jobs.corrections import Correction, Corrector
from edgeproxy.jobs.reaping import Sweeper
from edgeproxy.store.database import connect

UNKNOWN = KeyId("0190a000-0000-7000-8000-000000000009")


@pytest.fixture(autouse=True)
def _one_look(monkeypatch):
    """A lease that is over is taken for over at the first look."""
    monkeypatch.setattr("edgeproxy.jobs.reaping.BEATS_PER_LEASE", math.inf)


@pytest.fixture
async def key(control):
    return (await create_key(control, name="late", limits=["tokens=1000000/1h"])).key


@pytest.fixture
def make_corrector(control, metrics):
    def make(**changes):
        return Corrector(replace(control, **changes), metrics, after_ms=0)

    return make


@pytest.fixture
def corrector(make_corrector):
    return make_corrector()


@pytest.fixture
def put(redis, control):
    """Add events to their partitions' corrections, as a settle without reservation does; or raw payloads to one."""

    async def put(*events, partition=0):
        for event in events:
            raw = event if isinstance(event, bytes) else encode_event(event)
            home = partition if isinstance(event, bytes) else partition_of(event.key_id, control.partitions)
            await redis.xadd(keyspace.corrections(home), {"e": raw})

    return put


@pytest.fixture
def sums(control, rows, key):
    """Return what was used of the key, which has to be the same wherever it is added up."""

    async def sums():
        of_rows = await rows(
            "SELECT count(*), coalesce(sum(input_uncached + cache_read + cache_write), 0)::bigint,"
            " coalesce(sum(output), 0)::bigint FROM usage_events WHERE key_id = $1",
            key.id,
        )
        of_days = await rows(
            "SELECT coalesce(sum(requests), 0)::bigint, coalesce(sum(output), 0)::bigint FROM usage_daily"
            " WHERE key_id = $1",
            key.id,
        )
        of_key = await rows(
            "SELECT requests, input_tokens, output_tokens FROM usage_totals WHERE key_id = $1 UNION ALL SELECT 0, 0, 0",
            key.id,
        )
        in_redis = (await control.publishing.inspect(key.record(control.partitions))).totals
        assert tuple(of_rows[0]) == tuple(of_key[0])
        assert (of_rows[0][0], of_rows[0][2]) == tuple(of_days[0])
        assert Amounts(*of_key[0]) == in_redis
        return tuple(of_rows[0])

    return sums


@pytest.fixture
def left(redis, control):
    """Return how many corrections wait."""

    async def left():
        return sum([await redis.xlen(keyspace.corrections(p)) for p in range(control.partitions)])

    return left


@pytest.fixture
def estimated(make_event, add_events, redis, control, key, flusher):
    """Have requests that the sweeper charged an estimate for, stored; returns their final events."""

    async def estimated(count=1):
        finals = [make_event(key.id, output=90 + n) for n in range(count)]
        usage = Usage(input_uncached=13, estimated=True)
        estimates = [replace(event, model="gpt-*", status=500, usage=usage) for event in finals]
        await add_events(*estimates)
        for seq, _ in enumerate(estimates):  # what a reap adds to the totals
            await charge(redis, control, key, usage.amounts, seq)
        await flusher.flush_once()
        return finals

    return estimated


async def charge(redis, control, key, amounts, number):
    """Add to a key's totals in Redis as requests do: by one that is reserved and settled at once."""
    record = key.record(control.partitions)
    scopes = [scripts.scope_of(record)]
    name = f"charge {number}"
    await control.caller.run("reserve", scripts.reserve_args(record.partition, name, scopes, amounts, 30_000, b""))
    arguments = scripts.settle_args(record.partition, name, scopes, Outcome.POST, amounts, b"")
    await control.caller.run("settle", arguments)


def counted(metrics):
    return {
        outcome: value
        for outcome in Correction
        if (value := metrics.registry.get_sample_value("edgeproxy_corrections_total", {"outcome": outcome}))
    }


async def test_a_request_that_nobody_knows_is_stored_and_charged(
    control, corrector, metrics, key, make_event, put, sums, left, rows
):
    event = make_event(key.id)
    await put(event)
    assert await corrector.correct_once() == Counter({Correction.ADDED: 1})
    assert await sums() == (1, 13, 7)
    assert await left() == 0
    (row,) = await rows("SELECT kind, request_id::text, requests, input_tokens, output_tokens, applied FROM ledger")
    assert tuple(row) == ("correction", event.id, 1, 13, 7, True)
    record = key.record(control.partitions)
    assert (await control.publishing.inspect(record)).windows[0].used == 20
    assert await corrector.correct_once() == Counter()
    assert counted(metrics) == {"added": 1}


async def test_an_estimate_is_replaced_and_the_difference_charged(corrector, key, estimated, put, sums, rows):
    (final,) = await estimated()
    assert await sums() == (1, 13, 0)
    await put(final)
    assert await corrector.correct_once() == Counter({Correction.CHANGED: 1})
    assert await sums() == (1, 13, 90)
    (row,) = await rows("SELECT model, status, estimated FROM usage_events")
    assert tuple(row) == ("gpt-mock", 200, False)
    (row,) = await rows("SELECT requests, input_tokens, output_tokens FROM ledger")
    assert tuple(row) == (0, 0, 90)


async def test_what_was_charged_too_much_is_given_back(corrector, estimated, put, sums, rows):
    (final,) = await estimated()
    await put(replace(final, usage=Usage()))  # voided: it was never sent on
    assert await corrector.correct_once() == Counter({Correction.CHANGED: 1})
    assert await sums() == (1, 0, 0)
    (row,) = await rows("SELECT requests, input_tokens, output_tokens FROM ledger")
    assert tuple(row) == (0, -13, 0)


async def test_an_estimate_of_the_same_amounts_becomes_final_without_an_entry(corrector, estimated, put, sums, rows):
    (final,) = await estimated()
    await put(replace(final, usage=Usage(input_uncached=13)))
    assert await corrector.correct_once() == Counter({Correction.CHANGED: 1})
    assert await sums() == (1, 13, 0)
    assert await rows("SELECT * FROM ledger") == []
    assert len(await rows("SELECT * FROM usage_events WHERE NOT estimated AND model = 'gpt-mock'")) == 1


async def test_the_first_final_figures_stand(corrector, metrics, estimated, put, sums):
    (final,) = await estimated()
    await put(final, final, replace(final, usage=Usage(output=5)), replace(final, latency_ms=99))
    assert await corrector.correct_once() == Counter({Correction.CHANGED: 1, Correction.EQUAL: 1, Correction.KEPT: 2})
    assert await sums() == (1, 13, 90)
    assert counted(metrics) == {"changed": 1, "equal": 1, "kept": 2}


async def test_a_request_of_another_key_is_not_touched(control, corrector, estimated, make_event, put, sums):
    (final,) = await estimated()
    other = (await create_key(control, name="other")).key
    await put(replace(final, key_id=other.id))
    assert await corrector.correct_once() == Counter({Correction.KEPT: 1})
    assert await sums() == (1, 13, 0)


async def test_a_prepaid_keys_balance_follows(control, corrector, make_event, put):
    prepaid = (await create_key(control, name="prepaid", prepaid=True)).key
    await credit(control, "prepaid", 100)
    await put(make_event(prepaid.id))
    await corrector.correct_once()
    assert (await control.publishing.inspect(prepaid.record(control.partitions))).balance == 80


async def test_a_correction_waits_for_the_events_that_came_before_it(
    redis, control, corrector, key, make_event, add_events, put, flusher, left, sums
):
    final = make_event(key.id, output=90)
    estimate = replace(final, usage=Usage(input_uncached=13, estimated=True))
    await charge(redis, control, key, estimate.usage.amounts, 0)
    await add_events(estimate)
    await put(final)
    await add_events(make_event(KeyId(UNKNOWN)))  # of whatever partition
    assert await corrector.correct_once() == Counter()
    later = make_event(key.id)
    await charge(redis, control, key, later.usage.amounts, 1)
    await flusher.flush_once()
    await add_events(later)
    assert await corrector.correct_once() == Counter({Correction.CHANGED: 1})  # `later` came after it
    assert await left() == 0
    await flusher.flush_once()
    assert await sums() == (2, 26, 97)


async def test_it_waits_also_when_the_clock_was_set_back(redis, control, corrector, key, make_event, put, flusher):
    """The sweeper's event has a later time than the correction that came after it."""
    final = make_event(key.id, output=90)
    partition = partition_of(key.id, control.partitions)
    ahead = await control.streams.now_ms() + 400
    estimate = replace(final, usage=Usage(input_uncached=13, estimated=True))
    await redis.xadd(keyspace.events(partition), {"e": encode_event(estimate)}, id=f"{ahead}-0")
    await put(final)
    assert await corrector.correct_once() == Counter()
    await asyncio.sleep(0.45)
    await flusher.flush_once()
    assert await corrector.correct_once() == Counter({Correction.CHANGED: 1})


async def test_a_clock_that_was_set_back_by_much_holds_nothing_up(redis, control, corrector, key, make_event, flusher):
    partition, now_ms = partition_of(key.id, control.partitions), await control.streams.now_ms()
    final = make_event(key.id, output=90)
    estimate = replace(final, usage=Usage(input_uncached=13, estimated=True))
    for stream, event in ((keyspace.events(partition), estimate), (keyspace.corrections(partition), final)):
        await redis.xadd(stream, {"e": encode_event(event)}, id=f"{now_ms + 3_600_000}-0")
    assert await corrector.correct_once() == Counter()
    await flusher.flush_once()
    assert await corrector.correct_once() == Counter({Correction.CHANGED: 1})


async def test_a_correction_that_redis_may_still_lose_waits(control, metrics, key, make_event, put):
    corrector = Corrector(control, metrics, after_ms=300)
    await put(make_event(key.id))
    assert await corrector.correct_once() == Counter()
    await asyncio.sleep(0.35)
    assert await corrector.correct_once() == Counter({Correction.ADDED: 1})


async def test_an_erased_keys_correction_is_dropped(control, corrector, metrics, key, make_event, put, left, rows):
    await delete_key(control, key.id)
    await put(make_event(key.id), make_event(UNKNOWN))
    assert await corrector.correct_once() == Counter({Correction.DROPPED: 2})
    assert await left() == 0
    assert await rows("SELECT * FROM usage_events UNION ALL SELECT * FROM usage_events") == []
    assert await rows("SELECT * FROM ledger") == []
    assert counted(metrics) == {"dropped": 2}


async def test_a_deletion_takes_the_keys_corrections_along(control, key, make_event, put, left):
    other = (await create_key(control, name="other")).key
    await put(make_event(key.id), make_event(other.id))
    await delete_key(control, key.id)
    assert await left() == 1


async def test_what_cannot_be_stored_is_noted_and_holds_up_nobody(
    corrector, metrics, key, make_event, put, left, rows, add_events, flusher, redis
):
    home = partition_of(key.id, 4)
    odd = [make_event(key.id, model="nul\0"), make_event(key.id, at_ms=0), make_event(KeyId("nobody"))]
    await put(b"junk", b"", *odd[:2], encode_event(odd[2]), make_event(key.id), partition=home)
    assert await corrector.correct_once() == Counter({Correction.DEAD: 5, Correction.ADDED: 1})
    assert await left() == 0
    letters = await rows("SELECT partition, stream_id, reason, key_id::text AS key_id FROM dead_letters")
    assert Counter((row["reason"], row["key_id"]) for row in letters) == {
        ("undecodable", None): 3,
        ("refused", key.id): 1,
        ("time_out_of_range", key.id): 1,
    }
    assert all(row["stream_id"].startswith("corrections/") and row["partition"] == home for row in letters)
    assert counted(metrics) == {"dead": 5, "added": 1}


async def test_many_are_worked_off_in_bounded_rounds(corrector, key, make_event, put, left, sums, monkeypatch):
    monkeypatch.setattr(module, "BATCH", 3)
    await put(*(make_event(key.id) for _ in range(7)))
    assert [(await corrector.correct_once()).total() for _ in range(4)] == [3, 3, 1, 0]
    assert await sums() == (7, 91, 49)


async def test_a_request_of_a_month_without_a_table_is_stored(corrector, control, key, make_event, put, sums):
    await put(make_event(key.id, at_ms=control.now_ms() - 40 * 86_400_000))
    assert await corrector.correct_once() == Counter({Correction.ADDED: 1})
    assert await sums() == (1, 13, 7)


@pytest.mark.parametrize(
    "step", ["before the entry is applied", "before it is noted", "before the correction is removed"]
)
async def test_whoever_dies_in_between_charges_nothing_twice(
    control, corrector, estimated, make_event, key, put, sums, left, monkeypatch, step
):
    (final,) = await estimated()
    await put(final, make_event(key.id))

    async def die(*_):
        raise StoreUnavailable("redis", may_have_run=True)

    broken = {
        "before the entry is applied": (module, "apply_entries"),
        "before it is noted": (module.ledger, "mark_applied"),
        "before the correction is removed": (control.streams, "remove_corrections"),
    }[step]
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(*broken, die)
            with pytest.raises(StoreUnavailable):
                await corrector.correct_once()
    await Corrector(control, corrector._metrics, after_ms=0).correct_once()
    assert await sums() == (2, 26, 97)
    assert await left() == 0


async def test_without_postgresql_corrections_go_on_waiting(make_corrector, key, make_event, put, left, migrated_url):
    away = await connect(migrated_url)
    await away.close()
    await put(make_event(key.id))
    with pytest.raises(StoreUnavailable, match=r"^postgresql$"):
        await make_corrector(database=away).correct_once()
    assert await left() == 1


async def test_a_key_that_redis_does_not_know_is_charged_when_it_does(
    control, corrector, redis, key, make_event, put, left
):
    record = key.record(control.partitions)
    state = await redis.getdel(keyspace.state(record.partition, key.id))
    await put(make_event(key.id))
    assert await corrector.correct_once() == Counter({Correction.ADDED: 1})
    assert await left() == 0
    await redis.set(keyspace.state(record.partition, key.id), state)
    assert await apply_pending(control) == 1
    assert (await control.publishing.inspect(record)).totals == Amounts(1, 13, 7)


async def test_correctors_and_flushers_at_once_double_nothing_and_lose_nothing(
    control, make_corrector, make_flusher, estimated, make_event, add_events, redis, key, put, sums, left
):
    """Estimates that are stored, requests that nobody knows, repetitions, and a flush of others, all at once."""
    finals = await estimated(30)
    absent = [make_event(key.id, output=n) for n in range(30)]
    others = [make_event(key.id) for _ in range(60)]
    for number, event in enumerate(others):
        await charge(redis, control, key, event.usage.amounts, f"other {number}")
    waiting = [*finals, *absent, *random.Random(5).sample(finals + absent, 20)]
    random.Random(6).shuffle(waiting)
    await put(*waiting)
    correctors = [make_corrector() for _ in range(3)]
    home = partition_of(key.id, control.partitions)
    for corrector in correctors:
        corrector._marks[home] = await control.streams.mark(home)
    await add_events(*others)
    flushers = [make_flusher(batch=7), make_flusher(batch=20)]
    done = await asyncio.gather(
        *(each.correct_once() for each in correctors),
        *(each.flush_once() for each in flushers),
        apply_pending(control),
    )
    outcomes = sum(done[:3], Counter())
    assert (outcomes[Correction.ADDED], outcomes[Correction.CHANGED]) == (30, 30)
    assert outcomes.keys() <= {Correction.ADDED, Correction.CHANGED, Correction.EQUAL}
    await make_flusher().flush_once()
    await apply_pending(control)
    expected = finals + absent + others
    assert await sums() == (120, 120 * 13, sum(event.usage.output for event in expected))
    assert await left() == 0


async def settle_late(control, record, event, rng):
    """Settle some time from now, perhaps twice: a reply that did not come is asked for again."""
    await asyncio.sleep(rng.random() / 2)
    scopes, raw = [scripts.scope_of(record)], encode_event(event)
    arguments = scripts.settle_args(record.partition, event.id, scopes, Outcome.POST, event.usage.amounts, raw)
    for _ in range(rng.choice((1, 1, 2))):
        await control.caller.run("settle", arguments)


async def keep_on(once):
    for _ in range(40):
        await once()
        await asyncio.sleep(0.02)


@pytest.fixture
def two_of_each(control, make_corrector, make_flusher, metrics):
    """One round of each thing that two processes of `jobs` do to requests."""
    sweepers = [Sweeper(control, metrics), Sweeper(control, metrics)]
    flushers = [make_flusher(batch=5), make_flusher(batch=9)]
    correctors = [make_corrector(), make_corrector()]
    return [
        *(each.sweep_once for each in sweepers),
        *(each.correct_once for each in correctors),
        *(each.flush_once for each in flushers),
        *[lambda: apply_pending(control)] * 2,
    ]


async def test_late_workers_and_two_of_every_job_at_once_end_with_one_event_per_request(
    control, two_of_each, metrics, redis, request_with, rows, left
):
    """Half of the requests outlive their lease: most settle while they are swept, and some never do."""
    run_id = (await redis.info("server"))["run_id"]
    for partition in range(control.partitions):
        await redis.set(keyspace.epoch(partition), json.dumps({"run_ids": [run_id], "opened_ms": 0}))
    keys = [(await create_key(control, name=f"k{n}", prepaid=True)).key for n in range(4)]
    for each in keys:
        await credit(control, each.id, 10_000)
    records = {each.id: each.record(control.partitions) for each in keys}
    rng = random.Random(7)
    leases_ms = [rng.choice((-1, 30_000)) for _ in range(160)]
    opened = [await request_with(rng.choice(keys), settle=False, lease_ms=ms, output=ms % 47) for ms in leases_ms]
    dead, alive = opened[::8], [event for number, event in enumerate(opened) if number % 8]
    async with asyncio.TaskGroup() as group:
        for event in alive:
            group.create_task(settle_late(control, records[event.key_id], event, rng))
        for once in two_of_each:
            group.create_task(keep_on(once))
    for event in dead:  # the leases of all of them are long over
        await redis.zadd(keyspace.leases(records[event.key_id].partition), {event.id: 1}, xx=True)
    for once in two_of_each * 2:
        await once()

    assert await left() == 0
    assert counted(metrics)["changed"] > 0  # else nobody was late
    events = await rows("SELECT id::text, output, estimated FROM usage_events")
    final = {row["id"]: row["output"] for row in events if not row["estimated"]}
    assert final == {event.id: event.usage.output for event in alive}
    assert {row["id"] for row in events if row["estimated"]} == {event.id for event in dead}
    for row in await rows("SELECT key_id::text, requests, input_tokens, output_tokens FROM usage_totals"):
        in_redis = await control.publishing.inspect(records[row["key_id"]])
        assert in_redis.totals == Amounts(*tuple(row)[1:])
        used = row["input_tokens"] + row["output_tokens"]
        assert (in_redis.balance, in_redis.held, in_redis.open) == (10_000 - used, 0, 0)
