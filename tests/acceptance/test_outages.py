"""Stores that are away, frozen, full, emptied or older, and a worker that was stopped: nothing is lost.

Everything happens to one installation, one thing after the other; each test ends with the comparison of everything that
was asked since the first one.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from edgeproxy.hotstate import keyspace
from tests.support.installation import LEASE_MS, PARTITIONS, Installation, installed, mock_provider
from tests.support.ledger import Asked, Clients, Shape, assert_exact
from tests.support.processes import Refused, fetch, wait_until
from tests.support.stepping import script

LONG = {kind: Shape(kind, chunks=10, interval_ms=500, input_tokens=90) for kind in ("stream", "anthropic")}
REDIS_TIMEOUT_S = 0.5
GENEROUS_S = 5.0  # beyond a time limit, on a machine that is busy


@pytest.fixture(scope="module")
def there() -> Iterator[Installation]:
    with mock_provider() as mock, installed(mock) as started:
        yield started
        assert started.stop() == 0
        assert started.journals() == []


@pytest.fixture(scope="module")
def clients(there: Installation) -> Clients:
    return Clients(there)


@pytest.fixture(scope="module")
def key(there: Installation) -> str:
    created = there.create_key("--prepaid", "--limit", "requests=1000000/1h", "--limit", "tokens=1000000000/1d")
    there.program.json("keys", "credit", there.keys[created], "1000000000")
    return created


@pytest.fixture(autouse=True)
def _stores_run(there: Installation) -> Iterator[None]:
    """Whatever a test that failed has left dead is there for the next one."""
    yield
    for store in (there.redis, there.postgres):
        if not store.is_alive():
            store.start()


@contextmanager
def streams(clients: Clients, key: str) -> Iterator[None]:
    """Have streams be open while the block runs, and for as long as they take; they come to their end."""
    heard: list[int] = []
    threads = [clients.begin(key, LONG[kind], each_piece=heard.append) for kind in LONG for _ in range(3)]
    wait_until(lambda: heard.count(1) == len(threads))
    begun = len(clients.asked)
    yield
    for thread in threads:
        thread.join(60)
    ended = [asked for asked in clients.asked[begun:] if asked.input_tokens == 90]
    assert [asked.whole for asked in ended] == [True] * len(threads)


def refused(clients: Clients, key: str) -> list[Asked]:
    """Ask in each dialect, and hold the answers to what a client that cannot be served has to hear."""
    answers = [clients.ask(key, Shape(kind)) for kind in LONG]
    assert [asked.status for asked in answers] == [503, 503]
    for asked in answers:
        assert 1 <= int(asked.retry_after) <= 10
        assert asked.took_s < REDIS_TIMEOUT_S + GENEROUS_S
    openai, anthropic = (json.loads(asked.body) for asked in answers)
    assert {"code", "message", "type"} <= set(openai["error"])
    assert anthropic["type"] == "error"
    assert {"message", "type"} <= set(anthropic["error"])
    return answers


def until_served(there: Installation, clients: Clients, key: str) -> None:
    """Return when both workers admit again: each of them connects in its own time."""
    there.until_complete()
    wait_until(lambda: all(clients.ask(key, Shape()).whole for _ in range(10)))


def metric(there: Installation, name: str) -> float:
    lines = fetch(there.listeners["metrics"]).decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def test_a_frozen_redis_is_as_good_as_away(there: Installation, clients: Clients, key: str):
    with streams(clients, key):
        with there.frozen(there.redis_pid):
            until = time.monotonic() + 3
            while time.monotonic() < until:
                refused(clients, key)
        until_served(there, clients, key)
    verdict = assert_exact(there, clients)
    assert verdict.estimated == 0


def test_streams_that_end_while_redis_is_away_are_counted_when_it_is_back(
    there: Installation, clients: Clients, key: str
):
    journaled = metric(there, "edgeproxy_journaled_settlements_total")
    with streams(clients, key):
        there.kill_redis()
        wait_until(lambda: there.ready("api") == 503)
        refused(clients, key)
    assert sum(path.read_bytes().count(b"\n") for path in there.journals()) >= 6
    wait_until(lambda: metric(there, "edgeproxy_journaled_settlements_total") >= journaled + 6)
    refused(clients, key)
    there.redis.start()
    until_served(there, clients, key)
    verdict = assert_exact(there, clients)
    assert verdict.estimated == 0


def test_a_redis_that_was_emptied_is_filled_from_postgresql(there: Installation, clients: Clients, key: str):
    with streams(clients, key):
        before = len(clients.asked)
        with there.redis_client() as client:
            client.flushall()
        wait_until(lambda: clients.ask(key, Shape()).status == 503)
        wait_until(lambda: clients.ask(key, Shape()).status == 200)
    assert {asked.status for asked in clients.asked[before:]} == {200, 503}, "never 401"
    until_served(there, clients, key)
    verdict = assert_exact(there, clients)
    assert verdict.estimated == 0


def test_a_redis_that_was_started_on_an_older_file(there: Installation, clients: Clients, key: str):
    folder = there.placement.stores / "redis"
    for _ in range(5):
        assert clients.ask(key, Shape()).whole
    time.sleep(2)  # until it is written
    with streams(clients, key):
        kept = {path: path.read_bytes() for path in folder.rglob("*.aof*")}
        for _ in range(20):
            assert clients.ask(key, Shape()).whole
        time.sleep(2)
        there.kill_redis()
        for path, content in kept.items():
            with path.open("r+b") as file:  # the owner stays
                file.truncate(0)
                file.write(content)
        there.redis.start()
        until_served(there, clients, key)
    verdict = assert_exact(there, clients)
    assert verdict.estimated == 0


def test_a_redis_that_is_full_admits_nothing_and_settles_everything(there: Installation, clients: Clients, key: str):
    with streams(clients, key), there.redis_client() as client:
        client.config_set("maxmemory", 1)
        try:
            for _ in range(3):
                refused(clients, key)
            time.sleep(3 * LEASE_MS / 1000)  # the sweeper looks meanwhile: heartbeats have to hold
            wait_until(lambda: not clients_open(there))
        finally:
            client.config_set("maxmemory", 0)
    until_served(there, clients, key)
    verdict = assert_exact(there, clients)
    assert verdict.estimated == 0


def clients_open(there: Installation) -> int:
    """How many requests Redis knows as open."""
    with there.redis_client() as client:
        return sum(client.zcard(keyspace.leases(partition)) for partition in range(PARTITIONS))


@pytest.mark.parametrize("away", ["frozen", "killed"])
def test_without_postgresql_the_gateway_goes_on_and_events_wait(
    there: Installation, clients: Clients, key: str, away: str
):
    before = len(clients.asked)

    def without() -> None:
        until = time.monotonic() + 3
        while time.monotonic() < until:
            assert clients.ask(key, Shape()).whole
        wait_until(lambda: metric(there, "edgeproxy_flush_lag_seconds") > 1)
        with there.redis_client() as client:
            assert sum(client.xlen(keyspace.events(partition)) for partition in range(PARTITIONS)) > 10

    if away == "frozen":
        with there.frozen(*there.postgres_pids):
            without()
    else:
        there.kill_postgres()
        without()
        there.postgres.start()
    verdict = assert_exact(there, clients)
    assert {asked.status for asked in clients.asked[before:]} == {200}
    assert verdict.estimated == 0
    wait_until(lambda: metric(there, "edgeproxy_flush_lag_seconds") < 1)


def test_with_both_away_nothing_is_admitted_until_both_are_back(there: Installation, clients: Clients, key: str):
    with streams(clients, key):
        there.kill_postgres()
        there.kill_redis()
        wait_until(lambda: there.ready("api") == 503)
        refused(clients, key)
        there.redis.start()
        wait_until(lambda: "compared" in readyz(there))
        refused(clients, key)
    there.postgres.start()
    until_served(there, clients, key)
    verdict = assert_exact(there, clients)
    assert verdict.estimated == 0


def readyz(there: Installation) -> str:
    try:
        return fetch(f"{there.api}/readyz").decode()
    except Refused as refusal:
        return str(refusal.args[1].decode())


@pytest.mark.parametrize("tombstone", ["there", "gone"])
def test_a_worker_that_was_stopped_for_longer_than_its_lease_counts_once(
    there: Installation, clients: Clients, key: str, tombstone: str
):
    """`gone`: for longer than a tombstone lives, too."""
    shape = Shape(chunks=8, interval_ms=500, input_tokens=95)
    workers: list[int] = []
    there.redis_proxy.at(script("reserve"), workers.append)
    begun = len(clients.asked)
    asking = clients.begin(key, shape)
    wait_until(lambda: len(workers) == 1)
    reaped = there.redis_proxy.at(script("reap"), lambda _: None, answered=True)
    wait_until(lambda: clients_open(there) == 1)
    with there.frozen(*workers):
        reaped.wait()
        wait_until(lambda: clients_open(there) == 0)
        if tombstone == "gone":
            with there.redis_client() as client:
                assert client.delete(*client.keys("{p*}:reservation:*"))
    asking.join(60)
    assert clients.asked[begun].whole, "the client had to wait"
    verdict = assert_exact(there, clients)
    assert verdict.estimated == 0, "its own figures took the place of the estimate"
