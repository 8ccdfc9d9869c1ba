"""What a request does in Redis, through the connection that a worker uses."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator

import pytest
import redis.asyncio as redis_asyncio
from prometheus_client import CollectorRegistry, Histogram

from edgeproxy.domain.keys import KeyId, KeyRecord, KeyStatus
from edgeproxy.domain.limits import Amounts, parse_limit
from edgeproxy.domain.reservations import Outcome, ReserveStatus, SettleStatus
from edgeproxy.errors import StoreUnavailable
from edgeproxy.hotstate import keyspace, scripts
from edgeproxy.hotstate.calling import Caller
from edgeproxy.hotstate.commands import HotState
from edgeproxy.hotstate.connection import CommandFailed
from edgeproxy.hotstate.publishing import Publishing

DIGEST = "ab" * 32
EVENT = b'{"id":"x"}'


@pytest.fixture
def round_trips() -> Histogram:
    return Histogram("round_trips", "Round trips.", registry=CollectorRegistry())


@pytest.fixture
async def hot(redis_url: str, round_trips: Histogram) -> AsyncIterator[HotState]:
    opened = HotState(redis_url, 2000, 1000, round_trips)
    await opened.start()
    yield opened
    await opened.close()


@pytest.fixture
async def record(redis: redis_asyncio.Redis) -> KeyRecord:
    key_id = KeyId(str(uuid.uuid4()))
    made = KeyRecord(key_id, 1, KeyStatus.ACTIVE, 3, (parse_limit("tokens=100/1m"),), None, None, ())
    await Publishing(Caller(redis)).publish(made, DIGEST)
    return made


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
    reply = await hot.reserve(3, "r1", scope, Amounts(1, 60, 0), 1000)
    assert (reply.status, reply.windows[0].remaining) == (ReserveStatus.ADMITTED, 40)
    assert abs(hot.now_ms() - reply.now_ms) < 1000
    raw = await hot.settle(settlement(record, "r1", Amounts(1, 10, 5)))
    assert scripts.decode_settle(raw).status is SettleStatus.RESOLVED
    again = await hot.settle_again(settlement(record, "r1", Amounts(1, 10, 5)))
    assert again.status is SettleStatus.DUPLICATE
    assert len(await redis.xrange(keyspace.events(3))) == 1


async def test_a_settlement_is_on_its_way_before_the_call_returns(
    hot: HotState, record: KeyRecord, redis: redis_asyncio.Redis
) -> None:
    await hot.reserve(3, "r1", scripts.scope_of(record), Amounts(1, 60, 0), 1000)
    protocol = hot._connection._protocol
    assert protocol is not None
    reply = hot.settle(settlement(record, "r1", Amounts(1, 10, 5)))
    assert protocol._outbox == []
    await reply


async def test_scripts_that_redis_lost_are_sent_along(
    hot: HotState, record: KeyRecord, redis: redis_asyncio.Redis
) -> None:
    scope = scripts.scope_of(record)
    await redis.script_flush()
    assert (await hot.reserve(3, "r1", scope, Amounts(1, 1, 0), 1000)).status is ReserveStatus.ADMITTED
    await redis.script_flush()
    with pytest.raises(CommandFailed):
        await hot.settle(settlement(record, "r1", Amounts(1, 1, 0)))
    assert (await hot.settle_again(settlement(record, "r1", Amounts(1, 1, 0)))).status is SettleStatus.RESOLVED


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
    busy = HotState(redis_url, 1000, 20, round_trips)
    await busy.start()
    for _ in range(30):
        busy.count_refusal(3, record.id, 429)
    await busy.close()


async def test_without_redis_everything_says_so_at_once(round_trips: Histogram, record: KeyRecord) -> None:
    away = HotState("unix:///nonexistent.sock", 200, 10, round_trips)
    await away.start()
    assert not away.is_connected
    assert abs(away.now_ms() - time.time() * 1000) < 5000
    with pytest.raises(StoreUnavailable):
        await away.lookup([DIGEST])
    with pytest.raises(StoreUnavailable):
        await away.reserve(3, "r", scripts.scope_of(record), Amounts(1, 1, 0), 1000)
    with pytest.raises(StoreUnavailable):
        away.settle(settlement(record, "r", Amounts()))
    away.count_refusal(3, record.id, 429)
    await away.close()
