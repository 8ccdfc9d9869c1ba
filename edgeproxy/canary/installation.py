"""An installation for one run: a folder, `edgeproxy serve` in it, and what can be done to its processes.

Everything that its processes write has a place of ours: the data directory, the working folder, a folder for temporary
files, and files that take what they print. Its secrets begin with texts of the run, so that a search finds them, too.
"""

import asyncio
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from edgeproxy.canary.markers import Markers
from edgeproxy.canary.places import descendants
from edgeproxy.config import ENVIRONMENT_PREFIX, Stores, environment
from edgeproxy.embedded.placement import Placement, make_data_dir, place
from edgeproxy.embedded.postgres import EmbeddedPostgres
from edgeproxy.embedded.redis import EmbeddedRedis
from edgeproxy.embedded.secrets import PEPPER, POSTGRES_PASSWORD, REDIS_PASSWORD
from edgeproxy.errors import OperatorError

_READY_S = 90.0
_STOP_S = 60.0
_POLL_S = 0.05
_PROVIDER_SECRET = "provider_secret"  # noqa: S105 - the name of a file
_AT_HOME = "data/secrets/"
_CONFIGURATION = """
data_dir = {data_dir}
profile = {profile}
workers = 2
[listen]
api = "127.0.0.1:0"
web = "127.0.0.1:0"
metrics = "127.0.0.1:0"
[stores]
lease_ms = 1500
redis_timeout_ms = 500
[bounds]
head_timeout_ms = 3000
body_silence_ms = 3000
drain_ms = 3000
[jobs]
flush_interval_ms = 100
flush_after_ms = 100
[logs]
access = true
"""
_PROVIDER = """
[[provider]]
name = "canary-{dialect}"
dialect = "{dialect}"
base_url = {url}
secret_file = {secret}
first_byte_timeout_ms = 1500
silence_timeout_ms = 3000
drain_ms = 1500
[[model]]
match = "canary-*"
provider = "canary-{dialect}"
list = ["canary-plain"]
"""


@dataclass(slots=True)
class Installation:
    """What runs. `listeners` are the addresses of api, web and metrics."""

    folder: Path
    placement: Placement
    stores: Stores
    process: asyncio.subprocess.Process
    listeners: dict[str, str] = field(default_factory=dict)

    @property
    def data_dir(self) -> Path:
        """Return its data directory."""
        return self.folder / "data"

    def children(self) -> dict[int, str]:
        """Return the process ids and command lines of all its processes, the first one not among them."""
        return descendants(self.process.pid)

    def workers(self) -> list[int]:
        """Return the processes of the data plane."""
        return sorted(pid for pid, line in self.children().items() if " gateway " in line)

    def server(self, name: str) -> int:
        """Return the process of `redis-server` or `postgres` that has the others, 0 while there is none."""
        found = {pid for pid, line in self.children().items() if line.split(" ")[0].endswith(name)}
        return min(found, default=0)

    def kill(self, pid: int, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal; nothing happens where the process is gone."""
        if pid:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    async def until_ready(self) -> None:
        """Return when all processes serve and may admit. Raises OperatorError when that takes too long."""
        deadline = time.monotonic() + _READY_S
        while True:
            states = [await _status(self.listeners[name]) for name in ("api", "web")]
            if states == [200, 200] and len(self.workers()) == 2:
                return
            self._check(deadline)
            await asyncio.sleep(_POLL_S)

    async def stop(self) -> int:
        """Stop it in order and return its exit status."""
        if self.process.returncode is None:
            self.process.terminate()
        try:
            return await asyncio.wait_for(self.process.wait(), _STOP_S)
        except TimeoutError:
            children = self.children()
            self.process.kill()
            for pid in children:  # the stores would go on without it
                self.kill(pid)
            return await self.process.wait()

    async def until_announced(self) -> None:
        """Return when it has said that it is ready."""
        deadline = time.monotonic() + _READY_S
        said = self.folder / "output" / "stdout"
        while not re.search(r"(?m)^ready", text := said.read_text(encoding="utf-8")):
            self._check(deadline)
            await asyncio.sleep(_POLL_S)
        self.listeners.update(re.findall(r"(?m)^(api|web|metrics) +(http\S+?)(?:/metrics)?$", text))

    def _check(self, deadline: float) -> None:
        if self.process.returncode is not None or time.monotonic() > deadline:
            raise OperatorError("the installation for the run does not serve; run edgeproxy doctor, and try again")

    async def create_key(self, *arguments: str) -> str:
        """Issue a key and return its secret."""
        process = await self._run("keys", "create", "--json", *arguments)
        told, _ = await process.communicate()
        if process.returncode:
            raise OperatorError("the installation for the run issues no key; run edgeproxy doctor, and try again")
        return str(json.loads(told)["key"])

    async def _run(self, *arguments: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *_command(*arguments),
            cwd=self.folder / "work",
            env=_environment(self.folder),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
        )


@asynccontextmanager
async def running(markers: Markers, upstream_url: str, profile: str) -> AsyncIterator[Installation]:
    """Have it run while the block does; nothing is left of it afterwards. Raises OperatorError."""
    with _folder() as folder:
        data_dir = make_data_dir(folder / "data")
        placement = place(data_dir)
        secret = _write_secrets(data_dir, markers)
        _configure(folder, upstream_url, secret, profile)
        redis, postgres = EmbeddedRedis(data_dir, placement), EmbeddedPostgres(data_dir, placement)
        stores = Stores(redis=redis.url(), postgres=postgres.url())
        output = folder / "output"
        with (output / "stdout").open("wb") as out, (output / "stderr").open("wb") as err, _dumps_wanted():
            process = await asyncio.create_subprocess_exec(
                *_command("serve"),
                cwd=folder / "work",
                env=_environment(folder),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        there = Installation(folder, placement, stores, process)
        try:
            await there.until_announced()
            yield there
        finally:
            await there.stop()
            placement.remove_runtime()
            if placement.stores != data_dir:
                shutil.rmtree(placement.stores, ignore_errors=True)


@contextmanager
def _dumps_wanted() -> Iterator[None]:
    """What starts in the block may write core files: that there are none is then the program's own doing."""
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", "edgeproxy", *arguments]


def _environment(folder: Path) -> dict[str, str]:
    """Return the environment of its processes: none of our settings, and a folder of its own for temporary files."""
    kept = {name: value for name, value in environment().items() if not name.startswith(ENVIRONMENT_PREFIX)}
    temporary = str(folder / "temporary")
    return kept | {
        "EDGEPROXY_CONFIG": str(folder / "work" / "edgeproxy.toml"),
        **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), temporary),
    }


@contextmanager
def _folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="edgeproxy-canary-")).resolve()
    path.chmod(0o711)  # as root, the account of the embedded servers has to get through
    try:
        for name in ("work", "temporary", "output", "decoys"):
            (path / name).mkdir(mode=0o700)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _write_secrets(data_dir: Path, markers: Markers) -> Path:
    """Write the secrets that the first start would make, and ours at the provider; return the file of that one."""
    folder = data_dir / "secrets"
    folder.mkdir(mode=0o700)
    configurations = {REDIS_PASSWORD: ("redis/redis.conf",), POSTGRES_PASSWORD: (), PEPPER: ()}
    texts = {
        name: markers.hex_secret(name.replace("_", " "), (_AT_HOME, *places)) for name, places in configurations.items()
    }
    texts[_PROVIDER_SECRET] = markers.secret("provider secret", (_AT_HOME,))
    for name, text in texts.items():
        descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(text + "\n")
    return folder / _PROVIDER_SECRET


def _configure(folder: Path, url: str, secret: Path, profile: str) -> None:
    if Path(profile).is_file():
        profile = str(Path(profile).resolve())
    base = _CONFIGURATION.format(data_dir=json.dumps(str(folder / "data")), profile=json.dumps(profile))
    told = {"url": json.dumps(url), "secret": json.dumps(str(secret))}
    rows = (_PROVIDER.format(dialect=dialect, **told) for dialect in ("openai", "anthropic", "gemini"))
    (folder / "work" / "edgeproxy.toml").write_text(base + "".join(rows), encoding="utf-8")


async def _status(url: str) -> int:
    parts = url.removeprefix("http://").partition(":")
    try:
        async with asyncio.timeout(3):
            reader, writer = await asyncio.open_connection(parts[0], int(parts[2]))
            writer.write(b"GET /readyz HTTP/1.1\r\nhost: canary.invalid\r\nconnection: close\r\n\r\n")
            words = (await reader.readline()).split()
            writer.close()
    except (OSError, TimeoutError):
        return 0
    return int(words[1]) if len(words) > 1 else 0
