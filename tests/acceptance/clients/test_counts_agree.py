"""What the provider served, what the counters say and what the database holds are one and the same."""

import asyncio
import dataclasses
import random
from typing import Any

import asyncpg

from edgeproxy.app import jobs_role, open_control
from edgeproxy.config import Jobs, Stores
from edgeproxy.control.keys import create_key
from edgeproxy.control.usage import usage_report
from edgeproxy.metrics import Metrics
from edgeproxy.store.migrate import migrate
from tests.support.gateway import Gateway, chat, message

CHAT = "/v1/chat/completions"
MESSAGES = "/v1/messages"

KINDS: list[tuple[str, dict[str, Any]]] = [
    (CHAT, chat("gpt-mock")),
    (CHAT, chat("gpt-mock:chunks-20.cached-7", stream=True)),
    (CHAT, chat("gpt-mock:chunks-11.split", stream=True, stream_options={"include_usage": True})),
    (CHAT, chat("gpt-mock:deepseek.reasoning-6", stream=True)),
    (CHAT, chat("gpt-mock:xai.reasoning-9")),
    (CHAT, chat("gpt-mock:tool", tools=[{"type": "function", "function": {"name": "echo"}}], stream=True)),
    (MESSAGES, message("claude-mock:cached-3.cache-write-8")),
    (MESSAGES, message("claude-mock:chunks-15.interval-ms-3", stream=True)),
    (MESSAGES, message("claude-mock:chunks-30.burst", stream=True)),
]


async def test_two_hundred_mixed_requests_are_counted_alike_everywhere(gateway: Gateway, postgres_url: str) -> None:
    await migrate(postgres_url)
    settings = dataclasses.replace(
        gateway.settings,
        stores=dataclasses.replace(gateway.settings.stores, postgres=postgres_url),
        jobs=Jobs(flush_interval_ms=50, flush_after_ms=1, flush_batch=37),
    )
    assert isinstance(settings.stores, Stores)
    rng = random.Random(20261121)
    async with open_control(settings) as control, jobs_role(settings, Metrics()):
        issued = [
            await create_key(control, name=f"key {number}", limits=["tokens=100000000/1h"]) for number in range(5)
        ]

        async def one(number: int) -> None:
            path, body = rng.choice(KINDS)
            async with gateway.post(path, issued[number % 5].secret, body) as answer:
                assert answer.status == 200
                if body.get("stream") and number % 7 == 0:
                    await answer.content.readany()
                    answer.close()  # hangs up; the answer is read on and counted in full
                else:
                    await answer.read()

        await asyncio.gather(*(one(number) for number in range(200)))
        served = gateway.mock.counts.total
        async with asyncio.timeout(20):
            while served.completed < 200:
                await asyncio.sleep(0.02)
            async with asyncpg.create_pool(postgres_url, min_size=1, max_size=1) as pool:
                while await pool.fetchval("SELECT count(*) FROM edgeproxy.usage_events") < 200:
                    await asyncio.sleep(0.05)
                stored = await pool.fetchrow(
                    "SELECT count(*) AS requests, sum(input_uncached + cache_read + cache_write)::bigint AS input,"
                    " sum(output)::bigint AS output, bool_or(estimated) AS estimated FROM edgeproxy.usage_events"
                )
        reports = [await usage_report(control, each.secret) for each in issued]
    hot = {
        name: sum(report["totals"][name] for report in reports if report is not None)
        for name in ("requests", "input_tokens", "output_tokens")
    }
    assert hot == {"requests": 200, "input_tokens": served.input_tokens, "output_tokens": served.output_tokens}
    assert dict(stored) == {
        "requests": 200,
        "input": served.input_tokens,
        "output": served.output_tokens,
        "estimated": False,
    }
    windows = sum(report["windows"][0]["used"] for report in reports if report is not None)
    assert windows == served.input_tokens + served.output_tokens


async def test_a_limit_of_fifty_admits_exactly_fifty_of_two_hundred(gateway: Gateway) -> None:
    secret = await gateway.issue("requests=50/1h")

    async def one(number: int) -> int:
        path, body = KINDS[number % len(KINDS)]
        async with gateway.post(path, secret, body) as answer:
            await answer.read()
            return int(answer.status)

    statuses = await asyncio.gather(*(one(number) for number in range(200)))
    assert (statuses.count(200), statuses.count(429)) == (50, 150)
    assert gateway.mock.counts.total.requests == 50
    assert len(await gateway.events(secret)) == 50
