"""Looking happens on the loop that the command runs on."""

from tests.support.fixtures import pytest_asyncio_loop_factories  # noqa: F401 - pytest finds hooks by their names here
