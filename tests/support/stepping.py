"""Between the program and one of its stores: passes everything on, and acts at the moment that a test has named.

It speaks over Unix sockets, so the system says which process is at the other end. It knows just enough of both
protocols to see where one command ends and the next one begins. The program knows nothing of it.
"""

import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from edgeproxy.hotstate import scripts
from tests.support.processes import is_running, wait_until

_READ = 256 * 1024
_AGGREGATES = {b"*": 1, b"~": 1, b">": 1, b"%": 2, b"|": 2}  # RESP: how many values follow for each that is counted
_CREDENTIALS = struct.Struct("3i")  # process, user, group: unix(7), SO_PEERCRED

Matches = Callable[[bytes], bool]
Act = Callable[[int], None]


@cache
def sha1_of(script: str) -> bytes:
    return scripts.load()[script].sha1.encode()


def script(name: str, *parts: str) -> Matches:
    """A call of a script, with these parts somewhere in it."""
    return words("EVALSHA", sha1_of(name).decode(), *parts)


def words(*parts: str) -> Matches:
    """A command that has all of these somewhere in it."""
    found = [part.encode() for part in parts]
    return lambda command: all(part in command for part in found)


def kill(pid: int) -> None:
    """End a process as nothing can prevent, and return when it is gone."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_running(pid))


@dataclass(eq=False)
class Step:
    """One moment to act at, once: a command has been written (`answered`: its reply has), and is held back meanwhile.

    `act` is told which process has written it. Without `passes` neither command nor reply arrives.
    """

    matches: Matches
    act: Act
    answered: bool = False
    passes: bool = True
    happened: threading.Event = field(default_factory=threading.Event)

    def wait(self, timeout_s: float = 60) -> None:
        assert self.happened.wait(timeout_s), "the step was never taken"


class Stepping:
    """Listens on `path` and passes on to `target`, both Unix sockets, until it is closed."""

    def __init__(self, path: Path, target: Path, framing: "type[Framing]") -> None:
        self._target = target
        self._framing = framing
        self._steps: list[Step] = []
        self._lock = threading.Lock()
        self._links: set[_Link] = set()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(128)
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def at(self, matches: Matches, act: Act, *, answered: bool = False, passes: bool = True) -> Step:
        """Act the next time that something matches."""
        step = Step(matches, act, answered, passes)
        with self._lock:
            self._steps.append(step)
        return step

    def claim(self, command: bytes) -> Step | None:
        """Return the step that this command is, which it is for nobody else then."""
        with self._lock:
            step = next((step for step in self._steps if step.matches(command)), None)
            if step is not None:
                self._steps.remove(step)
            return step

    def forget(self) -> None:
        """Wait for no step any more."""
        with self._lock:
            self._steps.clear()

    def sever(self) -> None:
        """Break all connections."""
        for link in list(self._links):
            link.close()

    def close(self) -> None:
        self.forget()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()
        self.sever()
        wait_until(lambda: not self._links)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                server.connect(str(self._target))
            except OSError:  # the store is away: so is this
                server.close()
                client.close()
                continue
            link = _Link(self, client, server, self._framing())
            self._links.add(link)
            link.begin(self._links.discard)


class Framing:
    """Cuts what comes on a connection into commands and replies."""

    def command_end(self, buffer: bytearray, at: int) -> int:
        """Return where the command that begins here ends, -1 while it is not whole."""
        raise NotImplementedError

    def reply_end(self, buffer: bytearray, at: int) -> int:
        """Return where the reply that begins here ends, -1 while it is not whole."""
        raise NotImplementedError

    def asks(self, command: bytes) -> bool:
        """Whether this will be answered."""
        raise NotImplementedError

    def answers(self, reply: bytes) -> bool:
        """Whether a command was answered with this."""
        raise NotImplementedError


class Resp(Framing):
    """Redis."""

    def command_end(self, buffer: bytearray, at: int) -> int:
        return _resp_end(buffer, at)

    def reply_end(self, buffer: bytearray, at: int) -> int:
        return _resp_end(buffer, at)

    def asks(self, command: bytes) -> bool:
        return True

    def answers(self, reply: bytes) -> bool:
        return not reply.startswith((b">", b"|"))


def _resp_end(buffer: bytearray, at: int) -> int:
    line = buffer.find(b"\r\n", at)
    if line < 0:
        return -1
    kind, after = bytes(buffer[at : at + 1]), line + 2
    if kind in (b"$", b"=", b"!"):
        size = int(buffer[at + 1 : line])
        after = after + size + 2 if size >= 0 else after
    elif kind in _AGGREGATES:
        for _ in range(int(buffer[at + 1 : line]) * _AGGREGATES[kind]):
            after = _resp_end(buffer, after)
            if after < 0:
                return -1
    return after if after <= len(buffer) else -1


class Postgres(Framing):
    """PostgreSQL. A command is a message; some of them are answered, by being ready for the next one."""

    def __init__(self) -> None:
        self._began = False

    def command_end(self, buffer: bytearray, at: int) -> int:
        kind = 1 if self._began else 0  # the first message has no type
        if len(buffer) < at + kind + 4:
            return -1
        end = at + kind + int.from_bytes(buffer[at + kind : at + kind + 4])
        if end > len(buffer):
            return -1
        self._began = True
        return end

    def reply_end(self, buffer: bytearray, at: int) -> int:
        if len(buffer) < at + 5:
            return -1
        end = at + 1 + int.from_bytes(buffer[at + 1 : at + 5])
        return end if end <= len(buffer) else -1

    def asks(self, command: bytes) -> bool:
        return command.startswith((b"\0", b"Q", b"S"))  # to begin, by a text, or after a row of messages

    def answers(self, reply: bytes) -> bool:
        return reply.startswith(b"Z")


class _Link:
    """One connection, in both directions."""

    def __init__(self, stepping: Stepping, client: socket.socket, server: socket.socket, framing: Framing) -> None:
        self._stepping = stepping
        self._client = client
        self._server = server
        self._framing = framing
        self._sent = 0
        self._answered = 0
        self._awaited: dict[int, Step] = {}
        size = _CREDENTIALS.size
        self._pid, _, _ = _CREDENTIALS.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))

    def begin(self, ended: Callable[["_Link"], None]) -> None:
        def carry(pump: Callable[[], None]) -> None:
            with suppress(OSError):
                pump()
            self.close()

        def carry_both() -> None:
            down = threading.Thread(target=carry, args=(self._down,), daemon=True)
            down.start()
            carry(self._up)
            down.join()
            self._client.close()
            self._server.close()
            ended(self)

        threading.Thread(target=carry_both, daemon=True).start()

    def close(self) -> None:
        for each in (self._client, self._server):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _up(self) -> None:
        self._carry(self._client, self._server, self._framing.command_end, self._command)
        self._server.shutdown(socket.SHUT_WR)
        time.sleep(0.1)  # what the dead have written still arrives, and is answered to nobody

    def _down(self) -> None:
        self._carry(self._server, self._client, self._framing.reply_end, self._reply)

    def _carry(
        self,
        source: socket.socket,
        target: socket.socket,
        end_of: Callable[[bytearray, int], int],
        passes: Callable[[bytes], bool],
    ) -> None:
        """Pass on what comes, one whole frame after the other, until the end or until one does not pass."""
        buffer = bytearray()
        while part := source.recv(_READ):
            buffer += part
            at, goes_on = 0, True
            while goes_on and at < len(buffer) and (end := end_of(buffer, at)) > 0:
                goes_on = passes(bytes(buffer[at:end]))
                at = end if goes_on else at
            target.sendall(buffer[:at])
            del buffer[:at]
            if not goes_on:
                return

    def _command(self, frame: bytes) -> bool:
        self._sent += self._framing.asks(frame)
        step = self._stepping.claim(frame)
        if step is not None and step.answered:
            self._awaited[self._sent] = step
            return True
        return step is None or self._take(step)

    def _reply(self, frame: bytes) -> bool:
        if not self._framing.answers(frame):
            return True
        self._answered += 1
        step = self._awaited.pop(self._answered, None)
        return step is None or self._take(step)

    def _take(self, step: Step) -> bool:
        step.act(self._pid)
        step.happened.set()
        return step.passes
