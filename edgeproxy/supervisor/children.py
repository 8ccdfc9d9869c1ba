"""One child process: started, watched over its control channel, started again when it dies, stopped.

The supervisor keeps the child's listening socket, so that connections wait in the system while it is replaced.
"""

import asyncio
import socket
import sys
import time
from dataclasses import dataclass

import click

from edgeproxy import logs
from edgeproxy.config import Settings
from edgeproxy.errors import OperatorError
from edgeproxy.supervisor.channel import Channel, Kind, encode_settings
from edgeproxy.supervisor.signals import wait
from edgeproxy.supervisor.snapshots import Tally

# Between two starts of a child that keeps dying: doubled each time, and short again once it ran for a while.
_FIRST_WAIT_S = 0.1
_LONGEST_WAIT_S = 10.0
_STABLE_S = 30.0

# A child that has never been ready and dies this often has a reason that waiting does not change.
_START_ATTEMPTS = 3

# How long a child may live on after it closed its channel.
_LAST_WORDS_S = 5.0

# How long a scrape waits for a child; one that is busy for longer is shown as it was.
_SNAPSHOT_TIMEOUT_S = 2.0

# How long a child may take to use other settings: its background work does a last round under the old ones.
_RELOAD_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What a child is: the arguments of `edgeproxy` that start it, what it is told, what it inherits."""

    role: str
    arguments: tuple[str, ...]
    settings: Settings
    listener: socket.socket | None
    environment: dict[str, str]


class Child:
    """One place in the supervisor's row of processes, whichever process fills it."""

    def __init__(self, plan: Plan, tally: Tally) -> None:
        self._plan = plan
        self._tally = tally
        self._process: asyncio.subprocess.Process | None = None
        self._channel: Channel | None = None  # of a process that is ready
        self._refusal = ""
        self._snapshot = b""
        self._asked = False
        self._answered = asyncio.Event()
        self._told: Settings | None = None  # the settings that the process was sent last
        self._reloaded = asyncio.Event()
        self._reload_refusal = ""
        self._draining = False
        self._stopping = asyncio.Event()
        self.ready = asyncio.Event()  # set once a process of this place has served
        self.hopeless = ""  # why no process of this place can ever serve
        self._over = asyncio.Event()

    async def keep(self) -> None:
        """Keep a process running until it is asked to stop, or until it is `hopeless`."""
        failures = 0
        try:
            while not self._stopping.is_set():
                began = time.monotonic()
                status = await self._run()
                if self._stopping.is_set():
                    return
                failures = 0 if time.monotonic() - began > _STABLE_S else failures + 1
                self.hopeless = self._verdict(failures)
                if self.hopeless:
                    return
                wait_s = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2 ** min(failures, 10))
                logs.event("child_ended", role=self._plan.role, exit_status=status, wait_ms=int(wait_s * 1000))
                await wait(self._stopping, wait_s)
        finally:
            self._over.set()

    async def snapshot(self) -> bytes:
        """Return the metrics of the process: those of now, or the last that came when it does not answer."""
        if self._channel is not None:
            if not self._asked:  # a frozen process gets one question only
                self._asked = True
                self._answered.clear()
                self._channel.send(Kind.SNAPSHOT)
            await wait(self._answered, _SNAPSHOT_TIMEOUT_S)
        return self._snapshot

    async def reload(self, plan: Plan) -> None:
        """Let the process, and those that take its place, go by this plan. Raises OperatorError when it does not.

        A process that does not serve yet will be told as soon as it does.
        """
        self._plan = plan
        if self._channel is None:
            return
        self._reloaded.clear()
        self._tell_settings(self._channel)
        await wait(self._reloaded, _RELOAD_TIMEOUT_S)
        if self._reload_refusal or not self._reloaded.is_set():
            reason = self._reload_refusal or "it does not answer"
            raise OperatorError(f"{plan.role} goes on with the old settings: {reason}")

    def drain(self) -> None:
        """Let the process say that nothing new should come; it, or who takes its place, serves on."""
        self._draining = True
        if self._channel is not None:
            self._channel.send(Kind.DRAIN)

    def hurry(self) -> None:
        """Let the process not wait for what is open when it stops."""
        if self._channel is not None:
            self._channel.send(Kind.HURRY)

    def ask_to_stop(self) -> None:
        """Ask the process to stop; no other takes its place."""
        self._stopping.set()
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()

    async def stopped(self, patience_s: float) -> None:
        """Return when the process has stopped; it is killed when the patience is over."""
        await wait(self._over, patience_s)
        self.kill()
        await self._over.wait()

    def kill(self) -> None:
        """End the process at once, if it has not ended."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def _run(self) -> int:
        """Run one process to its end and return its exit status."""
        ours, theirs = socket.socketpair()
        self._refusal = ""
        try:
            with theirs:
                self._process = await self._start(theirs)
        except OSError as error:
            ours.close()
            logs.event("child_not_started", role=self._plan.role, error=type(error).__name__)
            return -1
        if self._stopping.is_set():  # asked while the process was being made
            self._process.terminate()
        channel = await Channel.open(ours)
        try:
            self._tell_settings(channel)
            await self._listen(channel)
            return await self._end(self._process)
        finally:
            self._tally.retire(self._snapshot)
            self._snapshot = b""
            self._asked = False
            self._reloaded.set()  # a process that is gone goes on with nothing
            await channel.close()

    def _tell_settings(self, channel: Channel) -> None:
        self._told = self._plan.settings
        self._reload_refusal = ""
        channel.send(Kind.SETTINGS, encode_settings(self._told))

    def _serves(self, channel: Channel) -> None:
        """Count the process as one that serves, and tell it what changed while it was starting."""
        self._channel = channel
        self.ready.set()
        if self._told is not self._plan.settings:
            self._tell_settings(channel)
        if self._draining:
            channel.send(Kind.DRAIN)

    async def _start(self, channel: socket.socket) -> asyncio.subprocess.Process:
        inherited = [channel.fileno()]
        arguments = [*self._plan.arguments, "--control-channel", str(channel.fileno())]
        if self._plan.listener is not None:
            inherited.append(self._plan.listener.fileno())
            arguments += ["--inherited-socket", str(self._plan.listener.fileno())]
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # the folder that we were started in may hold anything, a file named like one of our modules too
            "-m",
            "edgeproxy",
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            env=self._plan.environment,
            pass_fds=inherited,
            start_new_session=True,  # Ctrl-C reaches the supervisor alone, which stops everything in order
        )

    async def _listen(self, channel: Channel) -> None:
        """Take what the process says, until it is gone."""
        try:
            while frame := await channel.receive():
                match frame:
                    case Kind.READY, _:
                        self._serves(channel)
                    case Kind.SNAPSHOT, payload:
                        self._snapshot = payload
                        self._asked = False
                        self._answered.set()
                    case Kind.RELOADED, payload:
                        self._reload_refusal = payload.decode()
                        self._reloaded.set()
                    case Kind.REFUSED, payload:
                        self._refusal = payload.decode()
        except ValueError as error:
            logs.event("child_unintelligible", role=self._plan.role, error=type(error).__name__)
        finally:
            self._channel = None  # the process itself may take a while yet to end

    async def _end(self, process: asyncio.subprocess.Process) -> int:
        try:
            return await asyncio.wait_for(process.wait(), _LAST_WORDS_S)
        except TimeoutError:
            process.kill()
            return await process.wait()

    def _verdict(self, failures: int) -> str:
        """Return why there is no use in starting another process, "" if there is."""
        if self.ready.is_set():
            if self._refusal:
                click.echo(f"edgeproxy: {self._plan.role}: {self._refusal}", err=True)
            return ""
        if failures >= _START_ATTEMPTS:
            return self._refusal or f"{self._plan.role} does not start; what it said stands above"
        return self._refusal
