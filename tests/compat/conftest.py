"""Gateways for the command-line tools. These tests need what `make compat` installs, and no other run collects them."""

import os
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web

from edgeproxy.gateway.answers import Written
from edgeproxy.gateway.handler import Handler
from tests.support.fixtures import (  # noqa: F401 - pytest finds fixtures and hooks by their names here
    gateway,
    operator_secret,
    pepper_file,
    pytest_asyncio_loop_factories,
    start_gateway,
)

collect_ignore_glob = [] if os.environ.get("EDGEPROXY_TEST_COMPAT") == "1" else ["test_*.py"]

Handle = Callable[[Handler, web.BaseRequest], Awaitable[Written]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Method and target of every request that reaches the gateway, in order. Take it before `gateway`."""
    lines: list[str] = []
    handle: Handle = Handler.handle

    async def noting(handler: Handler, request: web.BaseRequest) -> Written:
        lines.append(f"{request.method} {request.raw_path}")
        return await handle(handler, request)

    monkeypatch.setattr(Handler, "handle", noting)
    return lines
