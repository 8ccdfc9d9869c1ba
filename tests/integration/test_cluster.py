"""Counting on a real Redis Cluster: partitions spread over nodes, slots that move, nodes that die and are replaced."""

import asyncio
import random
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from redis.crc import key_slot

from edgeproxy.checkup.findings import Finding, Level
from edgeproxy.checkup.redis import RedisFacts, memory, read_servers, topology
from edgeproxy.domain.keys import KeyId, KeyRecord, KeyStatus
from edgeproxy.domain.limits import Amounts, parse_limits
from edgeproxy.domain.reservations import HeartbeatStatus, Outcome, PublishStatus, ReserveStatus, SettleStatus
from edgeproxy.errors import StoreUnavailable
from edgeproxy.hotstate import keyspace, scripts
from edgeproxy.hotstate.calling import Caller, open_client
from edgeproxy.hotstate.events import EventStreams
from edgeproxy.hotstate.nodes import Nodes
from edgeproxy.hotstate.publishing import Publishing
from tests.support.cluster import PASSWORD, Cluster, Node, running_cluster, until

T = TypeVar("T")

USERS = Path(__file__).parents[2] / "config" / "redis" / "users.conf"
PARTITIONS = 16
USED = Amounts(1, 7, 3)
RESERVED = Amounts(1, 10, 10)
TIMEOUT_MS = 1000


@pytest.fixture(scope="module")
def spread() -> Iterator[Cluster]:
    """Three masters with a replica each."""
    with running_cluster(replicas=True) as cluster:
        yield cluster


@pytest.fixture
def cluster(spread: Cluster) -> Cluster:
    """The same, emptied."""
    for node in spread.nodes:
        if b"master" in node.command("ROLE"):
            node.client.flushall()
    return spread


class Plane:
    """What a gateway and its control plane have of a cluster, and the keys of a test: one in each partition."""

    def __init__(self, nodes: Nodes, caller: Caller) -> None:
        self.nodes = nodes
        self.publishing = Publishing(caller)
        self.streams = EventStreams(caller, PARTITIONS)
        self._scripts = scripts.load()
        limits = parse_limits(["requests=1000000/1h", "tokens=90000000/1d"])
        self.records = [
            KeyRecord(KeyId(str(uuid.uuid4())), 1, KeyStatus.ACTIVE, number, limits, None, None, ())
            for number in range(PARTITIONS)
        ]

    async def publish(self) -> None:
        for record in self.records:
            assert await self.publishing.publish(record, str(record.id)) is PublishStatus.PUBLISHED

    async def run(self, partition: int, name: str, arguments: scripts.Arguments) -> Any:
        return await self.nodes.send(keyspace.epoch(partition), *self._scripts[name].command(arguments))

    async def reserve(self, record: KeyRecord, request_id: str) -> ReserveStatus:
        scopes = [scripts.scope_of(record)]
        arguments = scripts.reserve_args(record.partition, request_id, scopes, RESERVED, 30_000, b"{}")
        return scripts.decode_reserve(await self.run(record.partition, "reserve", arguments)).status

    async def settle(self, record: KeyRecord, request_id: str) -> SettleStatus:
        scopes = [scripts.scope_of(record)]
        arguments = scripts.settle_args(
            record.partition, request_id, scopes, Outcome.POST, USED, f'{{"id":"{request_id}"}}'.encode()
        )
        return scripts.decode_settle(await self.run(record.partition, "settle", arguments)).status

    async def events(self, partition: int) -> list[bytes]:
        return [entry.payload for entry in await self.streams.read(partition, 2**53, 100_000)]


@asynccontextmanager
async def plane_on(cluster: Cluster, gateway: str = "", control: str = "") -> AsyncIterator[Plane]:
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(open_client(control or cluster.url, 2.0))
        preamble = [("SCRIPT", "LOAD", script.source) for script in scripts.load().values()]
        nodes = Nodes(gateway or cluster.url, TIMEOUT_MS, 10_000, list(preamble))
        await nodes.start()
        stack.push_async_callback(nodes.close)
        plane = Plane(nodes, Caller(client))
        await plane.publish()
        yield plane


async def repeated(ask: Callable[[KeyRecord, str], Awaitable[T]], record: KeyRecord, request_id: str) -> T:
    """Ask until there is an answer, as a gateway does that has to know."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await ask(record, request_id)
            except StoreUnavailable:
                await asyncio.sleep(0.02)


async def eventually(condition: Callable[[], bool]) -> None:
    await asyncio.to_thread(until, condition, 30)


def others(cluster: Cluster, node: Node) -> list[Node]:
    return [each for each in cluster.masters if each is not node]


async def test_every_script_runs_where_its_partition_lies(cluster: Cluster) -> None:
    async with plane_on(cluster) as plane:
        homes = {cluster.owner(keyspace.epoch(partition)).port for partition in range(PARTITIONS)}
        assert len(homes) == 3
        for record in plane.records:
            p = record.partition
            assert plane.nodes.run_id(keyspace.state(p, record.id)) == cluster.owner(keyspace.epoch(p)).run_id
            assert await plane.reserve(record, "r") is ReserveStatus.ADMITTED
            beats = scripts.heartbeat_args(p, 30_000, [scripts.Beat("r", 1, 1), scripts.Beat("none", 0, 0)])
            beaten = scripts.decode_heartbeat(await plane.run(p, "heartbeat", beats))
            assert beaten == [HeartbeatStatus.RENEWED, HeartbeatStatus.UNKNOWN]
            assert scripts.decode_examine(await plane.run(p, "examine", scripts.examine_args(p, "r"))) is not None
            assert await plane.settle(record, "r") is SettleStatus.RESOLVED
            assert await plane.settle(record, "never") is SettleStatus.UNKNOWN
            await plane.run(p, "refusal", scripts.refusal_args(p, record.id, 429))
            for name, arguments in (
                ("credit", scripts.credit_args(p, record.id, 1, 100)),
                ("adjust", scripts.adjust_args(p, record.id, 2, 1, 1, 1)),
            ):
                assert scripts.decode_ledger(await plane.run(p, name, arguments))[0].name == "APPLIED"
            usage = await plane.publishing.inspect(record)
            assert usage is not None
            assert (usage.totals, usage.open, usage.ledger) == (Amounts(2, 8, 4), 0, 2)
            assert len(await plane.streams.refusals(p)) == 1
            assert await plane.events(p) == [b'{"id":"r"}']
            assert await plane.publishing.read_record(str(record.id)) == record
        await plane.publishing.erase(plane.records[0].id, 0, str(plane.records[0].id))
        assert await plane.publishing.inspect(plane.records[0]) is None
        assert await plane.streams.oldest_ms() is not None


async def test_slots_that_move_under_load_lose_nothing_and_repeat_nothing(cluster: Cluster) -> None:
    """All that was promised is counted once, and what was not admitted is counted nowhere."""
    settled: dict[KeyId, list[str]] = {}
    moved = asyncio.Event()

    async def caller(plane: Plane, seed: int) -> None:
        chosen = random.Random(seed)
        while not moved.is_set():
            record, request_id = chosen.choice(plane.records), str(uuid.uuid4())
            status = await repeated(plane.reserve, record, request_id)
            assert status in (ReserveStatus.ADMITTED, ReserveStatus.DUPLICATE)
            status = await repeated(plane.settle, record, request_id)
            assert status in (SettleStatus.RESOLVED, SettleStatus.DUPLICATE)
            settled.setdefault(record.id, []).append(request_id)

    def move_all() -> None:
        for partition in range(0, PARTITIONS, 2):
            source = cluster.owner(keyspace.epoch(partition))
            target = others(cluster, source)[partition // 2 % 2]
            cluster.move(key_slot(keyspace.epoch(partition).encode()), source, target)

    async with plane_on(cluster) as plane:
        callers = [asyncio.create_task(caller(plane, seed)) for seed in range(20)]
        await asyncio.sleep(0.2)
        try:
            await asyncio.to_thread(move_all)
            await asyncio.sleep(0.2)
        finally:
            moved.set()
        await asyncio.gather(*callers)
        for record in plane.records:
            ids = settled.get(record.id, [])
            usage = await plane.publishing.inspect(record)
            assert usage is not None
            count = len(ids)
            assert usage.totals == Amounts(count, 7 * count, 3 * count)
            assert [window.used for window in usage.windows] == [count, 10 * count]
            assert usage.open == 0
            assert sorted(await plane.events(record.partition)) == sorted(f'{{"id":"{each}"}}'.encode() for each in ids)
        assert sum(len(ids) for ids in settled.values()) > 100
    refused = {name for node in cluster.masters for name in node.client.info("errorstats")}
    assert refused >= {"errorstat_MOVED", "errorstat_ASK", "errorstat_TRYAGAIN"}


async def test_the_users_of_a_role_may_do_there_what_they_may_elsewhere(cluster: Cluster) -> None:
    """config/redis/users.conf, over a slot that is moved."""
    password = "a" * 64
    lines = [line.split() for line in USERS.read_text("utf-8").splitlines() if line.startswith("user ")]
    rules = {words[1]: words[2:] for words in lines if words[1] in {"gateway", "control"}}
    for node in cluster.nodes:
        for name, words in rules.items():
            known = [f">{password}" if word.startswith("#") else word.replace("%R~", "~") for word in words]
            node.command("ACL", "SETUSER", name, "reset", *known)
    addresses = {name: cluster.url.replace("://:", f"://{name}:").replace(PASSWORD, password) for name in rules}
    async with plane_on(cluster, **addresses) as plane:
        record, slot = plane.records[5], key_slot(keyspace.epoch(5).encode())
        source = cluster.owner(keyspace.epoch(5))
        target = others(cluster, source)[0]
        assert await plane.reserve(record, "r") is ReserveStatus.ADMITTED
        cluster.begin_move(slot, source, target)
        while cluster.move_keys(slot, source, target, 10):
            pass
        # All of it is there, and whom the slot belongs to is not told yet.
        assert scripts.decode_examine(await plane.run(5, "examine", scripts.examine_args(5, "r"))) is not None
        await plane.run(5, "refusal", scripts.refusal_args(5, record.id, 429))
        assert len(await plane.streams.refusals(5)) == 1
        cluster.end_move(slot, source, target)
        assert await repeated(plane.settle, record, "r") is SettleStatus.RESOLVED
        assert len(await plane.events(5)) == 1


async def test_a_doctor_looks_at_every_node(cluster: Cluster) -> None:
    async with open_client(cluster.url, 2.0) as client:
        await Publishing(Caller(client)).install(PARTITIONS, "f")
    cluster.masters[1].command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    try:
        found = await read_servers(cluster.url, 2000, is_embedded=False)
    finally:
        cluster.masters[1].command("CONFIG", "SET", "maxmemory-policy", "noeviction")
    assert sorted(found) == sorted(f"127.0.0.1:{node.port}" for node in cluster.masters)
    facts = {name: each for name, each in found.items() if isinstance(each, RedisFacts)}
    assert facts.keys() == found.keys()
    evicting = [name for name, each in facts.items() if "allkeys-lru" in next(iter(memory(each))).found]
    assert evicting == [f"127.0.0.1:{cluster.masters[1].port}"]
    assert len([each for each in facts.values() if each.install is not None]) == 1
    assert all(each.level is Level.OK for facts_of in facts.values() for each in topology(facts_of))
    (unreachable,) = (await read_servers("redis+cluster://127.0.0.1:1", 200, is_embedded=False)).values()
    assert isinstance(unreachable, Finding)


async def test_a_slot_that_stays_halfway_is_unavailable_in_time_and_the_others_are_not(cluster: Cluster) -> None:
    async with plane_on(cluster) as plane:
        record, slot = plane.records[3], key_slot(keyspace.epoch(3).encode())
        source = cluster.owner(keyspace.epoch(3))
        target = others(cluster, source)[0]
        assert await plane.reserve(record, "r") is ReserveStatus.ADMITTED
        cluster.begin_move(slot, source, target)
        try:
            cluster.move_keys(slot, source, target, 1)
            started = time.monotonic()
            with pytest.raises(StoreUnavailable) as caught:
                await plane.reserve(record, "s")
            assert caught.value.may_have_run is False
            assert time.monotonic() - started < 10
            assert await plane.reserve(plane.records[4], "s") is ReserveStatus.ADMITTED
        finally:
            cluster.move(slot, source, target)
        assert await repeated(plane.settle, record, "r") is SettleStatus.RESOLVED
        usage = await plane.publishing.inspect(record)
        assert usage is not None
        assert usage.totals == USED


async def test_a_replica_that_takes_over_is_found_and_is_another_server(cluster: Cluster) -> None:
    """Once in order, once because its master is dead."""
    async with plane_on(cluster) as plane:
        key = keyspace.epoch(0)
        record = plane.records[0]
        for is_killed in (False, True):
            master = cluster.owner(key)
            before = plane.nodes.run_id(key)
            told: list[str] = []
            plane.nodes.on_connect = lambda told=told: told.append(plane.nodes.run_id(key))
            assert before == master.run_id
            if is_killed:
                master.kill()
            else:
                heir = next(node for node in cluster.nodes if _master_of(node) == master.port)
                heir.command("CLUSTER", "FAILOVER")
            await eventually(lambda master=master: cluster.owner(key) is not master)
            status = await repeated(plane.reserve, record, "r")
            assert status in (ReserveStatus.ADMITTED, ReserveStatus.DUPLICATE)
            heir = cluster.owner(key)
            assert plane.nodes.run_id(key) == heir.run_id != before
            assert heir.run_id in told
            await eventually(lambda: plane.nodes.is_connected)


def _master_of(node: Node) -> int:
    role = node.command("ROLE")
    return int(role[2]) if role[0] == b"slave" else 0


async def test_a_node_that_is_gone_takes_its_own_partitions_along_and_no_others() -> None:
    with running_cluster() as cluster:
        async with plane_on(cluster) as plane:
            gone = cluster.owner(keyspace.epoch(0))
            there = [record for record in plane.records if cluster.owner(keyspace.epoch(record.partition)) is not gone]
            lost = [record for record in plane.records if record not in there]
            before = plane.nodes.run_id(keyspace.epoch(0))
            gone.kill()
            for number in range(3):
                started = time.monotonic()
                for record in lost:
                    with pytest.raises(StoreUnavailable):
                        await plane.reserve(record, f"r{number}")
                assert time.monotonic() - started < 10
                for record in there:
                    assert await plane.reserve(record, f"r{number}") is ReserveStatus.ADMITTED
                assert not plane.nodes.is_connected
                assert plane.nodes.run_id(keyspace.epoch(0)) == ""
            told: list[str] = []
            plane.nodes.on_connect = lambda: told.append(plane.nodes.run_id(keyspace.epoch(0)))
            await asyncio.to_thread(gone.start)
            await eventually(lambda: plane.nodes.is_connected)
            # It has come back empty, which nobody but its name tells.
            assert await repeated(plane.reserve, lost[0], "r") is ReserveStatus.UNPUBLISHED
            assert told[-1] == plane.nodes.run_id(keyspace.epoch(0)) == gone.run_id != before
