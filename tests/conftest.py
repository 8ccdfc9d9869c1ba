"""Real stores for the tests: named by EDGEPROXY_TEST_REDIS and EDGEPROXY_TEST_POSTGRES, else started here."""

import os
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest
import redis as redis_sync
import redis.asyncio as redis_asyncio
from hypothesis import settings

from edgeproxy.embedded.placement import SHARED, Placement, place
from edgeproxy.embedded.postgres import EmbeddedPostgres
from edgeproxy.embedded.redis import EmbeddedRedis

# A busy machine is no failure, a run can be repeated, and nothing is left in the working folder.
# HYPOTHESIS_PROFILE=search looks for other examples.
settings.register_profile("edgeproxy", deadline=None, database=None, derandomize=True)
settings.register_profile("search", deadline=None, database=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "edgeproxy"))


@contextmanager
def reachable_folder() -> Iterator[Path]:
    """A short empty folder that the account of the embedded servers can enter; pytest's own is closed to it."""
    path = Path(tempfile.mkdtemp(prefix="edgeproxy-test-")).resolve()
    path.chmod(0o711)
    try:
        yield path
    finally:
        shutil.rmtree(path)


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """An empty data directory."""
    with reachable_folder() as path:
        yield path


@pytest.fixture(scope="session", autouse=True)
def _nothing_left() -> Iterator[None]:
    """Remove the copy of the servers that is made where their account cannot reach this checkout."""
    found = SHARED.exists()
    yield
    if not found:
        shutil.rmtree(SHARED, ignore_errors=True)


@pytest.fixture(scope="session")
def placement() -> Iterator[Placement]:
    """Where the stores of all tests lie."""
    with reachable_folder() as path:
        placed = place(path)
        placed.make_runtime()
        yield placed
        placed.remove_runtime()


@pytest.fixture(scope="session")
def redis_server(placement: Placement) -> Iterator[str]:
    """URL of a Redis that belongs to the tests."""
    if named := os.environ.get("EDGEPROXY_TEST_REDIS"):
        yield named
        return
    server = EmbeddedRedis(placement.stores, placement)
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture(scope="session")
def postgres_server(placement: Placement) -> Iterator[str]:
    """URL of a PostgreSQL in which the tests may create databases."""
    if named := os.environ.get("EDGEPROXY_TEST_POSTGRES"):
        yield named
        return
    server = EmbeddedPostgres(placement.stores, placement)
    try:
        server.start()
        server.stop()
        # A database for each test, and nothing that has to outlive the machine.
        server._administer(
            placement.stores / "postgres", "ALTER ROLE edgeproxy CREATEDB", "ALTER SYSTEM SET fsync = off"
        )
        yield server.start()
    finally:
        server.stop()


@pytest.fixture
def redis_url(redis_server: str) -> str:
    """An empty Redis database."""
    with redis_sync.Redis.from_url(redis_server) as client:
        client.flushdb()
    return redis_server


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[redis_asyncio.Redis]:
    """A client of an empty Redis database."""
    async with redis_asyncio.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
async def postgres_url(postgres_server: str) -> AsyncIterator[str]:
    """An empty PostgreSQL database of the test's own, dropped when it ends."""
    name = f"test_{uuid.uuid4().hex}"
    admin = await asyncpg.connect(postgres_server)
    try:
        await admin.execute(f"CREATE DATABASE {name}")
        yield urlsplit(postgres_server)._replace(path=f"/{name}").geturl()
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await admin.close()
