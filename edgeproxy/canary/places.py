"""Where it is looked: files, whatever processes hold open, and answers of programs; and what was found there.

Files are read as they are, never followed through links. What cannot be read is told of: a search that skips in silence
shows nothing.
"""

import os
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgeproxy.canary.markers import Kind, Marker, Markers
from edgeproxy.canary.scanning import BLOCK_BYTES, Scanner, Wanted, wanted

_PROC = Path("/proc")
_WRITABLE = os.O_WRONLY | os.O_RDWR


@dataclass(frozen=True, slots=True)
class Find:
    """A text that was found: in which place, how far from its beginning, in which form, and whose it is."""

    area: str
    place: str
    offset: int
    form: str
    marker: Marker | None

    @property
    def is_decoy(self) -> bool:
        """Whether it was left on purpose."""
        return self.marker is not None and self.marker.kind is Kind.DECOY

    @property
    def is_at_home(self) -> bool:
        """Whether it is a secret in the place where it lives."""
        homes = self.marker.lives_in if self.marker is not None and self.marker.kind is Kind.SECRET else ()
        return any(home in self.place for home in homes)

    @property
    def is_leak(self) -> bool:
        """Whether it should not be there."""
        return not (self.is_decoy or self.is_at_home)


@dataclass(slots=True)
class Area:
    """What was searched under one name."""

    items: int = 0
    bytes: int = 0


@dataclass(slots=True)
class Search:
    """One search: what it looks for, until when (monotonic seconds), and what came of it so far.

    `others` are secrets that are not ours to choose, each as bytes.
    """

    markers: Markers
    others: Sequence[tuple[Marker, bytes]] = ()
    deadline: float = float("inf")
    areas: dict[str, Area] = field(default_factory=dict)
    finds: list[Find] = field(default_factory=list)
    not_read: list[str] = field(default_factory=list)  # asked for, and not to be had
    not_understood: list[str] = field(default_factory=list)  # read, but in a form that tells nothing

    wanted: tuple[Wanted, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.wanted = wanted(self.markers, self.others)

    def leaks(self) -> list[Find]:
        """Return what should not be there."""
        return [find for find in self.finds if find.is_leak]

    def decoys(self, area: str = "") -> set[str]:
        """Return the names of what was left on purpose and has been found, in one area or anywhere."""
        return {
            find.marker.name
            for find in self.finds
            if find.is_decoy and find.marker is not None and area in ("", find.area)
        }

    def blocks(self, area: str, place: str, blocks: Iterable[bytes]) -> None:
        """Search the blocks of one place."""
        reading = Reading(self, area, place)
        for block in blocks:
            if not reading.feed(block):
                break
        reading.end()

    def text(self, area: str, place: str, text: bytes) -> None:
        """Search what is at hand already."""
        self.blocks(area, place, [text])

    def file(self, area: str, path: Path, place: str = "") -> None:
        """Search one file; nothing happens where it is gone or is no file."""
        place = place or str(path)
        self.text("names of files", place, os.fsencode(place))
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # a socket cannot be opened, and a device must not be
                return
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return  # gone since it was seen
        except OSError as error:
            self.not_read.append(f"{place}: {error.strerror}")
            return
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return
            try:
                self.blocks(area, place, iter(lambda: file.read(BLOCK_BYTES), b""))
            except OSError as error:
                self.not_read.append(f"{place}: {error.strerror}")

    def folder(self, area: str, root: Path, *, shown: str = "", skip: Sequence[Path] = (), since: float = 0) -> None:
        """Search a file, or all files below a folder, which is called `shown` in what is told.

        `since` (Unix time): only what was written from then on, as far as we may read it.
        """
        for path in self._files(root, skip):
            if since and not _is_ours_since(path, since):
                continue
            self.file(area, path, f"{shown}{path.relative_to(root)}" if shown and path != root else "")

    def _files(self, root: Path, skip: Sequence[Path]) -> Iterator[Path]:
        if not root.is_dir():
            if root.exists() or root.is_symlink():
                yield root
            return
        for folder, folders, files in os.walk(root, onerror=self._unlisted):
            here = Path(folder)
            folders[:] = sorted(each for each in folders if here / each not in skip)
            yield from (here / name for name in sorted(files) if not (here / name).is_symlink())

    def _unlisted(self, error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            self.not_read.append(f"{error.filename}: {error.strerror}")

    def open_files(self, area: str, pids: Iterable[int], skip: Sequence[Path] = ()) -> None:
        """Search the files that processes have open to write, those without a name as well.

        What has a name below one of `skip` is left to whoever searches there.
        """
        seen: set[tuple[int, int]] = set()
        for pid in pids:
            folder = _PROC / str(pid) / "fd"
            try:
                numbers = sorted(path.name for path in folder.iterdir())
            except FileNotFoundError:
                continue
            except OSError as error:
                self.not_understood.append(f"open files of process {pid}: {error.strerror}; run as root to see them")
                continue
            for number in numbers:
                target = _target(folder / number)
                is_elsewhere = not any(Path(target).is_relative_to(each) and Path(target).exists() for each in skip)
                if is_elsewhere and (identity := _written(folder, number)) and identity not in seen:
                    seen.add(identity)
                    self.file(area, folder / number, f"open file of {_command(pid)}: {target}")


class Reading:
    """One place that is being searched: its blocks come one by one."""

    def __init__(self, search: Search, area: str, place: str) -> None:
        self._search = search
        self._area = area
        self._place = place
        self._scanner = Scanner(search.wanted)
        self._into = search.areas.setdefault(area, Area())
        self._into.items += 1
        self._is_late = False

    def feed(self, block: bytes) -> bool:
        """Search the next block; False when the time is over."""
        if not self._is_late and time.monotonic() > self._search.deadline:
            self._is_late = True
            self._search.not_read.append(f"{self._place}: no time was left")
        if not self._is_late:
            self._scanner.feed(block)
            self._into.bytes += len(block)
        return not self._is_late

    def end(self) -> None:
        """Search what is left, and write down what was found."""
        self._scanner.end()
        self._into.bytes += self._scanner.expanded_bytes
        search, scanner = self._search, self._scanner
        search.not_understood += [f"{self._place}: {each}" for each in scanner.given_up]
        search.finds += [Find(self._area, self._place, each.offset, each.form, each.marker) for each in scanner.found]


def _is_ours_since(path: Path, since: float) -> bool:
    try:
        return path.stat().st_mtime >= since and os.access(path, os.R_OK)
    except OSError:
        return False


def _written(folder: Path, number: str) -> tuple[int, int] | None:
    """Return which file a descriptor is, None where it is not a file that is open to write."""
    try:
        found = (folder / number).stat()
        lines = (folder.parent / "fdinfo" / number).read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    flags = next((int(line.split()[1], 8) for line in lines if line.startswith("flags:")), 0)
    return (found.st_dev, found.st_ino) if stat.S_ISREG(found.st_mode) and flags & _WRITABLE else None


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return "gone"


def _command(pid: int) -> str:
    try:
        return (_PROC / str(pid) / "comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return f"process {pid}"


def descendants(pid: int) -> dict[int, str]:
    """Return process ids and command lines of everything that a process started, directly or not."""
    parents: dict[int, int] = {}
    for folder in _PROC.glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue  # it has ended meanwhile
    found: dict[int, str] = {}
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        for child in (each for each, of in parents.items() if of == parent):
            waiting.append(child)
            try:
                line = (_PROC / str(child) / "cmdline").read_bytes()
            except OSError:
                continue
            found[child] = line.replace(b"\0", b" ").decode(errors="replace")
    return found
