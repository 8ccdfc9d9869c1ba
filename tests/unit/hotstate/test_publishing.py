"""Publishing, erasing and inspecting keys over a real Redis."""

import asyncio
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from edgeproxy.domain.keys import KeyId, KeyRecord, KeyStatus, Mode
from edgeproxy.domain.limits import Amounts, Dimension, Limit, parse_limits
from edgeproxy.domain.reservations import Outcome, PublishStatus, WindowUsage
from edgeproxy.errors import OperatorError, StoreUnavailable
from edgeproxy.hotstate import scripts
from edgeproxy.hotstate.calling import Caller
from edgeproxy.hotstate.ledger import HotLedger
from edgeproxy.hotstate.publishing import Publishing

NOW = 1_700_000_000_000
RECORD = KeyRecord(
    id=KeyId("k"),
    version=1,
    status=KeyStatus.ACTIVE,
    partition=7,
    limits=parse_limits(["requests=5/1m", "tokens=100/1h"]),
    concurrency=3,
    expires_ms=NOW,
    models=("gpt-*",),
)


@pytest.fixture
def publishing(redis):
    return Publishing(Caller(redis))


@pytest.fixture
def use(redis):
    """Reserves and settles as a gateway does."""
    loaded = scripts.load()

    async def use(request_id: str, tokens: int, *, settle: bool = True) -> None:
        for script in loaded.values():
            await redis.script_load(script.source)
        scopes, amounts = [scripts.scope_of(RECORD)], Amounts(1, tokens, 0)
        arguments = scripts.reserve_args(7, request_id, scopes, amounts, 30_000, b"", now_ms=NOW)
        assert (await redis.execute_command(*loaded["reserve"].command(arguments)))[0] == 1
        if settle:
            arguments = scripts.settle_args(7, request_id, scopes, Outcome.POST, amounts, b"e", now_ms=NOW)
            assert (await redis.execute_command(*loaded["settle"].command(arguments)))[0] == 1

    return use


class TestPublish:
    async def test_a_published_key_is_known_and_counted(self, publishing):
        assert await publishing.publish(RECORD, "d") is PublishStatus.PUBLISHED
        assert await publishing.read_record("d") == RECORD
        usage = await publishing.inspect(RECORD)
        assert (usage.version, usage.status, usage.open) == (1, KeyStatus.ACTIVE, 0)
        assert [window.limit for window in usage.windows] == list(RECORD.limits)

    async def test_an_older_version_changes_nothing(self, publishing):
        newer = replace(RECORD, version=2, status=KeyStatus.REVOKED)
        await publishing.publish(newer, "d")
        assert await publishing.publish(RECORD, "d") is PublishStatus.KEPT
        assert await publishing.read_record("d") == newer
        assert (await publishing.inspect(RECORD)).status is KeyStatus.REVOKED

    async def test_a_publish_that_broke_off_in_the_middle_is_completed_by_the_next(self, publishing, redis):
        await publishing.publish(RECORD, "d")
        await redis.delete("key:d")
        assert await publishing.publish(RECORD, "d") is PublishStatus.KEPT
        assert await publishing.read_record("d") == RECORD

    async def test_of_many_at_once_the_newest_stays(self, publishing):
        versions = [replace(RECORD, version=version) for version in (3, 9, 1, 7, 5)]
        await asyncio.gather(*(publishing.publish(record, "d") for record in versions))
        assert await publishing.read_record("d") == versions[1]
        assert (await publishing.inspect(RECORD)).version == 9

    async def test_limits_that_cannot_hold_together_reach_nothing(self, publishing, redis):
        with pytest.raises(ValueError, match="two limits"):
            await publishing.publish(replace(RECORD, limits=RECORD.limits * 2), "d")
        assert await redis.keys() == []

    async def test_counters_of_an_incompatible_version_are_the_operators_affair(self, publishing, redis):
        await redis.set("{p07}:state:k", b"\x63")
        with pytest.raises(OperatorError, match="incompatible version"):
            await publishing.publish(RECORD, "d")
        with pytest.raises(OperatorError, match="incompatible version"):
            await publishing.inspect(RECORD)
        assert await redis.keys() == [b"{p07}:state:k"]

    async def test_scripts_that_redis_lost_are_loaded_again(self, publishing, redis):
        await publishing.publish(RECORD, "d")
        await redis.script_flush()
        assert await publishing.publish(RECORD, "d") is PublishStatus.KEPT


class TestInspect:
    async def test_it_tells_totals_and_windows_of_now(self, publishing, use):
        await publishing.publish(RECORD, "d")
        await use("a", 30)
        await use("b", 50, settle=False)
        usage = await publishing.inspect(RECORD, NOW + 1_000)
        assert (usage.totals, usage.last_used_ms, usage.open) == (Amounts(1, 30, 0), NOW, 1)
        assert usage.windows == (
            WindowUsage(Limit(Dimension.REQUESTS, 5, 60_000), 2, 3, 60_000),
            WindowUsage(Limit(Dimension.TOKENS, 100, 3_600_000), 80, 20, 3_640_000 - 1_000),
        )
        assert [window.used for window in (await publishing.inspect(RECORD, NOW + 61_000)).windows] == [0, 80]

    async def test_windows_are_those_of_the_version_that_holds(self, publishing):
        await publishing.publish(replace(RECORD, version=2, limits=RECORD.limits[1:]), "d")
        assert [window.limit for window in (await publishing.inspect(RECORD)).windows] == [RECORD.limits[1]]

    async def test_a_balance_and_what_is_held_of_it_are_told_of_a_prepaid_key(self, publishing, redis, use):
        await publishing.publish(replace(RECORD, prepaid=True, mode=Mode.OBSERVE), "d")
        await HotLedger(Caller(redis)).credit(RECORD.partition, RECORD.id, 1, 70)
        await use("a", 30)
        await use("b", 25, settle=False)
        usage = await publishing.inspect(RECORD, NOW)
        assert (usage.prepaid, usage.balance, usage.held, usage.ledger) == (True, 40, 25, 1)
        assert usage.mode is Mode.OBSERVE

    async def test_an_unpublished_key_has_no_usage(self, publishing):
        assert await publishing.inspect(RECORD) is None
        assert await publishing.read_record("d") is None

    async def test_what_is_no_record_is_told(self, publishing, redis):
        await redis.set("key:d", b"{}")
        with pytest.raises(ValueError, match="not a published key record"):
            await publishing.read_record("d")


class TestErase:
    async def test_nothing_of_the_key_stays(self, publishing, redis, use):
        await publishing.publish(RECORD, "d")
        await use("a", 30)
        await publishing.erase(RECORD.id, RECORD.partition, "d")
        assert await publishing.inspect(RECORD) is None
        assert sorted(await redis.keys()) == [b"{p07}:events", b"{p07}:reservation:a"]

    async def test_erasing_twice_is_erasing(self, publishing):
        await publishing.publish(RECORD, "d")
        for _ in range(2):
            await publishing.erase(RECORD.id, RECORD.partition, "d")
        assert await publishing.read_record("d") is None


class TestInstall:
    async def test_what_is_fixed_first_holds(self, publishing):
        await publishing.install(16, "aa")
        await publishing.install(16, "aa")
        with pytest.raises(OperatorError, match=r"with 16 partitions .* says 32: set stores.partitions = 16"):
            await publishing.install(32, "aa")
        with pytest.raises(OperatorError, match="another pepper"):
            await publishing.install(16, "bb")
        await publishing.install(16, "aa")

    async def test_a_pepper_may_follow_the_previous_one(self, publishing):
        await publishing.install(16, "aa")
        await publishing.install(16, "bb", previous_fingerprint="aa")
        await publishing.install(16, "bb", previous_fingerprint="aa")
        with pytest.raises(OperatorError, match="another pepper"):
            await publishing.install(16, "aa")

    @pytest.mark.parametrize("there", [b"", b"x", b"[]", b"{}", b"3", b'{"partitions":16}'])
    async def test_something_else_under_our_name_is_not_overwritten(self, publishing, redis, there):
        await redis.set("install", there)
        with pytest.raises(OperatorError, match="database of its own"):
            await publishing.install(16, "aa")
        assert await redis.get("install") == there


CALLS = {
    "publish": lambda publishing: publishing.publish(RECORD, "d"),
    "inspect": lambda publishing: publishing.inspect(RECORD),
    "read_record": lambda publishing: publishing.read_record("d"),
    "install": lambda publishing: publishing.install(16, "aa"),
    "erase": lambda publishing: publishing.erase(RECORD.id, 7, "d"),
}


@pytest.mark.parametrize("name", CALLS)
async def test_when_nobody_listens_redis_is_unavailable(tmp_path, name):
    async with Redis.from_url(f"unix://{tmp_path}/redis.sock") as client:
        with pytest.raises(StoreUnavailable) as caught:
            await CALLS[name](Publishing(Caller(client)))
    assert str(caught.value) == caught.value.store == "redis"
    assert caught.value.__suppress_context__  # the library's text names the address


@pytest.mark.parametrize("name", [name for name in CALLS if name != "erase"])  # which deletes whatever there is
async def test_when_redis_refuses_it_is_unavailable(publishing, redis, name):
    for key in ("{p07}:state:k", "key:d", "install"):
        await redis.rpush(key, "a list")
    with pytest.raises(StoreUnavailable):
        await CALLS[name](publishing)
