"""The examples of proxies, run for real before an upstream that answers piece by piece, as it is told to."""

import asyncio
import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.certificates import Pair

START_TIMEOUT_S = 20
BINARIES = {name: shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin") for name in ("nginx", "haproxy")}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


@dataclass
class Upstream:
    """Takes one request and says so while it arrives; answers two events, the second only when it is let."""

    port: int = 0
    head: bytes = b""
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    may_end: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if b" /readyz " in head or b" /healthz " in head:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
        else:
            self.head = head
            await reader.readuntil(b"first half")
            self.arrived.set()
            await reader.readuntil(b"second half")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n")
            writer.write(b"x-request-id: the-id\r\n\r\n" + chunk(b"data: one\n\n"))
            await self.may_end.wait()
            writer.write(chunk(b"data: two\n\n") + b"0\r\n\r\n")
        await writer.drain()
        writer.close()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@asynccontextmanager
async def upstream_running() -> AsyncIterator[Upstream]:
    upstream = Upstream()
    server = await asyncio.start_server(upstream.answer, "127.0.0.1", 0)
    upstream.port = server.sockets[0].getsockname()[1]
    async with server:
        yield upstream


def adapted(text: str, changes: dict[str, str]) -> str:
    for old, new in changes.items():
        assert old in text, f"the example has no {old!r} any more"
        text = text.replace(old, new)
    return text


def nginx_command(text: str, folder: Path, port: int, upstream_port: int, pair: Pair) -> list[str]:
    changes = {
        " /tmp/": f" {folder}/",
        "/run/secrets/tls_certificate": str(pair.certificate),
        "/run/secrets/tls_private_key": str(pair.key),
        "/dev/stdout": str(folder / "log"),
        "/dev/stderr": str(folder / "errors"),
        "listen 8443": f"listen 127.0.0.1:{port}",
        "gateway:8080": f"127.0.0.1:{upstream_port}",
        "console:8081": f"127.0.0.1:{upstream_port}",
        "worker_rlimit_nofile 65536;": "",
        "worker_connections 16384;": "worker_connections 64;",
    }
    path = folder / "nginx.conf"
    path.write_text(adapted(text, changes))
    return [str(BINARIES["nginx"]), "-c", str(path), "-e", str(folder / "errors")]


def haproxy_command(text: str, folder: Path, port: int, upstream_port: int, pair: Pair) -> list[str]:
    both = folder / "both.pem"
    both.write_bytes(pair.certificate.read_bytes() + pair.key.read_bytes())
    changes = {
        "/etc/haproxy/edgeproxy.pem": str(both),
        "bind :8443": f"bind 127.0.0.1:{port}",
        "127.0.0.1:8080": f"127.0.0.1:{upstream_port}",
        "127.0.0.1:8081": f"127.0.0.1:{upstream_port}",
        "maxconn 8192": "maxconn 64",
    }
    path = folder / "haproxy.cfg"
    path.write_text(adapted(text, changes))
    return [str(BINARIES["haproxy"]), "-f", str(path)]


# How each is asked whether its configuration is good, and how it runs in the foreground.
CHECK = {"nginx": ["-t"], "haproxy": ["-c"]}
RUN = {"nginx": ["-g", "daemon off; master_process off;"], "haproxy": ["-db"]}
COMMAND: dict[str, Callable[[str, Path, int, int, Pair], list[str]]] = {
    "nginx": nginx_command,
    "haproxy": haproxy_command,
}


@asynccontextmanager
async def proxy_running(name: str, command: list[str], folder: Path, port: int) -> AsyncIterator[None]:
    log = folder / "log"
    with log.open("ab") as output, subprocess.Popen([*command, *RUN[name]], stdout=output, stderr=output) as process:
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while not await _listens(port):
                    assert process.poll() is None, log.read_text()
                    await asyncio.sleep(0.05)
            yield
        finally:
            process.terminate()
            process.wait(START_TIMEOUT_S)


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True
