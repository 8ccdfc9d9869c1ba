"""The life of a server process: started, stopped, found again, and never doubled."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgeproxy.embedded import server as server_module
from edgeproxy.embedded.placement import Placement
from edgeproxy.embedded.server import Program, Server, environment, listener_pid
from edgeproxy.errors import OperatorError

# A stand-in for a server: it listens on the socket that it is given until it is asked to stop.
LISTENER = """
import signal, socket, sys, time
stubborn = sys.argv[2] == "stubborn"
signal.signal(signal.SIGTERM, signal.SIG_IGN if stubborn else lambda *_: sys.exit(0))
sock = socket.socket(socket.AF_UNIX)
sock.bind(sys.argv[1]); sock.listen()
time.sleep(60)
"""


@pytest.fixture
def placed(data_dir: Path) -> Placement:
    """Everything in one folder, as an ordinary user has it."""
    placed = Placement(None, data_dir, data_dir / "run", data_dir)
    placed.make_runtime()
    placed.own_folder(data_dir / "thing")
    return placed


@pytest.fixture
def make(placed: Placement) -> Iterator[Callable[[], Server]]:
    made = []

    def build() -> Server:
        path = placed.sockets / "thing.sock"
        ready = lambda: listener_pid(path) is not None  # noqa: E731
        made.append(Server(Program("thing", placed.stores / "thing", path, signal.SIGTERM, ready), placed))
        return made[-1]

    yield build
    for server in made:
        server.stop()


def arguments(placed: Placement, how: str = "ordinary") -> list[str | Path]:
    (placed.sockets / "thing.sock").unlink(missing_ok=True)
    return [sys.executable, "-c", LISTENER, placed.sockets / "thing.sock", how]


def test_a_server_starts_and_stops(placed: Placement, make: Callable[[], Server]):
    server = make()
    assert not server.is_alive()
    server.start(arguments(placed))
    assert server.is_alive()
    pid = listener_pid(placed.sockets / "thing.sock")
    assert pid is not None
    assert os.getsid(pid) == pid, "Ctrl-C in a terminal does not reach it"
    server.stop()
    assert not server.is_alive()
    assert listener_pid(placed.sockets / "thing.sock") is None
    server.stop()


def test_a_server_that_ends_at_once_is_one_line_that_names_its_log(placed: Placement, make: Callable[[], Server]):
    server = make()
    with pytest.raises(OperatorError, match=str(placed.stores / "thing.log")):
        server.start(["/bin/sh", "-c", "echo its own words; exit 1"])
    assert (placed.stores / "thing.log").read_text() == "its own words\n"
    assert (placed.stores / "thing.log").stat().st_mode & 0o777 == 0o600


def test_a_server_that_never_serves_is_stopped_again(
    placed: Placement, make: Callable[[], Server], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(server_module, "_START_TIMEOUT_S", 0.2)
    server = make()
    with pytest.raises(OperatorError, match="did not start"):
        server.start(["/bin/sleep", "60"])
    assert not server.is_alive()


def test_a_server_that_does_not_stop_is_killed(
    placed: Placement, make: Callable[[], Server], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(server_module, "_STOP_TIMEOUT_S", 0.2)
    server = make()
    server.start(arguments(placed, "stubborn"))
    server.stop()
    assert listener_pid(placed.sockets / "thing.sock") is None


@pytest.mark.parametrize("how", ["ordinary", "stubborn"])
def test_what_a_killed_predecessor_left_is_stopped_before_the_next_start(
    placed: Placement, make: Callable[[], Server], monkeypatch: pytest.MonkeyPatch, how: str
):
    monkeypatch.setattr(server_module, "_STOP_TIMEOUT_S", 0.5)
    make().start(arguments(placed, how))
    left = listener_pid(placed.sockets / "thing.sock")
    successor = make()
    successor.stop_leftover()
    assert listener_pid(placed.sockets / "thing.sock") is None
    successor.start(arguments(placed))
    assert listener_pid(placed.sockets / "thing.sock") not in (None, left)


def test_two_servers_never_use_the_same_data_even_when_the_first_cannot_be_found(
    placed: Placement, make: Callable[[], Server], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(server_module, "_LOCK_TIMEOUT_S", 0.2)
    first = make()
    first.start(arguments(placed))
    (placed.sockets / "thing.sock").unlink()
    second = make()
    second.stop_leftover()
    with pytest.raises(OperatorError, match="still uses"):
        second.start(arguments(placed))
    assert first.is_alive()


def test_a_process_that_stopped_by_itself_is_no_leftover(placed: Placement, make: Callable[[], Server]):
    make().stop_leftover()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(placed.sockets / "thing.sock"))
    make().stop_leftover()


def test_a_server_sees_nothing_of_our_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    told = subprocess.run(["/usr/bin/env"], env=environment(), capture_output=True, text=True, check=True).stdout
    assert "secret" not in told
    assert {line.partition("=")[0] for line in told.splitlines()} <= {"PATH", "LC_ALL", "TZ"}


def test_stopping_a_leftover_does_not_wait_for_a_process_that_nobody_buries(
    placed: Placement, make: Callable[[], Server]
):
    make().start(arguments(placed))  # our child: it stays a zombie until it is waited for
    began = time.monotonic()
    make().stop_leftover()
    assert time.monotonic() - began < 5
