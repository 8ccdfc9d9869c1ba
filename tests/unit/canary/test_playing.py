"""The plays as a whole are in tests/acceptance/test_canaries.py: here, that they are all there and end as told."""

import inspect
import signal
from collections import Counter
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from edgeproxy.canary import playing, upstream
from edgeproxy.canary.markers import Markers
from edgeproxy.canary.places import Search
from edgeproxy.canary.playing import Play
from edgeproxy.canary.requests import Writer
from edgeproxy.canary.sending import Sending


class There:
    """An installation that does nothing but remember what was done to it."""

    def __init__(self, folder: Path) -> None:
        self.done: list[Any] = []
        self.folder = self.data_dir = folder
        self.placement = SimpleNamespace(stores=folder)
        self.stores = SimpleNamespace(redis="unix:///nowhere")
        self.process = SimpleNamespace(pid=2**22 + 1)

    def children(self) -> dict[int, str]:
        return {}

    def workers(self) -> list[int]:
        return [11, 12]

    def server(self, name: str) -> int:
        return {"redis-server": 21, "postgres": 31}[name]

    def kill(self, pid: int, number: signal.Signals = signal.SIGKILL) -> None:
        self.done.append((pid, number))

    async def until_ready(self) -> None:
        self.done.append("ready")


@asynccontextmanager
async def made(folder: Path):
    markers = Markers()
    async with upstream.running(markers) as provider:
        # The provider stands in for the gateway: what is sent arrives there.
        listeners = {"api": provider.url, "web": provider.url, "metrics": provider.url}
        writers = (Writer(markers, "k" * 52), Writer(markers, "p" * 52))
        there = cast("Any", There(folder))
        yield Play(there, provider, *writers, Sending(listeners), Search(markers), "decoy")


async def test_everything_is_done_and_each_step_waits_until_all_serve_again(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(playing, "_SETTLING_S", 0.1)
    monkeypatch.setattr(playing, "_AWAY_S", 0.1)
    monkeypatch.setattr(upstream, "_EVENT_PAUSE_S", 0.05)
    monkeypatch.setattr("edgeproxy.canary.sending._TIMEOUT_S", 1.0)
    monkeypatch.setattr("edgeproxy.canary.sending._SILENCE_S", 0.1)
    monkeypatch.setattr("edgeproxy.canary.sending._PAUSE_S", 0.1)
    async with made(tmp_path) as play:
        told = await play.all()
        done = cast("There", play.there).done
    assert len(told) == done.count("ready")
    signals = Counter(each for each in done if each != "ready")
    assert signals == {
        **{(pid, number): 1 for pid in (11, 12) for number in (signal.SIGKILL, signal.SIGABRT)},
        (21, signal.SIGSTOP): 1,
        (21, signal.SIGCONT): 1,
        (21, signal.SIGKILL): 1,
        (31, signal.SIGKILL): 1,
    }
    assert done.index((21, signal.SIGSTOP)) < done.index((21, signal.SIGCONT))
    assert any("Redis" in line for line in play.search.not_read), "it was asked before it was killed"


async def test_redis_goes_on_also_when_looking_fails(tmp_path: Path, monkeypatch):
    async def fail(_: Play) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(playing, "_AWAY_S", 0.1)
    monkeypatch.setattr(Play, "look_at_open_files", fail)
    async with made(tmp_path) as play:
        with pytest.raises(ZeroDivisionError):
            await play.redis_freezes()
        assert cast("There", play.there).done == [(21, signal.SIGSTOP), (21, signal.SIGCONT)]


def test_every_play_is_a_coroutine():
    for name in ("success", "provider_fails", "refused", "trouble", "worker_ends", "redis_freezes", "store_ends"):
        assert inspect.iscoroutinefunction(getattr(Play, name))
