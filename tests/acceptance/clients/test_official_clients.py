"""The official Python clients of OpenAI and Anthropic, pointed at the gateway by nothing but base URL and key."""

import time
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from tests.support.gateway import Gateway

TOOL = {"type": "function", "function": {"name": "echo", "parameters": {"type": "object", "properties": {}}}}
ANTHROPIC_TOOL = {"name": "echo", "input_schema": {"type": "object", "properties": {}}}
MESSAGES = [{"role": "user", "content": "one two three"}]


@pytest.fixture
async def secret(gateway: Gateway) -> str:
    return await gateway.issue("tokens=100000/1h")


@pytest.fixture
async def chat_client(gateway: Gateway, secret: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=gateway.url + "/v1", api_key=secret) as client:
        yield client


@pytest.fixture
async def messages_client(gateway: Gateway, secret: str) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=gateway.url, api_key=secret) as client:
        yield client


async def test_openai_single_answer(gateway: Gateway, secret: str, chat_client: openai.AsyncOpenAI) -> None:
    answer = await chat_client.chat.completions.create(model="gpt-mock", messages=MESSAGES)
    assert answer.choices[0].message.content == "Hello from the mock provider"
    assert answer.usage is not None
    totals = (await gateway.usage(secret)).totals
    assert (totals.input_tokens, totals.output_tokens) == (answer.usage.prompt_tokens, answer.usage.completion_tokens)
    assert answer._request_id == (await gateway.events(secret))[0].id


@pytest.mark.parametrize("asked", [True, False])
async def test_openai_stream(gateway: Gateway, secret: str, chat_client: openai.AsyncOpenAI, *, asked: bool) -> None:
    options = {"stream_options": {"include_usage": True}} if asked else {}
    stream = await chat_client.chat.completions.create(
        model="gpt-mock:chunks-9.cached-4", messages=MESSAGES, stream=True, **options
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text.startswith("Hello from the mock provider")
    reported = [chunk.usage for chunk in chunks if chunk.usage is not None]
    assert len(reported) == asked
    totals = (await gateway.usage(secret)).totals
    assert (totals.input_tokens, totals.output_tokens) == (7, 9)
    if asked:
        assert (reported[0].prompt_tokens, reported[0].completion_tokens) == (7, 9)


@pytest.mark.parametrize("stream", [True, False])
async def test_openai_tool_call(gateway: Gateway, chat_client: openai.AsyncOpenAI, *, stream: bool) -> None:
    request = {"model": "gpt-mock:tool", "messages": MESSAGES, "tools": [TOOL]}
    if stream:
        async with chat_client.chat.completions.stream(**request) as events:
            answer = await events.get_final_completion()
    else:
        answer = await chat_client.chat.completions.create(**request)
    assert answer.choices[0].finish_reason == "tool_calls"
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "echo"


async def test_anthropic_single_answer(
    gateway: Gateway, secret: str, messages_client: anthropic.AsyncAnthropic
) -> None:
    answer = await messages_client.messages.create(model="claude-mock", max_tokens=50, messages=MESSAGES)
    assert answer.content[0].text == "Hello from the mock provider"
    totals = (await gateway.usage(secret)).totals
    assert (totals.input_tokens, totals.output_tokens) == (answer.usage.input_tokens, answer.usage.output_tokens)
    assert answer._request_id == (await gateway.events(secret))[0].id


async def test_anthropic_stream(gateway: Gateway, secret: str, messages_client: anthropic.AsyncAnthropic) -> None:
    async with messages_client.messages.stream(
        model="claude-mock:chunks-9.cached-4.cache-write-2", max_tokens=50, messages=MESSAGES
    ) as stream:
        text = "".join([piece async for piece in stream.text_stream])
        answer = await stream.get_final_message()
    assert text.startswith("Hello from the mock provider")
    totals = (await gateway.usage(secret)).totals
    assert (totals.input_tokens, totals.output_tokens) == (9, 9)
    usage = answer.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (3, 4, 2)


@pytest.mark.parametrize("stream", [True, False])
async def test_anthropic_tool_use(messages_client: anthropic.AsyncAnthropic, *, stream: bool) -> None:
    request = {"model": "claude-mock:tool", "max_tokens": 50, "messages": MESSAGES, "tools": [ANTHROPIC_TOOL]}
    if stream:
        async with messages_client.messages.stream(**request) as events:
            answer = await events.get_final_message()
    else:
        answer = await messages_client.messages.create(**request)
    assert answer.stop_reason == "tool_use"
    assert any(block.type == "tool_use" and block.name == "echo" for block in answer.content)


async def test_each_client_raises_its_own_error_types(gateway: Gateway) -> None:
    limited = await gateway.issue(models=("gpt-small", "claude-small"))
    async with openai.AsyncOpenAI(base_url=gateway.url + "/v1", api_key=limited) as client:
        create = client.chat.completions.create
        with pytest.raises(openai.PermissionDeniedError):
            await create(model="gpt-mock", messages=MESSAGES)
        with pytest.raises(openai.NotFoundError) as missing:
            await create(model="unknown", messages=MESSAGES)
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as wrong:
            await create(model="claude-mock", messages=MESSAGES)
        assert "/v1/messages" in wrong.value.message
        with pytest.raises(openai.BadRequestError):
            await create(model="gpt-small", messages=MESSAGES, max_tokens=-1)
    async with anthropic.AsyncAnthropic(base_url=gateway.url, api_key=limited) as client:
        message = client.messages.create
        with pytest.raises(anthropic.PermissionDeniedError):
            await message(model="claude-mock", max_tokens=5, messages=MESSAGES)
        with pytest.raises(anthropic.NotFoundError):
            await message(model="unknown", max_tokens=5, messages=MESSAGES)
    async with openai.AsyncOpenAI(base_url=gateway.url + "/v1", api_key="ep-wrong") as client:
        with pytest.raises(openai.AuthenticationError) as denied:
            await client.chat.completions.create(model="gpt-mock", messages=MESSAGES)
        assert denied.value.code == "invalid_api_key"
    async with anthropic.AsyncAnthropic(base_url=gateway.url, api_key="ep-wrong") as client:
        with pytest.raises(anthropic.AuthenticationError):
            await client.messages.create(model="claude-mock", max_tokens=5, messages=MESSAGES)
    assert gateway.mock.counts.total.requests == 0


async def test_a_client_waits_out_a_short_limit_and_then_succeeds(gateway: Gateway) -> None:
    secret = await gateway.issue("requests=1/1s")
    async with openai.AsyncOpenAI(base_url=gateway.url + "/v1", api_key=secret) as client:
        started = time.monotonic()
        for _ in range(2):
            await client.chat.completions.create(model="gpt-mock", messages=MESSAGES)
        assert time.monotonic() - started > 0.9
    assert gateway.mock.counts.total.requests == 2


async def test_a_client_does_not_retry_a_spent_budget(gateway: Gateway) -> None:
    secret = await gateway.issue("requests=1/7d")
    async with anthropic.AsyncAnthropic(base_url=gateway.url, api_key=secret) as client:
        message = client.messages.create
        await message(model="claude-mock", max_tokens=5, messages=MESSAGES)
        with pytest.raises(anthropic.RateLimitError):
            await message(model="claude-mock", max_tokens=5, messages=MESSAGES)
    async with openai.AsyncOpenAI(base_url=gateway.url + "/v1", api_key=secret) as client:
        with pytest.raises(openai.RateLimitError) as spent:
            await client.chat.completions.create(model="gpt-mock", messages=MESSAGES)
    assert spent.value.code == "insufficient_quota"
    text = gateway.metrics.render().decode()
    assert 'edgeproxy_refusals_total{reason="budget_exhausted"} 2.0' in text


async def test_a_client_retries_a_provider_that_fails_and_each_try_is_one_event(gateway: Gateway) -> None:
    secret = await gateway.issue()
    async with openai.AsyncOpenAI(base_url=gateway.url + "/v1", api_key=secret) as client:
        answer = await client.chat.completions.create(model="gpt-mock:status-503.first-2", messages=MESSAGES)
    assert answer.choices
    assert [event.status for event in await gateway.events(secret)] == [503, 503, 200]


async def test_a_client_sees_a_broken_stream_as_an_error(gateway: Gateway, secret: str) -> None:
    async with anthropic.AsyncAnthropic(base_url=gateway.url, api_key=secret) as client:
        stream = client.messages.stream(model="claude-mock:cut-after-4", max_tokens=5, messages=MESSAGES)
        with pytest.raises(httpx2.TransportError):
            await read_to_the_end(stream)


async def read_to_the_end(stream: Any) -> None:
    async with stream as opened:
        await opened.get_final_message()
