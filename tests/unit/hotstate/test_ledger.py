import pytest
import redis.asyncio as redis_asyncio

from edgeproxy.control.keys import create_key
from edgeproxy.domain.reservations import LedgerStatus
from edgeproxy.errors import OperatorError, StoreUnavailable
from edgeproxy.hotstate import keyspace
from edgeproxy.hotstate.calling import Caller
from edgeproxy.hotstate.ledger import HotLedger


@pytest.fixture
async def record(control):
    key = (await create_key(control, name="prepaid", limits=["tokens=1000/1h"], prepaid=True)).key
    return key.record(control.partitions)


@pytest.fixture
def hot(redis):
    return HotLedger(Caller(redis))


async def test_entries_are_applied_once_and_in_order(control, hot, record):
    at = (record.partition, record.id)
    assert await hot.credit(*at, 2, 5) == (LedgerStatus.GAP, 0)
    assert await hot.credit(*at, 1, 100) == (LedgerStatus.APPLIED, 1)
    assert await hot.credit(*at, 1, 100) == (LedgerStatus.DUPLICATE, 1)
    assert await hot.adjust(*at, 2, 1, 30, 4) == (LedgerStatus.APPLIED, 2)
    assert await hot.adjust(*at, 3, 0, -10, -1) == (LedgerStatus.APPLIED, 3)
    assert await hot.adjust(*at, 2, 1, 30, 4) == (LedgerStatus.DUPLICATE, 3)
    assert await hot.credit(*at, 9, 5) == (LedgerStatus.GAP, 3)
    counted = await control.publishing.inspect(record)
    assert (counted.balance, counted.ledger) == (100 - 34 + 11, 3)
    assert (counted.totals.requests, counted.totals.input_tokens, counted.totals.output_tokens) == (1, 20, 3)
    assert counted.windows[0].used == 34


async def test_a_key_that_is_not_published_takes_nothing(redis, hot, record):
    await redis.flushdb()
    assert await hot.credit(record.partition, record.id, 1, 5) == (LedgerStatus.UNPUBLISHED, 0)
    assert await hot.adjust(record.partition, record.id, 1, 1, 1, 1) == (LedgerStatus.UNPUBLISHED, 0)
    assert await redis.dbsize() == 0


async def test_counters_of_another_version_are_said_to_be_so(redis, hot, record):
    await redis.set(keyspace.state(record.partition, record.id), b"\x63\x01\x02")
    with pytest.raises(OperatorError, match="incompatible version"):
        await hot.credit(record.partition, record.id, 1, 5)


async def test_a_redis_that_is_away_is_unavailable(record):
    async with redis_asyncio.Redis.from_url("unix:///nonexistent/redis.sock", retry=None) as client:
        with pytest.raises(StoreUnavailable, match=r"^redis$"):
            await HotLedger(Caller(client)).credit(record.partition, record.id, 1, 5)
