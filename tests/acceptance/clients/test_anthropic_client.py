"""The official Python client of Anthropic, pointed at the gateway by nothing but base URL and key."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import pytest

from tests.acceptance.clients.counts import MESSAGES, TEXT, counted, last_usage
from tests.support.gateway import Gateway

TOOL: Any = {"name": "echo", "input_schema": {"type": "object", "properties": {}}}
REQUEST: Any = {"max_tokens": 50, "messages": MESSAGES}


@pytest.fixture
async def client(gateway: Gateway, secret: str) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=gateway.url, api_key=secret) as client:
        yield client


async def _streamed(client: anthropic.AsyncAnthropic, **request: Any) -> Any:
    async with client.messages.stream(**request) as stream:
        return await stream.get_final_message()


def _reported(usage: Any) -> tuple[int, int]:
    cached = usage.cache_read_input_tokens + usage.cache_creation_input_tokens
    return usage.input_tokens + cached, usage.output_tokens


@pytest.mark.parametrize("stream", [True, False])
async def test_messages(gateway: Gateway, secret: str, client: anthropic.AsyncAnthropic, *, stream: bool) -> None:
    request = REQUEST | {"model": "claude-mock:chunks-9.cached-4.cache-write-2.cache-write-1h-3.reasoning-2"}
    answer: Any = await (_streamed(client, **request) if stream else client.messages.create(**request))
    assert answer.content[-1].text.startswith(TEXT)
    assert await counted(gateway, secret) == _reported(answer.usage) == (12, 11)
    used = await last_usage(gateway, secret)
    assert (used.input_uncached, used.cache_read, used.cache_write, used.reasoning) == (3, 4, 5, 2)
    if not stream:
        assert answer._request_id == (await gateway.events(secret))[0].id


async def test_raw_events_of_a_stream(gateway: Gateway, secret: str, client: anthropic.AsyncAnthropic) -> None:
    stream = await client.messages.create(**REQUEST, model="claude-mock:chunks-9.provisional", stream=True)
    events = [event async for event in stream]
    assert [events[0].type, events[-1].type] == ["message_start", "message_stop"]
    (delta,) = [event for event in events if event.type == "message_delta"]
    assert await counted(gateway, secret) == (delta.usage.input_tokens, delta.usage.output_tokens) == (3, 9)


async def test_what_only_the_iterations_report_is_counted(
    gateway: Gateway, secret: str, client: anthropic.AsyncAnthropic
) -> None:
    answer = await client.beta.messages.create(**REQUEST, model="claude-mock:advisor-100.compaction-50")
    assert answer.usage.iterations is not None
    assert _reported(answer.usage) == (3, 5), "what the client shows first is not the bill"
    billed = [_reported(row) for row in answer.usage.iterations]
    assert await counted(gateway, secret) == tuple(map(sum, zip(*billed, strict=True))) == (153, 20)


async def test_the_beta_namespace_and_the_synchronous_client(gateway: Gateway, secret: str) -> None:
    def ask() -> tuple[int, int]:
        with anthropic.Anthropic(base_url=gateway.url, api_key=secret) as client:
            whole = client.beta.messages.create(**REQUEST, model="claude-mock", betas=["mock-2026-01-01"])
            with client.messages.stream(**REQUEST, model="claude-mock:chunks-9") as stream:
                streamed = stream.get_final_message()
        return tuple(map(sum, zip(_reported(whole.usage), _reported(streamed.usage), strict=True)))

    assert await asyncio.to_thread(ask) == await counted(gateway, secret) == (6, 14)


@pytest.mark.parametrize("stream", [True, False])
async def test_tool_use(gateway: Gateway, secret: str, client: anthropic.AsyncAnthropic, *, stream: bool) -> None:
    request = REQUEST | {"model": "claude-mock:tool", "tools": [TOOL]}
    answer: Any = await (_streamed(client, **request) if stream else client.messages.create(**request))
    assert answer.stop_reason == "tool_use"
    assert [block.name for block in answer.content if block.type == "tool_use"] == ["echo"]
    assert await counted(gateway, secret) == _reported(answer.usage)


async def test_counting_tokens_is_free(gateway: Gateway, secret: str, client: anthropic.AsyncAnthropic) -> None:
    count = await client.messages.count_tokens(model="claude-mock", messages=MESSAGES)
    assert count.input_tokens == 3
    assert await counted(gateway, secret) == (0, 0)


async def test_models_in_pages(gateway: Gateway, client: anthropic.AsyncAnthropic) -> None:
    names = ["claude-mock", "claude-other"]
    assert [model.id async for model in client.models.list()] == names
    first = await client.models.list(limit=1)
    assert ([model.id for model in first.data], first.has_more) == (names[:1], True)
    second = await first.get_next_page()
    assert ([model.id for model in second.data], second.has_more) == (names[1:], False)
    before = await client.models.list(before_id=names[1])
    assert [model.id for model in before.data] == names[:1]
    assert (await client.models.retrieve(names[1])).id == names[1]
    with pytest.raises(anthropic.NotFoundError):
        await client.models.retrieve("claude-none")
    assert gateway.mock.counts.total.requests == 0


async def test_both_ways_to_send_a_key_and_both_versions(gateway: Gateway, secret: str) -> None:
    # The client sends `Authorization: Bearer` and a version of 2026; older ones sent `x-api-key` and one of 2023.
    older: Any = {"Authorization": anthropic.omit, "x-api-key": secret, "anthropic-version": "2023-06-01"}
    for headers in (None, older):
        async with anthropic.AsyncAnthropic(base_url=gateway.url, api_key=secret, default_headers=headers) as client:
            await client.messages.create(**REQUEST, model="claude-mock")
        sent = gateway.mock.counts.last
        assert (sent.secret_in, sent.secret_accepted) == ("x-api-key", True)
        assert "anthropic-version" in sent.headers
    assert await counted(gateway, secret) == (6, 10)
