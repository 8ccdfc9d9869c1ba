"""The official Python client of OpenAI, pointed at the gateway by nothing but base URL and key."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import openai
import pytest

from tests.acceptance.clients.counts import MESSAGES, PROMPT, TEXT, counted, last_usage
from tests.support.gateway import Gateway

TOOL: Any = {"type": "function", "function": {"name": "echo", "parameters": {"type": "object", "properties": {}}}}
RESPONSES_TOOL: Any = {"type": "function", "name": "echo", "parameters": {"type": "object", "properties": {}}}
SOUND = ("speech.wav", bytes(4500))  # five tokens to the mock provider


@pytest.fixture
async def client(gateway: Gateway, secret: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=gateway.url + "/v1", api_key=secret) as client:
        yield client


async def test_chat(gateway: Gateway, secret: str, client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="gpt-mock:cached-4.reasoning-3", messages=MESSAGES)
    assert answer.choices[0].message.content == TEXT
    usage = answer.usage
    assert usage is not None
    assert await counted(gateway, secret) == (usage.prompt_tokens, usage.completion_tokens) == (7, 8)
    found = await last_usage(gateway, secret)
    assert (found.cache_read, found.reasoning, found.estimated) == (4, 3, False)
    assert answer._request_id == (await gateway.events(secret))[0].id


@pytest.mark.parametrize("asked", [True, False])
async def test_chat_stream(gateway: Gateway, secret: str, client: openai.AsyncOpenAI, *, asked: bool) -> None:
    options: Any = {"stream_options": {"include_usage": True}} if asked else {}
    stream = await client.chat.completions.create(
        model="gpt-mock:chunks-9.cached-4", messages=MESSAGES, stream=True, **options
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text.startswith(TEXT)
    reported = [chunk.usage for chunk in chunks if chunk.usage is not None]
    assert [(usage.prompt_tokens, usage.completion_tokens) for usage in reported] == [(7, 9)] * asked
    assert all(chunk.choices or chunk.usage for chunk in chunks), "a chunk that the client did not ask for"
    assert await counted(gateway, secret) == (7, 9)


async def test_the_synchronous_client(gateway: Gateway, secret: str) -> None:
    def ask() -> tuple[int, int]:
        with openai.OpenAI(base_url=gateway.url + "/v1", api_key=secret) as client:
            usage = client.chat.completions.create(model="gpt-mock", messages=MESSAGES).usage
            stream = client.responses.create(model="gpt-mock:chunks-9", input=PROMPT, stream=True)
            last = list(stream)[-1].response.usage
        return usage.prompt_tokens + last.input_tokens, usage.completion_tokens + last.output_tokens

    assert await asyncio.to_thread(ask) == await counted(gateway, secret) == (6, 14)


@pytest.mark.parametrize("stream", [True, False])
async def test_chat_tool_call(gateway: Gateway, secret: str, client: openai.AsyncOpenAI, *, stream: bool) -> None:
    request: Any = {"model": "gpt-mock:tool", "messages": MESSAGES, "tools": [TOOL]}
    answer: Any
    if stream:
        async with client.chat.completions.stream(**request, stream_options={"include_usage": True}) as events:
            answer = await events.get_final_completion()
    else:
        answer = await client.chat.completions.create(**request)
    assert answer.choices[0].finish_reason == "tool_calls"
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "echo"
    assert await counted(gateway, secret) == (answer.usage.prompt_tokens, answer.usage.completion_tokens)


@pytest.mark.parametrize("stream", [True, False])
async def test_legacy_completions(gateway: Gateway, secret: str, client: openai.AsyncOpenAI, *, stream: bool) -> None:
    request: Any = {"model": "gpt-mock:chunks-9", "prompt": PROMPT}
    if stream:
        pieces = [piece async for piece in await client.completions.create(**request, stream=True)]
        text = "".join(piece.choices[0].text for piece in pieces)
    else:
        text = (await client.completions.create(**request)).choices[0].text
    assert text.startswith(TEXT)
    assert await counted(gateway, secret) == (3, 9)


async def _response(client: openai.AsyncOpenAI, **request: Any) -> Any:
    return await client.responses.create(**request)


async def _response_stream(client: openai.AsyncOpenAI, **request: Any) -> Any:
    *_, last = [event async for event in await client.responses.create(**request, stream=True)]
    return last.response


async def _response_helper(client: openai.AsyncOpenAI, **request: Any) -> Any:
    async with client.responses.stream(**request) as stream:
        return await stream.get_final_response()


each_way = pytest.mark.parametrize("respond", [_response, _response_stream, _response_helper])


@each_way
async def test_responses(
    gateway: Gateway, secret: str, client: openai.AsyncOpenAI, respond: Callable[..., Any]
) -> None:
    model = "gpt-mock:cached-4.cache-write-2.reasoning-3"
    answer = await respond(client, model=model, input=PROMPT)
    assert answer.output_text == TEXT
    usage = answer.usage
    assert await counted(gateway, secret) == (usage.input_tokens, usage.output_tokens) == (9, 8)
    found = await last_usage(gateway, secret)
    details = (usage.input_tokens_details.cached_tokens, usage.input_tokens_details.cache_write_tokens)
    assert details == (found.cache_read, found.cache_write) == (4, 2)
    assert usage.output_tokens_details.reasoning_tokens == found.reasoning == 3


@each_way
async def test_responses_tool_call(
    gateway: Gateway, secret: str, client: openai.AsyncOpenAI, respond: Callable[..., Any]
) -> None:
    answer = await respond(client, model="gpt-mock:tool", input=PROMPT, tools=[RESPONSES_TOOL])
    assert [(item.type, item.name) for item in answer.output] == [("function_call", "echo")]
    assert await counted(gateway, secret) == (answer.usage.input_tokens, answer.usage.output_tokens)


async def test_a_response_that_ends_incomplete_or_failed_is_counted_as_the_client_reports_it(
    gateway: Gateway, secret: str, client: openai.AsyncOpenAI
) -> None:
    for status in ("incomplete", "failed"):
        answer = await _response_stream(client, model=f"gpt-mock:{status}", input=PROMPT)
        assert answer.status == status
        assert (answer.usage.input_tokens, answer.usage.output_tokens) == (3, 5)
    assert await counted(gateway, secret) == (6, 10)


async def test_embeddings(gateway: Gateway, secret: str, client: openai.AsyncOpenAI) -> None:
    answer = await client.embeddings.create(model="gpt-mock", input=["one two", "three"])
    assert [row.embedding for row in answer.data] == [[0.25, -0.5, 0.125]] * 2
    assert await counted(gateway, secret) == (answer.usage.prompt_tokens, 0) == (3, 0)


@pytest.mark.parametrize("stream", [True, False])
async def test_images(gateway: Gateway, secret: str, client: openai.AsyncOpenAI, *, stream: bool) -> None:
    request: Any = {"model": "gpt-mock", "prompt": PROMPT}
    answer: Any
    if stream:
        stream_of_images = await client.images.generate(**request, stream=True, partial_images=2)
        *partial, answer = [event async for event in stream_of_images]
        assert len(partial) == 2
    else:
        answer = await client.images.generate(**request, n=2)
        assert len(answer.data) == 2
    found = await counted(gateway, secret)
    assert found == (answer.usage.input_tokens, answer.usage.output_tokens) == (3, 5 if stream else 10)


async def test_speech_as_sound_is_estimated_since_it_reports_nothing(
    gateway: Gateway, secret: str, client: openai.AsyncOpenAI
) -> None:
    whole = await client.audio.speech.create(model="gpt-mock", voice="alloy", input=PROMPT)
    speech = client.audio.speech.with_streaming_response
    async with speech.create(model="gpt-mock", voice="alloy", input=PROMPT) as answer:
        pieces = b"".join([piece async for piece in answer.iter_bytes()])
    assert pieces == whole.content != b""
    first, second = [event.usage for event in await gateway.events(secret)]
    assert first == second
    assert first.estimated
    assert first.input_total >= 3


async def test_speech_as_events(gateway: Gateway, secret: str, client: openai.AsyncOpenAI) -> None:
    speech = client.audio.speech.with_streaming_response
    async with speech.create(model="gpt-mock", voice="alloy", input=PROMPT, stream_format="sse") as answer:
        lines = [line async for line in answer.iter_lines() if line]
    assert '"input_tokens":3,"output_tokens":5' in lines[-1]
    assert await counted(gateway, secret) == (3, 5)
    assert not (await last_usage(gateway, secret)).estimated


@pytest.mark.parametrize("stream", [True, False])
async def test_transcriptions(gateway: Gateway, secret: str, client: openai.AsyncOpenAI, *, stream: bool) -> None:
    request: Any = {"model": "gpt-mock", "file": SOUND}
    answer: Any
    if stream:
        *deltas, answer = [event async for event in await client.audio.transcriptions.create(**request, stream=True)]
        assert "".join(event.delta for event in deltas) == TEXT
    else:
        answer = await client.audio.transcriptions.create(**request)
    assert answer.text == TEXT
    assert await counted(gateway, secret) == (answer.usage.input_tokens, answer.usage.output_tokens) == (5, 5)


@pytest.mark.parametrize("form", ["json", "verbose_json", "text"])
async def test_transcriptions_that_are_billed_by_the_second_are_estimated_in_tokens(
    gateway: Gateway, secret: str, client: openai.AsyncOpenAI, form: Any
) -> None:
    answer: Any = await client.audio.transcriptions.create(model="whisper-1", file=SOUND, response_format=form)
    assert (answer if form == "text" else answer.text).strip() == TEXT
    used = await last_usage(gateway, secret)
    assert used.estimated
    assert used.input_total > 0


async def test_what_is_free_costs_nothing(gateway: Gateway, secret: str, client: openai.AsyncOpenAI) -> None:
    moderated = await client.moderations.create(model="gpt-mock", input=PROMPT)
    assert [result.flagged for result in moderated.results] == [False]
    count = await client.responses.input_tokens.count(model="gpt-mock", input=PROMPT)
    assert count.input_tokens == 3
    assert await counted(gateway, secret) == (0, 0)


async def test_models_are_those_that_the_key_may_use(gateway: Gateway, client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["gpt-mock", "gpt-other"]
    assert (await client.models.retrieve("gpt-other")).id == "gpt-other"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("gpt-none")
    limited = client.with_options(api_key=await gateway.issue(models=("gpt-other",)))
    assert [model.id async for model in limited.models.list()] == ["gpt-other"]
    assert gateway.mock.counts.total.requests == 0
