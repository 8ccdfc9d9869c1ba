import pytest

from edgeproxy.errors import StoreUnavailable
from edgeproxy.hotstate.calling import Caller
from edgeproxy.hotstate.names import sample


async def test_all_names_are_seen_where_there_are_few(redis):
    await redis.mset({"install": 1, "{p03}:epoch": 1, b"\xff": 1})
    assert sorted(await sample(Caller(redis), 3, 20)) == ["install", "{p03}:epoch", "\ufffd"]


async def test_of_many_only_so_many_are_looked_at(redis):
    await redis.mset({f"key:{number}": 1 for number in range(5000)})
    assert len(set(await sample(Caller(redis), 0, 2, at_once=100))) < 1000
    assert len(set(await sample(Caller(redis), 0, 100))) == 5000


async def test_a_redis_that_is_away_is_told(control_without_redis):
    with pytest.raises(StoreUnavailable):
        await sample(control_without_redis.caller, 0, 1)
