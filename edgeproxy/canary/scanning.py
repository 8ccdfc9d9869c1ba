"""Looks for texts in a stream of bytes of any length, block by block, and in what is compressed inside of it.

Memory is bounded: one block, a margin of the one before, and a few decompressors, each given so much output at most.
"""

import bz2
import lzma
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from edgeproxy.canary.forms import Form, forms
from edgeproxy.canary.markers import TEXT_LENGTH, Marker, Markers

BLOCK_BYTES = 1 << 20
_MAX_STREAMS = 8  # compressed streams that are open at once in one place
_MAX_EXPANDED_BYTES = 256 << 20  # of one of them
_MAX_DEPTH = 2  # an archive in an archive, and no further
_MAGIC = re.compile(rb"\x1f\x8b\x08|BZh[1-9]1AY&SY|\xfd7zXZ\0")
_UNREADABLE = {b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4"}
_LONGEST_MAGIC = 10


@dataclass(frozen=True, slots=True)
class Found:
    """A text that was found: where it begins in the stream (the outermost one), in which form, and whose it is.

    `marker` is None for a piece that does not tell which text of the run it is of.
    """

    offset: int
    form: str
    marker: Marker | None


@dataclass(frozen=True, slots=True)
class Wanted:
    """A form to look for, and how to tell whose it is from what stands there."""

    form: Form
    whose: Callable[[bytes], Marker | None]


class Expander(Protocol):
    """What the decompressors of the library have in common."""

    @property
    def eof(self) -> bool: ...  # noqa: D102 - as the library says

    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...  # noqa: D102 - as the library says


def wanted(markers: Markers, others: Sequence[tuple[Marker, bytes]] = ()) -> tuple[Wanted, ...]:
    """Return what to look for: all texts of a run, and secrets that are not ours to choose, each as bytes."""
    ours = [
        Wanted(form, lambda read: markers.of(read.decode("ascii", "replace")))
        for form in forms(markers.tag.encode(), TEXT_LENGTH)
    ]
    for marker, secret in others:
        ours += [Wanted(form, partial(_always, marker)) for form in forms(secret)]
    return tuple(ours)


def _always(marker: Marker, _: bytes) -> Marker:
    return marker


class Scanner:
    """Searches one stream. `feed` takes its blocks in order, `end` says that it is over."""

    def __init__(self, wanted: Sequence[Wanted], depth: int = 0) -> None:
        self.found: list[Found] = []
        self.expanded_bytes = 0
        self.given_up: list[str] = []  # what could not be looked into
        self._wanted = wanted
        self._depth = depth
        self._margin = max(len(each.form.needle) + each.form.span + each.form.before for each in wanted)
        self._tail = b""
        self._at = 0  # where the tail begins
        self._next = 0  # where what has not been searched begins
        self._streams: list[_Compressed] = []

    def feed(self, block: bytes) -> None:
        """Search the next block."""
        if not self._at and not self._tail:
            self._look_at_beginning(block)
        if self._depth < _MAX_DEPTH:
            self._expand(block)
        window = self._tail + block
        self._search(window, len(window) - self._margin)

    def end(self) -> None:
        """Search what is left."""
        self._search(self._tail, len(self._tail))
        for stream in self._streams:
            self._take(stream)
        self._streams.clear()

    def _look_at_beginning(self, block: bytes) -> None:
        for magic, name in _UNREADABLE.items():
            if block.startswith(magic):
                self.given_up.append(f"compressed with {name}")

    def _search(self, window: bytes, limit: int) -> None:
        """Report what begins before `limit`; what begins behind it waits until it is whole."""
        if window.strip(b"\0"):
            folded = window.lower()
            begins = max(self._next - self._at, 0)
            hits = sorted(
                (at - each.form.before, index, at)
                for index, each in enumerate(self._wanted)
                for at in _places(folded, each.form.needle, begins, limit)
            )
            self._report(window, hits)
        self._next = max(self._next, self._at + limit)
        kept = max(0, limit - self._margin)
        self._tail = window[kept:]
        self._at += kept

    def _report(self, window: bytes, hits: list[tuple[int, int, int]]) -> None:
        for start, index, at in hits:
            each = self._wanted[index]
            marker = each.whose(each.form.read(window, at))
            offset = self._at + max(start, 0)
            last = self.found[-1] if self.found else None
            if (
                last is not None
                and last.form == each.form.name
                and offset - last.offset <= 1
                and marker
                in (
                    None,
                    last.marker,
                )
            ):
                continue  # another piece of the same text
            self.found.append(Found(offset, each.form.name, marker))

    def _expand(self, block: bytes) -> None:
        for stream in self._streams:
            stream.feed(block)
        behind = self._at + len(self._tail)
        overlap = self._tail[-(_LONGEST_MAGIC - 1) :]
        joined = overlap + block
        for match in _MAGIC.finditer(joined):
            if match.end() > len(overlap) and len(self._streams) < _MAX_STREAMS:
                stream = _Compressed(match[0], behind - len(overlap) + match.start(), self._wanted, self._depth + 1)
                stream.feed(joined[match.start() :])
                self._streams.append(stream)
        for stream in [each for each in self._streams if each.is_over]:
            self._take(stream)
            self._streams.remove(stream)

    def _take(self, stream: "_Compressed") -> None:
        stream.scanner.end()
        self.expanded_bytes += stream.scanner.expanded_bytes + stream.bytes
        self.given_up += stream.scanner.given_up + stream.given_up
        self.found += [Found(stream.offset, f"{each.form}, compressed", each.marker) for each in stream.scanner.found]


class _Compressed:
    """One compressed stream inside another: what comes out of it is searched as well."""

    def __init__(self, magic: bytes, offset: int, wanted: Sequence[Wanted], depth: int) -> None:
        self.offset = offset
        self.scanner = Scanner(wanted, depth)
        self.is_over = False
        self.bytes = 0
        self.given_up: list[str] = []
        self._inflate = zlib.decompressobj(31) if magic.startswith(b"\x1f") else None
        self._other: Expander = bz2.BZ2Decompressor() if magic.startswith(b"B") else lzma.LZMADecompressor()

    def feed(self, data: bytes) -> None:
        try:
            for part in self._parts(data):
                self.bytes += len(part)
                self.scanner.feed(part)
                if self.bytes > _MAX_EXPANDED_BYTES:
                    self.given_up.append("expands too far")
                    self.is_over = True
                    return
        except (zlib.error, lzma.LZMAError, OSError, ValueError):
            self.is_over = True  # it only began like one, or it is broken from here on

    def _parts(self, data: bytes) -> Iterator[bytes]:
        if self._inflate is not None:
            while data and not self._inflate.eof:
                yield self._inflate.decompress(data, BLOCK_BYTES)
                data = self._inflate.unconsumed_tail
            self.is_over = self._inflate.eof
            return
        while not self._other.eof:
            part = self._other.decompress(data, BLOCK_BYTES)
            data = b""
            if not part:
                return
            yield part
        self.is_over = True


def _places(folded: bytes, needle: bytes, begins: int, limit: int) -> Iterator[int]:
    at = folded.find(needle, begins)
    while 0 <= at < limit:
        yield at
        at = folded.find(needle, at + 1)
