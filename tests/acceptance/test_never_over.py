"""Four workers, 256 connections, one key at its limit: what is admitted is never more than the limit says."""

import asyncio
import json
from collections import Counter
from urllib.parse import urlsplit

import pytest

from tests.support.processes import ANY_PORT, MODELS, Program, Started, fetch

WORKERS = 4
CONNECTIONS = 64  # for each worker; the system spreads them
QUESTIONS = 6  # on each connection


def body(model: str, max_tokens: int) -> bytes:
    question = {"model": model, "max_tokens": max_tokens, "messages": [{"role": "user", "content": "one two three"}]}
    return json.dumps(question).encode()


def ask_all(serving: Started, key: str, asked: bytes, questions: int = QUESTIONS) -> Counter[int]:
    """Ask the same on all connections at once, one question after another on each; returns the statuses."""
    address = urlsplit(serving.listeners["api"])
    request = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(asked)}\r\n\r\n"
    ).encode() + asked
    statuses: Counter[int] = Counter()

    async def client(ready: asyncio.Event) -> None:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        await ready.wait()
        for _ in range(questions):
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
            statuses[int(head[9:12])] += 1
        writer.close()

    async def run() -> None:
        ready = asyncio.Event()
        clients = [asyncio.create_task(client(ready)) for _ in range(WORKERS * CONNECTIONS)]
        await asyncio.sleep(1)  # until all are connected
        ready.set()
        await asyncio.gather(*clients)

    asyncio.run(asyncio.wait_for(run(), 300))
    return statuses


def served(mock: str) -> dict[str, int]:
    found: dict[str, int] = json.loads(fetch(f"{mock}/__count"))
    return found


@pytest.fixture
def serving(program: Program, mock: str):
    program.configure(f"workers = {WORKERS}\n{ANY_PORT}{MODELS.format(mock=mock)}")
    with program.started("serve") as started:
        yield started


def create(program: Program, *arguments: str) -> str:
    key: str = program.json("keys", "create", "--name", "limited", *arguments)["key"]
    return key


def test_never_over(program: Program, mock: str, serving: Started):
    """One server for all of it: requests, tokens, concurrency and balance, each with a key of its own."""
    key = create(program, "--limit", "requests=500/1h")
    statuses = ask_all(serving, key, body("gpt-mock:length", 10))
    assert statuses == {200: 500, 429: WORKERS * CONNECTIONS * QUESTIONS - 500}
    assert served(mock)["completed"] == 500

    before = served(mock)
    key = create(program, "--limit", "tokens=20000/1h", "--reserve", "strict")
    statuses = ask_all(serving, key, body("gpt-mock:length.chunks-20", 20))
    after = served(mock)
    used = sum(after[name] - before[name] for name in ("input_tokens", "output_tokens"))
    assert set(statuses) == {200, 429}
    assert 0 < used <= 20_000
    assert used == sum(totals(serving, key)[name] for name in ("input_tokens", "output_tokens"))

    fetch(f"{mock}/__reset", body={})
    key = create(program, "--concurrency", "7")
    statuses = ask_all(serving, key, body("gpt-mock:length.first-byte-20", 10), questions=3)
    assert 1 < served(mock)["open_peak"] <= 7
    assert set(statuses) == {200, 429}

    before = served(mock)
    key = create(program, "--prepaid", "--reserve", "strict")
    program.json("keys", "credit", key_id(serving, key), "30000")
    ask_all(serving, key, body("gpt-mock:length.chunks-20", 20), questions=3)
    after = served(mock)
    used = sum(after[name] - before[name] for name in ("input_tokens", "output_tokens"))
    assert 0 < used <= 30_000
    balance = json.loads(fetch(f"{serving.listeners['web']}/api/v1/usage", key))["balance"]
    assert balance == {"left": 30_000 - used, "held": 0}


def key_id(serving: Started, key: str) -> str:
    found: str = json.loads(fetch(f"{serving.listeners['web']}/api/v1/usage", key))["key"]["id"]
    return found


def totals(serving: Started, key: str) -> dict[str, int]:
    found: dict[str, int] = json.loads(fetch(f"{serving.listeners['web']}/api/v1/usage", key))["totals"]
    return found
