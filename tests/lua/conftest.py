"""The scripts in a real Redis, called exactly as their pure reference is, so that one test can play both."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from redis import Redis

from edgeproxy.domain.keys import KeyId, KeyRecord, KeyStatus
from edgeproxy.domain.limits import Amounts, Limit
from edgeproxy.domain.reservations import (
    KeyUsage,
    KeyVersion,
    Outcome,
    Partition,
    PublishStatus,
    ReserveReply,
    ReserveStatus,
    SettleReply,
)
from edgeproxy.hotstate import keyspace, scripts

LEASE_MS = 30_000


class PartitionInRedis:
    """Has the methods of `Partition`; what they do is done by the scripts."""

    def __init__(self, client: Redis, number: int) -> None:
        self.client = client
        self.number = number
        self._reserved: dict[str, Sequence[KeyVersion]] = {}  # a gateway remembers this, too
        self.scripts = scripts.load()
        for script in self.scripts.values():
            assert client.script_load(script.source) == script.sha1

    def run(self, name: str, arguments: scripts.Arguments) -> list[Any]:
        return self.client.execute_command(*self.scripts[name].command(arguments))

    def scope(self, key: KeyVersion) -> scripts.Scope:
        return scripts.Scope(
            keyspace.state(self.number, key.key_id), keyspace.ring(self.number, key.key_id), key.version
        )

    def publish(
        self, key: KeyVersion, status: KeyStatus, concurrency: int | None, limits: Sequence[Limit]
    ) -> PublishStatus:
        record = KeyRecord(key.key_id, key.version, status, self.number, tuple(limits), concurrency, None, ())
        return scripts.decode_publish(self.run("publish", scripts.publish_args(record)))

    def erase(self, key_id: KeyId) -> None:
        self.run("erase", scripts.erase_args(self.number, key_id))

    def reserve(
        self, request_id: str, scopes: Sequence[KeyVersion], amounts: Amounts, now_ms: int | None = None
    ) -> ReserveReply:
        known = [self.scope(scope) for scope in scopes]
        arguments = scripts.reserve_args(self.number, request_id, known, amounts, LEASE_MS, now_ms=now_ms)
        reply = scripts.decode_reserve(self.run("reserve", arguments))
        if reply.status is ReserveStatus.ADMITTED:
            self._reserved[request_id] = scopes
        return reply

    def settle(
        self, request_id: str, outcome: Outcome, actual: Amounts, event: bytes, now_ms: int | None = None
    ) -> SettleReply:
        known = [self.scope(scope) for scope in self._reserved.get(request_id, ())]
        arguments = scripts.settle_args(self.number, request_id, known, outcome, actual, event, now_ms=now_ms)
        return scripts.decode_settle(self.run("settle", arguments))

    def inspect(self, key_id: KeyId, now_ms: int | None = None) -> KeyUsage | None:
        return scripts.decode_inspect(self.run("inspect", scripts.inspect_args(self.number, key_id, now_ms=now_ms)))

    def pending(self) -> int:
        return self.client.zcard(keyspace.leases(self.number))

    @property
    def events(self) -> list[bytes]:
        return [entry[b"e"] for _, entry in self.client.xrange(keyspace.events(self.number))]

    def everything(self) -> dict[bytes, bytes]:
        """What is stored, byte for byte."""
        return {name: self.client.dump(name) for name in self.client.scan_iter(match=f"{{p{self.number:02d}}}:*")}


@pytest.fixture
def client(redis_url: str) -> Iterator[Redis]:
    """A client of an empty Redis database."""
    with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def in_redis(client: Redis) -> PartitionInRedis:
    """An empty partition of the real thing."""
    return PartitionInRedis(client, 7)


@pytest.fixture
def make_partition(client: Redis) -> Callable[[int], PartitionInRedis]:
    """Makes partitions by number, for tests that need many."""
    return lambda number: PartitionInRedis(client, number)


@pytest.fixture(params=["reference", "scripts"])
def partition(request: pytest.FixtureRequest) -> Partition | PartitionInRedis:
    """An empty partition: once the reference, once the real thing."""
    return Partition() if request.param == "reference" else request.getfixturevalue("in_redis")
