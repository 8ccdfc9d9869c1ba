"""An embedded Redis: Unix socket only, append-only file synced every second, nothing ever evicted.

Its log keeps no command: the slow log and the crash report, which would quote arguments, are off.
"""

import signal
import socket
from pathlib import Path
from urllib.parse import quote

from edgeproxy.embedded.binaries import redis_server
from edgeproxy.embedded.placement import Placement
from edgeproxy.embedded.secrets import REDIS_PASSWORD, own_secret, read_secret
from edgeproxy.embedded.server import Program, Server
from edgeproxy.errors import OperatorError


class EmbeddedRedis:
    """The Redis of one data directory (absolute, existing)."""

    name = "redis"

    def __init__(self, data_dir: Path, placement: Placement) -> None:
        self._data_dir = data_dir
        self._placement = placement
        self._socket = placement.sockets / "redis.sock"
        self._folder = placement.stores / "redis"
        self._password = ""
        program = Program("redis", self._folder, self._socket, signal.SIGTERM, self._answers)
        self._server = Server(program, placement)

    def start(self) -> str:
        """Start the server and return its URL, password included. Raises OperatorError."""
        binary = redis_server(self._placement.account, self._placement.shared)
        if binary.version < (7, 0) and (self._folder / "appendonlydir").exists():
            # It would look for its file under another name, find none, and start empty.
            raise OperatorError(f"{self._folder} was written by Redis 7 or later; {binary.path} is older: install 7")
        self._password = read_secret(own_secret(self._data_dir, REDIS_PASSWORD))
        self._server.stop_leftover()
        self._placement.own_folder(self._folder)
        configuration = self._placement.own_file(self._folder / "redis.conf", self._configuration())
        self._server.start([binary.path, configuration])
        return self.url()

    def url(self) -> str:
        """Return the URL of the server, running or not."""
        password = read_secret(own_secret(self._data_dir, REDIS_PASSWORD))
        return f"unix://:{password}@{quote(str(self._socket))}?db=0"

    def stop(self) -> None:
        """Stop the server; what it held is in its append-only file."""
        self._server.stop()

    def is_alive(self) -> bool:
        """Whether the server that was started still runs."""
        return self._server.is_alive()

    def _configuration(self) -> str:
        """Return the configuration file, which is private: it holds the password."""
        return "\n".join(
            (
                "port 0",
                f"unixsocket {_quoted(self._socket)}",
                "unixsocketperm 700",
                f"dir {_quoted(self._folder)}",
                f"requirepass {self._password}",
                "appendonly yes",
                "appendfsync everysec",
                'save ""',  # the append-only file is enough; snapshots would only add a second copy to erase from
                "maxmemory-policy noeviction",
                "databases 1",
                "daemonize no",
                "always-show-logo no",
                "loglevel warning",
                "slowlog-log-slower-than -1",  # it would keep arguments
                "crash-log-enabled no",  # it would keep arguments
                "",
            )
        )

    def _answers(self) -> bool:
        """Whether the server takes the password and has read its data."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(1)
                connection.connect(str(self._socket))
                connection.sendall(f"AUTH {self._password}\r\nPING\r\nQUIT\r\n".encode())
                reply = b""
                while part := connection.recv(1024):
                    reply += part
        except OSError:
            return False
        return b"+PONG\r\n" in reply


def _quoted(path: Path) -> str:
    """Return a path as the configuration file wants it, spaces and quotes included."""
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
