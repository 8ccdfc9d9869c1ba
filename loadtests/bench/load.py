"""The bench's upstream and client: load.c, compiled when it is needed."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from loadtests.bench.machine import BenchError, free_port, listens, loopback, wait_until

_GRACE_S = 40.0


@dataclass(frozen=True, slots=True)
class Answers:
    """What one client saw; times count from the moment at which a request was due."""

    seconds: float
    good: int
    bad: int
    reconnected: int
    events: int  # of all streams, without the last ones, which carry usage and the end
    reads: int  # how often something of an answer came; fewer than events: several came at once
    held: int  # events that came when the next one had been sent already
    held_first: int  # of those, the first of their stream
    answer_p50_us: float
    answer_p99_us: float
    first_p50_us: float  # until the first byte of the body
    first_p99_us: float
    event_p50_us: float  # from the upstream to the client
    event_p99_us: float


@dataclass(frozen=True, slots=True)
class Load:
    """What one client asks for. `model` names length and pace of streams: see load.c."""

    model: str = "bench"
    connections: int = 32
    seconds: float = 1e6
    rate: float = 0  # requests per second; 0: each connection asks again when it has its answer
    most: int = 0  # requests; 0: as many as fit
    arrivals: str = "even"


def compiled(folder: Path) -> Path:
    """Compile load.c into a folder and return the program. Raises BenchError without a compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise BenchError("the bench needs a C compiler, cc: on Debian, apt-get install gcc libc6-dev")
    program = folder / "load"
    source = Path(__file__).with_name("load.c")
    subprocess.run([compiler, "-O2", "-o", program, source, "-lm"], check=True)  # noqa: S603 - our own file
    return program


class Client:
    """Asks whoever is measured."""

    def __init__(self, program: Path, address: str) -> None:
        self._program, self._address = program, loopback(address)

    def begin(self, port: int, key: str, load: Load) -> subprocess.Popen[str]:
        """Start to ask, and return at once."""
        words = (load.model, load.connections, load.seconds, load.rate, load.most, load.arrivals)
        command = [str(self._program), "ask", self._address, str(port), key, *(str(word) for word in words)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own program

    def ask(self, port: int, key: str, load: Load) -> Answers:
        """Ask, and return how that went. Raises BenchError if a single answer was wrong."""
        return self.end(self.begin(port, key, load), load)

    def end(self, process: subprocess.Popen[str], load: Load) -> Answers:
        """Wait for what was begun."""
        try:
            printed, _ = process.communicate(timeout=min(load.seconds, 3600) + _GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise BenchError(f"{load} did not end") from None
        if process.returncode:
            raise BenchError(f"{load} failed")
        answers = Answers(**json.loads(printed))
        if answers.bad or not answers.good:
            raise BenchError(f"{answers.bad} wrong answers, {answers.good} right ones, to {load}")
        return answers


@contextmanager
def upstream(program: Path, address: str) -> Iterator[tuple[int, int]]:
    """Have the upstream listen while the block runs; gives its process id and its port."""
    port = free_port(loopback(address))
    with subprocess.Popen([program, "serve", address, str(port)], stdout=subprocess.DEVNULL) as process:  # noqa: S603 - our own program
        try:
            wait_until(lambda: listens(address, port), "that the upstream listens")
            yield process.pid, port
        finally:
            process.kill()
