import asyncio

import pytest

from edgeproxy.control.key_rules import KeyChanges
from edgeproxy.control.keys import create_key, delete_key, revoke_key, set_key
from edgeproxy.control.publish import publish_key, publish_pending
from edgeproxy.domain.keys import KeyStatus
from edgeproxy.errors import OperatorError, StoreUnavailable
from edgeproxy.hotstate import keyspace


async def test_what_could_not_be_published_is_published_later_in_its_last_version(control, control_without_redis, rows):
    issued = await create_key(control_without_redis, name="late")
    for cap in (3, 4):
        with pytest.raises(OperatorError):
            await set_key(control_without_redis, issued.key.id, KeyChanges(concurrency=cap))
    assert await publish_pending(control) == 1
    record = await control.publishing.read_record(issued.key.digest)
    assert (record.version, record.concurrency) == (3, 4)
    assert await publish_pending(control) == 0
    assert await rows("SELECT * FROM outbox") == []


async def test_many_changes_are_published_in_bounded_rounds(control, control_without_redis, monkeypatch):
    monkeypatch.setattr("edgeproxy.control.publish.PENDING_BATCH", 2)
    for number in range(5):
        await create_key(control_without_redis, name=f"k{number}")
    assert [await publish_pending(control) for _ in range(4)] == [2, 2, 1, 0]


async def test_without_redis_the_change_goes_on_waiting(control_without_redis, rows):
    await create_key(control_without_redis, name="waits")
    with pytest.raises(StoreUnavailable, match=r"^redis$"):
        await publish_pending(control_without_redis)
    assert len(await rows("SELECT * FROM outbox")) == 1


async def test_an_old_version_never_replaces_a_newer_one(control, redis):
    issued = await create_key(control, name="x")
    await revoke_key(control, issued.key.id)
    await control.publishing.publish(issued.key.record(control.partitions), issued.key.digest)
    assert (await control.publishing.read_record(issued.key.digest)).status is KeyStatus.REVOKED


async def test_a_key_that_is_gone_is_not_published(control, redis):
    issued = await create_key(control, name="gone")
    await delete_key(control, issued.key.id)
    await publish_key(control, issued.key.id)
    assert await control.publishing.read_record(issued.key.digest) is None


async def test_a_deletion_waits_for_a_publication_that_has_begun(control, redis, monkeypatch):
    key = (await create_key(control, name="slow")).key
    publish, begun, go_on = control.publishing.publish, asyncio.Event(), asyncio.Event()

    async def slow_once(record, digest):
        monkeypatch.undo()
        begun.set()
        await go_on.wait()
        return await publish(record, digest)

    monkeypatch.setattr(control.publishing, "publish", slow_once)
    async with asyncio.TaskGroup() as group:
        group.create_task(publish_key(control, key.id))
        await begun.wait()
        deletion = group.create_task(delete_key(control, key.id))
        await asyncio.sleep(0.2)
        assert not deletion.done()
        go_on.set()
    assert await control.publishing.read_record(key.digest) is None
    record = key.record(control.partitions)
    assert await redis.exists(keyspace.state(record.partition, key.id)) == 0


async def test_publishing_and_deleting_at_once_never_bring_a_key_back(control, redis):
    for _ in range(10):
        key = (await create_key(control, name="raced")).key
        await asyncio.gather(delete_key(control, key.id), *(publish_key(control, key.id) for _ in range(5)))
        assert await control.publishing.read_record(key.digest) is None
        record = key.record(control.partitions)
        assert await redis.exists(keyspace.state(record.partition, key.id)) == 0
