"""Cuts a stream of server-sent events (WHATWG HTML, 9.2) into whole events, wherever the network cut it.

Bytes are never changed. Only the tail that is not yet a whole event is held, and of it no more than a bound.
"""

_BOUNDARIES = (b"\n\n", b"\n\r\n", b"\r\r")
_LONGEST_BOUNDARY = 3


class EventSplitter:
    """Holds the unfinished tail of a stream and gives out what is whole.

    Beyond `max_bytes` without the end of an event it gives the tail up: `overflowed`, and `feed` returns b"" for ever.
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

    def feed(self, chunk: bytes) -> bytes:
        """Return all whole events so far, with their boundaries; b"" when none ended in `chunk`."""
        if self.overflowed:
            return b""
        if not _last_boundary(self._seam + chunk):
            return self._keep(chunk)
        parts = self._parts
        whole = b"".join([*parts, chunk]) if parts else chunk
        end = _last_boundary(whole)
        parts.clear()
        self._seam, self._size = b"", 0
        if end < len(whole):
            self._keep(whole[end:])
        return whole[:end]

    def _keep(self, part: bytes) -> bytes:
        self._size += len(part)
        if self._size > self._max_bytes:
            self.overflowed = True
            self._parts.clear()
        else:
            self._parts.append(part)
            self._seam = (self._seam + part)[1 - _LONGEST_BOUNDARY :]
        return b""


def events(whole: bytes) -> list[bytes]:
    """Return the single events in what `EventSplitter.feed` gave out, each with its boundary: joined, they are it."""
    found = []
    start = 0
    while start < len(whole):
        end = _first_boundary(whole, start)
        found.append(whole[start:end])
        start = end
    return found


def data(event: bytes) -> bytes:
    """Return the payload of one event: its data lines, joined with a line feed."""
    lines = event.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    return b"\n".join(line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:"))


def _last_boundary(text: bytes) -> int:
    """Return where the last event in `text` ends, 0 when none does."""
    return max(text.rfind(mark) + len(mark) if mark in text else 0 for mark in _BOUNDARIES)


def _first_boundary(text: bytes, start: int) -> int:
    """Return where the event that begins at `start` ends, the end of `text` at the latest."""
    ends = [at + len(mark) for mark in _BOUNDARIES if (at := text.find(mark, start)) >= 0]
    return min(ends, default=len(text))
