"""Gateways for the official clients and for counting, on the loop that production runs on."""

import os

import pytest

from tests.support.fixtures import (  # noqa: F401 - pytest finds fixtures and hooks by their names here
    gateway,
    operator_secret,
    pepper_file,
    pytest_asyncio_loop_factories,
    start_gateway,
)
from tests.support.gateway import Gateway

_OF_CLIENTS = ("OPENAI_", "ANTHROPIC_", "GOOGLE_", "GEMINI_", "LANGCHAIN_", "LANGSMITH_", "LITELLM_")
_NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def _only_the_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away what the environment tells clients, and every way out but the one to this machine.

    LangChain would send traces where a variable says so; nothing that a client sends may leave the machine.
    """
    for name in list(os.environ):
        if name.startswith(_OF_CLIENTS):
            monkeypatch.delenv(name)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, _NOWHERE)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")


@pytest.fixture
async def secret(gateway: Gateway) -> str:  # noqa: F811 - the fixture, not the import
    return await gateway.issue("tokens=1000000/1h")
