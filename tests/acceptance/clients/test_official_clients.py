"""The official Python clients when a request fails: their own exceptions, our messages, and no try too many."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
import anthropic
import httpx2
import openai
import pytest
from google import genai
from google.genai import errors
from google.genai.types import HttpOptions, HttpRetryOptions

from tests.acceptance.clients.counts import MESSAGES, PROMPT, counted, last_usage, refusals
from tests.support.gateway import Gateway

# Where aiohttp is installed, Google's client uses a subclass of its session, which aiohttp advises against.
pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")

WRONG_KEY = "The API key is missing or not valid."
NOT_ALLOWED = "This API key may not use the requested model."
NOT_FOUND = "No provider of this gateway serves the requested model."
WRONG_PATH = "This model is served on another path"
SPENT = "The limit requests=1/7d of this API key is reached."


async def _chat(url: str, secret: str, model: str, *, stream: bool = False) -> None:
    async with openai.AsyncOpenAI(base_url=url + "/v1", api_key=secret) as client:
        request: Any = {"model": model, "messages": MESSAGES, "stream": stream}
        await _read(await client.chat.completions.create(**request))


async def _respond(url: str, secret: str, model: str, *, stream: bool = False) -> None:
    async with openai.AsyncOpenAI(base_url=url + "/v1", api_key=secret) as client:
        request: Any = {"model": model, "input": PROMPT, "stream": stream}
        await _read(await client.responses.create(**request))


async def _message(url: str, secret: str, model: str, *, stream: bool = False) -> None:
    async with anthropic.AsyncAnthropic(base_url=url, api_key=secret) as client:
        request: Any = {"model": model, "max_tokens": 50, "messages": MESSAGES, "stream": stream}
        await _read(await client.messages.create(**request))


async def _generate(
    url: str, secret: str, model: str, *, stream: bool = False, retry: HttpRetryOptions | None = None
) -> None:
    options = HttpOptions(base_url=url, retry_options=retry)
    async with genai.Client(api_key=secret, http_options=options).aio as client:
        if stream:
            await _read(await client.models.generate_content_stream(model=model, contents=PROMPT))
        else:
            await client.models.generate_content(model=model, contents=PROMPT)


async def _read(answer: Any) -> None:
    if hasattr(answer, "__aiter__"):
        async for _ in answer:
            pass


@dataclass(frozen=True, slots=True)
class Client:
    """How a client asks, and what it raises: its own types, some of them for several statuses."""

    ask: Callable[..., Awaitable[None]]
    model: str
    foreign: str  # a model of another dialect
    denied: type[Exception]  # 401
    forbidden: type[Exception]  # 403
    missing: type[Exception]  # 404
    wrong: type[Exception]  # 400
    limited: type[Exception]  # 429
    broken: type[Exception]  # the connection ends in the middle of an answer
    told: type[Exception]  # an error is reported in the middle of an answer
    tries: int  # when it is not told otherwise


_OPENAI: dict[str, Any] = {
    "model": "gpt-mock",
    "foreign": "claude-mock",
    "denied": openai.AuthenticationError,
    "forbidden": openai.PermissionDeniedError,
    "missing": openai.NotFoundError,
    "wrong": openai.BadRequestError,
    "limited": openai.RateLimitError,
    "broken": openai.APIConnectionError,
    "told": openai.APIError,
    "tries": 3,
}
CLIENTS = [
    pytest.param(Client(_chat, **_OPENAI), id="openai-chat"),
    pytest.param(Client(_respond, **_OPENAI), id="openai-responses"),
    pytest.param(
        Client(
            _message,
            "claude-mock",
            "gpt-mock",
            denied=anthropic.AuthenticationError,
            forbidden=anthropic.PermissionDeniedError,
            missing=anthropic.NotFoundError,
            wrong=anthropic.BadRequestError,
            limited=anthropic.RateLimitError,
            broken=httpx2.TransportError,
            told=anthropic.APIStatusError,
            tries=3,
        ),
        id="anthropic",
    ),
    pytest.param(
        Client(
            _generate,
            "gemini-mock",
            "gpt-mock",
            **dict.fromkeys(("denied", "forbidden", "missing", "wrong", "limited"), errors.ClientError),
            broken=aiohttp.ClientPayloadError,
            told=errors.ServerError,
            tries=1,
        ),
        id="google",
    ),
]
each_client = pytest.mark.parametrize("client", CLIENTS)


@each_client
@pytest.mark.parametrize("stream", [True, False])
async def test_what_the_gateway_refuses_is_raised_as_the_clients_own_type(
    gateway: Gateway, client: Client, *, stream: bool
) -> None:
    limited = await gateway.issue(models=("gpt-small", "claude-small", "gemini-small"))
    anything = await gateway.issue()
    for secret, model, kind, status, text in (
        ("ep-wrong", client.model, client.denied, 401, WRONG_KEY),
        (limited, client.model, client.forbidden, 403, NOT_ALLOWED),
        (anything, "unknown", client.missing, 404, NOT_FOUND),
        (anything, client.foreign, client.wrong, 400, WRONG_PATH),
    ):
        with pytest.raises(kind, match=text) as refused:
            await client.ask(gateway.url, secret, model, stream=stream)
        raised: Any = refused.value
        assert getattr(raised, "status_code", getattr(raised, "code", None)) == status
    names = ("invalid_api_key", "model_not_allowed", "model_not_found", "wrong_path")
    assert refusals(gateway) == dict.fromkeys(names, 1)
    assert gateway.mock.counts.total.requests == 0


async def test_codes_of_errors_are_where_the_clients_look_for_them(gateway: Gateway) -> None:
    with pytest.raises(openai.AuthenticationError) as denied:
        await _chat(gateway.url, "ep-wrong", "gpt-mock")
    assert denied.value.code == "invalid_api_key"
    assert denied.value.request_id
    with pytest.raises(anthropic.AuthenticationError) as refused:
        await _message(gateway.url, "ep-wrong", "claude-mock")
    assert refused.value.type == "authentication_error"
    assert refused.value.request_id
    with pytest.raises(errors.ClientError) as unknown:
        await _generate(gateway.url, "ep-wrong", "gemini-mock")
    assert unknown.value.status == "UNAUTHENTICATED"


@each_client
@pytest.mark.parametrize("stream", [True, False])
async def test_a_spent_budget_is_tried_once(gateway: Gateway, client: Client, *, stream: bool) -> None:
    secret = await gateway.issue("requests=1/7d")
    await client.ask(gateway.url, secret, client.model, stream=stream)
    with pytest.raises(client.limited, match=SPENT):
        await client.ask(gateway.url, secret, client.model, stream=stream)
    assert refusals(gateway) == {"budget_exhausted": 1}
    assert gateway.mock.counts.total.requests == 1


@each_client
async def test_what_can_never_fit_is_tried_once(gateway: Gateway, client: Client) -> None:
    secret = await gateway.issue("tokens=2/1h")
    with pytest.raises(client.limited, match="larger than"):
        await client.ask(gateway.url, secret, client.model)
    assert refusals(gateway) == {"request_exceeds_limit": 1}


@each_client
async def test_a_short_limit_is_waited_out_by_clients_that_retry(gateway: Gateway, client: Client) -> None:
    secret = await gateway.issue("requests=1/1s")
    await client.ask(gateway.url, secret, client.model)
    started = time.monotonic()
    if client.tries == 1:
        with pytest.raises(client.limited, match=r"The limit requests=1/1s of this API key is reached\."):
            await client.ask(gateway.url, secret, client.model)
    else:
        await client.ask(gateway.url, secret, client.model)
        assert time.monotonic() - started > 0.5
    assert refusals(gateway) == {"rate_limited": 1}
    assert gateway.mock.counts.total.requests == min(client.tries, 2)


async def test_googles_client_waits_where_it_is_told_to_retry(gateway: Gateway) -> None:
    secret = await gateway.issue("requests=1/1s")
    for _ in range(2):
        await _generate(gateway.url, secret, "gemini-mock", retry=HttpRetryOptions())
    assert gateway.mock.counts.total.requests == 2


@pytest.mark.parametrize("client", [client for client in CLIENTS if client.values[0].tries > 1])
async def test_a_provider_that_fails_is_tried_as_often_as_the_client_likes_and_each_try_is_one_event(
    gateway: Gateway, client: Client, secret: str
) -> None:
    await client.ask(gateway.url, secret, f"{client.model}:status-503.first-{client.tries - 1}")
    assert [event.status for event in await gateway.events(secret)] == [503] * (client.tries - 1) + [200]
    served = gateway.mock.counts.total
    assert await counted(gateway, secret) == (served.input_tokens, served.output_tokens)


@each_client
@pytest.mark.parametrize("fault", ["cut-after-4", "close-after-4", "cut-after-4.half"])
async def test_a_stream_that_breaks_off_is_an_error_of_the_client(
    gateway: Gateway, client: Client, secret: str, fault: str
) -> None:
    with pytest.raises(client.broken):
        await client.ask(gateway.url, secret, f"{client.model}:{fault}", stream=True)
    assert (await last_usage(gateway, secret)).estimated
    assert gateway.mock.counts.total.requests == 1, "what was begun is not tried again"


@each_client
async def test_an_error_in_the_middle_of_a_stream_is_an_error_of_the_client(
    gateway: Gateway, client: Client, secret: str
) -> None:
    with pytest.raises(client.told):
        await client.ask(gateway.url, secret, f"{client.model}:error-after-4", stream=True)
    assert (await last_usage(gateway, secret)).estimated
    assert gateway.mock.counts.total.requests == 1
