"""Clients that write down what they asked and what they got, and the comparison of that with what was counted."""

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any

import redis as redis_sync
import redis.asyncio as redis_asyncio

from edgeproxy.domain.keys import decode_record
from edgeproxy.domain.limits import Amounts
from edgeproxy.domain.reservations import KeyUsage
from edgeproxy.hotstate import keyspace
from edgeproxy.hotstate.calling import Caller
from edgeproxy.hotstate.leases import Leases
from edgeproxy.hotstate.publishing import Publishing
from tests.support.installation import PARTITIONS, Installation, port_of
from tests.support.processes import fetch, wait_until

_PAUSE_S = 0.05  # after a failure, as clients do
_LEAVES = (0, 0, 0, 0, 0, 0, 0, 1, 3)
_NOT_ADMITTED = {401, 403, 404, 413, 429, 503}


@dataclass
class Asked:
    """One request as its client saw it. `status` is 0 where not even the head of an answer came."""

    key: str
    input_tokens: int
    output_tokens: int
    note: str = ""
    id: str = ""
    status: int = 0
    whole: bool = False
    pieces: int = 0
    retry_after: str = ""
    body: bytes = b""
    took_s: float = 0.0
    ended: float = 0.0


@dataclass(frozen=True)
class Shape:
    """What is asked for, and so what it has to cost."""

    kind: str = "stream"  # or `unary`, `anthropic`
    chunks: int = 4
    interval_ms: int = 5
    input_tokens: int = 20
    output_tokens: int = 10
    more: str = ""  # other directives of the mock provider
    max_tokens: int = 100
    leaves_after: int = 0  # pieces; then the client hangs up. 0: it stays

    @property
    def path(self) -> str:
        return "/v1/messages" if self.kind == "anthropic" else "/v1/chat/completions"

    def body(self) -> bytes:
        # With a fault a length would be a promise that is not kept, and the rest waited for.
        pace = "length" if self.kind == "unary" and not self.more else f"interval-{self.interval_ms}"
        counts = f"input-{self.input_tokens}.output-{self.output_tokens}"
        name = "claude-mock" if self.kind == "anthropic" else "gpt-mock"
        model = f"{name}:chunks-{self.chunks}.{pace}.{counts}{self.more}"
        messages = [{"role": "user", "content": "Hello"}]
        stream = {} if self.kind == "unary" else {"stream": True}
        return json.dumps({"model": model, "max_tokens": self.max_tokens, "messages": messages, **stream}).encode()

    def is_end(self, content: bytes) -> bool:
        """Whether this is the whole of an answer."""
        if self.kind != "unary":
            return {"stream": b"data: [DONE]", "anthropic": b'"message_stop"'}[self.kind] in content
        try:
            return "usage" in json.loads(content)
        except ValueError:
            return False


@dataclass
class Clients:
    """Asks, and remembers. One for all keys and threads of a test."""

    there: Installation
    asked: list[Asked] = field(default_factory=list)
    doing: str = ""  # what the test does now, for its messages

    def ask(self, key: str, shape: Shape, *, each_piece: Callable[[int], None] = lambda _: None) -> Asked:
        """Ask once, and return when that is over. `each_piece` hears how many pieces of a stream have come."""
        asked = Asked(key, shape.input_tokens, shape.output_tokens, self.doing)
        began = time.monotonic()
        connection = HTTPConnection(*port_of(self.there.api), timeout=60)
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        try:
            connection.request("POST", shape.path, shape.body(), headers)
            answer = connection.getresponse()
            asked.status, asked.id = answer.status, answer.headers.get("x-request-id", "")
            asked.retry_after = answer.headers.get("retry-after", "")
            self._read(answer, shape, asked, each_piece)
        except (HTTPException, OSError):
            pass  # what came of it counts
        finally:
            asked.whole = asked.status == 200 and shape.is_end(asked.body)
            asked.body = b"" if asked.whole else asked.body
            connection.close()
            asked.took_s, asked.ended = time.monotonic() - began, time.monotonic()
            self.asked.append(asked)
        return asked

    @staticmethod
    def _read(answer: HTTPResponse, shape: Shape, asked: Asked, each_piece: Callable[[int], None]) -> None:
        """Read to the end. Raises what the connection does."""
        while line := answer.readline() if answer.chunked else answer.read():
            asked.body += line
            if line.startswith(b"data: "):
                asked.pieces += 1
                each_piece(asked.pieces)
                if asked.pieces == shape.leaves_after:
                    return

    @contextmanager
    def running(self, key: str, clients: int, rng: random.Random, faults: Sequence[str] = ("",)) -> Iterator[None]:
        """Have so many clients ask for all kinds of things while the block runs; each ends what it has begun."""
        over = threading.Event()

        def ask_on(mine: random.Random) -> None:
            while not over.is_set():
                if self.ask(key, shape_of(mine, faults)).status != 200:
                    time.sleep(_PAUSE_S)

        threads = [
            threading.Thread(target=ask_on, args=(random.Random(rng.random()),), daemon=True) for _ in range(clients)
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            over.set()
            for thread in threads:
                thread.join(120)
                assert not thread.is_alive()

    def begin(self, key: str, shape: Shape, **options: Any) -> threading.Thread:
        """Ask in a thread."""
        thread = threading.Thread(target=self.ask, args=(key, shape), kwargs=options, daemon=True)
        thread.start()
        return thread

    def wait_for(self, more: int) -> None:
        """Return when so many more whole answers are there."""
        before = sum(asked.whole for asked in self.asked)
        wait_until(lambda: sum(asked.whole for asked in self.asked) >= before + more)


def shape_of(rng: random.Random, faults: Sequence[str] = ("",)) -> Shape:
    """Anything that a client might ask for."""
    return Shape(
        kind=rng.choice(("stream", "stream", "anthropic", "unary")),
        chunks=rng.randint(1, 8),
        interval_ms=rng.choice((0, 5, 20, 60)),
        input_tokens=rng.randint(1, 400),
        output_tokens=rng.randint(1, 400),
        more=rng.choice(faults),
        max_tokens=rng.choice((20, 100, 1000)),
        leaves_after=rng.choice(_LEAVES) if len(faults) > 1 else 0,
    )


# --- the comparison


def is_at_rest(there: Installation) -> bool:
    """Whether nothing is open, nothing waits, and nothing lies in a journal."""
    with there.redis_client() as client:
        for partition in range(PARTITIONS):
            waiting = (keyspace.events(partition), keyspace.corrections(partition))
            if any(client.xlen(name) for name in waiting) or client.zcard(keyspace.leases(partition)):
                return False
    if any(path.stat().st_size for path in there.journals()):
        return False
    return not there.rows("SELECT 1 FROM edgeproxy.ledger WHERE NOT applied")


def settle_down(there: Installation, timeout_s: float = 60) -> None:
    """Return when everything is at rest."""

    def is_so() -> bool:
        try:
            return is_at_rest(there)
        except (OSError, redis_sync.RedisError):
            return False

    wait_until(is_so, there.serving, timeout_s)


def usage_of(there: Installation, key: str) -> KeyUsage:
    """What Redis has of a key."""
    (row,) = there.rows("SELECT digest FROM edgeproxy.keys WHERE id = $1::uuid", there.keys[key])

    async def ask(client: redis_asyncio.Redis) -> KeyUsage | None:
        raw = await client.get(keyspace.key_record(row["digest"]))
        assert raw is not None, "its record is gone"
        return await Publishing(Caller(client)).inspect(decode_record(raw))

    found = there.in_redis(ask)
    assert isinstance(found, KeyUsage)
    return found


@dataclass
class Verdict:
    """What a comparison found: `wrong` has to be empty."""

    wrong: list[str]
    rows: int
    whole: int
    estimated: int
    lost: int = 0


def compare(
    there: Installation, clients: Clients, *, may_be_lost: Callable[[Asked], bool] = lambda _: False
) -> Verdict:
    """Hold everything against everything, once nothing is on its way any more.

    `may_be_lost`: requests of which the count may be missing, because Redis and their worker died together.
    """
    found = there.rows(
        "SELECT id::text, key_id::text, status, estimated, input_uncached + cache_read + cache_write AS input_tokens,"
        " output AS output_tokens FROM edgeproxy.usage_events"
    )
    rows = {row["id"]: row for row in found}
    verdict = Verdict(
        [], len(rows), sum(asked.whole for asked in clients.asked), sum(row["estimated"] for row in found)
    )
    if len(rows) < len(found):
        verdict.wrong.append("a request has two rows")
    ids = Counter(asked.id for asked in clients.asked if asked.id)
    verdict.wrong += [f"two requests have the id {each}" for each, count in ids.items() if count > 1]
    for asked in list(clients.asked):
        wrong = _wrong_of(asked, rows.get(asked.id))
        if wrong and may_be_lost(asked):
            verdict.lost += 1
        elif wrong:
            verdict.wrong.append(f"{asked.note or 'under load'}: {wrong}: {_shown(asked)} {rows.get(asked.id)}")
    unheard = sum(not asked.id for asked in clients.asked)
    strangers = [row for row in found if row["id"] not in ids]
    if len(strangers) > unheard:
        verdict.wrong.append(f"{len(strangers)} rows of {unheard} requests that were not heard of again")
    verdict.wrong += _mock_differs(there, clients, rows)
    for key in there.keys:
        verdict.wrong += _key_differs(there, key, found)
    verdict.wrong += _left_over(there)
    ran = there.program.run("reconcile")
    if ran.returncode:
        verdict.wrong.append(f"reconcile: {ran.stdout}{ran.stderr}")
    return verdict


def _wrong_of(asked: Asked, row: dict[str, Any] | None) -> str:
    if asked.status in _NOT_ADMITTED:
        return "it was refused, and counted" if row else ""
    if not asked.id:
        return ""
    if row is None:
        return "it was admitted, and not counted"
    if (row["input_tokens"], row["output_tokens"]) == (asked.input_tokens, asked.output_tokens):
        return "it was answered, and its count is flagged" if asked.whole and row["estimated"] else ""
    return "it was counted otherwise" if asked.whole or (row["status"] == 200 and not row["estimated"]) else ""


def _shown(asked: Asked) -> str:
    return f"{asked.id} {asked.status} whole={asked.whole} {asked.input_tokens}+{asked.output_tokens}"


def _mock_differs(there: Installation, clients: Clients, rows: dict[str, dict[str, Any]]) -> list[str]:
    """The provider has served to its end what clients have whole."""
    served = json.loads(fetch(f"{there.mock}/__count"))
    whole = [asked for asked in clients.asked if asked.whole]
    wrong = [f"{len(whole)} whole answers, {served['completed']} served"] if len(whole) > served["completed"] else []
    for name in ("input_tokens", "output_tokens"):
        counted = sum(rows[asked.id][name] for asked in whole if asked.id in rows)
        if counted > served[name]:
            wrong.append(f"{counted} {name} of whole answers counted, {served[name]} served")
    return wrong


def _key_differs(there: Installation, key: str, found: list[dict[str, Any]]) -> list[str]:
    """Redis, the rows and both roll-ups say the same of a key; nothing is open or held; its windows are not too low."""
    key_id = there.keys[key]
    mine = [row for row in found if row["key_id"] == key_id]
    rows = Amounts(len(mine), *(sum(row[name] for row in mine) for name in ("input_tokens", "output_tokens")))
    usage = usage_of(there, key)
    shown = json.loads(fetch(f"{there.web}/api/v1/usage", key))
    amounts = {
        "usage_daily": _summed(there, key_id, "usage_daily", "input_uncached + cache_read + cache_write", "output"),
        "usage_totals": _summed(there, key_id, "usage_totals", "input_tokens", "output_tokens"),
        "redis": usage.totals,
        "the api": Amounts(**shown["totals"]),
    }
    wrong = [f"{name} has {each}, the rows {rows}" for name, each in amounts.items() if each != rows]
    if (usage.open, usage.held) != (0, 0):
        wrong.append(f"{usage.open} requests are open, {usage.held} tokens held")
    wrong += [  # windows of an hour and more: all that a test does lies within
        f"{window.limit} says {window.used}, the rows {rows}"
        for window in usage.windows
        if window.used < rows.of(window.limit.dimension)
    ]
    if usage.prepaid:
        query = "SELECT coalesce(sum(tokens), 0)::bigint AS tokens FROM edgeproxy.ledger WHERE key_id = $1::uuid"
        (credited,) = there.rows(query, key_id)
        if usage.balance != credited["tokens"] - rows.input_tokens - rows.output_tokens:
            wrong.append(f"balance {usage.balance}, credited {credited['tokens']}, used {rows}")
    return [f"key {key_id}: {each}" for each in wrong]


def _summed(there: Installation, key_id: str, table: str, input_tokens: str, output_tokens: str) -> Amounts:
    (row,) = there.rows(
        f"SELECT coalesce(sum(requests), 0)::bigint AS requests, coalesce(sum({input_tokens}), 0)::bigint AS input,"  # noqa: S608 - names of ours
        f" coalesce(sum({output_tokens}), 0)::bigint AS output FROM edgeproxy.{table} WHERE key_id = $1::uuid",
        key_id,
    )
    return Amounts(row["requests"], row["input"], row["output"])


def _left_over(there: Installation) -> list[str]:
    """Reservations that are still open, whatever the leases say; entries that could not be stored."""

    async def ask(client: redis_asyncio.Redis) -> list[str]:
        found, leases = [], Leases(Caller(client))
        async for name in client.scan_iter("{p*}:reservation:*", count=1000):
            partition, request_id = int(name[2:4]), name.rpartition(b":")[2].decode()
            if await leases.examine(partition, request_id) is not None:
                found.append(f"{request_id} is reserved for ever")
        return found

    dead = there.rows("SELECT reason FROM edgeproxy.dead_letters")
    return [*there.in_redis(ask), *(f"not storable: {row['reason']}" for row in dead)]


def assert_exact(
    there: Installation, clients: Clients, *, may_be_lost: Callable[[Asked], bool] = lambda _: False
) -> Verdict:
    """Everything was counted, once, and everywhere the same; nothing is left."""
    settle_down(there)
    verdict = compare(there, clients, may_be_lost=may_be_lost)
    assert not verdict.wrong, "\n".join(verdict.wrong[:20])
    return verdict
