"""The program as its users run it: commands and servers as processes of their own, in a folder of their own."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

READY_TIMEOUT_S = 60
STOP_TIMEOUT_S = 60

ANY_PORT = """
[listen]
api = "127.0.0.1:0"
web = "127.0.0.1:0"
metrics = "127.0.0.1:0"
"""
MODELS = """
[[provider]]
name = "mock"
base_url = "{mock}"
secret_env = "MOCK_SECRET"
[[provider]]
name = "mock-anthropic"
dialect = "anthropic"
base_url = "{mock}"
secret_env = "MOCK_SECRET"
[[model]]
match = "gpt-*"
provider = "mock"
[[model]]
match = "claude-*"
provider = "mock-anthropic"
"""


@dataclass
class Started:
    """A server process: what it said on either stream so far, and where its listeners are."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    listeners: dict[str, str] = field(default_factory=dict)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(STOP_TIMEOUT_S)

    def children(self) -> dict[int, str]:
        """Process ids and command lines of what it started."""
        return children_of(self.process.pid)

    def child(self, part: str) -> int:
        """The process id of the only child whose command line has this part."""
        (pid,) = (pid for pid, command in self.children().items() if part in command)
        return pid


@dataclass
class Program:
    """The program in a folder: its data lies in `data`, its configuration, if any, in `edgeproxy.toml`."""

    folder: Path
    environ: dict[str, str]

    @property
    def data_dir(self) -> Path:
        return self.folder / "data"

    def configure(self, text: str) -> None:
        (self.folder / "edgeproxy.toml").write_text(text)
        self.environ["EDGEPROXY_CONFIG"] = "edgeproxy.toml"

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            self._command(*arguments),
            cwd=self.folder,
            env=self.environ | variables,
            capture_output=True,
            text=True,
            timeout=READY_TIMEOUT_S,
            check=False,
        )

    def json(self, *arguments: str) -> Any:
        """Run a command that has to succeed, and return the JSON that it prints."""
        ran = self.run(*arguments, "--json")
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout)

    def begin(self, *arguments: str) -> Started:
        """Start a server and return at once."""
        process = subprocess.Popen(
            self._command(*arguments),
            cwd=self.folder,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started = Started(process)
        for stream, lines in ((process.stdout, started.lines), (process.stderr, started.errors)):
            threading.Thread(target=_read, args=(stream, lines), daemon=True).start()
        return started

    @contextmanager
    def started(self, *arguments: str) -> Iterator[Started]:
        """Run a server until the block ends; begins when it is ready."""
        started = self.begin(*arguments)
        try:
            wait_until(lambda: any(line.startswith("ready") for line in started.lines), started)
            pairs = (line.split() for line in started.lines)
            started.listeners.update(pair for pair in pairs if len(pair) == 2 and pair[1].startswith("http"))
            yield started
        finally:
            if started.process.poll() is None:
                started.stop()

    def _command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-P", "-m", "edgeproxy", *arguments]


def program_in(folder: Path, environ: Mapping[str, str] = os.environ) -> Program:
    """The program in an empty folder, with nothing configured by the environment that the tests run in."""
    kept = {name: value for name, value in environ.items() if not name.startswith("EDGEPROXY_")}
    for name in ("ANTHROPIC_API_KEY", "OPENAI_API_KEY", "DEEPSEEK_API_KEY", "XAI_API_KEY"):
        kept.pop(name, None)
    return Program(folder, kept | {"MOCK_SECRET": "any"})


def wait_until(condition: Any, started: Started | None = None, timeout_s: float = READY_TIMEOUT_S) -> None:
    """Return when the condition holds; fails when it does not in time or the process has ended."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert started is None or started.process.poll() is None, "".join(started.errors)
        assert time.monotonic() < deadline, "" if started is None else "".join(started.errors)
        time.sleep(0.02)


def children_of(pid: int) -> dict[int, str]:
    """Process ids and command lines of a process's children."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid:
                found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
        except (OSError, ValueError):
            continue  # it has ended meanwhile
    return found


def processes_with(text: str) -> list[int]:
    """Ids of all processes that have this text in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if text in path.read_text(errors="replace"):
                found.append(int(path.parent.name))
        except OSError:
            continue  # it has ended meanwhile
    return found


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Refused(Exception):
    """An error status and the body that came with it."""


def fetch(url: str, key: str = "", body: object = None) -> bytes:
    """GET, or POST when there is a body. Raises Refused for an error status."""
    headers = {"Content-Type": "application/json", "anthropic-version": "2023-06-01"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    data = None if body is None else json.dumps(body).encode()
    parts = urlsplit(url)
    connection = HTTPConnection(str(parts.hostname), parts.port, timeout=30)
    try:
        connection.request("GET" if data is None else "POST", parts.path, data, headers)
        answer = connection.getresponse()
        content = answer.read()
    finally:
        connection.close()
    if answer.status >= 400:
        raise Refused(answer.status, content)
    return content


def question(model: str = "gpt-mock", *, stream: bool = True) -> dict[str, object]:
    """A request body that both dialects take."""
    return {"model": model, "stream": stream, "max_tokens": 100, "messages": [{"role": "user", "content": "Hello"}]}


def _read(stream: Any, lines: list[str]) -> None:
    with stream:
        for line in stream:
            lines.append(line)  # noqa: PERF402 - seen by others line by line
