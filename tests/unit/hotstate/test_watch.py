"""Which partitions may be used: only where the server that is there now is known to be complete."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable

import pytest
import redis.asyncio as redis_asyncio

from edgeproxy.hotstate import keyspace
from edgeproxy.hotstate.nodes import Nodes
from edgeproxy.hotstate.watch import Watch

PARTITIONS = 3
PATIENCE_S = 10


async def write_epoch(redis: redis_asyncio.Redis, partition: int, *run_ids: str, opened_ms: int = 0) -> None:
    await redis.set(keyspace.epoch(partition), json.dumps({"run_ids": run_ids, "opened_ms": opened_ms}))


async def run_id_of(redis: redis_asyncio.Redis) -> str:
    return str((await redis.info("server"))["run_id"])


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture
def returned() -> list[int]:
    return []


@pytest.fixture
async def watch(redis_url: str, returned: list[int]) -> AsyncIterator[Watch]:
    nodes = Nodes(redis_url, 1000, 1000, [])
    watching = Watch(nodes, PARTITIONS, returned.extend, lambda _: None)
    nodes.on_connect = watching.reconsider
    await nodes.start()
    running = asyncio.create_task(watching.run())
    yield watching
    running.cancel()
    await nodes.close()


async def test_nothing_is_open_before_somebody_says_so(watch: Watch, redis: redis_asyncio.Redis) -> None:
    await watch.until_open(0.3)
    assert [watch.is_open(partition) for partition in range(PARTITIONS)] == [False] * PARTITIONS
    await write_epoch(redis, 1, await run_id_of(redis))
    await until(lambda: watch.is_open(1))
    assert (watch.is_open(0), watch.is_open(2), watch.all_open) == (False, False, False)


async def test_all_open_when_every_partition_names_the_server(watch: Watch, redis: redis_asyncio.Redis) -> None:
    for partition in range(PARTITIONS):
        await write_epoch(redis, partition, "another", await run_id_of(redis))
    await watch.until_open(PATIENCE_S)
    assert watch.all_open


async def test_an_epoch_of_another_server_opens_nothing(watch: Watch, redis: redis_asyncio.Redis) -> None:
    for partition in range(PARTITIONS):
        await write_epoch(redis, partition, "another")
    await watch.until_open(0.5)
    assert not any(watch.is_open(partition) for partition in range(PARTITIONS))


async def test_an_emptied_server_is_closed_and_its_return_is_told(
    watch: Watch, redis: redis_asyncio.Redis, returned: list[int]
) -> None:
    for partition in range(PARTITIONS):
        await write_epoch(redis, partition, await run_id_of(redis))
    await watch.until_open(PATIENCE_S)
    returned.clear()
    await redis.flushdb()
    await until(lambda: not any(watch.is_open(partition) for partition in range(PARTITIONS)))
    assert sorted(returned) == [0, 1, 2]
    returned.clear()
    for partition in range(PARTITIONS):
        await write_epoch(redis, partition, await run_id_of(redis))
    await until(lambda: watch.all_open)
    assert sorted(returned) == [0, 1, 2]


async def test_a_server_that_was_emptied_and_opened_again_unseen_is_told_of(
    watch: Watch, redis: redis_asyncio.Redis, returned: list[int]
) -> None:
    """`jobs` may be quicker than the next reading of the epochs."""
    run_id = await run_id_of(redis)
    for partition in range(PARTITIONS):
        await write_epoch(redis, partition, run_id)
    await watch.until_open(PATIENCE_S)
    returned.clear()
    await write_epoch(redis, 1, run_id, opened_ms=1)
    await until(lambda: bool(returned))
    await write_epoch(redis, 1, run_id, "another", opened_ms=1)  # other servers were opened: nothing to tell this one
    await asyncio.sleep(1.5)
    assert (returned, watch.all_open) == ([1], True)


async def test_a_connection_that_comes_back_to_the_same_server_needs_no_opening(
    watch: Watch, redis: redis_asyncio.Redis, returned: list[int]
) -> None:
    for partition in range(PARTITIONS):
        await write_epoch(redis, partition, await run_id_of(redis))
    await watch.until_open(PATIENCE_S)
    returned.clear()
    own = await redis.client_info()
    for row in await redis.client_list():
        if row["id"] != str(own["id"]) and row["db"] == str(own["db"]):
            await redis.client_kill_filter(_id=row["id"])
    await asyncio.sleep(0.3)
    await until(lambda: watch.all_open)
    assert len(returned) in (0, PARTITIONS)  # it may have been away for a reading of the epochs
