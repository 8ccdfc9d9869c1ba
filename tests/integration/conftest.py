"""Gateways that recordings are sent through, on the loop that production runs on."""

from tests.support.fixtures import (  # noqa: F401 - pytest finds fixtures and hooks by their names here
    gateway,
    operator_secret,
    pepper_file,
    pytest_asyncio_loop_factories,
    start_gateway,
)
