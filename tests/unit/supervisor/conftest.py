"""The supervisor's tests run on the loop that production runs on."""

from tests.support.fixtures import pytest_asyncio_loop_factories  # noqa: F401 - pytest finds the hook by its name here
