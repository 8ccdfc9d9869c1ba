"""Redis: whether it is there, can do what is asked of it, keeps what it is told, and is closed to others."""

import ssl
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.connection import parse_url
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    MovedError,
    NoPermissionError,
    RedisClusterException,
    RedisError,
    ResponseError,
)

from edgeproxy.addresses import is_loopback
from edgeproxy.checkup.findings import Clock, Finding, error, ok, warning
from edgeproxy.domain.redis_addresses import is_cluster, node_address, redis_addresses
from edgeproxy.hotstate import keyspace
from edgeproxy.hotstate.calling import open_client

_OLDEST = (6, 2)
_CLOCK_READINGS = 3  # the quickest one says most
_NEARLY_FULL = 0.8
_SLOW = 0.25  # of the time limit: an ordinary round trip stays far below it

_OWN_USER = "name a user of its own, with the rights that config/redis/users.conf gives it"


@dataclass(frozen=True, slots=True)
class RedisFacts:
    """What Redis said. `info` is {} and `config` is None where our user may not ask.

    `host` is "" behind a Unix socket. `rights` are those of our user, None where it may not ask, as it should be.
    `install` is what was fixed at the first start, None before that, and where another node of a cluster has it.
    """

    is_embedded: bool
    is_in_cluster: bool  # and found through it
    host: str
    is_encrypted: bool
    has_password: bool
    user: str
    timeout_ms: int
    round_trip_ms: float
    clock: Clock
    info: Mapping[str, Any]
    config: Mapping[str, str] | None
    rights: tuple[str, ...] | None
    install: str | None


async def read_servers(address: str, timeout_ms: int, *, is_embedded: bool) -> dict[str, RedisFacts | Finding]:
    """Return what `read_redis` does for all masters of a cluster, by host and port; for one server by ""."""
    if not is_cluster(address):
        return {"": await read_redis(address, timeout_ms, is_embedded=is_embedded)}
    try:
        async with open_client(address, timeout_ms / 1000) as client:
            cluster = await cast("RedisCluster", client).initialize()
            nodes = [(str(node.host), int(node.port)) for node in cluster.get_primaries()]
    except (RedisError, RedisClusterException, OSError) as raised:
        return {"": _unreachable(raised)}
    first = redis_addresses(address)[0]
    return {
        f"{host}:{port}": await read_redis(
            node_address(first, host, port), timeout_ms, is_embedded=False, is_in_cluster=True
        )
        for host, port in nodes
    }


async def read_redis(
    url: str, timeout_ms: int, *, is_embedded: bool, is_in_cluster: bool = False
) -> RedisFacts | Finding:
    """Return the facts, or why there are none. `timeout_ms` bounds each step, as it bounds a request's."""
    timeout_s = timeout_ms / 1000
    try:
        client = Redis.from_url(
            url,
            decode_responses=True,
            encoding_errors="replace",
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=None,
        )
        async with client:
            clock, round_trip_ms = await _clock(client)
            target = cast("dict[str, Any]", parse_url(url))
            user = target.get("username") or "default"
            rights = await _if_allowed(lambda: client.acl_getuser(user))
            return RedisFacts(
                is_embedded=is_embedded,
                is_in_cluster=is_in_cluster,
                host="" if "path" in target else target.get("host", "localhost"),
                is_encrypted=url.startswith("rediss://"),
                has_password=bool(target.get("password")),
                user=user,
                timeout_ms=timeout_ms,
                round_trip_ms=round_trip_ms,
                clock=clock,
                info=await _if_allowed(client.info) or {},
                config=await _if_allowed(lambda: _configuration(client)),
                rights=None if rights is None else tuple(rights["categories"]),
                install=await _install(client),
            )
    except (RedisError, OSError) as raised:
        return _unreachable(raised)
    except (ValueError, TypeError):  # an option in the address that the library does not know
        return error("the address has an option that is not understood", "correct stores.redis")


async def _clock(client: Redis) -> tuple[Clock, float]:
    """Return how far the clock of Redis is ahead, and how many ms a round trip takes at best."""
    readings = []
    for _ in range(_CLOCK_READINGS):
        began, began_at = time.perf_counter(), time.time()
        seconds, microseconds = await client.time()
        took_s = time.perf_counter() - began
        ahead_s = seconds + microseconds / 1e6 - (began_at + took_s / 2)
        readings.append((took_s, ahead_s))
    took_s, ahead_s = min(readings)
    return Clock(round(ahead_s * 1000), round(took_s * 500)), took_s * 1000


async def _install(client: Redis) -> str | None:
    try:
        return cast("str | None", await client.get(keyspace.INSTALL))
    except MovedError:
        return None


async def _configuration(client: Redis) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in (
        "appendfsync",
        "slowlog-log-slower-than",
        "cluster-require-full-coverage",
    ):  # one by one: Redis 6.2 takes one at a time
        found |= cast("dict[str, str]", await client.config_get(name))
    return found


async def _if_allowed(ask: Callable[[], Awaitable[Any]]) -> Any:
    """Return the answer, None where our user, or anybody (in hosted ones), may not ask."""
    try:
        return await ask()
    except ResponseError:
        return None


def _unreachable(raised: Exception) -> Finding:
    """Return why Redis could not be asked. The library's texts stay here: they hold addresses."""
    # What happens while a connection is made comes wrapped into an error of the connection.
    for each in (raised, raised.__cause__ or raised.__context__):
        if isinstance(each, AuthenticationError | AuthorizationError):
            return error("it refused the login", "correct user and password in stores.redis")
        if isinstance(each, NoPermissionError):
            return error("its user may not do what is needed", _OWN_USER)
        if isinstance(each, BusyLoadingError):
            return error("it is still reading its data", "wait; until then every request gets 503")
        if isinstance(each, ssl.SSLCertVerificationError):
            found = f"its certificate is not accepted: {each.verify_message}"
            return error(found, "correct the certificate, or the name in stores.redis")
    return error("it cannot be reached or does not answer", "check stores.redis, and that it runs")


def reachable(facts: RedisFacts) -> Iterator[Finding]:
    """It answers, and quickly enough."""
    found = f"it answers in {facts.round_trip_ms:.1f} ms"
    if facts.round_trip_ms > facts.timeout_ms * _SLOW:
        yield warning(found, f"requests give up after {facts.timeout_ms} ms; bring it nearer, or relieve it")
    else:
        yield ok(found)


def version(facts: RedisFacts) -> Iterator[Finding]:
    """It is new enough. Valkey says which Redis it is like."""
    text = str(facts.info.get("redis_version", ""))
    if not text:
        yield warning("its version is not visible to this user", "allow it +info, as config/redis/users.conf does")
        return
    name = f"Valkey {facts.info['valkey_version']}" if "valkey_version" in facts.info else f"Redis {text}"
    if tuple(int(part) if part.isdigit() else 0 for part in text.split(".")[:2]) < _OLDEST:
        yield error(f"{name} is too old", "install Redis 6.2 or newer, or Valkey")
    else:
        yield ok(name)


def memory(facts: RedisFacts) -> Iterator[Finding]:
    """It never forgets a key to make room, and has room."""
    if not facts.info:
        return
    policy, limit = facts.info.get("maxmemory_policy"), int(facts.info.get("maxmemory", 0))
    if policy != "noeviction":
        yield error(
            f"maxmemory-policy is {policy}: a key that is evicted takes its counts along",
            "set maxmemory-policy noeviction, also in its configuration file",
        )
    used = int(facts.info.get("used_memory", 0))
    if limit and used > limit * _NEARLY_FULL:
        yield warning(f"{used * 100 // limit} % of maxmemory are in use", "raise maxmemory: full, it admits nothing")
    elif policy == "noeviction":
        yield ok("maxmemory-policy is noeviction")


def persistence(facts: RedisFacts) -> Iterator[Finding]:
    """What it was told outlives its process."""
    if not facts.info:
        return
    if not facts.info.get("aof_enabled"):
        yield error("appendonly is off: a restart forgets what was counted", "set appendonly yes")
        return
    if facts.info.get("aof_last_write_status") != "ok" or facts.info.get("rdb_last_bgsave_status") != "ok":
        yield error("it could not write to its disk", "make room there; until then it refuses to count")
    fsync = (facts.config or {}).get("appendfsync")
    if fsync == "no":
        yield warning("appendfsync is no: a crash loses what the system had not written", "set appendfsync everysec")
    elif fsync == "always":
        yield ok("appendonly is on, and synced always")
    else:
        yield ok("appendonly is on: a crash of the machine can lose about two seconds")


def topology(facts: RedisFacts) -> Iterator[Finding]:
    """It is the one that takes writes, and holds all keys."""
    if not facts.info:
        return
    if facts.info.get("cluster_enabled") and not facts.is_in_cluster:
        yield error("it is a node of a Redis Cluster", "write redis+cluster:// in stores.redis, and some of its nodes")
    if facts.is_in_cluster and (facts.config or {}).get("cluster-require-full-coverage") == "yes":
        yield warning("where one node is gone, all of them stop", "set cluster-require-full-coverage no")
    if facts.info.get("role") == "slave":
        yield error("it is a replica and takes no writes", "name the primary in stores.redis")
    elif replicas := facts.info.get("connected_slaves"):
        yield ok(f"primary with replicas ({replicas}): a failover can lose its last moments")
    else:
        yield ok("one server, no replica")


def access(facts: RedisFacts) -> Iterator[Finding]:
    """Our user may do what it needs, and others may do nothing."""
    if facts.is_embedded:
        yield ok("its socket and its password are our own")
        return
    if not facts.has_password and facts.host:
        found = "it takes whoever reaches it, without a password"
        yield warning(found, _OWN_USER) if is_loopback(facts.host) else error(found, _OWN_USER)
    elif facts.rights is not None:
        yield warning(f"user {facts.user} may administer Redis, which is more than is needed", _OWN_USER)
    else:
        yield ok(f"user {facts.user} may not administer it")


def encryption(facts: RedisFacts) -> Iterator[Finding]:
    """Who listens on the way learns nothing."""
    if facts.is_encrypted:
        yield ok("over TLS")
    elif facts.host and not is_loopback(facts.host):
        yield warning("what is sent to it is not encrypted", "use rediss://, or a network that nobody else is in")
    else:
        yield ok("on this machine")


def slow_log(facts: RedisFacts) -> Iterator[Finding]:
    """It keeps no arguments: ids, counts and names of models. No content, but an erasure does not reach them there."""
    if facts.config is None:
        yield warning(
            "its configuration is not visible to this user (appendfsync, slow log)",
            "allow it +config|get, as config/redis/users.conf does",
        )
    elif int(facts.config.get("slowlog-log-slower-than", -1)) >= 0:
        yield warning("the slow log keeps arguments of slow commands", "set slowlog-log-slower-than -1")
    else:
        yield ok("no arguments are kept")
