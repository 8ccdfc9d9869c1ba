"""Cuts a stream of server-sent events (WHATWG HTML, 9.2) into whole events, wherever the network cut it.

Bytes are never changed. Only the tail that is not yet a whole event is held, and of it no more than a bound.
"""

import re
from itertools import pairwise

_BOUNDARIES = (b"\n\n", b"\n\r\n", b"\r\r")
_BOUNDARY = re.compile(b"|".join(_BOUNDARIES))
_LONGEST_BOUNDARY = 3


class EventSplitter:
    """Holds the unfinished tail of a stream and gives out what is whole.

    Once a tail exceeds `max_bytes` it has `overflowed`: it gives out what it held, and from then on every chunk as it
    comes. So whatever happens, all that it gave out and its tail are all that it was fed.
    """

    def __init__(self, max_bytes: int) -> None:
        self._parts: list[bytes] = []
        self._seam = b""  # the last bytes held: a boundary may lie across the cut
        self._size = 0
        self._max_bytes = max_bytes
        self.overflowed = False

    @property
    def tail(self) -> bytes:
        """What was fed and not given out yet."""
        return b"".join(self._parts)

    def is_one_event(self, chunk: bytes) -> bool:
        """Whether what comes next is one whole event, as it mostly is: then nothing has to be cut or held.

        Of a stream with carriage returns that is not told so quickly.
        """
        end = len(chunk) - 2
        return end > 0 and chunk.find(b"\n\n") == end and not self._parts and not self.overflowed and b"\r" not in chunk

    def feed(self, chunk: bytes) -> bytes:
        """Return all whole events so far, with their boundaries; b"" when none ended in `chunk`."""
        if self.overflowed or (not self._parts and chunk.endswith(b"\n\n")):  # mostly one whole event, as it was sent
            return chunk
        if _last_boundary(self._seam + chunk):
            whole = b"".join([*self._parts, chunk]) if self._parts else chunk
            end = _last_boundary(whole)
            self._parts.clear()
            self._seam, self._size = b"", 0
            whole, chunk = whole[:end], whole[end:]
        else:
            whole = b""
        return self._give_up(whole, chunk) if self._size + len(chunk) > self._max_bytes else self._keep(whole, chunk)

    def _keep(self, whole: bytes, rest: bytes) -> bytes:
        if rest:
            self._parts.append(rest)
            self._seam = (self._seam + rest)[1 - _LONGEST_BOUNDARY :]
            self._size += len(rest)
        return whole

    def _give_up(self, whole: bytes, rest: bytes) -> bytes:
        everything = b"".join([whole, *self._parts, rest])
        self._parts.clear()
        self.overflowed = True
        return everything


def events(whole: bytes) -> list[bytes]:
    """Return the single events in what `EventSplitter.feed` gave out, each with its boundary: joined, they are it."""
    if whole.find(b"\n\n") == len(whole) - 2 >= 0 and b"\r" not in whole:  # mostly
        return [whole]
    marks = [mark for mark in _BOUNDARIES if mark in whole]
    if len(marks) == 1:  # nearly always: a stream ends its lines in one way
        mark = marks[0]
        *found, rest = whole.split(mark)
        found = [event + mark for event in found]
    else:
        ends = [match.end() for match in _BOUNDARY.finditer(whole)]
        found = [whole[start:end] for start, end in pairwise((0, *ends))]
        rest = whole[ends[-1] :] if ends else whole
    return [*found, rest] if rest else found


def data(event: bytes) -> bytes:
    """Return the payload of one event: its data lines, joined with a line feed."""
    lines = event.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    return b"\n".join(line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:"))


def _last_boundary(text: bytes) -> int:
    """Return where the last event in `text` ends, 0 when none does."""
    return max(text.rfind(mark) + len(mark) if mark in text else 0 for mark in _BOUNDARIES)
