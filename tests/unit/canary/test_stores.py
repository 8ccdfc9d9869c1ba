import json
import random
import string
from collections.abc import AsyncIterator

import pytest
import redis.asyncio as redis_asyncio

from edgeproxy.canary import decoys, stores
from edgeproxy.canary.markers import Markers
from edgeproxy.canary.places import Search
from edgeproxy.embedded.placement import Placement
from edgeproxy.store.database import Database, connect

AWAY = "unix:///nowhere/redis.sock"


@pytest.fixture
def markers() -> Markers:
    return Markers()


@pytest.fixture
def search(markers: Markers) -> Search:
    return Search(markers)


@pytest.fixture
async def database(postgres_url: str) -> AsyncIterator[Database]:
    opened = await connect(postgres_url)
    yield opened
    await opened.close()


def found(search: Search) -> dict[str, str]:
    """Names of the markers that were found, by place."""
    return {find.place: find.marker.name for find in search.leaks() if find.marker is not None}


async def test_every_kind_of_key_is_looked_into(
    redis: redis_asyncio.Redis, redis_url: str, markers: Markers, search: Search
):
    await redis.set("string", markers.content("string"))
    await redis.set("long", "abcabc" * 5000 + markers.content("compressed") + "abcabc" * 5000)
    await redis.hset("hash", "field", markers.content("hash"))
    await redis.zadd("zset", {markers.content("zset"): 1})
    await redis.xadd("stream", {"e": json.dumps([markers.content("stream")] * 30)})
    await redis.set(markers.content("name"), "")
    await stores.search_redis(search, redis_url, markers.decoy(decoys.REDIS), keeps_decoy=False)
    names = {find.marker.name for find in search.leaks() if find.marker is not None}
    assert names >= {"string", "compressed", "hash", "zset", "stream", "name"}
    assert search.decoys(stores.REDIS_KEYS) == {decoys.REDIS}
    assert search.not_read == []
    assert all(markers.tag not in find.place for find in search.finds)
    assert not await redis.exists(stores.DECOY_KEY)


async def test_what_the_slow_log_keeps_is_found(
    redis: redis_asyncio.Redis, redis_url: str, markers: Markers, search: Search
):
    await redis.config_set("slowlog-log-slower-than", 0)
    await redis.get(markers.content("argument"))
    await redis.config_set("slowlog-log-slower-than", -1)
    await stores.search_redis(search, redis_url, markers.decoy(decoys.REDIS), keeps_decoy=True)
    await redis.slowlog_reset()
    assert found(search) == {"Redis: SLOWLOG GET -1": "argument"}


async def test_a_redis_that_is_away_or_says_no_is_told_of(redis: redis_asyncio.Redis, redis_url: str, search: Search):
    await redis.acl_setuser("narrow", enabled=True, nopass=True, keys=["*"], commands=["+scan", "+set", "+client"])
    await stores.search_redis(search, redis_url.replace("unix://:", "unix://narrow:", 1), "decoy", keeps_decoy=True)
    assert any("DUMP" in line for line in search.not_read)
    await redis.acl_deluser("narrow")
    await stores.search_redis(search, AWAY, "decoy", keeps_decoy=True)
    assert search.not_read[-1].startswith("Redis: ")


async def test_tables_are_looked_into_and_so_are_their_files(
    database: Database, postgres_url: str, placement: Placement, markers: Markers, search: Search
):
    letters = "".join(random.Random(3).choices(string.ascii_uppercase, k=700))
    async with database.transaction() as connection:
        await connection.execute("CREATE TABLE public.notes (plain text, packed text, raw bytea)")
        await connection.execute(
            "INSERT INTO public.notes VALUES ($1, $2, $3)",
            markers.content("plain"),
            letters * 3 + markers.content("packed") + letters * 40,
            markers.content("raw").encode(),
        )
        assert await connection.fetchval("SELECT pg_column_size(packed) < 5000 FROM public.notes"), "compressed"
    await stores.search_postgres(search, postgres_url, markers.decoy(decoys.POSTGRES), keeps_decoy=True)
    assert found(search).keys() == {"PostgreSQL: public.notes"}
    names = {find.marker.name for find in search.leaks() if find.marker is not None}
    assert names == {"plain", "packed", "raw"}
    assert search.decoys(stores.TABLES) == {decoys.POSTGRES}
    assert search.not_read == []
    files = Search(markers)
    files.folder("files", placement.stores / "postgres")
    assert len([find for find in files.leaks() if "pg_wal" in find.place]) >= 3
    assert files.decoys() == {decoys.POSTGRES}


async def test_a_table_of_ours_ends_with_the_search_where_it_is_not_our_installation(
    database: Database, postgres_url: str, markers: Markers, search: Search
):
    await stores.search_postgres(search, postgres_url, markers.decoy(decoys.POSTGRES), keeps_decoy=False)
    assert search.decoys(stores.TABLES) == {decoys.POSTGRES}
    async with database.transaction() as connection:
        assert not await connection.fetchval("SELECT count(*) FROM pg_class WHERE relname = 'canary_decoy'")


async def test_a_database_that_is_away_is_told_of(search: Search):
    await stores.search_postgres(search, "postgresql://nobody@127.0.0.1:9/none", "decoy", keeps_decoy=False)
    assert search.not_read == ["PostgreSQL: StoreUnavailable"]
