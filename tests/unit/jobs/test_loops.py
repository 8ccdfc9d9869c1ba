import asyncio
import json
import math
from dataclasses import replace

import pytest

from edgeproxy import tasks
from edgeproxy.config import Jobs
from edgeproxy.control.keys import create_key
from edgeproxy.control.ledger import credit
from edgeproxy.domain.keys import partition_of
from edgeproxy.domain.limits import Amounts
from edgeproxy.domain.usage import encode_event
from edgeproxy.errors import OperatorError, StoreUnavailable
from edgeproxy.hotstate import keyspace
from edgeproxy.jobs import loops as module
from edgeproxy.jobs.loops import Loop, repeat, run
from edgeproxy.store.database import connect

QUICK = Jobs(flush_interval_ms=20, flush_after_ms=50, flush_batch=100)


@pytest.fixture(autouse=True)
def _one_look(monkeypatch):
    """What needs a second look, or some patience, is decided at the first."""
    monkeypatch.setattr("edgeproxy.jobs.reaping.BEATS_PER_LEASE", math.inf)
    monkeypatch.setattr("edgeproxy.jobs.reconciliation.ANNOUNCE_S", 0.0)


async def until(check):
    async with asyncio.timeout(10):
        while not await check():
            await asyncio.sleep(0.01)


async def ended(task):
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def logged(capfd):
    return [json.loads(line) for line in capfd.readouterr().err.splitlines()]


async def test_everything_that_waits_is_done_while_it_runs(
    control, control_without_redis, metrics, redis, request_with, rows, make_event
):
    late = await create_key(control_without_redis, name="late", prepaid=True)
    await credit(control_without_redis, "late", 20)
    task = tasks.spawn("jobs", run(replace(control, lease_ms=0), QUICK, (), metrics))

    async def credited():
        counted = await control.publishing.inspect(late.key.record(4))
        return counted is not None and counted.balance == 20

    await until(credited)
    other = (await create_key(control, name="other")).key
    await request_with(other, settle=False, lease_ms=-1)
    await redis.xadd(keyspace.corrections(partition_of(other.id, 4)), {"e": encode_event(make_event(other.id))})
    await request_with(late.key)
    await redis.hset(keyspace.refusals(partition_of(late.key.id, 4)), f"{late.key.id}:29000000:429", 2)

    async def stored():
        return len(await rows("SELECT * FROM usage_events")) >= 2

    await until(stored)
    await ended(task)  # the last round takes the refusals, whose turn would be in ten seconds
    assert (await control.publishing.inspect(other.record(4))).totals == Amounts(2, 26, 7)
    assert [row["count"] for row in await rows("SELECT * FROM refusals")] == [2]
    months = await rows(
        "SELECT inhrelid::regclass::text AS t FROM pg_inherits WHERE inhparent = 'usage_events'::regclass"
    )
    assert len(months) >= 3
    lag_s = metrics.registry.get_sample_value("edgeproxy_flush_lag_seconds")
    assert 0 <= lag_s < 60  # the last sweep may have left an event


async def test_a_stop_stores_what_is_old_enough(control, metrics, request_with, rows, streams):
    issued = await create_key(control, name="last")
    task = tasks.spawn("jobs", run(control, replace(QUICK, flush_interval_ms=60_000), (), metrics))
    await asyncio.sleep(0.2)
    await request_with(issued.key)
    await asyncio.sleep(0.1)
    await ended(task)
    assert len(await rows("SELECT * FROM usage_events")) == 1


async def test_a_store_that_is_away_stops_nothing_and_is_logged_once(
    control, metrics, migrated_url, request_with, rows, capfd, monkeypatch
):
    monkeypatch.setattr(module, "_FIRST_BACKOFF_MS", 10)
    issued = await create_key(control, name="waits")
    pool = await connect(migrated_url)
    await pool.close()
    broken = replace(control, database=pool)
    task = tasks.spawn("jobs", run(broken, QUICK, (), metrics))
    await request_with(issued.key)

    async def failed_often():
        failures = metrics.registry.get_sample_value("edgeproxy_job_failures_total", {"task": "flush"})
        lag = metrics.registry.get_sample_value("edgeproxy_flush_lag_seconds")
        return (failures or 0) >= 3 and lag > 0

    await until(failed_often)
    pool._pool = control.database._pool  # it is back
    await until(lambda: rows("SELECT * FROM usage_events"))
    await ended(task)
    of_flush = [line["event"] for line in logged(capfd) if line.get("task") == "flush"]
    assert of_flush == ["job_failed", "job_recovered"]


async def test_a_frozen_round_does_not_hold_up_a_stop_for_ever(control, metrics, monkeypatch):
    monkeypatch.setattr(module, "STOP_S", 0.1)
    frozen = Loop("frozen", 1, asyncio.Event().wait)
    monkeypatch.setattr(module, "loops", lambda *_: [frozen])
    task = tasks.spawn("jobs", run(control, QUICK, (), metrics))
    await asyncio.sleep(0.05)
    async with asyncio.timeout(2):
        await ended(task)


async def test_a_mistake_in_one_loop_ends_all_of_them(control, metrics, monkeypatch, capfd):
    others = []

    async def fail():
        raise ZeroDivisionError

    async def go_on():
        others.append(1)

    monkeypatch.setattr(module, "loops", lambda *_: [Loop("bad", 10, fail), Loop("good", 10, go_on)])
    with pytest.raises(ZeroDivisionError):
        await run(control, QUICK, (), metrics)
    done = len(others)
    await asyncio.sleep(0.05)
    assert len(others) == done
    assert {"event": "task_failed", "task": "jobs bad", "error": "ZeroDivisionError"}.items() <= logged(capfd)[
        0
    ].items()


@pytest.mark.parametrize("error", [StoreUnavailable("redis"), OperatorError("the counters are of another version")])
async def test_a_round_that_fails_is_repeated_with_growing_pauses(metrics, monkeypatch, capfd, error):
    pauses = []

    async def note(stop, pause_ms):
        pauses.append(pause_ms)
        if len(pauses) == 8:
            stop.set()

    async def fail():
        raise error

    monkeypatch.setattr(module, "_wait", note)
    await repeat(Loop("x", 7, fail), asyncio.Event(), metrics)
    assert pauses == [200, 400, 800, 1600, 3200, 5000, 5000, 5000]
    assert metrics.registry.get_sample_value("edgeproxy_job_failures_total", {"task": "x"}) == 9
    (line,) = logged(capfd)
    assert line["event"] == "job_failed"
    assert "another version" not in str(line)


async def test_rounds_that_succeed_come_at_their_interval(metrics, monkeypatch):
    pauses = []

    async def note(stop, pause_ms):
        pauses.append(pause_ms)
        if len(pauses) == 3:
            stop.set()

    async def succeed():
        pass

    monkeypatch.setattr(module, "_wait", note)
    await repeat(Loop("x", 7, succeed), asyncio.Event(), metrics)
    assert pauses == [7, 7, 7]
