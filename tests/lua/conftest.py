"""Servers and partitions. EDGEPROXY_TEST_REDIS_SERVERS names more servers to run all of this on: paths, `:` between."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import pytest
from redis import Redis

from edgeproxy.domain.partition import Partition
from edgeproxy.embedded.binaries import redis_server
from edgeproxy.embedded.placement import SHARED
from tests.lua.in_redis import OwnRedis, PartitionInRedis

OTHERS = [path for path in os.environ.get("EDGEPROXY_TEST_REDIS_SERVERS", "").split(":") if path]


EMBEDDED = ""
BINARIES = [EMBEDDED, *OTHERS]
Servers = Callable[[str], Redis]


def name_of(path: str) -> str:
    return path.replace("/", "_").strip("_") or "embedded"


@pytest.fixture(params=BINARIES, ids=name_of)
def binary(request: pytest.FixtureRequest) -> str:
    """The server that a test runs on."""
    return request.param


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """Clients of servers that all tests share, by binary; each server is started when it is first asked for."""
    with ExitStack() as opened:

        @cache
        def client_of(binary: str) -> Redis:
            folder = opened.enter_context(tempfile.TemporaryDirectory(prefix="edgeproxy-test-"))
            server = OwnRedis(path_of(binary), Path(folder))
            opened.callback(server.stop)
            return server.start("--appendonly", "no")

        yield client_of


def path_of(binary: str) -> str:
    return binary or str(redis_server(None, SHARED).path)


def emptied(client: Redis) -> Redis:
    client.flushall()
    return client


@pytest.fixture
def client(servers: Servers, binary: str) -> Redis:
    """A client of an empty Redis."""
    return emptied(servers(binary))


@pytest.fixture
def own_redis(binary: str) -> Iterator[OwnRedis]:
    """A Redis of the test's own, to be started by it."""
    with tempfile.TemporaryDirectory(prefix="edgeproxy-test-") as folder:
        server = OwnRedis(path_of(binary), Path(folder))
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture
def in_redis(client: Redis) -> PartitionInRedis:
    """An empty partition of the real thing."""
    return PartitionInRedis(client, 7)


@pytest.fixture
def make_partition(client: Redis) -> Callable[[int], PartitionInRedis]:
    """Makes partitions by number, for tests that need many."""
    return lambda number: PartitionInRedis(client, number)


@pytest.fixture(params=["reference", *BINARIES], ids=name_of)
def partition(request: pytest.FixtureRequest, servers: Servers) -> Partition | PartitionInRedis:
    """An empty partition: once the reference, once the real thing."""
    return Partition() if request.param == "reference" else PartitionInRedis(emptied(servers(request.param)), 7)
