"""An embedded PostgreSQL: Unix socket only, one role that is no superuser, one database.

Its log keeps no statement and no parameter. The superuser cannot log in at all: what has to be done as such is done
in single-user mode before the server starts, which needs no password and opens no socket.
"""

import shutil
import signal
import subprocess
from pathlib import Path
from urllib.parse import quote

from edgeproxy.embedded.binaries import postgres_binaries
from edgeproxy.embedded.placement import Placement
from edgeproxy.embedded.secrets import POSTGRES_PASSWORD, own_secret, read_secret
from edgeproxy.embedded.server import Program, Server, environment
from edgeproxy.errors import OperatorError

_NAME = "edgeproxy"  # of the role and of its database
_PORT = 5432  # part of the socket's name only

_INITDB_TIMEOUT_S = 120  # writes and syncs 40 MB
_SINGLE_USER_TIMEOUT_S = 120  # recovers first if the last server was killed

# Nobody else gets in, the superuser included.
_ACCESS = f"local all {_NAME} scram-sha-256\n"

_SETTINGS = {
    "listen_addresses": "''",
    "port": str(_PORT),
    "unix_socket_permissions": "0700",
    # Small: it holds usage counts, beside everything else on somebody's own machine.
    "max_connections": "50",
    "shared_buffers": "32MB",
    "maintenance_work_mem": "32MB",
    "max_wal_size": "256MB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "io_method": "sync",
    "jit": "off",
    "password_encryption": "scram-sha-256",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "lc_messages": "C",
    # Statements, their parameters and the values that an error quotes stay out of the log.
    "log_min_messages": "fatal",
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    "log_statement": "none",
    "log_min_duration_statement": "-1",
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
    "log_checkpoints": "off",
    "logging_collector": "off",
}


class EmbeddedPostgres:
    """The PostgreSQL of one data directory (absolute, existing)."""

    name = "postgresql"

    def __init__(self, data_dir: Path, placement: Placement) -> None:
        self._data_dir = data_dir
        self._placement = placement
        self._folder = placement.stores / "postgres"
        self._binaries = Path()
        socket = placement.sockets / f".s.PGSQL.{_PORT}"
        program = Program("postgres", self._folder, socket, signal.SIGINT, self._is_ready)
        self._server = Server(program, placement)

    def start(self) -> str:
        """Start the server and return its URL, password included. Raises OperatorError."""
        self._binaries = postgres_binaries(self._placement.account, self._placement.shared)
        self._server.stop_leftover()
        if not self._folder.exists():
            self._initialise()
        own_file = self._placement.own_file
        own_file(self._folder / "postgresql.conf", self._configuration())
        own_file(self._folder / "pg_hba.conf", _ACCESS)
        # Set at every start, so that the file is always right, also after it was brought back from elsewhere.
        self._administer(self._folder, f"ALTER ROLE {_NAME} PASSWORD '{self._password()}'")
        self._server.start([self._binaries / "postgres", "-D", self._folder])
        return self.url()

    def url(self) -> str:
        """Return the URL of the server, running or not."""
        return (
            f"postgresql://{_NAME}:{self._password()}@/{_NAME}?host={quote(str(self._placement.sockets))}&port={_PORT}"
        )

    def stop(self) -> None:
        """Stop the server; connections that are open are ended."""
        self._server.stop()

    def is_alive(self) -> bool:
        """Whether the server that was started still runs."""
        return self._server.is_alive()

    def _initialise(self) -> None:
        """Make the database cluster, its role and its database: all of it or nothing."""
        draft = self._folder.with_name("postgres.new")
        shutil.rmtree(draft, ignore_errors=True)
        self._placement.own_folder(draft)
        options = ["--username=postgres", "--auth=reject", "--encoding=UTF8", "--locale=C", "--data-checksums"]
        self._run([self._binaries / "initdb", "-D", draft, "--no-instructions", *options], "", _INITDB_TIMEOUT_S)
        self._administer(draft, f"CREATE ROLE {_NAME} LOGIN", f"CREATE DATABASE {_NAME} OWNER {_NAME}")
        draft.rename(self._folder)

    def _administer(self, folder: Path, *statements: str) -> None:
        """Run statements as the superuser while no server runs. Raises OperatorError."""
        # Errors are looked for in what it prints, which goes nowhere else.
        loud = ["-c", "log_min_messages=error"]
        command: list[str | Path] = [self._binaries / "postgres", "--single", "-D", folder, *loud, "postgres"]
        # On its standard input, because arguments are open to everybody on the machine.
        self._run(command, "\n".join((*statements, "")), _SINGLE_USER_TIMEOUT_S)

    def _run(self, command: list[str | Path], stdin: str, timeout_s: float) -> None:
        try:
            ran = subprocess.run(  # noqa: S603 - our own binaries and paths
                command,
                input=stdin.encode(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                check=False,
                cwd="/",
                env=environment(),
                umask=0o077,
                timeout=timeout_s,
                **self._placement.run_as,
            )
        except subprocess.TimeoutExpired:
            raise OperatorError(f"PostgreSQL took too long to prepare {self._folder}; is the disk full?") from None
        if ran.returncode != 0 or b"ERROR:" in ran.stdout or b"FATAL:" in ran.stdout:
            raise OperatorError(f"PostgreSQL cannot prepare {self._folder}; check free space and who owns it")

    def _configuration(self) -> str:
        settings = {"unix_socket_directories": f"'{self._placement.sockets}'", **_SETTINGS}
        return "".join(f"{name} = {value}\n" for name, value in settings.items())

    def _password(self) -> str:
        return read_secret(own_secret(self._data_dir, POSTGRES_PASSWORD))

    def _is_ready(self) -> bool:
        """Whether the server says so in its own status file: the eighth line, as pg_ctl reads it."""
        try:
            status = (self._folder / "postmaster.pid").read_text(encoding="ascii").split("\n")
        except (OSError, UnicodeDecodeError):
            return False
        return len(status) > 7 and status[7].strip() == "ready"
