"""The control plane's way into Redis: scripts that Redis lost are loaded again, and errors of the library are ours."""

import pytest
from redis.asyncio import Redis

from edgeproxy.errors import StoreUnavailable
from edgeproxy.hotstate import scripts
from edgeproxy.hotstate.calling import Caller


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
