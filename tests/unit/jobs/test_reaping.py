import asyncio
import json
import math
import time
from dataclasses import replace

import pytest

from edgeproxy.control.keys import create_key, delete_key
from edgeproxy.domain.limits import Amounts
from edgeproxy.domain.reservations import Outcome, SettleStatus, encode_note
from edgeproxy.domain.usage import Usage, decode_event, encode_event
from edgeproxy.errors import StoreUnavailable
from edgeproxy.hotstate import keyspace, scripts
from edgeproxy.hotstate.leases import Leases
from edgeproxy.hotstate.scripts import Beat
from edgeproxy.jobs import reaping as module
from edgeproxy.jobs.reaping import Sweeper

GONE_MS = -60_000  # a lease that was over before it began: nobody waits in a test


@pytest.fixture(autouse=True)
def _one_look(monkeypatch):
    """A lease that is over is taken for over at the first look."""
    monkeypatch.setattr("edgeproxy.jobs.reaping.BEATS_PER_LEASE", math.inf)


@pytest.fixture
async def key(control):
    limits = ["requests=50/1m", "tokens=1000/1h"]
    return (await create_key(control, name="open", limits=limits, concurrency=5)).key


@pytest.fixture
def record(control, key):
    return key.record(control.partitions)


@pytest.fixture
def open_epoch(control, redis):
    """Open all partitions, `ago_ms` ago, on this Redis or on another."""

    async def open_epoch(ago_ms=3_600_000, run_id=None):
        run_id = run_id or (await redis.info("server"))["run_id"]
        opened_ms = await control.streams.now_ms() - ago_ms
        for partition in range(control.partitions):
            await redis.set(keyspace.epoch(partition), json.dumps({"run_ids": [run_id], "opened_ms": opened_ms}))

    return open_epoch


@pytest.fixture
async def sweeper(control, metrics, open_epoch):
    await open_epoch()
    return Sweeper(control, metrics)


@pytest.fixture
def run(redis):
    """Run a script as a worker does."""
    loaded = scripts.load()

    async def run(name, arguments):
        await redis.script_load(loaded[name].source)
        return await redis.execute_command(*loaded[name].command(arguments))

    return run


@pytest.fixture
def waiting(control, record):
    """Return the events that wait in the stream of the key's partition."""

    async def waiting():
        return [decode_event(entry.payload) for entry in await control.streams.read(record.partition, 2**42, 999)]

    return waiting


def reaped(metrics, outcome):
    return metrics.registry.get_sample_value("edgeproxy_reaped_reservations_total", {"outcome": outcome})


async def test_what_a_dead_worker_left_is_charged_by_estimate(
    control, sweeper, metrics, key, record, request_with, waiting
):
    left = await request_with(key, settle=False, lease_ms=GONE_MS)
    assert await sweeper.sweep_once() == 1
    (event,) = await waiting()
    assert event == replace(
        left, model="gpt-*", status=500, usage=Usage(input_uncached=13, estimated=True), latency_ms=event.latency_ms
    )
    assert 0 <= event.latency_ms < 60_000
    counted = await control.publishing.inspect(record)
    assert (counted.open, counted.totals) == (0, Amounts(1, 13, 0))
    assert [window.used for window in counted.windows] == [1, 13]
    assert await sweeper.sweep_once() == 0
    assert len(await waiting()) == 1
    assert reaped(metrics, "charged") == 1


@pytest.mark.parametrize(("told", "charged"), [((0, 0), (13, 0)), ((5, 90), (13, 90)), ((40, 3), (40, 3))])
async def test_the_larger_of_what_was_told_last_and_of_the_inputs_estimate_is_charged(
    sweeper, key, record, request_with, waiting, run, redis, told, charged
):
    left = await request_with(key, settle=False)
    await run("heartbeat", scripts.heartbeat_args(record.partition, 30_000, [Beat(left.id, *told)]))
    assert await sweeper.sweep_once() == 0  # it is alive
    await redis.zadd(keyspace.leases(record.partition), {left.id: 1})
    assert await sweeper.sweep_once() == 1
    (event,) = await waiting()
    assert (event.usage.input_total, event.usage.output) == charged


async def test_a_prepaid_keys_tokens_are_held_no_longer(control, sweeper, rows, request_with):
    prepaid = (await create_key(control, name="prepaid", prepaid=True)).key
    record = prepaid.record(control.partitions)
    arguments = scripts.credit_args(record.partition, prepaid.id, 1, 100)
    await control.caller.run("credit", arguments)
    await request_with(prepaid, settle=False, lease_ms=GONE_MS)
    assert (await control.publishing.inspect(record)).held == 20
    await sweeper.sweep_once()
    counted = await control.publishing.inspect(record)
    assert (counted.balance, counted.held) == (87, 0)


async def test_a_request_that_is_alive_or_settled_is_left_alone(sweeper, key, request_with, waiting):
    settled = await request_with(key)
    await request_with(key, settle=False)
    assert await sweeper.sweep_once() == 0
    assert await waiting() == [settled]


async def test_a_worker_that_was_only_stopped_is_told_so_and_its_event_is_kept_apart(
    control, sweeper, key, record, request_with, run, redis
):
    left = await request_with(key, settle=False, lease_ms=GONE_MS)
    await sweeper.sweep_once()
    amounts = left.usage.amounts
    arguments = scripts.settle_args(
        record.partition, left.id, [scripts.scope_of(record)], Outcome.POST, amounts, encode_event(left)
    )
    assert (await run("settle", arguments))[0] == SettleStatus.REAPED
    assert (await control.publishing.inspect(record)).totals == Amounts(1, 13, 0)
    ((_, fields),) = await redis.xrange(keyspace.corrections(record.partition))
    assert decode_event(fields[b"e"]) == left


@pytest.mark.parametrize("note", [b"", b"\xff", b"{}", b'{"holder": 1, "model": "x"}', b'["x"]'])
async def test_a_reservation_with_an_unreadable_note_ends_without_an_event(
    sweeper, metrics, key, record, request_with, waiting, redis, capfd, note
):
    left = await request_with(key, settle=False, lease_ms=GONE_MS, note=note)
    await request_with(key, settle=False, lease_ms=GONE_MS)
    assert await sweeper.sweep_once() == 2
    assert len(await waiting()) == 1
    assert await redis.zcard(keyspace.leases(record.partition)) == 0
    assert (reaped(metrics, "unreadable"), reaped(metrics, "charged")) == (1, 1)
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    (line,) = [line for line in lines if line["event"] == "reservation_not_readable"]
    assert line["request_id"] == left.id


async def test_a_reservation_that_has_no_event_of_its_own_gets_none(
    control, sweeper, key, record, request_with, waiting
):
    await request_with(key, settle=False, lease_ms=GONE_MS, note=encode_note(key.id, ""))
    assert await sweeper.sweep_once() == 1
    assert await waiting() == []
    assert (await control.publishing.inspect(record)).open == 0


async def test_a_lease_that_no_reservation_belongs_to_is_taken_away(sweeper, redis, request_with, key, record):
    settled = await request_with(key)
    await redis.zadd(keyspace.leases(record.partition), {"never": 1, settled.id: 2})
    assert await sweeper.sweep_once() == 0
    assert await redis.zcard(keyspace.leases(record.partition)) == 0


async def test_what_a_deleted_key_left_is_resolved_and_its_event_dropped(
    control, sweeper, key, request_with, redis, flusher, monkeypatch
):
    monkeypatch.setattr("edgeproxy.control.keys.OPEN_WAIT_S", 0.01)
    await request_with(key, settle=False, lease_ms=GONE_MS)
    await delete_key(control, key.id)
    assert await sweeper.sweep_once() == 1
    assert (await flusher.flush_once()).dropped == 1
    assert await redis.keys("*:state:*") == []


@pytest.mark.parametrize("ago_ms_at_last", [30_001, -60_000])  # the other is a clock that was set back
async def test_nothing_is_swept_before_a_partition_was_open_for_a_lease(
    control, metrics, key, request_with, open_epoch, redis, ago_ms_at_last
):
    await request_with(key, settle=False, lease_ms=GONE_MS)
    sweeper = Sweeper(control, metrics)
    assert await sweeper.sweep_once() == 0  # never opened
    await open_epoch(run_id="another")
    assert await sweeper.sweep_once() == 0  # opened on another server
    for partition in range(control.partitions):
        await redis.set(keyspace.epoch(partition), b"junk")
    assert await sweeper.sweep_once() == 0
    for ago_ms in (0, 29_000):  # workers announce what they have
        await open_epoch(ago_ms)
        assert await sweeper.sweep_once() == 0
    await open_epoch(ago_ms_at_last)
    assert await sweeper.sweep_once() == 1


async def test_leases_that_a_clock_ended_at_once_are_looked_at_twice(
    control, metrics, key, request_with, open_epoch, redis, monkeypatch
):
    monkeypatch.undo()
    await open_epoch(30_001)
    events = [await request_with(key, settle=False, lease_ms=GONE_MS) for _ in range(2)]
    sweeper = Sweeper(control, metrics)
    assert await sweeper.sweep_once() == 0
    partition = key.record(control.partitions).partition
    beats = [scripts.Beat(events[0].id, 1, 1)]
    await control.caller.run("heartbeat", scripts.heartbeat_args(partition, 30_000, beats))  # its worker lives
    now = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: now() + 10.1)
    assert await sweeper.sweep_once() == 1
    assert (await control.publishing.inspect(key.record(control.partitions))).open == 1


async def test_many_are_swept_in_bounded_rounds_and_other_partitions_do_not_wait(
    control, sweeper, key, record, request_with, monkeypatch
):
    monkeypatch.setattr(module, "MAX_SWEPT", 2)
    others = [(await create_key(control, name=f"k{n}")).key for n in range(20)]
    other = next(o for o in others if o.record(control.partitions).partition != record.partition)
    for each in (key, key, key, key, key, other):
        await request_with(each, settle=False, lease_ms=GONE_MS)
    assert [await sweeper.sweep_once() for _ in range(4)] == [3, 2, 1, 0]


async def test_sweepers_and_a_late_worker_at_once_settle_each_once(
    control, sweeper, metrics, request_with, run, flusher, rows
):
    keys = [(await create_key(control, name=f"k{n}")).key for n in range(8)]
    left = [await request_with(each, settle=False, lease_ms=GONE_MS) for each in keys * 10]
    records = {each.id: each.record(control.partitions) for each in keys}

    async def settle(event):
        record = records[event.key_id]
        scopes = [scripts.scope_of(record)]
        raw = encode_event(event)
        arguments = scripts.settle_args(record.partition, event.id, scopes, Outcome.POST, event.usage.amounts, raw)
        return SettleStatus((await run("settle", arguments))[0])

    others = [Sweeper(control, metrics) for _ in range(2)]
    swept = asyncio.gather(*(each.sweep_once() for each in (sweeper, *others)))
    settled = await asyncio.gather(*(settle(event) for event in left[::2]))
    in_time = settled.count(SettleStatus.RESOLVED)
    assert settled.count(SettleStatus.REAPED) == 40 - in_time
    assert sum(await swept) == 80 - in_time
    assert (await flusher.flush_once()).stored == 80
    for record in records.values():
        counted = await control.publishing.inspect(record)
        assert (counted.open, counted.totals.requests) == (0, 10)
    totals = await rows("SELECT sum(input_tokens)::int AS i, sum(output_tokens)::int AS o FROM usage_totals")
    in_redis = [(await control.publishing.inspect(record)).totals for record in records.values()]
    assert tuple(totals[0]) == (sum(t.input_tokens for t in in_redis), sum(t.output_tokens for t in in_redis))


async def test_a_sweep_that_redis_ends_goes_on_where_it_was(control, sweeper, key, request_with, monkeypatch, waiting):
    for _ in range(4):
        await request_with(key, settle=False, lease_ms=GONE_MS)
    reap, calls = Leases.reap, []

    async def die_at_third(*arguments):
        calls.append(1)
        status = await reap(*arguments)
        if len(calls) == 3:
            raise StoreUnavailable("redis", may_have_run=True)
        return status

    monkeypatch.setattr(Leases, "reap", die_at_third)
    with pytest.raises(StoreUnavailable):
        await sweeper.sweep_once()
    assert await sweeper.sweep_once() == 1
    assert len(await waiting()) == 4
