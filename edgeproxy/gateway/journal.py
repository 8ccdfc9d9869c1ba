"""What has to survive this process although Redis has not taken it: settlements, in a file of the process's own.

Counts, ids and times, never content. A line is written before the last bytes of an answer whenever its settlement could
not be handed to Redis. When Redis has confirmed all of them, the file is emptied. Whoever starts next in the folder
takes over the files of processes that are gone: the system frees a dead process's lock. A settlement may be in a file
and in Redis both; that is harmless, because a reservation resolves once.

A line outlives the process, not the machine: nothing is forced to the disk.
"""

import fcntl
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson

from edgeproxy import logs
from edgeproxy.domain.limits import Amounts
from edgeproxy.domain.records import record
from edgeproxy.domain.reservations import Outcome
from edgeproxy.hotstate import keyspace, scripts

_PARTITIONS = 64
_MAX_BYTES = 256 * 2**20  # of one file: half a million lines. More than that was open in no process


@record
class Settlement:
    """How a reservation ends: what is sent to Redis, until Redis says that it is so."""

    partition: int
    holder: str
    request_id: str
    outcome: Outcome
    amounts: Amounts
    event: bytes  # as `encode_event` wrote it; empty where there is none

    @property
    def arguments(self) -> scripts.Arguments:
        """The arguments of the script."""
        scopes = _scopes(self.partition, self.holder)
        return scripts.settle_args(self.partition, self.request_id, scopes, self.outcome, self.amounts, self.event)


@lru_cache(maxsize=4096)
def _scopes(partition: int, holder: str) -> tuple[scripts.Scope]:
    state, ring = keyspace.state(partition, holder), keyspace.ring(partition, holder)
    return (scripts.Scope(holder, state, ring, 0),)  # a settle asks for no version


def encode(settlement: Settlement) -> bytes:
    """Return a settlement as one line."""
    amounts = settlement.amounts
    row = {
        "partition": settlement.partition,
        "holder": settlement.holder,
        "request_id": settlement.request_id,
        "outcome": settlement.outcome,
        "amounts": [amounts.requests, amounts.input_tokens, amounts.output_tokens],
        "event": settlement.event.decode(),
    }
    return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)


def decode(line: bytes) -> Settlement:
    """Return the settlement of a line. Raises ValueError for anything else, such as a line that was cut off."""
    try:
        row: dict[str, Any] = orjson.loads(line)
        requests, input_tokens, output_tokens = row["amounts"]
        settlement = Settlement(
            row["partition"],
            row["holder"],
            row["request_id"],
            Outcome(row["outcome"]),
            Amounts(requests, input_tokens, output_tokens),
            row["event"].encode(),
        )
        _ = settlement.arguments  # checks the amounts
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ValueError("not a line of a journal") from None
    if not all(isinstance(text, str) for text in (settlement.holder, settlement.request_id)):
        raise ValueError("not a line of a journal")
    if type(settlement.partition) is not int or not 0 <= settlement.partition < _PARTITIONS:
        raise ValueError("not a line of a journal")
    return settlement


class Journal:
    """The file of one process, made when it is first needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = -1
        self._path = folder / f"{uuid4()}.journal"
        self._size = 0
        self.lines = 0  # in the file now

    def write(self, settlements: Sequence[Settlement]) -> bool:
        """Append settlements, and return whether the system has them. A failure is logged."""
        content = b"".join(map(encode, settlements))
        try:
            if self._file < 0:
                self._file = self._made()
            while content:  # ends: each turn writes something, or raises
                content = content[os.write(self._file, content) :]
        except OSError as error:
            logs.event("journal_not_written", error=type(error).__name__, count=len(settlements))
            if self._file >= 0:
                os.ftruncate(self._file, self._size)  # a line that is cut off would spoil the next one
            return False
        self._size = os.fstat(self._file).st_size
        self.lines += len(settlements)
        return True

    def _made(self) -> int:
        """Return the file, made and locked. Nobody takes over what has not got its name yet."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = self._path.with_suffix(".new")
        file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            new.rename(self._path)
        except OSError:
            os.close(file)
            raise
        return file

    def clear(self) -> None:
        """Forget all lines: Redis has confirmed every one of them."""
        if self.lines:
            os.ftruncate(self._file, 0)
            self.lines = self._size = 0

    def close(self) -> None:
        """Let the file go. It stays where it is if it has lines."""
        if self._file >= 0:
            if not self.lines:
                with suppress(OSError):
                    self._path.unlink()
            os.close(self._file)
            self._file = -1


class Left:
    """The journal of a process that is gone. It belongs to whoever has it open, until it is removed or let go."""

    def __init__(self, path: Path, file: int) -> None:
        self._path = path
        self._file = file

    def read(self) -> list[Settlement]:
        """Return what can be read; a line that was cut off, because the process died over it, is told of."""
        with os.fdopen(os.dup(self._file), "rb") as file:
            lines = file.read(_MAX_BYTES).splitlines()
        found = list(_decoded(lines))
        if len(found) < len(lines):
            logs.event("journal_lines_unreadable", count=len(lines) - len(found))
        return found

    def remove(self) -> None:
        """Every line was confirmed."""
        with suppress(OSError):
            self._path.unlink()
        self.let_go()

    def let_go(self) -> None:
        """Leave it to the next."""
        os.close(self._file)


def take_over(folder: Path) -> list[Left]:
    """Return the journals in this folder whose processes are gone. Nobody else gets them meanwhile."""
    left = []
    for path in sorted(folder.glob("*.journal")):
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            logs.event("journal_unreadable", error=type(error).__name__)
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # its process lives
            os.close(file)
            continue
        left.append(Left(path, file))
    return left


def _decoded(lines: Iterable[bytes]) -> Iterator[Settlement]:
    for line in lines:
        with suppress(ValueError):
            yield decode(line)
