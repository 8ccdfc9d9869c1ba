"""The life of one embedded server: started, watched, stopped, and found again after its supervisor was killed.

What is left of a killed supervisor is found through the server's socket: the system tells who listens there, so no
process id is ever read from a file, where it could be somebody else's by now. Beside that, every server holds a lock
on its data for as long as it lives, handed to it when it is started: two of them never write the same files.
"""

import fcntl
import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgeproxy.embedded.placement import Placement
from edgeproxy.errors import OperatorError

# Reading a large append-only file, or recovering after a crash, takes its time; a server that hangs has to end too.
_START_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 20.0
_POLL_S = 0.02

# How long a server that no longer listens may take to write down what it holds and end.
_LOCK_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Program:
    """What to run: `ready` asks whether it serves, `stop_signal` is its way to stop quickly and cleanly."""

    name: str
    folder: Path
    socket: Path
    stop_signal: signal.Signals
    ready: Callable[[], bool]


class Server:
    """One server process that we start and stop."""

    def __init__(self, program: Program, placement: Placement) -> None:
        self._program = program
        self._placement = placement
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the running server."""
        return self._process.pid if self.is_alive() and self._process is not None else None

    def is_alive(self) -> bool:
        """Whether the server that was started still runs."""
        return self._process is not None and self._process.poll() is None

    def stop_leftover(self) -> None:
        """Stop the server that a killed predecessor left behind, if there is one. Raises OperatorError."""
        pid = listener_pid(self._program.socket)
        if pid is not None:
            self._end(pid)

    def start(self, arguments: list[str | Path]) -> None:
        """Run the server and return when it serves. Raises OperatorError when it does not come up."""
        log = self._program.folder.parent / f"{self._program.name}.log"
        lock = self._lock()
        try:
            with log.open("wb") as output:  # begun anew at each start, so that it stays small
                log.chmod(0o600)
                self._process = subprocess.Popen(  # noqa: S603 - our own binaries and paths
                    arguments,
                    cwd=self._program.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=environment(),
                    umask=0o077,
                    pass_fds=(lock,),
                    # Ctrl-C in a terminal reaches the whole group; the stores stop last, when we say so.
                    start_new_session=True,
                    **self._placement.run_as,
                )
        finally:
            os.close(lock)
        try:
            self._wait_until_ready(log)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server; it is killed when it does not stop by itself."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(self._program.stop_signal)
            try:
                self._process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = None

    def _end(self, pid: int) -> None:
        """End a process that is not our child: it is over when it no longer listens."""
        path = self._program.socket
        for chosen in (self._program.stop_signal, signal.SIGKILL):
            deadline = time.monotonic() + _STOP_TIMEOUT_S
            try:
                os.kill(pid, chosen)
            except ProcessLookupError:
                return
            except PermissionError:
                raise OperatorError(f"process {pid} of another user listens on {path}; stop it") from None
            while time.monotonic() < deadline:
                if listener_pid(path) != pid:
                    return
                time.sleep(_POLL_S)

    def _wait_until_ready(self, log: Path) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._program.ready():
            if not self.is_alive() or time.monotonic() > deadline:
                raise OperatorError(f"the embedded {self._program.name} did not start; its own words are in {log}")
            time.sleep(_POLL_S)

    def _lock(self) -> int:
        """Return a descriptor that holds the lock on the data: the server inherits it, and holds it to its end."""
        path = self._program.folder.parent / f"{self._program.name}.lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + _LOCK_TIMEOUT_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(descriptor)
                    raise OperatorError(f"a {self._program.name} still uses {self._program.folder}; stop it") from None
                time.sleep(_POLL_S)
            else:
                return descriptor


def environment() -> dict[str, str]:
    """Return the environment of a server: nothing of ours, least of all the providers' secrets."""
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


def listener_pid(path: Path) -> int | None:
    """Return the id of the process that listens on the Unix socket `path`, None when nobody does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
            credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        except OSError:
            return None
    pid, _, _ = struct.unpack("3i", credentials)
    return int(pid) or None  # 0: a process of another container, which no signal of ours reaches
