"""What a request does in Redis, through the connection that a worker uses."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator

import pytest
import redis.asyncio as redis_asyncio
from prometheus_client import CollectorRegistry, Histogram
from redis import Redis

from edgeproxy.config import Stores
from edgeproxy.domain.keys import KeyId, KeyRecord, KeyStatus
from edgeproxy.domain.limits import Amounts, parse_limit
from edgeproxy.domain.reservations import HeartbeatStatus, Outcome, ReserveStatus, SettleStatus
from edgeproxy.errors import StoreUnavailable
from edgeproxy.hotstate import keyspace, scripts
from edgeproxy.hotstate.calling import Caller
from edgeproxy.hotstate.commands import HotState
from edgeproxy.hotstate.connection import CommandFailed
from edgeproxy.hotstate.publishing import Publishing
from tests.support.gateway import open_partitions

DIGEST = "ab" * 32
NOTE = b"{}"
EVENT = b'{"id":"x"}'


@pytest.fixture
def round_trips() -> Histogram:
    return Histogram("round_trips", "Round trips.", registry=CollectorRegistry())


@pytest.fixture
async def hot(redis_url: str, redis: redis_asyncio.Redis, round_trips: Histogram) -> AsyncIterator[HotState]:
    await open_partitions(redis)
    opened = HotState(stores(redis_url, timeout_ms=2000), round_trips)
    await opened.start()
    await opened.watch.until_open(10)
    yield opened
    await opened.close()


@pytest.fixture
async def record(redis: redis_asyncio.Redis) -> KeyRecord:
    key_id = KeyId(str(uuid.uuid4()))
    made = KeyRecord(key_id, 1, KeyStatus.ACTIVE, 3, (parse_limit("tokens=100/1m"),), None, None, ())
    await Publishing(Caller(redis)).publish(made, DIGEST)
    return made


def stores(url: str, *, timeout_ms: int = 1000, waiting: int = 1000) -> Stores:
    return Stores(redis=url, redis_timeout_ms=timeout_ms, redis_waiting=waiting, lease_ms=30_000)


def settlement(record: KeyRecord, request_id: str, actual: Amounts) -> scripts.Arguments:
    return scripts.settle_args(3, request_id, [scripts.scope_of(record)], Outcome.POST, actual, EVENT)


async def test_a_key_is_found_under_either_digest_in_one_round_trip(hot: HotState, record: KeyRecord) -> None:
    assert await hot.lookup([DIGEST]) == (DIGEST, record)
    assert await hot.lookup(["00" * 32, DIGEST]) == (DIGEST, record)
    assert await hot.lookup(["00" * 32]) is None


async def test_a_record_of_something_else_decides_nothing(hot: HotState, redis: redis_asyncio.Redis) -> None:
    await redis.set(keyspace.key_record(DIGEST), b'{"id": 1}')
    with pytest.raises(StoreUnavailable):
        await hot.lookup([DIGEST])
    await redis.delete(keyspace.key_record(DIGEST))
    await redis.hset(keyspace.key_record(DIGEST), "a", "b")
    with pytest.raises(StoreUnavailable):
        await hot.lookup([DIGEST])


async def test_reserve_and_settle_once(hot: HotState, record: KeyRecord, redis: redis_asyncio.Redis) -> None:
    scope = scripts.scope_of(record)
    reply = await hot.reserve(3, "r1", scope, Amounts(1, 60, 0), NOTE)
    assert (reply.status, reply.windows[0].remaining) == (ReserveStatus.ADMITTED, 40)
    assert abs(hot.now_ms() - reply.now_ms) < 1000
    reply, has_left = hot.settle(3, settlement(record, "r1", Amounts(1, 10, 5)))
    assert has_left
    raw = await reply
    assert scripts.decode_settle(raw).status is SettleStatus.RESOLVED
    again = await hot.settle_again(3, settlement(record, "r1", Amounts(1, 10, 5)))
    assert again.status is SettleStatus.DUPLICATE
    assert len(await redis.xrange(keyspace.events(3))) == 1


async def test_a_settlement_is_on_its_way_before_the_call_returns(
    hot: HotState, record: KeyRecord, redis_url: str
) -> None:
    await hot.reserve(3, "r1", scripts.scope_of(record), Amounts(1, 60, 0), NOTE)
    reply, has_left = hot.settle(3, settlement(record, "r1", Amounts(1, 10, 5)))
    assert has_left
    time.sleep(0.05)  # the loop of this process does not turn meanwhile
    with Redis.from_url(redis_url) as beside:
        assert beside.xlen(keyspace.events(3)) == 1
    await reply


async def test_scripts_that_redis_lost_are_sent_along(
    hot: HotState, record: KeyRecord, redis: redis_asyncio.Redis
) -> None:
    scope = scripts.scope_of(record)
    await redis.script_flush()
    assert (await hot.reserve(3, "r1", scope, Amounts(1, 1, 0), NOTE)).status is ReserveStatus.ADMITTED
    await redis.script_flush()
    with pytest.raises(CommandFailed):
        await hot.settle(3, settlement(record, "r1", Amounts(1, 1, 0)))[0]
    assert (await hot.settle_again(3, settlement(record, "r1", Amounts(1, 1, 0)))).status is SettleStatus.RESOLVED


async def test_nothing_is_admitted_where_the_counters_may_be_incomplete(
    hot: HotState, record: KeyRecord, redis: redis_asyncio.Redis
) -> None:
    scope = scripts.scope_of(record)
    await redis.delete(keyspace.epoch(3))
    async with asyncio.timeout(10):
        while hot.watch.is_open(3):
            await asyncio.sleep(0.01)
    with pytest.raises(StoreUnavailable):
        await hot.reserve(3, "r1", scope, Amounts(1, 60, 0), NOTE)
    announced = await hot.reserve(3, "r1", scope, Amounts(1, 160, 0), NOTE, announce=True)
    assert (announced.status, announced.windows[0].remaining) == (ReserveStatus.ADMITTED, 0)
    with pytest.raises(StoreUnavailable):
        await hot.lookup(["00" * 32])  # it may have been there
    assert await hot.lookup([DIGEST]) == (DIGEST, record)


async def test_an_emptied_redis_is_never_taken_for_an_unknown_key(
    hot: HotState, record: KeyRecord, redis: redis_asyncio.Redis
) -> None:
    epoch = await redis.get(keyspace.epoch(0))
    await redis.flushdb()
    with pytest.raises(StoreUnavailable):
        await hot.lookup([DIGEST])
    assert epoch is not None
    await redis.set(keyspace.epoch(0), epoch)  # the first partition is filled again, that of the key is not
    with pytest.raises(StoreUnavailable):
        await hot.lookup([DIGEST])


async def test_a_heartbeat_renews_what_is_open(hot: HotState, record: KeyRecord, redis: redis_asyncio.Redis) -> None:
    await hot.reserve(3, "r1", scripts.scope_of(record), Amounts(1, 60, 0), NOTE)
    await redis.zadd(keyspace.leases(3), {"r1": 1})
    statuses = await hot.heartbeat(3, [scripts.Beat("r1", 60, 7), scripts.Beat("r2", 1, 1)])
    assert statuses == [HeartbeatStatus.RENEWED, HeartbeatStatus.UNKNOWN]
    assert await redis.zscore(keyspace.leases(3), "r1") > hot.now_ms() + 20_000


async def test_a_refusal_is_counted_without_waiting(
    hot: HotState, record: KeyRecord, redis: redis_asyncio.Redis
) -> None:
    for _ in range(3):
        hot.count_refusal(3, record.id, 429)
    async with asyncio.timeout(5):
        while await redis.hvals(keyspace.refusals(3)) != [b"3"]:
            await asyncio.sleep(0.01)


async def test_a_refusal_is_not_counted_where_too_much_waits(
    redis_url: str, round_trips: Histogram, record: KeyRecord
) -> None:
    busy = HotState(stores(redis_url, waiting=20), round_trips)
    await busy.start()
    for _ in range(30):
        busy.count_refusal(3, record.id, 429)
    await busy.close()


async def test_without_redis_everything_says_so_at_once(round_trips: Histogram, record: KeyRecord) -> None:
    away = HotState(stores("unix:///nonexistent.sock", timeout_ms=200), round_trips)
    await away.start()
    assert not away.is_connected
    assert abs(away.now_ms() - time.time() * 1000) < 5000
    with pytest.raises(StoreUnavailable):
        await away.lookup([DIGEST])
    with pytest.raises(StoreUnavailable):
        await away.reserve(3, "r", scripts.scope_of(record), Amounts(1, 1, 0), NOTE)
    with pytest.raises(StoreUnavailable):
        away.settle(3, settlement(record, "r", Amounts()))
    away.count_refusal(3, record.id, 429)
    await away.close()
