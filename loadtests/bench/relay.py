"""A relay before a socket of Redis that holds every reply back for a while: so round trips that are waited for show."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import redis

from loadtests.bench.machine import wait_until


class Relay:
    """What stands at the path of the socket; `delay_s` may be changed while it runs."""

    def __init__(self, path: Path, behind: Path) -> None:
        self.delay_s = 0.0
        self.passed = 0  # replies
        self.listens = False
        self._path, self._behind = path, behind
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()

    def run(self) -> None:
        """Serve until `stop`; meant for a thread of its own."""
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._run())

    def stop(self) -> None:
        """End it."""
        self._loop.call_soon_threadsafe(self._over.set)

    async def _run(self) -> None:
        async with await asyncio.start_unix_server(self._serve, self._path):
            self.listens = True
            await self._over.wait()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_reader, to_writer = await asyncio.open_unix_connection(self._behind)
        # Cancelled when the relay ends: asyncio of Python 3.11 would log that as an error.
        with suppress(asyncio.CancelledError):
            await asyncio.gather(self._pass_requests(reader, to_writer), self._pass_replies(to_reader, writer))
        for each in (writer, to_writer):
            each.close()

    async def _pass_requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.write_eof()

    async def _pass_replies(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Written later, not after a sleep: replies that follow closely are not held back one after the other.
        while data := await reader.read(65536):
            self.passed += 1
            self._loop.call_later(self.delay_s, writer.write, data)


@contextmanager
def relay(path: Path, password: str) -> Iterator[Relay]:
    """Have a relay in the place of an embedded server's socket while the block runs; its clients connect anew."""
    behind = path.with_name("behind.sock")
    path.rename(behind)
    between = Relay(path, behind)
    thread = threading.Thread(target=between.run, daemon=True)
    thread.start()
    try:
        wait_until(lambda: between.listens, "that the relay listens")
        with redis.Redis(unix_socket_path=str(behind), password=password) as server:
            server.execute_command("CLIENT KILL TYPE normal")
        yield between
    finally:
        between.stop()
        thread.join()
        path.unlink()
        behind.rename(path)
