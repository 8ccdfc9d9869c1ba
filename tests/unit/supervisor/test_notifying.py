"""What systemd hears, on a socket like its own."""

import asyncio
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeproxy import tasks
from edgeproxy.supervisor.notifying import Notifier


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A socket as systemd has one, and what NOTIFY_SOCKET says of it."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@edgeproxy-{uuid.uuid4().hex}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.bind("\0" + name[1:] if name.startswith("@") else name)
        yield sock, name


def heard(sock: socket.socket) -> dict[str, str]:
    return dict(line.split("=", 1) for line in sock.recv(4096).decode().splitlines())


def test_it_hears_of_the_beginning_of_a_reload_and_of_the_end(systemd: tuple[socket.socket, str]):
    sock, name = systemd
    notifier = Notifier({"NOTIFY_SOCKET": name})
    notifier.ready()
    assert heard(sock) == {"READY": "1", "STATUS": "serving"}
    before_us = time.monotonic_ns() // 1000
    notifier.reloading()
    told = heard(sock)
    assert told["RELOADING"] == "1"
    assert before_us <= int(told["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
    notifier.ready("as before")
    assert heard(sock) == {"READY": "1", "STATUS": "as before"}
    notifier.stopping()
    assert heard(sock)["STOPPING"] == "1"


async def test_it_hears_that_we_live_as_long_as_we_do(systemd: tuple[socket.socket, str]):
    sock, name = systemd
    notifier = Notifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "20000", "WATCHDOG_PID": str(os.getpid())})
    with tasks.running("watchdog", notifier.keep_alive()):
        for _ in range(3):
            await asyncio.sleep(0.01)
            assert heard(sock) == {"WATCHDOG": "1"}


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"WATCHDOG_USEC": "20000"},
        {"NOTIFY_SOCKET": "@nobody"},
        {"NOTIFY_SOCKET": "@nobody", "WATCHDOG_USEC": "soon"},
        {"NOTIFY_SOCKET": "@nobody", "WATCHDOG_USEC": "20000", "WATCHDOG_PID": "1"},
    ],
)
async def test_nobody_is_told_that_we_live_who_did_not_ask_us(environ: dict[str, str]):
    await asyncio.wait_for(Notifier(environ).keep_alive(), 5)


def test_where_there_is_no_systemd_nothing_is_told_and_nothing_is_wrong(capsys: pytest.CaptureFixture[str]):
    notifier = Notifier({})
    notifier.ready()
    notifier.stopping()
    assert capsys.readouterr().err == ""


def test_a_systemd_that_is_gone_costs_a_line_in_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")}).ready()
    row = json.loads(capsys.readouterr().err)
    assert (row["event"], row["error"]) == ("systemd_not_told", "FileNotFoundError")
