"""The official Python client of Google's Gemini API, pointed at the gateway by nothing but base URL and key."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from google import genai
from google.genai import errors
from google.genai.client import AsyncClient
from google.genai.types import HttpOptions

from tests.acceptance.clients.counts import PROMPT, TEXT, counted, last_usage
from tests.support.gateway import Gateway

# Where aiohttp is installed, the client uses a subclass of its session, which aiohttp advises against.
pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")

TOOL: Any = {"function_declarations": [{"name": "echo"}]}


@asynccontextmanager
async def speaking(gateway: Gateway, secret: str, version: str | None = None) -> AsyncIterator[AsyncClient]:
    options = HttpOptions(base_url=gateway.url, api_version=version)
    async with genai.Client(api_key=secret, http_options=options).aio as client:
        yield client


@pytest.fixture
async def client(gateway: Gateway, secret: str) -> AsyncIterator[AsyncClient]:
    async with speaking(gateway, secret) as client:
        yield client


async def _generate(client: AsyncClient, model: str, *, stream: bool, **options: Any) -> tuple[str, Any]:
    """Return the text and the last object of an answer: its usage is that of the whole."""
    request: Any = {"model": model, "contents": PROMPT, **options}
    if not stream:
        answer = await client.models.generate_content(**request)
        return answer.text or "", answer
    found = [each async for each in await client.models.generate_content_stream(**request)]
    return "".join(each.text or "" for each in found), found[-1]


def _reported(usage: Any) -> tuple[int, int]:
    output = (usage.candidates_token_count or 0) + (usage.thoughts_token_count or 0)
    return usage.prompt_token_count + (usage.tool_use_prompt_token_count or 0), output


@pytest.mark.parametrize("version", [None, "v1beta"])
@pytest.mark.parametrize("stream", [True, False])
async def test_generated_content(gateway: Gateway, secret: str, version: str | None, *, stream: bool) -> None:
    async with speaking(gateway, secret, version) as client:
        text, answer = await _generate(client, "gemini-mock:cached-4.reasoning-3.tool-use-prompt-2", stream=stream)
    assert text == TEXT
    usage = answer.usage_metadata
    assert await counted(gateway, secret) == _reported(usage) == (9, 8)
    assert usage.total_token_count == 17
    used = await last_usage(gateway, secret)
    assert (used.cache_read, used.reasoning) == (usage.cached_content_token_count, usage.thoughts_token_count) == (4, 3)
    assert gateway.mock.counts.last.path.startswith(f"/{version or 'v1'}/models/")


async def test_counters_that_start_again_in_the_middle(gateway: Gateway, secret: str, client: AsyncClient) -> None:
    for behaviour in ("hops", "traffic"):
        _, last = await _generate(client, f"gemini-mock:chunks-9.reasoning-3.{behaviour}", stream=True)
        assert _reported(last.usage_metadata) == (3, 12)
    assert await counted(gateway, secret) == (6, 24)


async def test_the_synchronous_client(gateway: Gateway, secret: str) -> None:
    def ask() -> tuple[int, int]:
        with genai.Client(api_key=secret, http_options=HttpOptions(base_url=gateway.url)) as client:
            whole = client.models.generate_content(model="gemini-mock", contents=PROMPT)
            *_, last = client.models.generate_content_stream(model="gemini-mock:chunks-9", contents=PROMPT)
        both = [_reported(each.usage_metadata) for each in (whole, last)]
        return both[0][0] + both[1][0], both[0][1] + both[1][1]

    assert await asyncio.to_thread(ask) == await counted(gateway, secret) == (6, 14)


@pytest.mark.parametrize("stream", [True, False])
async def test_function_call(gateway: Gateway, secret: str, client: AsyncClient, *, stream: bool) -> None:
    _, answer = await _generate(client, "gemini-mock:tool", stream=stream, config={"tools": [TOOL]})
    assert [call.name for call in answer.function_calls] == ["echo"]
    assert await counted(gateway, secret) == _reported(answer.usage_metadata)


async def test_embeddings(gateway: Gateway, secret: str, client: AsyncClient) -> None:
    # Newer models merge several texts into one vector, older ones return one for each.
    for model, vectors in (("gemini-mock", 1), ("gemini-embedding-001", 2)):
        answer = await client.models.embed_content(model=model, contents=["one two three", "four"])
        assert [each.values for each in answer.embeddings or []] == [[0.25, -0.5, 0.125]] * vectors
        assert answer.usage_metadata is not None
        assert answer.usage_metadata.prompt_token_count == 4
    assert await counted(gateway, secret) == (8, 0)


async def test_counting_tokens_is_free(gateway: Gateway, secret: str, client: AsyncClient) -> None:
    assert (await client.models.count_tokens(model="gemini-mock", contents=PROMPT)).total_tokens == 3
    assert await counted(gateway, secret) == (0, 0)


@pytest.mark.parametrize("version", [None, "v1beta"])
async def test_models_in_pages(gateway: Gateway, secret: str, version: str | None) -> None:
    names = ["models/gemini-mock", "models/gemini-other"]
    async with speaking(gateway, secret, version) as client:
        for page_size in (None, 1):
            pager = await client.models.list(config={"page_size": page_size})
            assert len(pager.page) == (page_size or 2)
            assert [model.name async for model in pager] == names
        assert (await client.models.get(model="gemini-other")).name == names[1]
        with pytest.raises(errors.ClientError) as missing:
            await client.models.get(model="gemini-none")
    assert missing.value.status == "NOT_FOUND"
    assert gateway.mock.counts.total.requests == 0
