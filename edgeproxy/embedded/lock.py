"""One owner per data directory: whoever holds `data_dir/lock` starts and stops its embedded servers.

The lock is the kernel's (flock), so it is free again whatever way its holder ended. What the file says is meant for
others while the lock is held: who holds it, and whether the servers may be used by them.
"""

import fcntl
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from edgeproxy.errors import OperatorError

_POLL_S = 0.05
_LONGEST_NOTE = 4096


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds the lock. `serving`: until it is stopped, not just for a moment. `ready`: its servers may be used."""

    pid: int
    serving: bool
    ready: bool


class DataDirLock:
    """The lock of one data directory (absolute, existing)."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / "lock"
        try:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise OperatorError(f"cannot open {self._path} ({error.strerror}); check who owns data_dir") from None

    def take_to_serve(self, patience_s: float) -> None:
        """Take the lock for good; a command that has it is waited for, another `serve` is not. Raises OperatorError."""
        deadline = time.monotonic() + patience_s
        while not self._take(serving=True):
            holder = self._holder()
            if holder is not None and holder.serving:
                folder = self._path.parent
                raise OperatorError(f"process {holder.pid} already serves from {folder}; stop it, or set data_dir")
            self._pause(deadline, holder)

    def take_or_share(self, patience_s: float) -> bool:
        """Take the lock for a moment; False when somebody serves, whose servers are there to be used.

        Another command is waited for, and so is a `serve` that is just starting. Raises OperatorError.
        """
        deadline = time.monotonic() + patience_s
        while not self._take(serving=False):
            holder = self._holder()
            if holder is not None and holder.ready:
                return False
            self._pause(deadline, holder)
        return True

    def tell(self, *, serving: bool, ready: bool) -> None:
        """Write down for others what holds now. Only while the lock is held."""
        note = json.dumps(asdict(Holder(os.getpid(), serving, ready))).encode()
        # One write, so that a reader sees the old note or the new one; blanks cover what was longer before.
        os.pwrite(self._descriptor, note.ljust(os.fstat(self._descriptor).st_size), 0)

    def release(self) -> None:
        """Give the lock back."""
        os.close(self._descriptor)

    def _take(self, *, serving: bool) -> bool:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        self.tell(serving=serving, ready=False)
        return True

    def _holder(self) -> Holder | None:
        """Return what the holder wrote; None when it has not written yet (an older note is of a dead process)."""
        try:
            holder = Holder(**json.loads(os.pread(self._descriptor, _LONGEST_NOTE, 0)))
            os.kill(holder.pid, 0)
        except (ValueError, TypeError, OverflowError, OSError):
            return None
        return holder

    def _pause(self, deadline: float, holder: Holder | None) -> None:
        if time.monotonic() > deadline:
            pid = holder.pid if holder is not None else "unknown"
            raise OperatorError(f"process {pid} has been using {self._path.parent} for too long; stop it")
        time.sleep(_POLL_S)
