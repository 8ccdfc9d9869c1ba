"""Identifiers of requests and keys: UUID version 7 (RFC 9562, section 5.7). Time and randomness come in as arguments.

Rows that are written together lie together, and the month of a row can be told from its id.
"""

import uuid

RANDOM_BITS = 74  # what version 7 leaves free beside 48 bits of time, version and variant

_RANDOM_MASK = (1 << RANDOM_BITS) - 1
_LOW_MASK = (1 << 62) - 1
_MAX_MS = (1 << 48) - 1


def uuid7(now_ms: int, random_bits: int) -> str:
    """Return the id of something that came to be at `now_ms` (Unix time), made unique by 74 random bits.

    Raises ValueError for a time that 48 bits cannot hold.
    """
    if not 0 <= now_ms <= _MAX_MS:
        raise ValueError("a UUIDv7 holds a time from 1970 to 10889")
    random_bits &= _RANDOM_MASK
    number = now_ms << 80 | 0x7 << 76 | random_bits >> 62 << 64 | 0b10 << 62 | random_bits & _LOW_MASK
    text = f"{number:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def uuid7_floor(at_ms: int) -> str:
    """Return the smallest id that `uuid7` can give at `at_ms`: the bound of a range of ids."""
    return uuid7(at_ms, 0)


def uuid7_ms(text: str) -> int:
    """Return the Unix time in ms that an id holds. Raises ValueError, which does not repeat it, for all but `uuid7`'s.

    The library reads braces, underscores and foreign digits as well; one id would have many spellings.
    """
    try:
        value = uuid.UUID(text)
    except ValueError:
        raise ValueError("not a UUID") from None
    if value.version != 7 or str(value) != text:
        raise ValueError("not a UUID of version 7 as this program writes it")
    return value.int >> 80
