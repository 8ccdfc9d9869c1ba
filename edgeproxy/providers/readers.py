"""Readers that several dialects share: of a single JSON object, of a stream of events, of what tells no usage.

They forward every byte as it came. What they hold is bounded; what they cannot read ends in an estimate, not an error.
"""

import re
from collections.abc import Callable
from dataclasses import replace

import orjson

from edgeproxy.domain.usage import Usage
from edgeproxy.providers import sse
from edgeproxy.providers.fields import estimate_output_tokens

_USAGE = re.compile(rb'"usage"\s*:\s*\{')
_LOGPROBS = re.compile(rb'"logprobs(?:Result)?"\s*:\s*(?:\{|\[\s*\{)')

ReadUsage = Callable[[dict[str, object]], Usage | None]


class ObjectReader:
    """Reads usage from a single JSON object, which may follow blank lines that keep the connection alive.

    The chunks are handed on at once; what they hold is kept, up to a bound, until the object can be read. `read`
    returns the usage in the object, None when there is none: then the answer's size tells, up to `output_max`.
    """

    def __init__(self, max_bytes: int, read: ReadUsage, output_max: int | None = None) -> None:
        self._held = bytearray()
        self._size = 0
        self._max_bytes = max_bytes
        self._read = read
        self._output_max = output_max
        self.is_finished = False

    def feed(self, chunk: bytes) -> bytes:
        """Return `chunk`."""
        self._size += len(chunk)
        if self._size <= self._max_bytes:
            self._held += chunk
        else:
            self._held.clear()
        return chunk

    def end(self) -> bytes:
        """Return nothing: nothing was held back."""
        return b""

    def output_so_far(self) -> int:
        """Return 0: nothing is read before the end, and what an object holds beside text is not told by its size."""
        return 0

    def usage(self, input_estimate: int) -> Usage:
        """Return the provider's figures, or an estimate from the size of the answer."""
        value = load(self._held)
        usage = self._read(value) if value is not None else None
        if usage is not None:
            return usage
        output = estimate_output_tokens(0, self._size, 0)
        if self._output_max is not None:
            output = min(output, self._output_max)
        return Usage(input_uncached=input_estimate, output=output, estimated=True)


class OpaqueReader:
    """Stands where an answer tells no usage: charges what was estimated before it was sent."""

    is_finished = False

    def feed(self, chunk: bytes) -> bytes:
        """Return `chunk`."""
        return chunk

    def end(self) -> bytes:
        """Return nothing: nothing was held back."""
        return b""

    def output_so_far(self) -> int:
        """Return 0: no output is charged."""
        return 0

    def usage(self, input_estimate: int) -> Usage:
        """Return the estimate."""
        return Usage(input_uncached=input_estimate, estimated=True)


class EventReader:
    """Reads usage from a stream of server-sent events. A dialect says which events matter, and what they mean.

    `known` is what the provider has reported so far; it counts as complete once `is_final`, and never when the stream
    has `failed`. Events that fit `output` carry some, in about `framing` bytes of their own: from them comes the lower
    bound of an answer that breaks off.
    """

    output = re.compile(rb'"delta"')
    framing = 200

    def __init__(self, max_bytes: int) -> None:
        self._splitter = sse.EventSplitter(max_bytes)
        self._deltas = 0
        self._delta_bytes = 0
        self.known: Usage | None = None
        self.is_final = False
        self.failed = False
        self.is_finished = False

    def feed(self, chunk: bytes) -> bytes:
        """Return `chunk`."""
        if self._splitter.is_one_event(chunk):
            self.note(chunk)
            return chunk
        whole = self._splitter.feed(chunk)
        if whole.strip(b"\r\n") and not self._splitter.overflowed:  # a flood of empty events is none
            for event in sse.events(whole):
                self.note(event)
        return chunk

    def end(self) -> bytes:
        """Return nothing: nothing was held back. A last event that was not ended is read all the same."""
        self.note(self._splitter.tail)
        return b""

    def usage(self, input_estimate: int) -> Usage:
        """Return the provider's figures, or a lower bound from what passed."""
        if self.known is not None and self.is_final and not self.failed and not self._splitter.overflowed:
            return self.known
        known = self.known or Usage(input_uncached=input_estimate)
        return replace(known, output=self.output_so_far(), parts=(), estimated=True)

    def output_so_far(self) -> int:
        """Return what is known, or a lower bound from what passed if that is more."""
        known = 0 if self.known is None else self.known.output
        return max(known, estimate_output_tokens(self._deltas, self._delta_bytes, self.framing))

    def note(self, event: bytes) -> None:
        """Take note of one event."""
        if self.carries_output(event):
            self._deltas += 1
            # Log probabilities are many times as long as the token that they are about.
            is_long = b'"logprobs' in event and _LOGPROBS.search(event) is not None
            self._delta_bytes += self.framing if is_long else len(event)
        if self.matters(event):
            value = load(sse.data(event))
            if value is not None:
                self.read(value)

    def carries_output(self, event: bytes) -> bool:
        """Whether an event carries some of the answer."""
        return self.output.search(event) is not None

    def matters(self, event: bytes) -> bool:
        """Whether an event has to be parsed: few have. Most say that there is no usage yet."""
        return b'"usage"' in event and _USAGE.search(event) is not None

    def read(self, value: dict[str, object]) -> None:
        """Take note of what one event that matters says."""
        raise NotImplementedError


def load(raw: bytes | bytearray) -> dict[str, object] | None:
    """Return the JSON object in `raw`, None when it is none."""
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None
