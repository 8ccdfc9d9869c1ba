"""What an ordinary client notices while others misuse the gateway: slow heads, bodies and readers, idle crowds, bombs.

    .venv/bin/python loadtests/abuse.py http://127.0.0.1:8080 ep-... PID-OF-A-GATEWAY [KIND ...]

For each kind of misuse, several rounds: undisturbed, misused, undisturbed. Ordinary requests come at a fixed, modest
rate, and each counts from the moment at which it was due. What is compared is the 99th percentile of a misused phase
with the mean of its two neighbours; README.md tells how to keep gateway and clients apart. Misuse runs in a process
of its own, with the lowest priority, and is measured once it is established.

The model `gpt-slow` should go to another mock provider than `gpt-mock`: what is measured is the gateway. Run it against
loopback only; `ulimit -n 20000` first, for both sides. slowhttptest is left out where it is not installed.
"""

import asyncio
import gzip
import json
import os
import resource
import shutil
import signal
import socket
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

ROUNDS = 3
SECONDS = 6.0
ORDINARY_CLIENTS, REQUESTS_PER_S = 4, 100
IDLE, SLOW_READERS = 5000, 2000
BOMB_BYTES, BOMBS_PER_S = 64 * 2**20, 80
QUIET_SHARE, QUIET_S, QUIET_WITHIN_S = 0.05, 3, 40.0
AFTERMATH_S = 35.0  # more than a provider's `drain_ms`: answers are read on for readers that left
ORDINARY = "gpt-mock:length"
LONG = "gpt-slow:chunks-1000.big-16384"  # 16 MB


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


# --- what is measured


@dataclass
class Phase:
    """What ordinary clients saw for some seconds, and what the gateway took."""

    taken_ms: list[float] = field(default_factory=list)
    failed: int = 0
    cpu_share: float = 0.0
    memory_mb: float = 0.0

    @property
    def p99_ms(self) -> float:
        """Return the 99th percentile."""
        return sorted(self.taken_ms)[int(len(self.taken_ms) * 0.99)]


async def ordinary(target: Target, pid: int) -> Phase:
    """Send ordinary requests at their rate, and return how that went."""
    phase = Phase()
    cpu, began = cpu_s(pid), time.monotonic()
    await asyncio.gather(*(_ask(target, phase, began, number) for number in range(ORDINARY_CLIENTS)))
    phase.cpu_share = (cpu_s(pid) - cpu) / (time.monotonic() - began)
    phase.memory_mb = memory_mb(pid)
    return phase


async def _ask(target: Target, phase: Phase, began: float, number: int) -> None:
    reader, writer = await target.connect()
    request = target.request(chat(ORDINARY))
    for turn in range(number, int(SECONDS * REQUESTS_PER_S), ORDINARY_CLIENTS):
        due = began + turn / REQUESTS_PER_S
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0))
        phase.taken_ms.append((time.monotonic() - due) * 1000)
        phase.failed += b" 200 " not in head[:20]
        if b"connection: close" in head:
            writer.close()
            reader, writer = await target.connect()
    writer.close()


def cpu_s(pid: int) -> float:
    """Return the CPU time that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mb(pid: int) -> float:
    """Return the resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


async def quiet(pid: int) -> None:
    """Wait until the gateway has had nothing to do for some seconds, or for too long."""
    until, quiet_s = time.monotonic() + QUIET_WITHIN_S, 0
    while quiet_s < QUIET_S and time.monotonic() < until:
        before = cpu_s(pid)
        await asyncio.sleep(1)
        quiet_s = quiet_s + 1 if cpu_s(pid) - before < QUIET_SHARE else 0


# --- misuse: each of these goes on until its process is killed, and calls `ready` when all of it is there


async def idle(target: Target, ready: Callable[[], None]) -> None:
    """Hold connections that never say anything."""
    held = [await target.connect() for _ in range(IDLE)]
    ready()
    await asyncio.sleep(3600)
    del held


async def slow_readers(target: Target, ready: Callable[[], None]) -> None:
    """Ask for long answers and take none of them."""
    held = []
    for _ in range(SLOW_READERS):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect((target.host, target.port))
        sock.sendall(target.request(chat(LONG, stream=True)))
        held.append(sock)
        await asyncio.sleep(0.002)
    ready()
    await asyncio.sleep(3600)
    del held


async def bombs(target: Target, ready: Callable[[], None]) -> None:
    """Send bodies of a few kilobytes that say that they expand to 64 MB."""
    bomb = target.request(gzip.compress(b"\0" * BOMB_BYTES), "content-encoding: gzip")
    ready()
    while True:
        _, writer = await target.connect()
        writer.write(bomb)
        await asyncio.sleep(1 / BOMBS_PER_S)
        writer.transport.abort()


def slowhttptest(mode: str) -> Callable[[Target, Callable[[], None]], Awaitable[None]]:
    """Return what runs slowhttptest: slow heads (H), slow bodies (B) or slow reading (X), over 1000 connections."""

    async def run(target: Target, ready: Callable[[], None]) -> None:
        # The value of a header carries one more: without a key a request would be refused before its body comes.
        accept = f"*/*\r\nAuthorization: Bearer {target.key}"
        path = f"/v1beta/models?key={target.key}" if mode == "-X" else "/v1/chat/completions"  # -X has no such header
        arguments = ["-c", "1000", mode, "-r", "200", "-i", "2", "-l", "60", "-k", "10", "-m", accept]
        while True:  # it ends when the gateway has closed all of its connections
            process = await asyncio.create_subprocess_exec(
                "slowhttptest",
                *arguments,
                "-u",
                target.url + path,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
            )
            await asyncio.sleep(5)  # until all are connected
            ready()
            await process.wait()

    return run


KINDS: dict[str, Callable[[Target, Callable[[], None]], Awaitable[None]]] = {
    "idle": idle,
    "bombs": bombs,
    "slow-heads": slowhttptest("-H"),
    "slow-bodies": slowhttptest("-B"),
    "slow-reading": slowhttptest("-X"),
    "slow-readers": slow_readers,
    "hang-up": slow_readers,  # measured when they have left, all at once
}
BY_SLOWHTTPTEST = ("slow-heads", "slow-bodies", "slow-reading")


async def misused(kind: str, target: Target, pid: int) -> Phase:
    """Return what ordinary clients see during misuse. When this returns, the misuse has ended."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, __file__, target.url, target.key, "--misuse", kind, stdout=-1, start_new_session=True
    )
    try:
        await cast("asyncio.StreamReader", process.stdout).readline()  # it is ready
        if KINDS[kind] is slow_readers:
            await quiet(pid)  # every buffer on the way is full
        if kind != "hang-up":
            return await ordinary(target, pid)
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # what it started as well
        await process.wait()
    return await ordinary(target, pid)


async def main(target: Target, pid: int, kinds: list[str]) -> None:
    """Print one line for each kind of misuse."""
    print("| misuse | p99 undisturbed | misused | ratio min/median/max | failed | CPU | memory |")
    print("|---|---|---|---|---|---|---|")
    for kind in kinds:
        await ordinary(target, pid)
        calm, misuses = [await ordinary(target, pid)], []
        for _ in range(ROUNDS):
            misuses.append(await misused(kind, target, pid))
            if KINDS[kind] is slow_readers:
                await asyncio.sleep(AFTERMATH_S)
            await quiet(pid)
            calm.append(await ordinary(target, pid))
        print(line(kind, calm, misuses), flush=True)


def line(kind: str, calm: list[Phase], misuses: list[Phase]) -> str:
    """Return the row of one kind; `calm` has a phase before and after each of `misuses`."""
    ratios = [
        each.p99_ms / statistics.mean((before.p99_ms, after.p99_ms))
        for before, each, after in zip(calm, misuses, calm[1:], strict=False)
    ]
    p99s = [statistics.median(each.p99_ms for each in some) for some in (calm, misuses)]
    shares = [statistics.median(each.cpu_share for each in some) for some in (calm, misuses)]
    columns = [
        kind,
        f"{p99s[0]:.1f} ms",
        f"{p99s[1]:.1f} ms",
        f"{min(ratios):.2f} / {statistics.median(ratios):.2f} / {max(ratios):.2f}",
        str(sum(each.failed for each in misuses)),
        f"{shares[0]:.0%} to {shares[1]:.0%}",
        f"{calm[0].memory_mb:.0f} to {max(each.memory_mb for each in misuses):.0f} MB",
    ]
    return f"| {' | '.join(columns)} |"


async def misuse(kind: str, target: Target) -> None:
    """Misuse the gateway until killed."""
    os.nice(19)
    await KINDS[kind](target, lambda: print("ready", flush=True))


if __name__ == "__main__":
    url, key, *rest_of_line = sys.argv[1:]
    if rest_of_line[0] == "--misuse":
        asyncio.run(misuse(rest_of_line[1], Target(url, key)))
    else:
        usable = [kind for kind in KINDS if kind not in BY_SLOWHTTPTEST or shutil.which("slowhttptest")]
        asyncio.run(main(Target(url, key), int(rest_of_line[0]), rest_of_line[1:] or usable))
