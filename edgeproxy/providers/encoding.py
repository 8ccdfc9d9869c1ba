"""Reads usage in an answer that is compressed although plain bytes were asked for. The bytes stay as they came."""

import zlib
from dataclasses import replace

from edgeproxy.domain.usage import Usage
from edgeproxy.providers.base import UsageReader

ENCODINGS = ("gzip", "x-gzip", "deflate")
_ANY_HEADER = 47  # zlib's name for: gzip or zlib, whichever the first bytes say
_PIECE_BYTES = 64 * 1024  # decoded at once: what a few bytes expand to is never held as a whole


class DecodingReader:
    """Decodes what passes for another reader. What does not decode ends the reading, not the answer."""

    def __init__(self, inner: UsageReader) -> None:
        self._inner = inner
        self._decoder = zlib.decompressobj(_ANY_HEADER)
        self._is_broken = False

    @property
    def is_finished(self) -> bool:
        """Whether the answer's own last word has been read."""
        return self._inner.is_finished

    def feed(self, chunk: bytes) -> bytes:
        """Return `chunk`."""
        rest = chunk
        try:
            while rest and not self._is_broken:  # ends: every turn takes input, or gives out what was taken
                if piece := self._decoder.decompress(rest, _PIECE_BYTES):  # an empty one would still be held
                    self._inner.feed(piece)
                rest = self._decoder.unconsumed_tail
                if self._decoder.eof:  # a gzip file may have several members
                    rest = self._decoder.unused_data
                    self._decoder = zlib.decompressobj(_ANY_HEADER)
        except zlib.error:
            self._is_broken = True
        return chunk

    def end(self) -> bytes:
        """Return nothing: nothing was held back."""
        self._inner.end()
        return b""

    def usage(self, input_estimate: int) -> Usage:
        """Return what the other reader read; not complete when something did not decode."""
        usage = self._inner.usage(input_estimate)
        return replace(usage, estimated=True) if self._is_broken else usage
