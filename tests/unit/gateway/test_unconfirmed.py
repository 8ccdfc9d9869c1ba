"""A settlement reaches Redis once, whatever happens to Redis or to the process in between."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import redis.asyncio as redis_asyncio

from edgeproxy.config import Stores
from edgeproxy.domain.keys import KeyId, KeyRecord, KeyStatus
from edgeproxy.domain.limits import Amounts, parse_limit
from edgeproxy.domain.reservations import KeyUsage, Outcome, ReserveStatus
from edgeproxy.gateway.journal import Journal, Settlement
from edgeproxy.gateway.unconfirmed import Unconfirmed
from edgeproxy.hotstate import keyspace, scripts
from edgeproxy.hotstate.calling import Caller
from edgeproxy.hotstate.commands import HotState
from edgeproxy.hotstate.publishing import Publishing
from edgeproxy.metrics import Metrics
from tests.support.gateway import open_partitions

RECORD = KeyRecord(KeyId("key"), 1, KeyStatus.ACTIVE, 3, (parse_limit("tokens=1000/1h"),), None, None, ())
PATIENCE_S = 10.0


def settlement(request_id: str, outcome: Outcome = Outcome.POST, tokens: int = 5) -> Settlement:
    return Settlement(3, RECORD.id, request_id, outcome, Amounts(1, tokens, 0), b"{}")


class Bench:
    """A process's settlements, and what Redis counts of them."""

    def __init__(self, hot: HotState, folder: Path, redis: redis_asyncio.Redis) -> None:
        self.metrics = Metrics()
        self.hot, self.folder, self.redis = hot, folder, redis
        self.unconfirmed = Unconfirmed(hot, folder, self.metrics)

    async def reserve(self, *request_ids: str) -> None:
        for request_id in request_ids:
            reply = await self.hot.reserve(3, request_id, scripts.scope_of(RECORD), Amounts(1, 10, 0), b"")
            assert reply.status is ReserveStatus.ADMITTED

    async def usage(self) -> KeyUsage:
        found = await Publishing(Caller(self.redis)).inspect(RECORD)
        assert found is not None
        return found

    async def settled(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while (await self.usage()).totals.requests < count:
                await asyncio.sleep(0.01)

    def files(self) -> list[Path]:
        return list(self.folder.glob("*.journal"))

    def sample(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0


@pytest.fixture
async def bench(redis_url: str, redis: redis_asyncio.Redis, tmp_path: Path) -> AsyncIterator[Bench]:
    await open_partitions(redis)
    await Publishing(Caller(redis)).publish(RECORD, "ab" * 32)
    metrics = Metrics()
    hot = HotState(replace(Stores(), redis=redis_url, redis_timeout_ms=300), metrics.redis_seconds)
    await hot.start()
    await hot.watch.until_open(PATIENCE_S)
    made = Bench(hot, tmp_path, redis)
    made.unconfirmed.start()
    yield made
    await made.unconfirmed.finish(1.0)
    await hot.close()


async def test_while_redis_is_there_nothing_is_written_to_a_file(bench: Bench) -> None:
    await bench.reserve("a", "b")
    bench.unconfirmed.send(settlement("a"))
    bench.unconfirmed.send(settlement("b", Outcome.VOID))
    await bench.settled(2)
    assert (await bench.usage()).windows[0].used == 5
    assert list(bench.folder.iterdir()) == []
    assert bench.sample("edgeproxy_journaled_settlements_total") == 0


async def test_while_redis_does_not_answer_it_is_in_the_file_first_and_counts_once(bench: Bench) -> None:
    names = [f"r{number}" for number in range(50)]
    await bench.reserve(*names)
    await bench.redis.client_pause(1500)
    await asyncio.sleep(0.4)  # until a silent Redis counts as away
    bench.unconfirmed.send(settlement("r0"))  # this one waits for a reply that does not come in time
    await asyncio.sleep(0.6)
    for name in names[1:]:
        bench.unconfirmed.send(settlement(name))
    (path,) = bench.files()
    assert path.read_bytes().count(b"\n") >= len(names) - 1
    await bench.settled(50)
    async with asyncio.timeout(PATIENCE_S):
        while path.read_bytes():
            await asyncio.sleep(0.01)
    usage = await bench.usage()
    assert (usage.totals.requests, usage.totals.input_tokens, usage.open) == (50, 250, 0)
    assert await bench.redis.xlen(keyspace.events(3)) == 50


async def test_what_a_dead_process_left_is_settled_by_the_next(bench: Bench) -> None:
    await bench.reserve("a", "b", "c")
    journal = Journal(bench.folder)
    journal.write([settlement("a"), settlement("b")])
    journal.close()
    later = Unconfirmed(bench.hot, bench.folder, bench.metrics)
    later.start()
    await bench.settled(2)
    await later.finish(PATIENCE_S)
    assert bench.files() == []
    assert (await bench.usage()).open == 1


async def test_what_is_not_confirmed_at_the_end_waits_in_the_file(
    bench: Bench, capfd: pytest.CaptureFixture[str]
) -> None:
    await bench.reserve("a")
    await bench.redis.client_pause(1000)
    bench.unconfirmed.send(settlement("a"))
    await bench.unconfirmed.finish(0.1)
    (path,) = bench.files()
    assert b'"request_id":"a"' in path.read_bytes()
    assert "settlements_left_in_journal" in capfd.readouterr().err
    assert bench.sample("edgeproxy_settlements_lost_total") == 0


async def test_one_that_can_be_kept_nowhere_is_counted_as_lost(bench: Bench) -> None:
    await bench.reserve("a")
    await bench.redis.client_pause(1000)
    bench.folder.rmdir()
    bench.folder.write_text("not a folder")
    bench.unconfirmed.send(settlement("a"))
    await bench.unconfirmed.finish(0.1)
    assert bench.sample("edgeproxy_settlements_lost_total") == 1
    bench.folder.unlink()


async def test_one_whose_reservation_is_gone_is_handed_to_the_corrections(bench: Bench) -> None:
    bench.unconfirmed.send(settlement("never"))
    async with asyncio.timeout(PATIENCE_S):
        while not bench.sample("edgeproxy_late_settlements_total", reason="unknown"):
            await asyncio.sleep(0.01)
    assert await bench.redis.xlen(keyspace.corrections(3)) == 1
    bench.unconfirmed.send(settlement("never-either", Outcome.CANCEL))
    await bench.unconfirmed.finish(PATIENCE_S)
    assert await bench.redis.xlen(keyspace.corrections(3)) == 1
    assert bench.sample("edgeproxy_late_settlements_total", reason="unknown") == 1


async def test_what_a_redis_forgot_of_the_last_seconds_is_told_again(bench: Bench) -> None:
    await bench.reserve("a", "b")
    state, ring = keyspace.state(3, RECORD.id), keyspace.ring(3, RECORD.id)
    names = [state, ring, keyspace.leases(3), *(keyspace.reservation(3, name) for name in ("a", "b"))]
    before = {name: await bench.redis.dump(name) for name in names}
    bench.unconfirmed.send(settlement("a"))
    await bench.settled(1)
    for name, dumped in before.items():  # as an older file would have it
        await bench.redis.delete(name)
        if dumped is not None:
            await bench.redis.restore(name, 0, dumped)
    await bench.redis.delete(keyspace.events(3))
    assert (await bench.usage()).totals.requests == 0
    bench.unconfirmed.replay([2])  # of another partition
    await asyncio.sleep(0.1)
    assert (await bench.usage()).totals.requests == 0
    for _ in range(2):
        bench.unconfirmed.replay([3])
        await bench.settled(1)
    usage = await bench.usage()
    assert (usage.totals, usage.open, usage.windows[0].used) == (Amounts(1, 5, 0), 1, 15)
    assert await bench.redis.xlen(keyspace.events(3)) == 1


async def test_how_long_redis_was_away_does_not_matter_for_what_is_told_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.reserve("a")
    bench.unconfirmed.send(settlement("a"))
    await bench.settled(1)
    await bench.redis.delete(keyspace.reservation(3, "a"), keyspace.events(3))
    now = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: now() + 3600)
    bench.unconfirmed.replay([3])
    async with asyncio.timeout(PATIENCE_S):
        while not await bench.redis.xlen(keyspace.corrections(3)):
            await asyncio.sleep(0.01)


async def test_a_line_of_a_partition_that_there_is_not_holds_up_no_other(bench: Bench) -> None:
    await bench.reserve("a")
    journal = Journal(bench.folder)
    journal.write([replace(settlement("odd"), partition=63), settlement("a")])
    journal.close()
    later = Unconfirmed(bench.hot, bench.folder, bench.metrics)
    later.start()
    await bench.settled(1)
    await later.finish(PATIENCE_S)
    assert bench.files() == []
