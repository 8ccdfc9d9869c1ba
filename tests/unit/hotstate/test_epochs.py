import pytest

from edgeproxy.errors import OperatorError, StoreUnavailable
from edgeproxy.hotstate import keyspace
from edgeproxy.hotstate.calling import Caller
from edgeproxy.hotstate.epochs import Epoch, Epochs, Standing, decode_epoch, encode_epoch


@pytest.fixture
def epochs(redis):
    return Epochs(Caller(redis), 3)


async def test_a_partition_is_open_on_the_servers_that_its_epoch_names(redis, epochs):
    run_id = (await redis.info("server"))["run_id"]
    assert await epochs.look() == [Standing(partition, run_id, None) for partition in range(3)]
    assert not any(standing.is_open for standing in await epochs.look())
    named, other = Epoch(("another", run_id), 7), Epoch(("another",), 7)
    await epochs.write({0: named, 1: other, 2: named})
    assert [standing.is_open for standing in await epochs.look()] == [True, False, True]
    await redis.delete(keyspace.epoch(0))
    assert [standing.is_open for standing in await epochs.look()] == [False, False, True]


async def test_what_is_written_is_read(redis, epochs):
    epoch = Epoch(("a" * 40, "b" * 40), 1_700_000_000_000)
    assert decode_epoch(encode_epoch(epoch)) == epoch
    await epochs.write({1: epoch})
    assert (await epochs.look())[1].epoch == epoch
    assert decode_epoch(await redis.get(keyspace.epoch(1))) == epoch


@pytest.mark.parametrize(
    "raw",
    [
        *(None, b"", b"x", b"1", b"[]", b"null", b"{}", b"\xff"),
        *(b'{"run_ids": "abc", "opened_ms": 1}', b'{"run_ids": [1], "opened_ms": 1}'),
        *(b'{"run_ids": [""], "opened_ms": 1}', b'{"run_ids": ["a"]}', b'{"run_ids": ["a"], "opened_ms": "1"}'),
        *(b'{"run_ids": ["a"], "opened_ms": true}', b'{"run_ids": ["a"], "opened_ms": -1}'),
    ],
)
def test_anything_else_opens_nothing(raw):
    assert decode_epoch(raw) is None


async def test_a_redis_that_is_away_is_unavailable(control_without_redis):
    epochs = Epochs(control_without_redis.caller, 2)
    with pytest.raises(StoreUnavailable):
        await epochs.look()
    with pytest.raises(StoreUnavailable):
        await epochs.write({0: Epoch(("a",), 1)})


@pytest.mark.parametrize(
    ("setting", "wrong", "remedy"),
    [
        ("appendonly", "no", "set appendonly yes"),
        ("maxmemory-policy", "allkeys-lru", "set maxmemory-policy noeviction"),
        ("maxmemory-policy", "volatile-ttl", "set maxmemory-policy noeviction"),
    ],
)
async def test_a_server_that_forgets_is_refused_with_the_remedy(redis, epochs, setting, wrong, remedy):
    await epochs.refuse_forgetful()
    before = (await redis.config_get(setting))[setting]
    await redis.config_set(setting, wrong)
    try:
        with pytest.raises(OperatorError, match=remedy):
            await epochs.refuse_forgetful()
    finally:
        await redis.config_set(setting, before)
    await epochs.refuse_forgetful()
