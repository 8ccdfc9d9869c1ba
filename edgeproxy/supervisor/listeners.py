"""Listening sockets, bound before anything else starts so that a busy port is known at once."""

import errno
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from edgeproxy import logs
from edgeproxy.addresses import split_address
from edgeproxy.config import ENVIRONMENT_PREFIX
from edgeproxy.errors import OperatorError

# Connections that the system holds while a worker is busy or being replaced; the system's own maximum may be lower.
_BACKLOG = 4096

_REASONS = {
    errno.EADDRINUSE: "is in use by another program; stop it",
    errno.EACCES: "needs rights that this user does not have; choose a port from 1024 on",
    errno.EADDRNOTAVAIL: "is no address of this machine; choose one that is",
}


def bind(address: str, setting: str, count: int = 1) -> list[socket.socket]:
    """Return `count` sockets that listen on `HOST:PORT`; the system spreads connections over them.

    Port 0 takes any free one, the same for all. Raises OperatorError naming the setting.
    """
    host, port = split_address(address, setting)
    sockets: list[socket.socket] = []
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # Sockets that share a port would also share it with another gateway of ours; one that does not finds out.
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
            probe.listen(1)
            where = probe.getsockname()
        for _ in range(count):
            sockets.append(sock := socket.socket(family, kind, protocol))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind(where)
            sock.listen(_BACKLOG)
    except socket.gaierror:
        raise OperatorError(f"{setting}: {host!r} is no known host; use an address such as 127.0.0.1") from None
    except OSError as error:
        for sock in sockets:
            sock.close()
        reason = _REASONS.get(error.errno or 0, "cannot be listened on; choose another")
        variable = ENVIRONMENT_PREFIX + setting.replace(".", "_").upper()
        raise OperatorError(f"{address} {reason}, or set {setting} ({variable})") from None
    return sockets


def url_of(sock: socket.socket, *, secure: bool = False) -> str:
    """Return the address that a socket listens on, as somebody would type it. `secure`: it has a certificate."""
    host, port = sock.getsockname()[:2]
    return f"{'https' if secure else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


@asynccontextmanager
async def metrics_listener(sock: socket.socket, render: Callable[[], Awaitable[bytes]]) -> AsyncIterator[None]:
    """Answer `GET /metrics` on `sock` while the block runs."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=await render(), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})

    app = web.Application()
    app.router.add_get("/metrics", answer)
    runner = web.AppRunner(app, access_log=None, logger=logs.silent(), shutdown_timeout=1)
    await runner.setup()
    try:
        await web.SockSite(runner, sock).start()
        yield
    finally:
        await runner.cleanup()
