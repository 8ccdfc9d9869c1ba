"""What can happen to an installation under load, each thing as one function that leaves everything running again."""

import os
import random
import signal
import time
from collections.abc import Callable

from edgeproxy.hotstate import keyspace
from tests.support.installation import PARTITIONS, Installation
from tests.support.ledger import Clients
from tests.support.processes import wait_until
from tests.support.stepping import Act, Matches, kill, script, words

EVENTS_TRIMMED = words("XDEL", ":events")
EPOCH_WRITTEN = words("SET", ":epoch")
COMMITTED = words("COMMIT")
# What else goes wrong all the time: at the provider, by the directives of the mock provider.
PROVIDER_FAULTS = (*[""] * 15, ".cut-after-2", ".close-after-1", ".end-after-2", ".error-after-2", ".no-head")
_FLUSHED_S = 3.0  # by then what was settled is in PostgreSQL
_FORGOTTEN_S = 1.0
_REQUEST_STEPS = ("reserve", "settle", "heartbeat")

Fault = Callable[[Installation, Clients, random.Random], str]


def worker_is_killed(there: Installation, clients: Clients, rng: random.Random) -> str:
    name, answered = rng.choice(_REQUEST_STEPS), rng.random() < 0.5
    there.redis_proxy.at(script(name), _unless_spared(there), answered=answered).wait()
    return f"{name} {_when(answered)}"


def jobs_are_killed(there: Installation, clients: Clients, rng: random.Random) -> str:
    answered = rng.random() < 0.5
    name, proxy, matches = rng.choice(
        [("COMMIT", there.postgres_proxy, COMMITTED), ("XDEL", there.redis_proxy, EVENTS_TRIMMED)]
    )
    proxy.at(matches, _unless_spared(there), answered=answered, passes=rng.random() < 0.5).wait()
    return f"{name} {_when(answered)}"


def redis_is_killed(there: Installation, clients: Clients, rng: random.Random) -> str:
    name, matches = rng.choice([*((each, script(each)) for each in _REQUEST_STEPS), ("XDEL", EVENTS_TRIMMED)])
    answered = rng.random() < 0.5
    _kill_redis_at(there, matches, answered=answered, away_s=rng.uniform(0, 2))
    return f"{name} {_when(answered)}"


def redis_is_killed_while_it_is_opened(there: Installation, clients: Clients, rng: random.Random) -> str:
    _kill_redis_at(there, script("settle"))
    victim = rng.choice(("redis", "jobs"))
    if victim == "redis":
        _kill_redis_at(there, EPOCH_WRITTEN, answered=rng.random() < 0.5)
    else:
        there.redis_proxy.at(EPOCH_WRITTEN, _unless_spared(there), passes=rng.random() < 0.5).wait()
    return f"and {victim}"


def redis_forgets_its_last_second(there: Installation, clients: Clients, rng: random.Random) -> str:
    """As where the machine went down: what was not on the disk is cut off, at any byte."""
    time.sleep(_FORGOTTEN_S)  # what a worker settled that was killed before is on the disk
    file = max((there.placement.stores / "redis").rglob("*.aof"), key=lambda path: path.stat().st_mtime)
    size = file.stat().st_size
    time.sleep(rng.uniform(0.1, _FORGOTTEN_S))
    there.kill_redis()
    lost = file.stat().st_size - size
    if lost > 0:  # else it was rewritten meanwhile
        os.truncate(file, size)
    there.redis.start()
    return f"{max(lost, 0)} bytes"


def redis_is_emptied(there: Installation, clients: Clients, rng: random.Random) -> str:
    """All at once. What had waited for the flush comes again from the workers that settled it a moment ago.

    So nothing else may wait: neither what is older, nor what a worker left that was killed.
    """
    _until_only_the_living_wait(there)
    with there.redis_client() as client:
        client.flushall()
        wait_until(lambda: all(client.exists(keyspace.epoch(partition)) for partition in range(PARTITIONS)))
    time.sleep(1.5)  # until every worker has seen that
    return ""


def redis_is_full(there: Installation, clients: Clients, rng: random.Random) -> str:
    with there.redis_client() as client:
        client.config_set("maxmemory", 1)
        time.sleep(rng.uniform(0.5, 2))
        client.config_set("maxmemory", 0)
    return ""


def postgresql_is_killed(there: Installation, clients: Clients, rng: random.Random) -> str:
    answered = rng.random() < 0.5
    there.postgres_proxy.at(COMMITTED, there.kill_postgres, answered=answered).wait()
    time.sleep(rng.uniform(0, 2))
    there.postgres.start()
    return f"COMMIT {_when(answered)}"


def both_stores_are_killed(there: Installation, clients: Clients, rng: random.Random) -> str:
    there.kill_postgres()
    there.kill_redis()
    starts = [there.postgres.start, there.redis.start]
    rng.shuffle(starts)
    for start in starts:
        time.sleep(rng.uniform(0, 1))
        start()
    return ""


def supervisor_is_killed(there: Installation, clients: Clients, rng: random.Random) -> str:
    there.kill_supervisor()
    there.start()
    return ""


def worker_is_stopped(there: Installation, clients: Clients, rng: random.Random) -> str:
    """For longer than its lease, now and then."""
    return _frozen(there, rng, 5, rng.choice(there.workers()))


def redis_is_frozen(there: Installation, clients: Clients, rng: random.Random) -> str:
    return _frozen(there, rng, 3, there.redis_pid)


def postgresql_is_frozen(there: Installation, clients: Clients, rng: random.Random) -> str:
    return _frozen(there, rng, 3, *there.postgres_pids)


def connections_break(there: Installation, clients: Clients, rng: random.Random) -> str:
    there.redis_proxy.sever()
    there.postgres_proxy.sever()
    return ""


def settings_are_reloaded(there: Installation, clients: Clients, rng: random.Random) -> str:
    there.running.process.send_signal(signal.SIGHUP)
    return ""


FAULTS: tuple[Fault, ...] = (
    worker_is_killed,
    jobs_are_killed,
    redis_is_killed,
    redis_is_killed_while_it_is_opened,
    redis_forgets_its_last_second,
    redis_is_emptied,
    redis_is_full,
    postgresql_is_killed,
    both_stores_are_killed,
    supervisor_is_killed,
    worker_is_stopped,
    redis_is_frozen,
    postgresql_is_frozen,
    connections_break,
    settings_are_reloaded,
)


def _until_only_the_living_wait(there: Installation) -> None:
    """Return when all is settled of workers that are gone, and no event or correction waits that is seconds old."""
    time.sleep(there.lease_ms / 1000)
    with there.redis_client() as client:

        def now_ms() -> int:
            seconds, microseconds = client.time()
            return int(seconds * 1000 + microseconds // 1000)

        def wait_for_none(what: Callable[[int], object]) -> None:
            wait_until(lambda: not any(what(partition) for partition in range(PARTITIONS)))

        wait_for_none(lambda partition: client.zcount(keyspace.leases(partition), 0, now_ms()))
        time.sleep(_FLUSHED_S)
        old_ms = int(_FLUSHED_S * 1000)
        wait_for_none(lambda partition: client.xlen(keyspace.corrections(partition)))
        wait_for_none(lambda partition: client.xrange(keyspace.events(partition), "-", now_ms() - old_ms, count=1))


def _kill_redis_at(there: Installation, matches: Matches, *, answered: bool = False, away_s: float = 0) -> None:
    there.redis_proxy.at(matches, there.kill_redis, answered=answered).wait()
    time.sleep(away_s)
    there.redis.start()


def _frozen(there: Installation, rng: random.Random, longest_s: float, *pids: int) -> str:
    seconds = rng.uniform(0.1, longest_s)
    with there.frozen(*pids):
        time.sleep(seconds)
    return f"{seconds:.1f} s"


def _unless_spared(there: Installation) -> Act:
    return lambda pid: None if pid in there.spared else kill(pid)


def _when(answered: bool) -> str:  # noqa: FBT001 - one word of two
    return "answered" if answered else "asked"
