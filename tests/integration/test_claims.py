"""What the services that can be served claim, shown on the whole program: gateway, jobs, console, both stores.

Traffic of every kind is driven through, with words in it that occur nowhere else; then everything that the stores hold
and everything that was logged is read, and held against what may be there.
"""

import asyncio
import base64
import json
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import pytest
import redis.asyncio as redis_asyncio

from edgeproxy import config
from edgeproxy.app import gateway_role, jobs_role, open_control
from edgeproxy.console.routes import COOKIES
from edgeproxy.control.installation import Control
from edgeproxy.control.inventory import check_inventory
from edgeproxy.control.keys import IssuedKey, create_key, delete_key
from edgeproxy.domain.inventory import Kind, places
from edgeproxy.metrics import Metrics
from edgeproxy.mock_provider.server import RunningMock, running
from edgeproxy.store.migrate import migrate

DIALECTS = {"openai": "gpt-*", "anthropic": "claude-*", "gemini": "gemini-*"}
STATUSES = (200, 400, 429, 500)
TURNS = 300

T = TypeVar("T")


async def until(read: Callable[[], Awaitable[T]], is_so: Callable[[T], bool]) -> T:
    """Return what is read once it is so. Turns are counted, because a time limit may cut into the reading itself."""
    for _ in range(TURNS):
        if is_so(found := await read()):
            return found
        await asyncio.sleep(0.05)
    raise AssertionError("it did not come to be so in time")


@dataclass
class Whole:
    """The program while it runs, and what can be read of what it has kept."""

    api: str
    settings: config.Settings
    control: Control
    mock: RunningMock
    redis: redis_asyncio.Redis
    session: aiohttp.ClientSession

    async def post(self, path: str, secret: str, body: Any, **headers: str) -> tuple[int, bytes]:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"authorization": f"Bearer {secret}", **headers}
        async with self.session.post(self.api + path, data=raw, headers=headers) as answer:
            return answer.status, await answer.read()

    async def rows(self, query: str, *arguments: object) -> list[Any]:
        async with self.control.database.transaction() as connection:
            return list(await connection.fetch(query, *arguments))

    async def flushed(self, count: int) -> list[Any]:
        """Return the stored events once there are so many."""
        return await until(lambda: self.rows("SELECT * FROM usage_events ORDER BY id"), lambda rows: len(rows) >= count)

    async def dump(self) -> str:
        """Everything that both stores hold, names of keys included."""
        parts = []
        async for name in self.redis.scan_iter():
            kind = await self.redis.type(name)
            read = {
                b"string": lambda: self.redis.get(name),  # noqa: B023 - read in this turn
                b"hash": lambda: self.redis.hgetall(name),  # noqa: B023
                b"zset": lambda: self.redis.zrange(name, 0, -1),  # noqa: B023
                b"stream": lambda: self.redis.xrange(name),  # noqa: B023
            }[kind]
            parts.append(f"{name!r} {await read()!r}")
        tables = {place.name.partition(".")[0] for place in places(Kind.COLUMN)}
        for table in sorted(tables):
            parts += [row["t"] for row in await self.rows(f"SELECT t::text AS t FROM edgeproxy.{table} t")]  # noqa: S608 - our own names
        return "\n".join(parts)


@pytest.fixture(params=["opuslive", "opusmax"])
async def whole(
    request: pytest.FixtureRequest, redis_url: str, postgres_url: str, pepper_file: Path, operator_secret: Path
) -> AsyncIterator[Whole]:
    await migrate(postgres_url)
    async with AsyncExitStack() as stack:
        mock = await stack.enter_async_context(running())
        tables = {
            "profile": request.param,
            "data_dir": str(pepper_file.parent / "data"),
            "stores": {"redis": redis_url, "postgres": postgres_url},
            "secrets": {"pepper_file": str(pepper_file)},
            "jobs": {"flush_interval_ms": 20, "flush_after_ms": 1},
            "logs": {"access": True},
            "provider": [
                {"name": name, "dialect": name, "base_url": mock.url, "secret_file": str(operator_secret)}
                for name in DIALECTS
            ],
            "model": [{"match": match, "provider": name} for name, match in DIALECTS.items()],
        }
        settings = config.from_tables(tables)
        sock = socket.create_server(("127.0.0.1", 0))
        control = await stack.enter_async_context(open_control(settings))
        await stack.enter_async_context(jobs_role(settings, Metrics()))
        await stack.enter_async_context(gateway_role(settings, sock, Metrics()))
        redis = await stack.enter_async_context(redis_asyncio.Redis.from_url(redis_url))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        yield Whole(f"http://127.0.0.1:{sock.getsockname()[1]}", settings, control, mock, redis, session)


@pytest.fixture
async def issued(whole: Whole) -> IssuedKey:
    return await create_key(whole.control, name="ann", limits=["tokens=1000000/1d"], models=["*"])


def requests(word: str) -> Iterator[tuple[str, Any]]:
    """Requests of every dialect, whole and streamed, to answers good and bad, with the word in all that has content."""
    picture = base64.b64encode(word.encode()).decode()
    for status in STATUSES:
        how = "" if status == 200 else f":status-{status}"
        for stream in (False, True):
            said = [{"role": "system", "content": word}, {"role": "user", "content": f"{word} {picture}"}]
            yield (
                "/v1/chat/completions",
                {"model": f"gpt-mock{how}", "messages": said, "stream": stream, "user": word, "max_tokens": 50},
            )
            content = [
                {"type": "text", "text": word},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": picture}},
            ]
            yield (
                "/v1/messages",
                {
                    "model": f"claude-mock{how}",
                    "max_tokens": 50,
                    "stream": stream,
                    "system": word,
                    "messages": [{"role": "user", "content": content}],
                },
            )
            method = "streamGenerateContent" if stream else "generateContent"
            contents = [
                {"role": "user", "parts": [{"text": word}, {"inlineData": {"mimeType": "a/b", "data": picture}}]}
            ]
            yield f"/v1beta/models/gemini-mock{how}:{method}", {"contents": contents}


ADMITTED = len(list(requests("")))


async def drive(whole: Whole, secret: str, word: str) -> list[bytes]:
    """Send all of them, and some that are not admitted; return the answers."""
    told = {"user-agent": f"agent {word}", "x-forwarded-for": "203.0.113.77", "cookie": f"id={word}", "x-client": word}
    answers = []
    for path, body in requests(word):
        _, answer = await whole.post(path, secret, body, **told)
        answers.append(answer)
    for body in (f'{{"model": "{word}"'.encode(), {"model": f"gpt-{word}", "messages": word}, {"model": word}):
        await whole.post("/v1/chat/completions", secret, body, **told)
    await whole.post(f"/v1/{word}", secret, {}, **told)
    await whole.post("/v1/chat/completions", f"{secret}x", {"model": "gpt-mock"}, **told)
    return answers


@pytest.mark.claims("OL-1", "OL-2a", "OL-4d", "OL-5b", "OM-3")
async def test_nothing_of_what_was_said_and_nobody_who_said_it_is_kept(
    whole: Whole, issued: IssuedKey, capfd: pytest.CaptureFixture[str]
):
    word = f"canary{secrets.token_hex(8)}"
    answers = await drive(whole, issued.secret, word)
    before = await whole.dump()
    await whole.flushed(ADMITTED)
    captured = capfd.readouterr()
    kept = "\n".join((before, await whole.dump(), captured.out, captured.err))
    assert issued.key.id in kept
    assert '"event":"request' in captured.err or "request" in captured.err
    said = json.loads(answers[0])["choices"][0]["message"]["content"]
    assert len(said) > 8
    hidden = {
        *(word, word.upper(), base64.b64encode(word.encode()).decode()[:-4], word.encode().hex(), said),
        *("203.0.113.77", "127.0.0.1:", "agent ", issued.secret, issued.secret.removeprefix("ep-")[8:]),
    }
    assert not {each for each in hidden if each in kept}


@pytest.mark.claims("OL-3a")
async def test_a_request_leaves_what_is_declared_and_no_more(whole: Whole, issued: IssuedKey):
    await drive(whole, issued.secret, "word")
    rows = await whole.flushed(ADMITTED)
    await check_inventory(whole.settings, COOKIES)
    assert len(rows) == ADMITTED
    assert {f"usage_events.{name}" for name in rows[0].keys()} == {  # noqa: SIM118 - a record of the database is no dict
        place.name for place in places(Kind.COLUMN, group="usage") if place.name.startswith("usage_events.")
    }
    for row in rows:
        assert str(row["key_id"]) == issued.key.id
        assert row["model"] in {"gpt-mock", "claude-mock", "gemini-mock", *DIALECTS.values()}


@pytest.mark.claims("OL-3c")
async def test_failed_requests_are_noted_with_their_status(whole: Whole, issued: IssuedKey):
    for status in (400, 429, 500):
        body = {"model": f"gpt-mock:status-{status}", "messages": [{"role": "user", "content": "a"}]}
        assert (await whole.post("/v1/chat/completions", issued.secret, body))[0] == status
    assert [row["status"] for row in await whole.flushed(3)] == [400, 429, 500]


@pytest.mark.claims("OL-4b")
async def test_nothing_goes_to_a_provider_before_key_and_limits_were_checked(whole: Whole):
    limited = await create_key(whole.control, name="limited", limits=["requests=1/1d"])
    revoked = await create_key(whole.control, name="revoked")
    await delete_key(whole.control, "revoked")
    body = {"model": "gpt-mock", "messages": [{"role": "user", "content": "a"}]}
    assert (await whole.post("/v1/chat/completions", limited.secret, body))[0] == 200
    served = whole.mock.counts.total.requests
    for secret, status in ((limited.secret, 429), (revoked.secret, 401), ("ep-none", 401), ("", 401)):
        assert (await whole.post("/v1/chat/completions", secret, body))[0] == status
    assert whole.mock.counts.total.requests == served == 1


# Tables that hold something of a key, but for the one that is there to pass its erasure on; and what is rare in them.
HOLDERS = sorted(
    {place.name.removesuffix(".key_id") for place in places(Kind.COLUMN) if place.name.endswith(".key_id")}
)
HOLDERS.remove("outbox")
ROWS = (
    "INSERT INTO refusals (key_id, minute, status, count) VALUES ($1, now(), 429, 1)",
    "INSERT INTO dead_letters (partition, stream_id, key_id, reason) VALUES (0, '1-1', $1, 'refused')",
    "INSERT INTO ledger (key_id, seq, kind, tokens, applied) VALUES ($1, 1, 'credit', 1, true)",
)


@pytest.mark.claims("OL-6", "OL-10c", "OM-6")
async def test_deleting_a_key_removes_it_from_every_store_and_nothing_else_does(whole: Whole, issued: IssuedKey):
    other = await create_key(whole.control, name="bob", limits=["tokens=1000000/1d"])
    body = {"model": "gpt-mock", "messages": [{"role": "user", "content": "a"}]}
    for secret in (issued.secret, other.secret, issued.secret):
        assert (await whole.post("/v1/chat/completions", secret, body))[0] == 200
    await whole.flushed(3)
    await whole.post("/v1/chat/completions", issued.secret, {"model": "none"})  # a refusal, which waits in Redis
    for statement in ROWS:
        await whole.rows(statement, issued.key.id)
    for table in HOLDERS:
        assert await whole.rows(f"SELECT FROM {table} WHERE key_id = $1", issued.key.id), table
    before = await whole.dump()
    traces = {issued.key.id, issued.key.digest, issued.key.prefix}
    assert all(trace in before for trace in traces)
    await delete_key(whole.control, "ann")
    after = await until(whole.dump, lambda kept: not [trace for trace in traces if trace in kept])
    assert all(trace in after for trace in (other.key.id, other.key.digest, other.key.prefix))
    assert [str(row["key_id"]) for row in await whole.flushed(1)] == [other.key.id]
