"""Reading the configuration again: checked whole, refused whole, applied whole."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeproxy import tasks
from edgeproxy.config import Bounds, Jobs, Listen, Model, Provider, Secrets, Settings, Stores
from edgeproxy.errors import OperatorError
from edgeproxy.metrics import Metrics
from edgeproxy.supervisor.notifying import Notifier
from edgeproxy.supervisor.reloading import Reloading, differences
from edgeproxy.supervisor.signals import Signals

GIVEN = Settings()
RUNNING = replace(GIVEN, stores=Stores("unix://:secret@/r", "postgresql://u:p@/d"), secrets=Secrets("/s/pepper"))
PROVIDER = Provider("a", base_url="https://a.example", secret_env="A")


class World:
    """What the file says now, what was applied so far, and what was counted."""

    def __init__(self) -> None:
        self.file: Callable[[], Settings] = lambda: GIVEN
        self.applied: list[Settings] = []
        self.refuses = ""
        self.metrics = Metrics()
        self.signals = Signals()
        self.reloading = Reloading(GIVEN, RUNNING, self.reread)

    def reread(self) -> Settings:
        return self.file()

    async def apply(self, settings: Settings) -> None:
        if self.refuses:
            raise OperatorError(self.refuses)
        self.applied.append(settings)

    def counted(self, outcome: str) -> float:
        return self.metrics.reloads.labels(outcome)._value.get()

    async def reload(self) -> None:
        before = self.counted("applied") + self.counted("refused")
        self.signals.reload.set()
        async with asyncio.timeout(5):
            while self.counted("applied") + self.counted("refused") == before:
                await asyncio.sleep(0.001)


@pytest.fixture
async def world():
    world = World()
    running = world.reloading.run(world.signals, world.apply, world.metrics, Notifier({}))
    with tasks.running("reload", running):
        yield world


async def test_what_the_file_says_now_is_applied_with_the_stores_as_they_are(
    world: World, capsys: pytest.CaptureFixture[str]
):
    now = replace(GIVEN, provider=(PROVIDER,), model=(Model("*", "a"),))
    world.file = lambda: now
    await world.reload()
    assert world.applied == [replace(RUNNING, provider=now.provider, model=now.model)]
    assert world.reloading.settings == world.applied[0]
    assert json.loads(capsys.readouterr().err)["event"] == "reloaded"
    world.file = lambda: GIVEN
    await world.reload()
    assert world.reloading.settings == RUNNING
    assert (world.counted("applied"), world.counted("refused")) == (2, 0)


async def test_a_file_that_cannot_be_used_changes_nothing_and_is_one_line(
    world: World, capsys: pytest.CaptureFixture[str]
):
    def broken() -> Settings:
        raise OperatorError("edgeproxy.toml is not valid TOML")

    world.file = broken
    await world.reload()
    assert world.applied == []
    assert world.reloading.settings == RUNNING
    told = capsys.readouterr().err
    assert told == "edgeproxy: not reloaded, all stays as it was: edgeproxy.toml is not valid TOML\n"
    assert (world.counted("applied"), world.counted("refused")) == (0, 1)


async def test_what_cannot_change_is_named_and_nothing_else_of_the_file_is_used(
    world: World, capsys: pytest.CaptureFixture[str]
):
    world.file = lambda: replace(GIVEN, workers=2, stores=Stores(partitions=8), bounds=Bounds(drain_ms=1))
    await world.reload()
    assert world.applied == []
    told = capsys.readouterr().err
    assert "stores.partitions, workers cannot change while it runs; restart" in told
    assert "drain_ms" not in told


async def test_who_refuses_the_settings_keeps_the_old_ones(world: World, capsys: pytest.CaptureFixture[str]):
    world.refuses = "no usable secret"
    world.file = lambda: replace(GIVEN, bounds=Bounds(drain_ms=1))
    await world.reload()
    assert world.reloading.settings == RUNNING
    assert "no usable secret" in capsys.readouterr().err
    world.refuses = ""
    await world.reload()
    assert world.reloading.settings.bounds.drain_ms == 1


@pytest.mark.parametrize(
    ("new", "named"),
    [
        (Settings(), []),
        (Settings(provider=(PROVIDER,), model=(Model("*", "a"),)), []),
        (Settings(bounds=Bounds(max_body_bytes=1), jobs=Jobs(flush_batch=1)), []),
        (Settings(listen=Listen(api_certificate="/c", api_private_key="/k")), []),
        (
            Settings(listen=Listen(api="127.0.0.1:1", trusted_proxies=("::1",))),
            ["listen.api", "listen.trusted_proxies"],
        ),
        (Settings(bounds=Bounds(handshake_timeout_ms=1)), ["bounds.handshake_timeout_ms"]),
        (Settings(stores=Stores("redis://h")), ["stores.redis"]),
        (Settings(secrets=Secrets("/p")), ["secrets.pepper_file"]),
        (Settings(data_dir=Path("/d"), key_prefix="k-"), ["data_dir", "key_prefix"]),
    ],
)
def test_what_needs_a_restart_is_known(new: Any, named: list[str]):
    assert list(differences(Settings(), new)) == named
