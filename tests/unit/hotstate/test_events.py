import asyncio

import pytest
import redis.asyncio as redis_asyncio

from edgeproxy.domain.keys import KeyId, partition_of
from edgeproxy.domain.usage import encode_event
from edgeproxy.errors import StoreUnavailable
from edgeproxy.hotstate import events as module
from edgeproxy.hotstate import keyspace, scripts
from edgeproxy.hotstate.calling import Caller
from edgeproxy.hotstate.events import Entry, EventStreams, Mark

PARTITIONS = 4
KEY = KeyId("0190a000-0000-7000-8000-000000000001")
HOME = partition_of(KEY, PARTITIONS)
OTHER = next(
    KeyId(f"0190a000-0000-7000-8000-{n:012x}")
    for n in range(2, 100)
    if partition_of(KeyId(f"0190a000-0000-7000-8000-{n:012x}"), PARTITIONS) == HOME
)


async def put(redis, entry_id, payload=b"x", partition=HOME):
    await redis.xadd(keyspace.events(partition), {"e": payload}, id=entry_id)


async def test_the_oldest_entries_up_to_a_time_are_read_in_order(redis, streams):
    for entry_id in ("1000-0", "1000-1", "2000-0", "2001-0"):
        await put(redis, entry_id, entry_id.encode())
    assert await streams.read(HOME, 2000, 10) == [
        Entry("1000-0", b"1000-0"),
        Entry("1000-1", b"1000-1"),
        Entry("2000-0", b"2000-0"),
    ]
    assert [entry.id for entry in await streams.read(HOME, 9999, 2)] == ["1000-0", "1000-1"]
    assert await streams.read(HOME, 999, 10) == []
    assert await streams.read((HOME + 1) % PARTITIONS, 9999, 10) == []
    assert [entry.id for entry in await streams.read_ahead(HOME, 2000, 1)] == ["2000-0"]
    assert [entry.id for entry in await streams.read_ahead(HOME, 2001, 9)] == ["2001-0"]


async def test_exactly_the_named_entries_are_removed(redis, streams):
    for entry_id in ("1-0", "2-0", "3-0"):
        await put(redis, entry_id)
    await streams.remove(HOME, ["2-0", "7-0"])
    await streams.remove(HOME, [])
    assert [entry.id for entry in await streams.read(HOME, 9, 10)] == ["1-0", "3-0"]


async def test_an_entry_without_the_field_has_an_empty_payload(redis, streams):
    await redis.xadd(keyspace.events(HOME), {"other": "x"}, id="1-0")
    assert await streams.read(HOME, 9, 10) == [Entry("1-0", b"")]


async def test_the_oldest_of_all_partitions_is_found(redis, streams):
    assert await streams.oldest_ms() is None
    await put(redis, "5000-0", partition=0)
    await put(redis, "3000-7", partition=2)
    assert await streams.oldest_ms() == 3000


async def test_time_is_that_of_redis(redis, streams):
    seconds, _ = await redis.time()
    assert 0 <= await streams.now_ms() - seconds * 1000 < 5000


async def test_the_events_of_one_key_are_removed_however_many_there_are(redis, streams, make_event, monkeypatch):
    monkeypatch.setattr(module, "_SCAN_COUNT", 3)
    payloads = [encode_event(make_event(key)) for key in [KEY, OTHER, OTHER] * 5] + [b"junk", b""]
    for number, payload in enumerate(payloads, start=1):
        await put(redis, f"{number}-0", payload)
    assert await streams.remove_of_key(HOME, KEY) == 5
    assert [entry.payload for entry in await streams.read(HOME, 99, 99)] == [
        payload for payload in payloads if KEY.encode() not in payload
    ]
    assert await streams.remove_of_key(HOME, KEY) == 0


async def correct(redis, entry_id, payload=b"x"):
    await redis.xadd(keyspace.corrections(HOME), {"e": payload}, id=entry_id)


async def test_corrections_are_read_up_to_a_mark_once_the_events_from_before_it_are_gone(redis, streams):
    await correct(redis, "1000-0", b"first")
    await correct(redis, "1001-0", b"second")
    await put(redis, "900-0")
    await put(redis, "5000-3")  # by a clock that was set back since
    mark = await streams.mark(HOME)
    assert (mark, mark.added_ms) == (Mark("1001-0", "5000-3"), 1001)
    await correct(redis, "1002-0")
    await put(redis, "5000-4")
    for event in ("900-0", "5000-3"):
        assert await streams.corrections(HOME, mark, 10) is None
        await streams.remove(HOME, [event])
    assert await streams.corrections(HOME, mark, 10) == [Entry("1000-0", b"first"), Entry("1001-0", b"second")]
    assert await streams.corrections(HOME, mark, 1) == [Entry("1000-0", b"first")]
    await streams.remove_corrections(HOME, ["1000-0", "1001-0"])
    await streams.remove_corrections(HOME, [])
    assert await streams.corrections(HOME, mark, 10) == []
    assert await streams.mark(HOME) == Mark("1002-0", "5000-4")


async def test_without_events_corrections_wait_for_nothing(redis, streams):
    assert await streams.mark(HOME) is None
    await correct(redis, "1000-0")
    mark = await streams.mark(HOME)
    assert mark == Mark("1000-0", None)
    await put(redis, "999-0")  # came after it, by a clock that was set back
    assert len(await streams.corrections(HOME, mark, 10)) == 1


async def test_a_keys_corrections_are_removed_with_its_events(redis, streams, make_event):
    for number, key in enumerate((KEY, OTHER, KEY), start=1):
        await correct(redis, f"{number}-0", encode_event(make_event(key)))
    await put(redis, "1-0", encode_event(make_event(KEY)))
    assert await streams.remove_of_key(HOME, KEY) == 3
    mark = await streams.mark(HOME)
    assert [entry.id for entry in await streams.corrections(HOME, mark, 9)] == ["2-0"]


async def test_an_empty_stream_has_nothing_to_remove(streams):
    assert await streams.remove_of_key(HOME, KEY) == 0


async def test_refusals_are_read_and_removed_by_name(redis, streams):
    script = scripts.load()["refusal"]
    await redis.script_load(script.source)
    for status in (429, 429, 403):
        await redis.execute_command(*script.command(scripts.refusal_args(HOME, KEY, status, now_ms=120_000)))
    assert await streams.refusals(HOME) == {f"{KEY}:2:429": 2, f"{KEY}:2:403": 1}
    await streams.remove_refusals(HOME, [f"{KEY}:2:429"])
    await streams.remove_refusals(HOME, [])
    assert await streams.refusals(HOME) == {f"{KEY}:2:403": 1}
    assert await streams.refusals((HOME + 1) % PARTITIONS) == {}


async def test_many_refusals_are_all_read(redis, streams):
    counts = {f"{KEY}:{minute}:429": minute + 1 for minute in range(3000)}
    await redis.hset(keyspace.refusals(HOME), mapping=counts)
    assert await streams.refusals(HOME) == counts


async def test_a_redis_that_is_away_is_unavailable():
    async with redis_asyncio.Redis.from_url("unix:///nonexistent/redis.sock", retry=None) as client:
        away = EventStreams(Caller(client), PARTITIONS)
        for call in (away.now_ms(), away.read(0, 1, 1), away.remove(0, ["1-0"]), away.oldest_ms(), away.refusals(0)):
            with pytest.raises(StoreUnavailable, match=r"^redis$"):
                await call


async def test_a_redis_that_is_frozen_is_unavailable(tmp_path):
    gone = asyncio.Event()

    async def silent(reader, writer):
        await reader.read()  # until the client gives up
        writer.close()
        await writer.wait_closed()
        gone.set()

    async with await asyncio.start_unix_server(silent, tmp_path / "s"):
        async with redis_asyncio.Redis.from_url(f"unix://{tmp_path}/s", socket_timeout=0.05, retry=None) as client:
            with pytest.raises(StoreUnavailable):
                await EventStreams(Caller(client), PARTITIONS).now_ms()
        await gone.wait()
