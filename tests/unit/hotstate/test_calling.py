"""The control plane's way into Redis: scripts that Redis lost are loaded again, and errors of the library are ours."""

import pytest
from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster

from edgeproxy.errors import StoreUnavailable
from edgeproxy.hotstate import scripts
from edgeproxy.hotstate.calling import Caller, open_client


async def test_a_script_that_redis_has_lost_is_loaded_again(redis):
    caller = Caller(redis)
    await redis.execute_command("SCRIPT FLUSH")
    for _ in range(2):
        reply = await caller.run("refusal", scripts.refusal_args(1, "key", 429, now_ms=0))
        assert scripts.decode_refusal(reply) is scripts.RefusalStatus.COUNTED


async def test_a_command_that_redis_refuses_says_nothing_of_its_arguments(redis):
    with pytest.raises(StoreUnavailable) as caught:
        await Caller(redis).command("INCR", "key", "secret")
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


async def test_a_redis_that_is_away_is_unavailable():
    async with Redis(host="127.0.0.1", port=1) as client:
        with pytest.raises(StoreUnavailable):
            await Caller(client).command("PING")


async def test_a_client_is_of_what_the_address_names(redis_url):
    async with open_client(redis_url, 1.0) as client:
        assert isinstance(client, Redis)
        assert await Caller(client).command("PING")


async def test_a_cluster_that_is_away_is_unavailable_when_it_is_asked():
    async with open_client("redis+cluster://:p@127.0.0.1:1,127.0.0.1:2", 0.2) as client:
        assert isinstance(client, RedisCluster)
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                await Caller(client).command("GET", "a")
            with pytest.raises(StoreUnavailable):
                await Caller(client).run_each("refusal", [scripts.refusal_args(1, "key", 429)])


async def test_many_calls_at_once_load_a_lost_script_once(redis):
    caller = Caller(redis)
    await redis.execute_command("SCRIPT FLUSH")
    calls = [scripts.refusal_args(1, f"key{number}", 429, now_ms=0) for number in range(3)]
    for _ in range(2):
        replies = await caller.run_each("refusal", calls)
        assert [scripts.decode_refusal(reply) for reply in replies] == [scripts.RefusalStatus.COUNTED] * 3
    assert await caller.run_each("refusal", []) == []


async def test_many_commands_at_once_answer_in_their_order(redis):
    caller = Caller(redis)
    assert await caller.commands([("SET", "a", 1), ("GET", "a"), ("GET", "b")]) == [True, b"1", None]
    with pytest.raises(StoreUnavailable):
        await caller.commands([("SET", "a", "x"), ("INCR", "a"), ("GET", "a")])
