"""The official clients over https, told to trust the certificate as their users tell them: with SSL_CERT_FILE."""

import ssl
from pathlib import Path
from typing import Any

import aiohttp
import anthropic
import httpx2
import openai
import pytest
from google import genai
from google.genai.types import HttpOptions, HttpRetryOptions

from tests.acceptance.clients.counts import MESSAGES, PROMPT
from tests.support.certificates import make_pair
from tests.support.gateway import Gateway, StartGateway

# Where aiohttp is installed, Google's client uses a subclass of its session, which aiohttp advises against.
pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")

LAST_WORD = "\N{OWL}"  # of nine
BROKEN = (httpx2.ReadError, httpx2.RemoteProtocolError, aiohttp.ClientError, openai.APIError, anthropic.APIError)


@pytest.fixture
async def secure(start_gateway: StartGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gateway:
    pair = make_pair(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(pair.certificate))
    return await start_gateway(listen=pair.settings())


async def _openai(url: str, secret: str, *, fault: str = "") -> str:
    async with openai.AsyncOpenAI(base_url=url + "/v1", api_key=secret, max_retries=0) as client:
        request: Any = {"model": f"gpt-mock:chunks-9{fault}", "messages": MESSAGES, "stream": True}
        stream = await client.chat.completions.create(**request)
        return "".join([event.choices[0].delta.content or "" async for event in stream if event.choices])


async def _anthropic(url: str, secret: str, *, fault: str = "") -> str:
    async with anthropic.AsyncAnthropic(base_url=url, api_key=secret, max_retries=0) as client:
        request: Any = {"model": f"claude-mock:chunks-9{fault}", "max_tokens": 50, "messages": MESSAGES}
        async with client.messages.stream(**request) as stream:
            return await stream.get_final_text()


async def _google(url: str, secret: str, *, fault: str = "") -> str:
    options = HttpOptions(base_url=url, retry_options=HttpRetryOptions(attempts=1))
    async with genai.Client(api_key=secret, http_options=options).aio as client:
        stream = await client.models.generate_content_stream(model=f"gemini-mock:chunks-9{fault}", contents=PROMPT)
        return "".join([event.text or "" async for event in stream])


CLIENTS = [_openai, _anthropic, _google]


@pytest.mark.parametrize("ask", CLIENTS)
async def test_a_stream_arrives_whole(secure: Gateway, ask: Any) -> None:
    assert secure.url.startswith("https://")
    secret = await secure.issue()
    assert (await ask(secure.url, secret)).endswith(LAST_WORD)
    assert (await secure.settled(secret)).usage.output == 9


@pytest.mark.parametrize("ask", CLIENTS)
async def test_a_stream_that_breaks_off_is_an_error(secure: Gateway, ask: Any) -> None:
    secret = await secure.issue()
    with pytest.raises(BROKEN):
        await ask(secure.url, secret, fault=".cut-after-5")
    assert (await secure.settled(secret)).usage.estimated


@pytest.mark.parametrize("ask", CLIENTS)
async def test_an_unknown_certificate_is_an_error(secure: Gateway, ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", ssl.get_default_verify_paths().openssl_cafile)
    with pytest.raises(Exception, match=r"(?i)certificate|connection|connect"):
        await ask(secure.url, await secure.issue())
    assert secure.mock.counts.total.requests == 0
