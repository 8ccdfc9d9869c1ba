"""The embedded Redis: private, durable, and quiet about what it is told."""

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from edgeproxy.embedded import binaries
from edgeproxy.embedded import redis as module
from edgeproxy.embedded.binaries import RedisBinary
from edgeproxy.embedded.placement import Placement, place
from edgeproxy.embedded.redis import EmbeddedRedis
from edgeproxy.errors import OperatorError


@pytest.fixture
def placed(data_dir: Path) -> Iterator[Placement]:
    placed = place(data_dir)
    placed.make_runtime()
    yield placed
    placed.remove_runtime()


@pytest.fixture
def server(data_dir: Path, placed: Placement) -> Iterator[EmbeddedRedis]:
    server = EmbeddedRedis(data_dir, placed)
    yield server
    server.stop()


def test_it_keeps_what_it_was_told_over_a_restart(server: EmbeddedRedis):
    with redis.Redis.from_url(server.start()) as client:
        client.set("a", 1)
    server.stop()
    assert not server.is_alive()
    with redis.Redis.from_url(server.start()) as client:
        assert client.get("a") == b"1"


def test_it_keeps_almost_everything_when_it_is_killed(server: EmbeddedRedis):
    with redis.Redis.from_url(server.start()) as client:
        client.set("a", 1)
        pid = client.info("server")["process_id"]
    os.kill(pid, signal.SIGKILL)
    while server.is_alive():
        pass
    with redis.Redis.from_url(server.start()) as client:
        assert client.get("a") == b"1", "written to the system at once, to the disk within a second"


@pytest.mark.claims("OL-4d")
def test_it_is_configured_to_lose_nothing_and_to_keep_no_arguments(server: EmbeddedRedis):
    wanted = {
        "appendonly": "yes",
        "appendfsync": "everysec",
        "maxmemory-policy": "noeviction",
        "databases": "1",
        "port": "0",
        "unixsocketperm": "700",
        "slowlog-log-slower-than": "-1",
        "crash-log-enabled": "no",
        "save": "",
    }
    with redis.Redis.from_url(server.start(), decode_responses=True) as client:
        assert {name: client.config_get(name)[name] for name in wanted} == wanted
        client.eval("for i = 1, 300000 do redis.call('GET', 'x') end", 0)
        assert client.slowlog_len() == 0


def test_nobody_gets_in_without_the_password_and_it_is_in_no_command_line(
    server: EmbeddedRedis, placed: Placement, data_dir: Path
):
    password = server.start().split(":")[2].split("@")[0]
    assert len(password) == 64
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(str(placed.sockets / "redis.sock"))
        stranger.sendall(b"PING\r\n")
        assert stranger.recv(100).startswith(b"-NOAUTH")
    assert (data_dir / "redis" / "redis.conf").stat().st_mode & 0o777 == 0o600
    command_lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not [each for each in command_lines if password.encode() in each]


def test_a_data_directory_with_odd_characters_works(data_dir: Path):
    odd = data_dir / 'it\'s a "folder" with \\ and #'
    odd.mkdir(mode=0o711)
    placed = place(odd)
    placed.make_runtime()
    server = EmbeddedRedis(odd, placed)
    try:
        with redis.Redis.from_url(server.start()) as client:
            assert client.config_get("dir")["dir"] == str(odd / "redis")
    finally:
        server.stop()
        placed.remove_runtime()


def test_what_a_newer_redis_wrote_is_not_taken_for_nothing(
    server: EmbeddedRedis, data_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    (data_dir / "redis" / "appendonlydir").mkdir(parents=True)
    found = binaries.redis_server(None, data_dir)
    monkeypatch.setattr(module, "redis_server", lambda *_: RedisBinary(found.path, (6, 2)))
    with pytest.raises(OperatorError, match="written by Redis 7"):
        server.start()
