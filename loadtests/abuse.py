"""What an ordinary client notices while others misuse the gateway: slow heads, bodies and readers, idle crowds, bombs.

    .venv/bin/python loadtests/abuse.py http://127.0.0.1:8080 ep-... PID-OF-A-GATEWAY

For each kind of misuse it prints the 99th percentile of ordinary requests before and during it, their ratio, and by
how much the memory of the worker grew. The model `gpt-slow` should go to another mock provider than `gpt-mock`: what is
measured is the gateway. Run it against loopback only; `ulimit -n 20000` first, for both sides. The three
modes of slowhttptest are left out where that program is not installed.
"""

import asyncio
import gzip
import json
import shutil
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

SECONDS = 10.0
SETTLING_S = 20.0
IDLE, SLOW_READERS = 5000, 2000
BOMB_BYTES = 64 * 2**20
ORDINARY_CLIENTS = 4


class Target:
    """The gateway, and the key to ask it with."""

    def __init__(self, url: str, key: str) -> None:
        self.url, self.key = url, key
        address = urlsplit(url)
        self.host, self.port = str(address.hostname), int(address.port or 80)

    def request(self, body: bytes, *headers: str) -> bytes:
        """Return a chat completion request."""
        lines = ["POST /v1/chat/completions HTTP/1.1", f"host: {self.host}", f"authorization: Bearer {self.key}"]
        lines += ["content-type: application/json", f"content-length: {len(body)}", *headers]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Return a connection."""
        return await asyncio.open_connection(self.host, self.port)


def chat(model: str, **fields: object) -> bytes:
    """Return the body of a chat completion request."""
    return json.dumps({"model": model, "messages": [{"role": "user", "content": "hello"}], **fields}).encode()


async def percentile_99_ms(target: Target, seconds: float) -> float:
    """Return the 99th percentile of ordinary requests, in ms, over some seconds."""
    taken: list[float] = []

    async def ask(until: float) -> None:
        reader, writer = await target.connect()
        request = target.request(chat("gpt-mock:length"))
        while time.monotonic() < until:
            began = time.monotonic()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
            await reader.readexactly(length)
            if b" 200 " not in head[:20]:
                raise SystemExit(head.decode(errors="replace"))
            taken.append((time.monotonic() - began) * 1000)
            await asyncio.sleep(0.01)
        writer.close()

    until = time.monotonic() + seconds
    await asyncio.gather(*(ask(until) for _ in range(ORDINARY_CLIENTS)))
    taken.sort()
    return taken[int(len(taken) * 0.99)]


def memory_mb(pid: int) -> float:
    """Return the resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096 / 2**20


@asynccontextmanager
async def idle(target: Target) -> AsyncIterator[None]:
    """Hold connections that never say anything."""
    held = [await target.connect() for _ in range(IDLE)]
    try:
        yield
    finally:
        for _, writer in held:
            writer.transport.abort()


@asynccontextmanager
async def slow_readers(target: Target) -> AsyncIterator[None]:
    """Ask for long answers and take none of them."""
    held = []
    for _ in range(SLOW_READERS):
        reader, writer = await target.connect()
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(target.request(chat("gpt-slow:chunks-400.big-4096", stream=True)))
        held.append((reader, writer))
    await asyncio.sleep(SETTLING_S)  # until every buffer on the way is full
    try:
        yield
    finally:
        for _, writer in held:
            writer.transport.abort()


@asynccontextmanager
async def bombs(target: Target) -> AsyncIterator[None]:
    """Send bodies of a few kilobytes that say that they expand to 64 MB."""
    bomb = target.request(gzip.compress(b"\0" * BOMB_BYTES), "content-encoding: gzip")

    async def throw() -> None:
        while True:
            _, writer = await target.connect()
            writer.write(bomb)
            await asyncio.sleep(0.05)
            writer.transport.abort()

    throwing = [asyncio.create_task(throw()) for _ in range(4)]
    try:
        yield
    finally:
        for task in throwing:
            task.cancel()


def slowhttptest(mode: str) -> Callable[[Target], AbstractAsyncContextManager[None]]:
    """Return what runs slowhttptest: slow heads (H), slow bodies (B) or slow reading (X), over 1000 connections."""

    @asynccontextmanager
    async def run(target: Target) -> AsyncIterator[None]:
        arguments = ["-c", "1000", mode, "-r", "200", "-i", "2", "-l", "60", "-u", f"{target.url}/v1/chat/completions"]
        process = await asyncio.create_subprocess_exec(
            "slowhttptest", *arguments, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
        )
        await asyncio.sleep(6)  # until all are connected
        try:
            yield
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    return run


async def main(url: str, key: str, pid: int) -> None:
    """Print one line for each kind of misuse."""
    target = Target(url, key)
    kinds: dict[str, Callable[[Target], AbstractAsyncContextManager[None]]] = {
        f"{IDLE} idle connections": idle,
        "64 MB gzip bombs": bombs,
    }
    if shutil.which("slowhttptest"):
        kinds |= {f"slowhttptest {mode}": slowhttptest(mode) for mode in ("-H", "-B", "-X")}
    kinds[f"{SLOW_READERS} slow readers"] = slow_readers  # the last: what they asked for is read on when they leave
    print(f"{'':28}{'p99 before':>12}{'during':>10}{'ratio':>8}{'memory':>10}{'grew':>8}")
    for name, misuse in kinds.items():
        await percentile_99_ms(target, 2)
        before, held = await percentile_99_ms(target, SECONDS), memory_mb(pid)
        async with misuse(target):
            during, grown = await percentile_99_ms(target, SECONDS), memory_mb(pid)
        ratio = during / before
        print(f"{name:28}{before:9.1f} ms{during:7.1f} ms{ratio:8.2f}{grown:7.0f} MB{grown - held:5.0f} MB", flush=True)
        await asyncio.sleep(3)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
