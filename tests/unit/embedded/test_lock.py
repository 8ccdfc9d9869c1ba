"""One owner per data directory, also between processes and after one was killed."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from edgeproxy.embedded.lock import DataDirLock
from edgeproxy.errors import OperatorError

HOLDER = """
import sys, time
from pathlib import Path
from edgeproxy.embedded.lock import DataDirLock
lock = DataDirLock(Path(sys.argv[1]))
if sys.argv[2] == "command":
    assert lock.take_or_share(1)
else:
    lock.take_to_serve(1)
    lock.tell(serving=True, ready=sys.argv[2] == "ready")
print("holds", flush=True)
time.sleep(60)
"""


@pytest.fixture
def hold(tmp_path: Path):
    """Start another process that holds the lock: as a `command`, `starting` to serve, or `ready`."""
    processes = []

    def start(how: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLDER, str(tmp_path), how]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout.readline() == "holds\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def lock(tmp_path: Path):
    lock = DataDirLock(tmp_path)
    yield lock
    lock.release()


@pytest.mark.parametrize("how", ["starting", "ready"])
def test_a_second_server_is_refused_at_once_naming_the_first(hold, lock: DataDirLock, how: str):
    first = hold(how)
    began = time.monotonic()
    with pytest.raises(OperatorError, match=f"process {first.pid} already serves"):
        lock.take_to_serve(30)
    assert time.monotonic() - began < 5


def test_a_command_uses_what_a_server_shares(hold, lock: DataDirLock):
    hold("ready")
    assert lock.take_or_share(5) is False


def test_a_command_waits_for_a_server_that_is_starting_but_not_for_ever(hold, lock: DataDirLock):
    first = hold("starting")
    with pytest.raises(OperatorError, match=f"process {first.pid} has been using"):
        lock.take_or_share(0.2)


def test_a_server_waits_for_a_command_to_end(hold, lock: DataDirLock):
    first = hold("command")
    threading.Timer(0.3, first.kill).start()
    lock.take_to_serve(30)


def test_commands_wait_for_one_another(hold, lock: DataDirLock):
    first = hold("command")
    threading.Timer(0.3, first.kill).start()
    assert lock.take_or_share(30) is True


def test_the_lock_of_a_killed_server_is_free_and_its_note_means_nothing(hold, lock: DataDirLock):
    first = hold("ready")
    first.kill()
    first.wait()
    assert lock.take_or_share(5) is True


def test_what_a_dead_server_wrote_is_not_believed_while_the_next_holder_has_not_written(tmp_path: Path, hold, lock):
    first = hold("command")
    (tmp_path / "lock").write_text('{"pid": 4194303, "serving": true, "ready": true}')
    with pytest.raises(OperatorError, match="has been using"):
        lock.take_or_share(0.2)
    (tmp_path / "lock").write_text('{"pid"')
    with pytest.raises(OperatorError, match="process unknown has been using"):
        lock.take_or_share(0.2)
    assert first.poll() is None


def test_a_shorter_note_covers_a_longer_one(tmp_path: Path, lock: DataDirLock):
    lock.take_to_serve(1)
    lock.tell(serving=False, ready=False)
    lock.tell(serving=True, ready=True)
    lock.tell(serving=False, ready=True)
    note = json.loads((tmp_path / "lock").read_text())
    assert note == {"pid": os.getpid(), "serving": False, "ready": True}


def test_a_folder_of_somebody_else_is_one_line(tmp_path: Path):
    with pytest.raises(OperatorError, match="cannot open"):
        DataDirLock(tmp_path / "nothing")
