import asyncio
import time
from dataclasses import replace

import pytest

from edgeproxy.control import keys as module
from edgeproxy.control.key_list import show_key
from edgeproxy.control.key_rules import KeyChanges
from edgeproxy.control.keys import create_key, delete_key, revoke_key, set_key
from edgeproxy.control.publish import publish_pending
from edgeproxy.domain.keys import KeyStatus, Mode, OnLimit, Reserve, decode_record, digest, is_well_formed, partition_of
from edgeproxy.domain.reservations import ReserveStatus
from edgeproxy.errors import OperatorError, StoreUnavailable
from edgeproxy.hotstate import keyspace
from edgeproxy.jobs.flush import Flusher
from edgeproxy.metrics import Metrics
from edgeproxy.store.database import connect

HOUR_MS = 3_600_000
TABLES = ("keys", "usage_events", "usage_daily", "refusals", "dead_letters", "outbox", "usage_totals", "ledger")


@pytest.fixture
async def issued(control):
    return await create_key(control, name="build", limits=["requests=50/1m", "tokens=1000/1h"], concurrency=2)


@pytest.fixture
def held(rows):
    """Return how many rows each table holds."""

    async def count():
        return {table: (await rows(f"SELECT count(*) AS n FROM {table}"))[0]["n"] for table in TABLES}  # noqa: S608

    return count


async def record_in_redis(redis, key):
    raw = await redis.get(keyspace.key_record(key.digest))
    return None if raw is None else decode_record(raw)


class TestCreate:
    async def test_a_new_key_can_be_used_at_once(self, control, redis, request_with, held):
        expires_ms = int(time.time() * 1000) + HOUR_MS
        issued = await create_key(
            control, name="build", limits=["tokens=1000/1m"], concurrency=8, expires_ms=expires_ms, models=["claude-*"]
        )
        assert is_well_formed(issued.secret, "ep-")
        assert issued.published
        assert issued.key.digest == digest(issued.secret, control.peppers[0])
        assert await record_in_redis(redis, issued.key) == issued.key.record(control.partitions)
        assert (await request_with(issued.key)).key_id == issued.key.id
        assert await held() == dict.fromkeys(TABLES, 0) | {"keys": 1}

    async def test_it_is_printed_under_stable_names(self, issued):
        shown = issued.to_json()
        assert list(shown)[:2] == ["id", "key"]
        assert shown == {
            "id": issued.key.id,
            "key": issued.secret,
            "name": "build",
            "prefix": issued.secret[:11],
            "status": "active",
            "version": 1,
            "limits": ["requests=50/1m", "tokens=1000/1h"],
            "concurrency": 2,
            "models": [],
            "mode": "enforce",
            "reserve": "estimate",
            "on_limit": "refuse",
            "prepaid": False,
            "created": shown["created"],
            "expires": None,
            "revoked": None,
            "published": True,
        }

    async def test_the_secret_is_nowhere_but_in_the_answer(self, issued, redis, rows):
        unknown = issued.secret.removeprefix(issued.key.prefix)
        assert unknown not in repr(issued)
        assert unknown not in str([dict(row) for row in await rows("SELECT * FROM keys")])
        for name in await redis.keys():
            kind = await redis.type(name)
            assert unknown.encode() not in name
            assert kind != b"string" or unknown.encode() not in await redis.get(name)

    async def test_no_two_keys_are_alike(self, control):
        each = [await create_key(control, name="same") for _ in range(5)]
        assert len({one.secret for one in each}) == len({one.key.id for one in each}) == 5

    @pytest.mark.parametrize(
        "parts",
        [
            {"name": ""},
            {"limits": ["tokens=x/1m"]},
            {"concurrency": 0},
            {"expires_ms": 1_000},
            {"models": ["a b"]},
            {"mode": Mode.OBSERVE},
            {"reserve": Reserve.STRICT, "limits": ["requests=1/1m"]},
            {"on_limit": OnLimit.SHRINK, "limits": ["input_tokens=1/1m"]},
        ],
        ids=str,
    )
    async def test_a_bad_part_is_refused_and_nothing_is_stored(self, control, held, redis, parts):
        with pytest.raises(OperatorError) as caught:
            await create_key(control, **({"name": "x"} | parts))
        assert "\n" not in str(caught.value)
        assert await held() == dict.fromkeys(TABLES, 0)
        assert await redis.dbsize() == 0

    async def test_without_redis_it_exists_and_waits_to_be_published(self, control, control_without_redis, redis, held):
        issued = await create_key(control_without_redis, name="later")
        assert not issued.published
        assert not issued.to_json()["published"]
        assert (await held())["outbox"] == 1
        assert await publish_pending(control) == 1
        assert await record_in_redis(redis, issued.key) == issued.key.record(control.partitions)
        assert (await held())["outbox"] == 0

    async def test_without_postgresql_there_is_no_key(self, control, migrated_url, redis):
        away = await connect(migrated_url)
        await away.close()
        with pytest.raises(StoreUnavailable, match=r"^postgresql$"):
            await create_key(replace(control, database=away), name="none")
        assert await redis.dbsize() == 0


class TestSet:
    async def test_a_change_holds_from_the_next_request_on(self, control, issued, redis, request_with):
        await request_with(issued.key)
        row = await set_key(control, issued.key.id, KeyChanges(limits=["requests=1/1m"], name="other"))
        assert (row.key.version, row.key.name) == (2, "other")
        assert await record_in_redis(redis, row.key) == row.key.record(control.partitions)
        stale = await request_with(issued.key)
        assert stale.status is ReserveStatus.STALE
        refused = await request_with(row.key)  # the window stays, with the request that was before
        assert refused.status is ReserveStatus.REFUSED

    async def test_what_is_not_named_stays(self, control, issued):
        row = await set_key(control, issued.key.id, KeyChanges(concurrency=None))
        assert row.key == replace(issued.key, version=2, concurrency=None)
        row = await set_key(control, issued.key.id, KeyChanges(models=["gpt-*"], concurrency=3))
        assert row.key == replace(issued.key, version=3, concurrency=3, models=("gpt-*",))

    async def test_what_it_does_at_a_limit_is_changed_and_published(self, control, issued, redis):
        changes = KeyChanges(mode=Mode.OBSERVE, reserve=Reserve.STRICT, on_limit=OnLimit.SHRINK)
        row = await set_key(control, issued.key.id, changes)
        assert row.key == replace(
            issued.key, version=2, mode=Mode.OBSERVE, reserve=Reserve.STRICT, on_limit=OnLimit.SHRINK
        )
        assert await record_in_redis(redis, row.key) == row.key.record(control.partitions)
        assert row.counted.mode is Mode.OBSERVE

    async def test_a_limit_that_something_needs_is_not_taken_away(self, control, issued):
        await set_key(control, issued.key.id, KeyChanges(reserve=Reserve.STRICT))
        with pytest.raises(OperatorError, match="reserve strict needs a limit of tokens"):
            await set_key(control, issued.key.id, KeyChanges(remove_limits=["tokens/1h"]))
        changes = KeyChanges(remove_limits=["tokens/1h"], reserve=Reserve.ESTIMATE)
        assert len((await set_key(control, issued.key.id, changes)).key.limits) == 1

    async def test_an_expiry_is_set_and_taken_back(self, control, issued):
        expires_ms = control.now_ms() + HOUR_MS
        assert (await set_key(control, issued.key.id, KeyChanges(expires_ms=expires_ms))).key.expires_ms == expires_ms
        assert (await set_key(control, issued.key.id, KeyChanges(expires_ms=None))).key.expires_ms is None

    async def test_a_change_that_changes_nothing_is_no_new_version(self, control, issued):
        row = await set_key(control, issued.key.id, KeyChanges(name="build"))
        assert row.key == issued.key

    async def test_changes_at_once_all_take_place(self, control, issued, redis):
        await asyncio.gather(
            *(set_key(control, issued.key.id, KeyChanges(add_limits=[f"tokens=5/{n}h"])) for n in range(2, 7))
        )
        row = (await show_key(control, issued.key.id)).row
        assert row.key.version == 6
        assert len(row.key.limits) == 7
        assert await record_in_redis(redis, row.key) == row.key.record(control.partitions)

    @pytest.mark.parametrize(
        "changes",
        [
            KeyChanges(name="\n"),
            KeyChanges(limits=["x"]),
            KeyChanges(remove_limits=["tokens/1m"]),
            KeyChanges(concurrency=0),
            KeyChanges(expires_ms=1),
            KeyChanges(models=["?"]),
            KeyChanges(limits=["requests=1/1m"], on_limit=OnLimit.SHRINK),
        ],
        ids=repr,
    )
    async def test_a_bad_part_is_refused_and_nothing_changes(self, control, issued, changes, held):
        with pytest.raises(OperatorError):
            await set_key(control, issued.key.id, changes)
        assert (await show_key(control, issued.key.id)).row.key == issued.key
        assert (await held())["outbox"] == 0

    async def test_without_redis_it_says_that_the_change_does_not_hold_yet(
        self, control, control_without_redis, issued, redis
    ):
        changes = KeyChanges(concurrency=7)
        with pytest.raises(OperatorError, match="stored but does not hold yet, because redis did not answer"):
            await set_key(control_without_redis, issued.key.id, changes)
        assert await record_in_redis(redis, issued.key) == issued.key.record(control.partitions)
        row = await set_key(control, issued.key.id, changes)  # repeated, as the message says
        assert row.key == replace(issued.key, version=2, concurrency=7)
        assert await record_in_redis(redis, row.key) == row.key.record(control.partitions)

    async def test_a_revoked_key_is_not_changed(self, control, issued):
        await revoke_key(control, issued.key.id)
        with pytest.raises(OperatorError, match="revoked, for good"):
            await set_key(control, issued.key.id, KeyChanges(name="again"))


class TestRevoke:
    async def test_no_request_is_admitted_after_it(self, control, issued, request_with, redis):
        await request_with(issued.key)
        row = await revoke_key(control, issued.key.id)
        assert (row.status, row.key.version) == ("revoked", 2)
        assert row.key.revoked_ms is not None
        for key in (issued.key, row.key):
            refused = await request_with(key)
            assert refused.status in (ReserveStatus.DISABLED, ReserveStatus.STALE)
        assert (await record_in_redis(redis, row.key)).status is KeyStatus.REVOKED

    async def test_it_may_be_repeated(self, control, issued):
        first = await revoke_key(control, issued.key.id)
        assert (await revoke_key(control, issued.key.id)).key == first.key

    async def test_without_redis_it_does_not_pretend(self, control, control_without_redis, issued, held, redis):
        with pytest.raises(OperatorError, match="does not hold yet"):
            await revoke_key(control_without_redis, issued.key.id)
        assert (await held())["outbox"] == 1
        await revoke_key(control, issued.key.id)
        assert (await record_in_redis(redis, issued.key)).status is KeyStatus.REVOKED
        assert (await held())["outbox"] == 0

    @pytest.mark.parametrize("ref", ["nobody", "ep-00000000", "0190a000-0000-7000-8000-000000000001", "", "a\nb"])
    async def test_a_key_that_is_not_there_is_said_so_in_one_line(self, control, issued, ref):
        with pytest.raises(OperatorError, match=r"^(no key has this|a key is named by)") as caught:
            await revoke_key(control, ref)
        assert "\n" not in str(caught.value)


class TestDelete:
    async def test_nothing_is_left_of_it_in_either_store_and_all_is_left_of_others(
        self, control, issued, redis, request_with, held, rows
    ):
        other = await create_key(control, name="other")
        flusher = Flusher(control.database, control.streams, Metrics(), batch=100, after_ms=0)
        for key in (issued.key, other.key):
            for _ in range(3):
                await request_with(key)
            await redis.hset(keyspace.refusals(partition_of(key.id, control.partitions)), f"{key.id}:29000000:429", 2)
            await rows("INSERT INTO refusals VALUES ($1, now(), 429, 1)", key.id)
            await rows("INSERT INTO ledger (key_id, seq, kind, tokens) VALUES ($1, 1, 'credit', 5)", key.id)
            await rows("INSERT INTO dead_letters VALUES (0, $1, $2, 'refused')", key.prefix, key.id)
        await flusher.flush_once()
        for key in (issued.key, other.key):
            await request_with(key)  # waits in the stream while the key is deleted
        row = await delete_key(control, "build")
        assert (row.key.id, row.status, row.counted.totals.requests) == (issued.key.id, "revoked", 4)
        assert await held() == dict.fromkeys(TABLES, 1) | {"usage_events": 3, "outbox": 0}
        texts = [await redis.dump(name) + name for name in await redis.keys("*")]
        left = b"".join(texts)
        assert issued.key.digest.encode() not in left
        names = [name for name in await redis.keys("*") if b"reservation" not in name]
        assert not [name for name in names if issued.key.id.encode() in name]
        assert await control.streams.oldest_ms() is not None  # the other key's event
        assert (await flusher.flush_once()).dropped == 0
        assert (await held())["usage_events"] == 4

    async def test_open_requests_are_waited_for(self, control, issued, request_with, monkeypatch):
        await request_with(issued.key, settle=False)
        monkeypatch.setattr(module, "OPEN_WAIT_S", 0.2)
        begun = time.monotonic()
        row = await delete_key(control, issued.key.id)
        assert row.counted.open == 1
        assert 0.15 < time.monotonic() - begun < 3

    async def test_an_event_that_settles_late_is_dropped_by_the_flush(
        self, control, issued, make_event, add_events, flusher, held
    ):
        await delete_key(control, issued.key.id)
        await add_events(make_event(issued.key.id))
        flushed = await flusher.flush_once()
        assert (flushed.dropped, flushed.stored) == (1, 0)
        assert await held() == dict.fromkeys(TABLES, 0)

    async def test_without_redis_nothing_is_deleted(self, control, control_without_redis, issued, held):
        with pytest.raises(OperatorError, match="does not hold yet"):
            await delete_key(control_without_redis, issued.key.id)
        assert (await held())["keys"] == 1
        assert (await delete_key(control, issued.key.id)).key.id == issued.key.id

    async def test_when_redis_goes_away_in_between_jobs_remove_the_rest(
        self, control, control_without_redis, issued, held, redis, request_with
    ):
        await request_with(issued.key)
        half = replace(control, streams=control_without_redis.streams)  # what removes from the event streams is away
        with pytest.raises(OperatorError, match="deleted, but redis did not answer"):
            await delete_key(half, issued.key.id)
        assert await held() == dict.fromkeys(TABLES, 0) | {"outbox": 1}
        assert await publish_pending(control) == 1
        assert await held() == dict.fromkeys(TABLES, 0)
        assert await redis.xlen(keyspace.events(partition_of(issued.key.id, control.partitions))) == 0

    async def test_a_flush_at_the_same_time_leaves_nothing_either(
        self, control, make_flusher, make_event, add_events, held
    ):
        """An erasure and a flush of the key's events race; whoever is first, nothing remains."""
        for _ in range(5):
            key = (await create_key(control, name="raced")).key
            await add_events(*(make_event(key.id) for _ in range(200)))
            flusher = make_flusher(batch=20)
            await asyncio.gather(delete_key(control, key.id), flusher.flush_once(), flusher.flush_once())
            await flusher.flush_once()
            assert await held() == dict.fromkeys(TABLES, 0)

    async def test_a_second_deletion_finds_no_key(self, control, issued):
        await delete_key(control, issued.key.id)
        with pytest.raises(OperatorError, match="no key has this"):
            await delete_key(control, issued.key.id)
