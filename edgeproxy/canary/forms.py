"""In which forms a text is looked for: the encodings that a store, a log or a library may have given it.

Everything is compared in lower case, so one form covers `%6A` and `%6a`, hexadecimal digits of either case, and whoever
folded the text itself. Not looked for: text that was encrypted, hashed, reversed, or cut into pieces of less than eight
characters. A plain text is looked for by each run of eight characters near its beginning, because what compresses
strings (TOAST of PostgreSQL, snapshots of Redis) writes a byte of its own between such runs.
"""

import base64
import binascii
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

PIECE = 8  # pglz writes a control byte before every eighth literal
_SPREAD = 8  # so many places at which such a run may begin
_SLACK = 4  # bytes that may have been written between
_NO_LETTERS = re.compile(rb"[^0-9A-Za-z]+")
_TRIPLE, _QUAD = 3, 4


@dataclass(frozen=True, slots=True)
class Form:
    """One thing to look for, in lower case.

    `before` is how many bytes before it belong to the text in this form. The text is read from `span` bytes that begin
    there, or `slack` before that; `decode` gives back its characters.
    """

    name: str
    needle: bytes
    before: int
    span: int
    decode: Callable[[bytes], bytes]
    slack: int = 0

    def read(self, window: bytes, at: int) -> bytes:
        """Return the text that was found at `at`, b"" where it is not whole."""
        start = at - self.before - self.slack
        return self.decode(window[max(start, 0) : max(start + self.span, 0)])


def forms(text: bytes, length: int = 0) -> tuple[Form, ...]:
    """Return the forms of a text of at least 16 ASCII characters, or of raw bytes.

    `length`: of the longer text that it begins, which a find is to be read as.
    """
    length = max(length, len(text))
    return (*_plain(text, length), *_wide(text, length), *_escaped(text, length), *_base64(text, length))


def _plain(text: bytes, length: int) -> Iterator[Form]:
    for at in range(min(_SPREAD, len(text) - PIECE + 1)):
        yield Form("text", text[at : at + PIECE].lower(), at, length + 2 * _SLACK, _letters, _SLACK)


def _wide(text: bytes, length: int) -> Iterator[Form]:
    """UTF-16 and UTF-32. The zeros at either end are left out, so that both orders of bytes are found."""
    for name, size in (("utf-16", 2), ("utf-32", 4)):
        spread = (b"\0" * (size - 1)).join(bytes([each]) for each in text)
        yield Form(name, spread.lower(), 0, length * size, partial(_every, size))


def _escaped(text: bytes, length: int) -> Iterator[Form]:
    for name, mark, width in (("hex", b"", 2), ("percent", b"%", 3), ("\\x", b"\\x", 4), ("\\u", b"\\u00", 6)):
        needle = b"".join(mark + b"%02x" % each for each in text)
        yield Form(name, needle, 0, length * width, partial(_unescaped, mark))
    octal = b"".join(b"\\%03o" % each for each in text)
    yield Form("octal", octal, 0, length * 4, _from_octal)


def _base64(text: bytes, length: int) -> Iterator[Form]:
    """At each of three offsets, the letters that the text alone decides. URLs have the same alphabet for ASCII."""
    for offset in range(_TRIPLE):
        encoded = base64.b64encode(b"\0" * offset + text)
        first = (0, 2, 3)[offset]
        last = (offset + len(text)) * 8 // 6
        span = -(-(offset + length) // _TRIPLE) * _QUAD
        yield Form("base64", encoded[first:last].lower(), first, span, partial(_from_base64, offset))


def _letters(found: bytes) -> bytes:
    """Return it without what compression writes between."""
    return _NO_LETTERS.sub(b"", found)


def _every(size: int, found: bytes) -> bytes:
    return found[::size]


def _unescaped(mark: bytes, found: bytes) -> bytes:
    width = len(mark) + 2
    digits = b"".join(found[at + len(mark) : at + width] for at in range(0, len(found), width))
    try:
        return bytes.fromhex(digits.decode("ascii"))
    except ValueError:  # it is not whole
        return b""


def _from_octal(found: bytes) -> bytes:
    try:
        return bytes(int(found[at + 1 : at + 4], 8) for at in range(0, len(found), 4))
    except ValueError:
        return b""


def _from_base64(offset: int, found: bytes) -> bytes:
    try:
        return base64.b64decode(found.translate(bytes.maketrans(b"-_", b"+/")), validate=True)[offset:]
    except (binascii.Error, ValueError):
        return b""
