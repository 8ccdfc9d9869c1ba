"""litellm, and LangChain on Google's client, in the environment of their own that `make compat` installs."""

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.clients.apart.asking import GOOGLES_TRIES
from tests.acceptance.clients.counts import TEXT, counted, last_usage, refusals
from tests.support.gateway import Gateway

PYTHON = Path(__file__).parents[4] / ".venv/clients/bin/python"
ASKING = Path(__file__).with_name("asking.py")
RUN_TIMEOUT_S = 60
# Everything but this machine is out of reach; litellm would fetch its prices otherwise.
ENVIRONMENT = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    **dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9"),
    "no_proxy": "127.0.0.1",
}


@dataclass(frozen=True, slots=True)
class Client:
    """How a client is asked, what it raises, and how often it tries when a budget is spent."""

    name: str
    base: str
    model: str
    denied: str
    forbidden: str
    limited: str
    broken: str
    tries: int = 1


# litellm reads an error's `type` before its status. Google's client, where it is told to retry, retries every 429,
# whatever else the answer says, and LangChain tells it to.
CLIENTS = [
    Client("litellm", "/v1", "openai/gpt-mock", "BadRequestError", "BadRequestError", "RateLimitError", "APIError"),
    Client("litellm", "/v1", "deepseek/gpt-mock", "BadRequestError", "BadRequestError", "RateLimitError", "APIError"),
    Client(
        *("litellm", "", "anthropic/claude-mock"),
        *("AuthenticationError", "PermissionDeniedError", "RateLimitError", "APIError"),
    ),
    Client(
        *("litellm", "/v1beta", "gemini/gemini-mock"),
        *("AuthenticationError", "BadRequestError", "RateLimitError", "APIError"),
    ),
    Client(
        *("google", "", "gemini-mock"),
        *("GoogleAuthenticationError", "ModelError", "ModelRateLimitError", "TransportError"),
        tries=GOOGLES_TRIES,
    ),
]
each_client = pytest.mark.parametrize("client", CLIENTS, ids=lambda client: f"{client.name}-{client.model}")


async def ask(gateway: Gateway, client: Client, *requests: tuple[str, str, str], home: Path) -> list[dict[str, Any]]:
    """Ask in turn, each time in a way, with a key, for what the model's name says behind its colon."""
    assert PYTHON.exists(), "the clients are not installed; run them with: make compat"
    url = gateway.url + client.base
    rows = [[client.name, way, url, secret, f"{client.model}:{more}".rstrip(":")] for way, secret, more in requests]
    process = await asyncio.create_subprocess_exec(
        PYTHON,
        ASKING,
        env=ENVIRONMENT | {"HOME": str(home)},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(RUN_TIMEOUT_S):
            stdout, stderr = await process.communicate(json.dumps(rows).encode())
    except TimeoutError:
        process.kill()
        raise
    assert process.returncode == 0, stderr.decode()
    outcomes: list[dict[str, Any]] = json.loads(stdout.splitlines()[-1])
    return outcomes


@each_client
async def test_what_it_reports_is_what_was_counted(
    gateway: Gateway, secret: str, client: Client, tmp_path: Path
) -> None:
    requests = [("whole", secret, "cached-4.reasoning-3"), ("stream", secret, "cached-4.reasoning-3.chunks-9")]
    answers = await ask(gateway, client, *requests, ("async", secret, ""), home=tmp_path)
    assert [answer.get("text", "")[: len(TEXT)] for answer in answers] == [TEXT] * 3, answers
    assert [answer["usage"] for answer in answers] == [[7, 8], [7, 12], [3, 5]]
    events = [event.usage for event in await gateway.events(secret)]
    assert [[usage.input_total, usage.output] for usage in events] == [answer["usage"] for answer in answers]
    assert not any(usage.estimated for usage in events)
    assert await counted(gateway, secret) == (17, 25)


@each_client
async def test_what_goes_wrong_is_raised_with_our_message_and_not_tried_in_vain(
    gateway: Gateway, secret: str, client: Client, tmp_path: Path
) -> None:
    limited = await gateway.issue("requests=1/7d", models=("gpt-mock", "claude-mock", "gemini-mock"))
    requests = [("whole", "ep-wrong", ""), ("stream", "ep-wrong", ""), ("whole", limited, "chunks-9")]
    requests += [("whole", limited, "")] * 2 + [("stream", secret, "cut-after-4")]
    denied, denied_stream, forbidden, answered, spent, broken = await ask(gateway, client, *requests, home=tmp_path)
    assert "usage" in answered, answered
    for found, kind, text in (
        (denied, client.denied, "The API key is missing or not valid."),
        (denied_stream, client.denied, "The API key is missing or not valid."),
        (forbidden, client.forbidden, "This API key may not use the requested model."),
        (spent, client.limited, "The limit requests=1/7d of this API key is reached."),
        (broken, client.broken, ""),
    ):
        assert kind in found.get("raised", ()), found
        assert text in found["message"]
    assert refusals(gateway) == {"invalid_api_key": 2, "model_not_allowed": 1, "budget_exhausted": client.tries}
    assert (await last_usage(gateway, secret)).estimated
    assert gateway.mock.counts.total.requests == 2
