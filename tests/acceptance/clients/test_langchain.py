"""LangChain's chat models: they sit on the official clients, and read usage in their own way."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import anthropic
import httpx2
import langchain_anthropic._client_utils as of_anthropic
import langchain_openai.chat_models._client_utils as of_openai
import openai
import pytest
from langchain_anthropic import ChatAnthropic
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

from tests.acceptance.clients.counts import PROMPT, TEXT, counted, last_usage, refusals
from tests.support.gateway import Gateway

Make = Callable[..., Any]


def _chat(url: str, secret: str, model: str, **options: Any) -> Any:
    return ChatOpenAI(model=model, base_url=url + "/v1", api_key=secret, **options)


def _responses(url: str, secret: str, model: str) -> Any:
    return _chat(url, secret, model, use_responses_api=True)


def _chat_asking_for_usage(url: str, secret: str, model: str) -> Any:
    return _chat(url, secret, model, stream_usage=True)


def _messages(url: str, secret: str, model: str) -> Any:
    return ChatAnthropic(model=model.replace("gpt", "claude"), base_url=url, api_key=secret, max_tokens=50)


each_model = pytest.mark.parametrize("kind", [_chat, _responses, _messages])


@pytest.fixture
async def make(gateway: Gateway) -> AsyncIterator[Make]:
    """Make models and close what they opened: LangChain keeps its connections for as long as the process lives."""
    made: list[Any] = []

    def made_of(kind: Make, secret: str, model: str) -> Any:
        made.append(kind(gateway.url, secret, model))
        return made[-1]

    yield made_of
    for model in made:
        if isinstance(model, ChatAnthropic):
            model._client.close()
            await model._async_client.close()
        else:
            model.root_client.close()
            await model.root_async_client.close()
    for cached in (
        of_anthropic._get_default_httpx_client,
        of_anthropic._get_default_async_httpx_client,
        of_openai._cached_sync_httpx_client,
        of_openai._cached_async_httpx_client,
    ):
        cached.cache_clear()


async def _streamed(model: Any) -> Any:
    chunks = [chunk async for chunk in model.astream(PROMPT)]
    return sum(chunks[1:], start=chunks[0])


def _reported(answer: Any) -> tuple[int, int]:
    return answer.usage_metadata["input_tokens"], answer.usage_metadata["output_tokens"]


@each_model
@pytest.mark.parametrize("way", ["ainvoke", "invoke", "astream"])
async def test_what_a_model_reports_is_what_was_counted(
    gateway: Gateway, secret: str, make: Make, kind: Make, way: str
) -> None:
    model = make(_chat_asking_for_usage if kind is _chat else kind, secret, "gpt-mock:cached-4.reasoning-3")
    if way == "astream":
        answer = await _streamed(model)
    elif way == "ainvoke":
        answer = await model.ainvoke(PROMPT)
    else:
        answer = await asyncio.to_thread(model.invoke, PROMPT)
    assert answer.text == TEXT
    assert await counted(gateway, secret) == _reported(answer) == (7, 8)
    used, details = await last_usage(gateway, secret), answer.usage_metadata["input_token_details"]
    assert used.cache_read == details["cache_read"] == 4


async def test_a_stream_is_counted_although_langchain_does_not_ask_for_its_usage(
    gateway: Gateway, secret: str, make: Make
) -> None:
    answer = await _streamed(make(_chat, secret, "gpt-mock:cached-4.reasoning-3"))
    assert answer.text == TEXT
    assert answer.usage_metadata is None
    assert await counted(gateway, secret) == (7, 8)
    assert not (await last_usage(gateway, secret)).estimated


@each_model
@pytest.mark.parametrize("stream", [True, False])
async def test_tool_calls(gateway: Gateway, secret: str, make: Make, kind: Make, *, stream: bool) -> None:
    def echo(text: str) -> str:
        """Say it again."""
        return text

    model = make(kind, secret, "gpt-mock:tool").bind_tools([echo])
    answer = await (_streamed(model) if stream else model.ainvoke(PROMPT))
    assert [(call["name"], call["args"]) for call in answer.tool_calls] == [("echo", {"text": TEXT})]
    served = gateway.mock.counts.total
    assert await counted(gateway, secret) == (served.input_tokens, served.output_tokens)


async def test_embeddings(gateway: Gateway, secret: str) -> None:
    # With `check_embedding_ctx_length` it would split the texts by a vocabulary that it fetches from elsewhere.
    def ask() -> list[list[float]]:
        model: Any = OpenAIEmbeddings(
            model="gpt-mock",
            base_url=gateway.url + "/v1",
            api_key=secret,
            check_embedding_ctx_length=False,
        )
        found: list[list[float]] = model.embed_documents(["one two", "three"])
        model.client._client.close()
        return found

    assert await asyncio.to_thread(ask) == [[0.25, -0.5, 0.125]] * 2
    assert await counted(gateway, secret) == (3, 0)


@each_model
async def test_errors_are_those_of_the_official_client(gateway: Gateway, make: Make, kind: Make) -> None:
    of: Any = anthropic if kind is _messages else openai
    with pytest.raises(of.AuthenticationError, match="The API key is missing or not valid"):
        await make(kind, "ep-wrong", "gpt-mock").ainvoke(PROMPT)
    with pytest.raises(of.NotFoundError, match="No provider of this gateway serves"):
        await make(kind, await gateway.issue(), "unknown").ainvoke(PROMPT)
    assert refusals(gateway) == {"invalid_api_key": 1, "model_not_found": 1}


@each_model
async def test_a_spent_budget_is_tried_once(gateway: Gateway, make: Make, kind: Make) -> None:
    model = make(kind, await gateway.issue("requests=1/7d"), "gpt-mock")
    await model.ainvoke(PROMPT)
    of: Any = anthropic if kind is _messages else openai
    with pytest.raises(of.RateLimitError, match=r"The limit requests=1/7d of this API key is reached\."):
        await model.ainvoke(PROMPT)
    assert refusals(gateway) == {"budget_exhausted": 1}


@each_model
async def test_a_short_limit_is_waited_out(gateway: Gateway, make: Make, kind: Make) -> None:
    model = make(kind, await gateway.issue("requests=1/1s"), "gpt-mock")
    for _ in range(2):
        await model.ainvoke(PROMPT)
    assert refusals(gateway) == {"rate_limited": 1}
    assert gateway.mock.counts.total.requests == 2


@each_model
async def test_a_stream_that_breaks_off_is_an_error(gateway: Gateway, secret: str, make: Make, kind: Make) -> None:
    broken = httpx2.TransportError if kind is _messages else openai.APIConnectionError
    with pytest.raises(broken):
        await _streamed(make(kind, secret, "gpt-mock:cut-after-4"))
    assert (await last_usage(gateway, secret)).estimated
    assert gateway.mock.counts.total.requests == 1
