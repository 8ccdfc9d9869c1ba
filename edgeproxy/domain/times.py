"""Times as they are written for people and programs. Pure: no clock.

Inside the program a time is an integer: Unix milliseconds.
"""

from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


def to_datetime(at_ms: int) -> datetime:
    """Return the time as a datetime in UTC. Raises OverflowError beyond the year 9999."""
    return _EPOCH + at_ms * _MILLISECOND


def to_ms(at: datetime) -> int:
    """Return Unix milliseconds of a datetime that knows its zone; what is finer is cut off."""
    return (at - _EPOCH) // _MILLISECOND


def rfc3339(at_ms: int) -> str:
    """Return the time in UTC as `2027-06-30T12:00:00.000Z`: always the same width, so that text sorts as time does."""
    return to_datetime(at_ms).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def parse_time(text: str) -> int:
    """Return the time that `text` writes: `2027-06-30` (its beginning, in UTC) or RFC 3339.

    Raises ValueError with one line that says what is right.
    """
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("a time is written 2027-06-30 or 2027-06-30T12:00:00Z") from None
    if at.tzinfo is None:
        if at.time() != datetime.min.time():
            raise ValueError("a time of day needs its zone: write 2027-06-30T12:00:00Z")
        at = at.replace(tzinfo=UTC)
    return to_ms(at)
