"""What the bench asks of the machine: loopback addresses, cores, the CPU time and memory of processes, its description.

Linux only: all of it comes from /proc.
"""

import ipaddress
import os
import platform
import re
import resource
import socket
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_WAIT_S = 60.0


class BenchError(Exception):
    """The bench cannot go on, or what it measured would be worth nothing."""


def loopback(address: str) -> str:
    """Return the address if it is one of loopback, IPv4: what is measured and loaded never leaves this machine."""
    try:
        is_loopback = ipaddress.IPv4Address(address).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise BenchError(f"{address} is not a loopback address: the bench loads nothing but what it has started itself")
    return address


def free_port(address: str) -> int:
    """Return a port that nobody listens on at this moment."""
    with socket.create_server((address, 0)) as listener:
        return int(listener.getsockname()[1])


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Return when the condition holds. Raises BenchError when that takes too long."""
    deadline = time.monotonic() + _WAIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise BenchError(f"{what} did not happen within {_WAIT_S:.0f} s")
        time.sleep(0.05)


def listens(address: str, port: int) -> bool:
    """Whether somebody accepts connections there."""
    with socket.socket() as client:
        return client.connect_ex((address, port)) == 0


# --- cores


def split_cores() -> tuple[list[int], list[int]]:
    """Return the core of the process that is measured, and those of all the rest; with one core both have it."""
    cores = sorted(os.sched_getaffinity(0))
    return cores[-1:], cores[:-1] or cores


def pin(pids: Iterable[int], cores: Iterable[int]) -> None:
    """Let all threads of these processes run on these cores only."""
    wanted = set(cores)
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), wanted)


def open_files() -> None:
    """Allow as many open files as may be allowed; what is started afterwards inherits it."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


# --- processes


def cpu_us(pids: Iterable[int]) -> float:
    """Return the CPU time, user and system, that these processes have taken so far."""
    ticks = 0
    for pid in pids:
        # The name of the program is in brackets, and may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / _TICKS_PER_S * 1e6


def memory_kb(pids: Iterable[int]) -> float:
    """Return the resident memory of these processes."""
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1]) for pid in pids)
    return pages * resource.getpagesize() / 1024


class Elsewhere:
    """What the machine does for others meanwhile: it runs beside the load, or in place of what is measured."""

    def __init__(self) -> None:
        self._began, self._busy_s, self._own_s = time.monotonic(), _machine_busy_s(), _own_s()

    def share(self) -> float:
        """Return the share of all cores that others took; what the bench started has to have ended."""
        wall_s = (time.monotonic() - self._began) * (os.cpu_count() or 1)
        return max(0.0, (_machine_busy_s() - self._busy_s - (_own_s() - self._own_s)) / wall_s)


def _own_s() -> float:
    return sum(os.times()[:4])


def _machine_busy_s() -> float:
    first = Path("/proc/stat").read_text(encoding="utf-8").partition("\n")[0].split()
    user, nice, system, _idle, _waiting, *interrupts = (int(word) for word in first[1:9])
    return (user + nice + system + sum(interrupts)) / _TICKS_PER_S


def descendants(pid: int) -> dict[int, str]:
    """Return the command lines of what a process has started, and of what that has started."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text(encoding="utf-8").rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
    found, wanted = {}, {pid}
    while wanted:
        wanted = {child for child, parent in parents.items() if parent in wanted}
        found.update({child: Path(f"/proc/{child}/cmdline").read_text(encoding="utf-8") for child in wanted})
    return {child: command.replace("\0", " ") for child, command in found.items()}


# --- the description of a result


def describe() -> str:
    """Return what somebody who compares figures has to know of this machine: no name, no address."""
    names = re.findall(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    return (
        f"{cores} core{'s' * (cores > 1)} of {names[0].strip() if names else platform.machine()}, {memory:.0f} GB, "
        f"Linux {platform.release()}, Python {platform.python_version()}"
    )


def commit(root: Path) -> str:
    """Return the commit that is checked out, and whether files differ from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603, S607 - fixed words

    try:
        changed = " with changes" * bool(git("status", "--porcelain", "--", "edgeproxy"))
        return git("rev-parse", "--short=12", "HEAD") + changed
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
