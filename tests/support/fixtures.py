"""Gateways for tests: everything is real but the provider. A conftest imports what its folder needs."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import uvloop

from tests.support.gateway import OPERATOR_SECRET, PEPPER, Gateway, StartGateway, run_gateway


@pytest.fixture
def operator_secret(tmp_path: Path) -> Path:
    path = tmp_path / "operator_secret"
    path.write_text(OPERATOR_SECRET)
    return path


@pytest.fixture
def pepper_file(tmp_path: Path) -> Path:
    path = tmp_path / "pepper"
    path.write_text(PEPPER.hex())
    path.chmod(0o600)
    return path


@pytest.fixture
async def start_gateway(
    redis_url: str, operator_secret: Path, pepper_file: Path, tmp_path: Path
) -> AsyncIterator[StartGateway]:
    """Start gateways with settings of the test's own; all end with the test."""
    async with AsyncExitStack() as stack:

        async def start(
            *,
            bounds: dict[str, Any] | None = None,
            stores: dict[str, Any] | None = None,
            listen: dict[str, Any] | None = None,
            base_url: str = "",
            redis: str = redis_url,
            recordings: Path | None = None,
            **provider: Any,
        ) -> Gateway:
            return await stack.enter_async_context(
                run_gateway(
                    redis,
                    operator_secret,
                    pepper_file,
                    tmp_path,
                    bounds=bounds,
                    stores=stores,
                    listen=listen,
                    base_url=base_url,
                    provider=provider,
                    recordings=recordings,
                )
            )

        yield start


@pytest.fixture
async def gateway(start_gateway: StartGateway) -> Gateway:
    return await start_gateway()


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run these tests on the loop that production runs on."""
    return {"uvloop": uvloop.new_event_loop}
