"""Reads answers that are compressed although plain bytes were asked for. What is forwarded stays as it came."""

import zlib
from dataclasses import replace

from edgeproxy.domain.usage import Usage
from edgeproxy.providers.base import UsageReader
from edgeproxy.providers.fields import estimate_output_tokens

DECODED = ("gzip", "x-gzip", "deflate")
UNKNOWN = ("br", "zstd", "compress", "x-compress", "dcb", "dcz")
_ANY_HEADER = 47  # zlib's name for: gzip or zlib, whichever the first bytes say
_PIECE_BYTES = 64 * 1024  # decoded at once: what a few bytes expand to is never held as a whole
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def encoding_of(header: str) -> str:
    """Return what has to be undone: one of `DECODED`, "" for plain bytes, "unknown" for what is not read here.

    What is no encoding at all (`none`, a character set) is what servers write beside plain bytes.
    """
    listed = [name.strip() for name in header.lower().split(",")]
    named = [name for name in listed if name in (*DECODED, *UNKNOWN)]
    if not named:
        return ""
    return named[0] if len(named) == 1 and named[0] in DECODED else "unknown"


def decoded(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """Return the plain text of a short body, at most `max_bytes` of it; the body itself where it does not decode."""
    if encoding in DECODED:
        try:
            body = zlib.decompressobj(_ANY_HEADER).decompress(body, max_bytes)
        except zlib.error:
            return body
    return body.removeprefix(_BYTE_ORDER_MARK)


class DecodingReader:
    """Decodes what passes for another reader. What does not decode ends the reading, not the answer."""

    def __init__(self, inner: UsageReader) -> None:
        self._inner = inner
        self._decoder = zlib.decompressobj(_ANY_HEADER)
        self._is_between = True  # nothing of the next member has come
        self._is_broken = False
        self._size = 0

    @property
    def is_finished(self) -> bool:
        """Whether the answer's own last word has been read."""
        return self._inner.is_finished

    def feed(self, chunk: bytes) -> bytes:
        """Return `chunk`."""
        self._size += len(chunk)
        try:
            self._decode(chunk)
        except zlib.error:
            self._is_broken = True
        return chunk

    def end(self) -> bytes:
        """Return nothing: nothing was held back."""
        self._inner.end()
        return b""

    def output_so_far(self) -> int:
        """Return what the other reader says."""
        return self._inner.output_so_far()

    def usage(self, input_estimate: int) -> Usage:
        """Return what the other reader read; not complete, and at least by size, when something did not decode."""
        usage = self._inner.usage(input_estimate)
        if not self._is_broken:
            return usage
        output = max(usage.output, estimate_output_tokens(0, self._size, 0))
        return replace(usage, output=output, parts=(), estimated=True)

    def _decode(self, rest: bytes) -> None:
        while rest and not self._is_broken:  # ends: every turn takes input, or gives out what was taken
            if self._is_between:
                rest = rest.lstrip(b"\0")  # padding behind a member is allowed
                self._is_between = not rest
            if piece := self._decoder.decompress(rest, _PIECE_BYTES):  # an empty one would still be held
                self._inner.feed(piece)
            rest = self._decoder.unconsumed_tail
            if self._decoder.eof:  # a gzip file may have several members
                rest = self._decoder.unused_data
                self._decoder = zlib.decompressobj(_ANY_HEADER)
                self._is_between = True
