import pytest
import redis.asyncio as redis_asyncio

from edgeproxy.control.keys import create_key
from edgeproxy.domain.limits import Amounts
from edgeproxy.domain.reservations import ReapStatus, SettleStatus, encode_note
from edgeproxy.errors import StoreUnavailable
from edgeproxy.hotstate import keyspace
from edgeproxy.hotstate.calling import Caller
from edgeproxy.hotstate.leases import Leases
from edgeproxy.hotstate.scripts import scope_of


@pytest.fixture
async def key(control):
    return (await create_key(control, name="open", limits=["tokens=1000/1h"])).key


@pytest.fixture
def record(control, key):
    return key.record(control.partitions)


@pytest.fixture
def leases(redis):
    return Leases(Caller(redis))


async def test_those_are_found_whose_lease_is_over_the_longest_over_first(redis, leases):
    await redis.zadd(keyspace.leases(2), {"third": 3000, "first": 1000, "second": 2000})
    assert await leases.expired(2, 2000, 10) == ["first", "second"]
    assert await leases.expired(2, 9000, 1) == ["first"]
    assert await leases.expired(2, 999, 10) == []
    assert await leases.expired(1, 9000, 10) == []


async def test_all_are_found_however_many_there_are(redis, leases):
    await redis.zadd(keyspace.leases(0), {f"request {n}": n for n in range(1000)})
    after, found = await leases.all(0, 0, 100)
    assert len(found) < 500
    while after:
        after, more = await leases.all(0, after, 100)
        found += more
    assert set(found) == {f"request {n}" for n in range(1000)}
    assert await leases.all(1, 0, 100) == (0, [])


async def test_an_open_reservation_is_seen_as_it_is(leases, record, key, request_with, control):
    event = await request_with(key, settle=False)
    pending = await leases.examine(record.partition, event.id)
    assert (pending.reserved, pending.so_far) == (Amounts(1, 13, 7), Amounts())
    assert pending.note == encode_note(key.id, "gpt-*")
    assert 0 <= await control.streams.now_ms() - pending.at_ms < 60_000
    assert [(scope.version, list(scope.buckets)) for scope in pending.scopes] == [(1, ["tokens/3600000"])]


async def test_what_is_settled_or_never_was_is_not_seen(leases, record, key, request_with):
    event = await request_with(key)
    assert await leases.examine(record.partition, event.id) is None
    assert await leases.examine(record.partition, "never") is None


async def test_only_a_lease_that_is_over_is_reaped_and_once(redis, leases, record, key, request_with, control):
    event = await request_with(key, settle=False)
    arguments = (record.partition, event.id, [scope_of(record)], Amounts(1, 5, 2), b"event")
    assert await leases.reap(*arguments) is ReapStatus.ALIVE
    await redis.zadd(keyspace.leases(record.partition), {event.id: 1})
    assert await leases.reap(*arguments) is ReapStatus.RESOLVED
    assert await leases.reap(*arguments) is ReapStatus.DUPLICATE
    counted = await control.publishing.inspect(record)
    assert (counted.open, counted.totals) == (0, Amounts(1, 5, 2))
    assert await redis.zcard(keyspace.leases(record.partition)) == 0
    assert [entry.payload for entry in await control.streams.read(record.partition, 2**42, 9)] == [b"event"]


async def test_a_cancelled_reservation_leaves_no_trace(leases, record, key, request_with, control):
    event = await request_with(key, settle=False)
    assert await leases.cancel(record.partition, event.id, [scope_of(record)]) is SettleStatus.RESOLVED
    counted = await control.publishing.inspect(record)
    assert (counted.open, counted.totals, counted.windows[0].used) == (0, Amounts(), 0)
    assert await control.streams.read(record.partition, 2**42, 9) == []


async def test_a_redis_that_is_away_is_unavailable():
    async with redis_asyncio.Redis.from_url("unix:///nonexistent/redis.sock", retry=None) as client:
        away = Leases(Caller(client))
        reap, cancel = away.reap(0, "x", (), Amounts(), b""), away.cancel(0, "x", ())
        for call in (away.expired(0, 1, 1), away.all(0, 0, 1), away.examine(0, "x"), reap, cancel):
            with pytest.raises(StoreUnavailable, match=r"^redis$"):
                await call
