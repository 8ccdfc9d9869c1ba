"""Each process and each store is killed at each named step, under load: what was answered is counted, once.

The steps are caught from outside, on the wire to Redis and PostgreSQL (`tests/support/stepping.py`), or by what the
mock provider does. What has to hold afterwards stands in `tests/support/ledger.py`. At random: `make evidence`.
"""

import json
import random
import signal
from collections.abc import Iterator

import pytest

from tests.support.faults import COMMITTED, EPOCH_WRITTEN, EVENTS_TRIMMED
from tests.support.installation import Installation, installed
from tests.support.ledger import Clients, Shape, assert_exact
from tests.support.processes import fetch, is_running, wait_until
from tests.support.stepping import Step, kill, script

LIMITS = ("--limit", "requests=1000000/1h", "--limit", "tokens=1000000000/1d")
PREPAID = ("--prepaid", "--concurrency", "1000", *LIMITS)


@pytest.fixture
def there(mock: str) -> Iterator[Installation]:
    with installed(mock) as started:
        yield started
        if started.serving is not None:
            assert started.stop() == 0
            assert started.journals() == []


@pytest.fixture
def clients(there: Installation) -> Clients:
    return Clients(there)


@pytest.fixture
def key(there: Installation) -> str:
    created = there.create_key(*PREPAID)
    there.program.json("keys", "credit", there.keys[created], "1000000000")
    return created


def test_a_worker_that_is_killed_at_any_step(there: Installation, clients: Clients, key: str):
    steps = [
        (name, script(called), answered)
        for called in ("reserve", "settle", "heartbeat")
        for name, answered in ((f"{called} asked", False), (f"{called} answered", True))
    ]
    with clients.running(key, 4, random.Random(1)):
        for clients.doing, matches, answered in steps:
            clients.wait_for(2)
            there.redis_proxy.at(matches, kill, answered=answered).wait()
    clients.doing = ""
    there.until_complete()
    for name, shape, sees in (
        ("request sent", Shape(more=".first-byte-20000", input_tokens=71), None),
        ("first chunk passed", Shape(chunks=3, interval_ms=300, input_tokens=72), 1),
        ("last chunk before the end", Shape(chunks=3, interval_ms=300, input_tokens=73), -1),
    ):
        kill_worker_of(there, clients, key, name, shape, sees)
    verdict = assert_exact(there, clients)
    assert verdict.whole > 10
    assert verdict.estimated >= 2, "those whose worker died before the end was there"


def kill_worker_of(there: Installation, clients: Clients, key: str, name: str, shape: Shape, sees: int | None) -> None:
    """Kill the worker that carries one request, when its client sees this piece, or when the provider has it."""
    if sees == -1:
        sees = clients.ask(key, shape).pieces - 1
    workers: list[int] = []
    there.redis_proxy.at(script("reserve"), workers.append)
    clients.doing = name
    before = served_of(there, shape)
    asking = clients.begin(key, shape, each_piece=lambda piece: kill(workers[0]) if piece == sees else None)
    if sees is None:
        wait_until(lambda: served_of(there, shape) > before)
        kill(workers[0])
    asking.join(60)
    asked = clients.asked[-1]
    assert (asked.note, asked.whole) == (name, False)
    clients.doing = ""


def served_of(there: Installation, shape: Shape) -> int:
    """How often the provider was asked for this shape."""
    rows = json.loads(fetch(f"{there.mock}/__count"))["by_model"]
    return int(rows.get(json.loads(shape.body())["model"], {}).get("requests", 0))


def kill_console_at(there: Installation, clients: Clients, name: str, step: Step) -> None:
    clients.doing = name
    step.wait()
    wait_until(lambda: there.console() and there.ready("web") == 200, there.running)


def test_jobs_that_are_killed_around_a_flush(there: Installation, clients: Clients, key: str):
    console, redis, postgres = there.console, there.redis_proxy, there.postgres_proxy
    with clients.running(key, 3, random.Random(2)):
        clients.wait_for(5)
        kill_console_at(there, clients, "about to commit", postgres.at(COMMITTED, kill, passes=False))
        kill_console_at(there, clients, "committed, not heard", postgres.at(COMMITTED, kill, answered=True))
        kill_console_at(there, clients, "committed, not trimmed", redis.at(EVENTS_TRIMMED, kill, passes=False))
        kill_console_at(there, clients, "trimmed, not heard", redis.at(EVENTS_TRIMMED, kill, answered=True))
        assert is_running(console())
    verdict = assert_exact(there, clients)
    assert {asked.status for asked in clients.asked} == {200}, "the gateway has not noticed"
    assert (verdict.whole, verdict.estimated) == (verdict.rows, 0)


def test_jobs_that_are_killed_while_they_settle_in_a_workers_place(there: Installation, clients: Clients, key: str):
    redis = there.redis_proxy
    late = Shape(chunks=6, interval_ms=1500, input_tokens=81)
    clients.doing = "a late worker"
    workers: list[int] = []
    redis.at(script("reserve"), workers.append)
    asking = clients.begin(key, late)
    wait_until(lambda: served_of(there, late) == 1)
    first, second = (redis.at(script("reap"), kill, answered=each, passes=each) for each in (False, True))
    with there.frozen(*workers):
        kill_console_at(there, clients, "reap asked", first)
        kill_console_at(there, clients, "reaped, not heard", second)
        first, second = (redis.at(script("adjust"), kill, answered=each, passes=each) for each in (False, True))
    kill_console_at(there, clients, "correction committed, not applied", first)
    kill_console_at(there, clients, "correction applied, not heard", second)
    asking.join(60)
    verdict = assert_exact(there, clients)
    assert (verdict.rows, verdict.whole, verdict.estimated) == (1, 1, 0), "its own figures took the estimate's place"


def test_a_credit_whose_command_or_jobs_are_killed(there: Installation, clients: Clients, key: str):
    redis, key_id = there.redis_proxy, there.keys[key]
    clients.ask(key, Shape())
    for tokens, answered in ((500, False), (700, True)):
        # By the number, because `jobs` may apply another one meanwhile.
        step = redis.at(script("credit", f"\r\n{tokens}\r\n"), kill, answered=answered, passes=False)
        ran = there.program.run("keys", "credit", key_id, str(tokens), "--reference", f"invoice {tokens}")
        step.wait()
        assert ran.returncode == -signal.SIGKILL
    console = there.console()
    step = redis.at(script("credit", "\r\n900\r\n"), lambda _: kill(console))
    there.program.json("keys", "credit", key_id, "900")
    step.wait()
    there.until_complete()
    again = there.program.json("keys", "credit", key_id, "500", "--reference", "invoice 500")
    assert (again["repeated"], again["applied"]) == (True, True)
    assert_exact(there, clients)
    assert there.program.json("keys", "show", key_id)["balance"]["left"] == 1_000_002_100 - 30


def test_redis_that_is_killed_at_any_step(there: Installation, clients: Clients, key: str):
    """It forgets what it had not written yet, a second or so. The workers have not."""
    steps = [
        *((f"{name} asked", script(name), False) for name in ("reserve", "settle", "heartbeat")),
        *((f"{name} answered", script(name), True) for name in ("reserve", "settle")),
        ("committed, not trimmed", EVENTS_TRIMMED, False),
    ]
    with clients.running(key, 4, random.Random(4)):
        for clients.doing, matches, answered in steps:
            clients.wait_for(4)
            kill_redis_at(there, there.redis_proxy.at(matches, there.kill_redis, answered=answered))
            there.until_complete()
        clients.doing = "an epoch is opened"
        kill_redis_at(there, there.redis_proxy.at(script("settle"), there.kill_redis))
        kill_redis_at(there, there.redis_proxy.at(EPOCH_WRITTEN, there.kill_redis))
        kill_redis_at(there, there.redis_proxy.at(script("settle"), there.kill_redis))
        there.redis_proxy.at(EPOCH_WRITTEN, kill).wait()
        there.until_complete()
        clients.wait_for(4)
    assert {asked.status for asked in clients.asked} <= {200, 503}
    assert all(asked.retry_after for asked in clients.asked if asked.status == 503)
    assert all(asked.whole for asked in clients.asked if asked.status == 200), (
        "answers that were open came to their end"
    )
    verdict = assert_exact(there, clients)
    assert (verdict.whole, verdict.estimated) == (verdict.rows, 0)


def kill_redis_at(there: Installation, step: Step) -> None:
    step.wait()
    there.redis.start()


def test_postgresql_that_is_killed_at_any_step(there: Installation, clients: Clients, key: str):
    with clients.running(key, 4, random.Random(5)):
        for clients.doing, proxy, matches, answered in (
            ("about to commit", there.postgres_proxy, COMMITTED, False),
            ("committed, not heard", there.postgres_proxy, COMMITTED, True),
            ("committed, not trimmed", there.redis_proxy, EVENTS_TRIMMED, False),
        ):
            proxy.at(matches, there.kill_postgres, answered=answered).wait()
            clients.wait_for(4)
            there.postgres.start()
            there.until_complete()
    assert {asked.status for asked in clients.asked} == {200}, "the gateway has not noticed"
    verdict = assert_exact(there, clients)
    assert (verdict.whole, verdict.estimated) == (verdict.rows, 0)


def test_a_supervisor_that_is_killed_and_started_again(there: Installation, clients: Clients, key: str):
    with clients.running(key, 4, random.Random(6)):
        clients.wait_for(6)
        there.kill_supervisor()
        there.start()
        clients.wait_for(4)
    verdict = assert_exact(there, clients)
    assert verdict.estimated == 0, "the workers settled at their end"


def test_everything_that_is_killed_at_once(there: Installation, clients: Clients, key: str):
    """Redis forgets, and nobody is left who remembers: that much is lost, and no more. What is left agrees."""
    with clients.running(key, 4, random.Random(7)):
        clients.wait_for(20)
        children = list(there.running.children())
        for pid in (there.running.process.pid, *children):
            kill(pid)
        there.kill_redis()
        there.kill_postgres()
        there.running.process.wait()
        ended = max(asked.ended for asked in clients.asked)
        there.redis.start()
        there.postgres.start()
        there.start()
        clients.wait_for(4)
    verdict = assert_exact(there, clients, may_be_lost=lambda asked: ended - 3 < asked.ended <= ended)
    assert verdict.rows > 0
