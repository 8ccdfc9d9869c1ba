"""Limits: what a key may use within a sliding window, and how such a window is counted. Pure: no I/O, no clock.

A limit says "at most `amount` of `dimension` in any stretch of time of length `window_ms`". An exact log of all
requests would answer that, and would cost memory and time with every request that it holds. A counter per calendar
minute costs nothing and is wrong: twice the amount passes around the turn of a minute. What is done here lies between:

Time is cut into buckets of width w. A window of length W is covered by B = W/w of them, and B+1 are counted: the bucket
of now, B-1 full ones, and the oldest one, of which only a part still lies within the window, *whole*.

      oldest, counted whole                        now
      |-------|-------|-------|  ...  |-------|----+--|
          (---------------- W ---------------------]

- Never too much: what is counted always covers (now-W, now], so in no stretch of length W is more admitted than the
  limit, wherever the stretch begins.
- Hardly too little: a refusal means that usage over (now-(B+1)w, now] plus the request is over the limit. The price of
  forgetting the order within a bucket is at most one bucket: 1/60 of the window, 1/120 of a long one.

`WindowRing` is that rule in its plainest form. The scripts in `hotstate/lua` do the same inside Redis, and the tests
play both side by side.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from edgeproxy.domain.records import record

MAX_AMOUNT = 2**53  # the largest integer up to which Lua, which counts in doubles, is exact
MAX_WINDOW_MS = 366 * 86_400_000
MAX_LIMITS = 16  # per key: each window costs about 2 us of Redis with every request

BUCKETS = 60
LONG_WINDOW_MS = 30 * 86_400_000
LONG_WINDOW_BUCKETS = 120  # a month is budgeted closer than a minute: 6 hours of undershoot, not 12

NEVER_FITS = -1

_UNITS_MS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000}
_LIMIT = re.compile(r"([a-z_]+)=([0-9]{1,16})/([0-9]{1,9})([smhd])", re.ASCII)


class Dimension(StrEnum):
    """What is counted. `tokens` is input and output together; a request counts 1 in `requests`."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    INPUT_TOKENS = "input_tokens"
    OUTPUT_TOKENS = "output_tokens"


@record
class Amounts:
    """What one request takes, or what many took together; none is negative."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def of(self, dimension: Dimension) -> int:
        """Return the amount in one dimension."""
        match dimension:
            case Dimension.REQUESTS:
                return self.requests
            case Dimension.TOKENS:
                return self.input_tokens + self.output_tokens
            case Dimension.INPUT_TOKENS:
                return self.input_tokens
            case Dimension.OUTPUT_TOKENS:
                return self.output_tokens


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `amount` of `dimension` in any window of `window_ms` (whole seconds, up to 366 days).

    An amount of 0 refuses every request that has any of the dimension. Raises ValueError for what cannot be counted.
    """

    dimension: Dimension
    amount: int
    window_ms: int

    def __post_init__(self) -> None:
        if not 0 <= self.amount <= MAX_AMOUNT:
            raise ValueError(f"a limit's amount lies between 0 and {MAX_AMOUNT}")
        if self.window_ms % 1000 or not 0 < self.window_ms <= MAX_WINDOW_MS:
            raise ValueError("a limit's window lies between 1s and 366d, in whole seconds")

    @property
    def id(self) -> str:
        """What names the window, within its key: a limit with another amount is the same window."""
        return f"{self.dimension}/{self.window_ms}"

    @property
    def buckets(self) -> int:
        """B: how many buckets cover the window."""
        return BUCKETS if self.window_ms < LONG_WINDOW_MS else LONG_WINDOW_BUCKETS

    @property
    def bucket_ms(self) -> int:
        """w: the width of a bucket, rounded up so that B of them always cover the window."""
        return -(-self.window_ms // self.buckets)


def parse_limit(text: str) -> Limit:
    """Return the limit that `text` writes, for example `tokens=200000/5h`; units are s, m, h and d.

    Raises ValueError with one line that says what is wrong and what is right.
    """
    match = _LIMIT.fullmatch(text)
    if match is None:
        raise ValueError(
            f"limit {text!r}: write DIMENSION=AMOUNT/WINDOW, for example requests=60/1m or tokens=200000/5h"
        )
    name, amount, count, unit = match.groups()
    if name not in set(Dimension):
        raise ValueError(f"limit {text!r}: there is no dimension {name!r}, use one of {', '.join(Dimension)}")
    try:
        return Limit(Dimension(name), int(amount), int(count) * _UNITS_MS[unit])
    except ValueError as error:
        raise ValueError(f"limit {text!r}: {error}") from None


def parse_limits(texts: Iterable[str]) -> tuple[Limit, ...]:
    """Return the limits of one key. Raises ValueError as `parse_limit` does, and for too many or two of one window."""
    limits = tuple(parse_limit(text) for text in texts)
    check_limits(limits)
    return limits


def check_limits(limits: tuple[Limit, ...]) -> None:
    """Raise ValueError unless one key may have these limits together."""
    if len(limits) > MAX_LIMITS:
        raise ValueError(f"a key has at most {MAX_LIMITS} limits")
    seen: set[str] = set()
    for limit in limits:
        if limit.id in seen:
            window = format_window(limit.window_ms)
            raise ValueError(f"two limits for {limit.dimension} per {window}: give one of them")
        seen.add(limit.id)


def format_limit(limit: Limit) -> str:
    """Return the text that `parse_limit` reads as this limit."""
    return f"{limit.dimension}={limit.amount}/{format_window(limit.window_ms)}"


def format_window(window_ms: int) -> str:
    """Return a window's length in the largest unit that divides it: 60000 is `1m`, 90000 is `90s`."""
    for unit, unit_ms in _UNITS_MS.items():
        if window_ms % unit_ms == 0:
            return f"{window_ms // unit_ms}{unit}"
    raise ValueError("a window is written in whole seconds")


class WindowRing:
    """The count of one window: bucket index -> amount, where a bucket's index is its time divided by w.

    Times are Unix milliseconds. A clock that goes back does not go back here: what comes is counted in the newest
    bucket that was ever used, so a past that has left the ring is never opened again.
    """

    __slots__ = ("_buckets", "_charged", "_newest", "limit")

    def __init__(self, limit: Limit, buckets: Iterable[tuple[int, int]] = ()) -> None:
        """Begin with `buckets`: index and amount, oldest first."""
        self.limit = limit
        self._buckets: dict[int, int] = dict(buckets)
        self._newest = self._charged = max(self._buckets, default=0)

    def used(self, now_ms: int) -> int:
        """Return the sum of the B+1 live buckets."""
        return sum(amount for _, amount in self._live(now_ms))

    def remaining(self, now_ms: int) -> int:
        """Return what a request could still take now; never negative."""
        return max(self.limit.amount - self.used(now_ms), 0)

    def reset_ms(self, now_ms: int) -> int:
        """Return in how many ms the window is empty if nothing more is charged; 0 when it is.

        A refund does not shorten it: the time is that of the last charge.
        """
        return self._leaves_ms(self._charged) - now_ms if self.used(now_ms) else 0

    def retry_ms(self, now_ms: int, amount: int) -> int:
        """Return in how many ms `amount` fits if nothing else happens: 0 when it does, NEVER_FITS when it cannot.

        Exact to the millisecond: it is the time until enough of the oldest buckets have left.
        """
        if amount > self.limit.amount:
            return NEVER_FITS
        excess = self.used(now_ms) + amount - self.limit.amount
        if excess <= 0:
            return 0
        for index, freed in self._live(now_ms):
            excess -= freed
            if excess <= 0:
                return self._leaves_ms(index) - now_ms
        raise AssertionError("an empty window fits every amount up to its limit")

    def charge(self, now_ms: int, amount: int) -> int:
        """Count `amount` in the bucket of now and return that bucket's index. Whether it fits is asked before."""
        self._newest = self._bucket_of(now_ms)
        self._buckets = dict(self._live(now_ms))
        if amount:
            self._buckets[self._newest] = self._buckets.get(self._newest, 0) + amount
            self._charged = self._newest
        return self._newest

    def taken_over(self, limit: Limit, seen_ms: int) -> "WindowRing":
        """Return the ring of another limit that counts what this one counted.

        What lies in a bucket goes to the new one in which the old one ends, or to that of `seen_ms`, the latest time at
        which anything was charged: it leaves later than it would have, never earlier. What has left already is dropped.
        """
        ring = WindowRing(limit)
        ring._newest = ring._bucket_of(seen_ms)

        def moved(index: int) -> int:
            return min(((index + 1) * self.limit.bucket_ms - 1) // limit.bucket_ms, ring._newest)

        for index, amount in self._buckets.items():
            if amount and moved(index) >= ring._newest - limit.buckets:
                ring._buckets[moved(index)] = ring._buckets.get(moved(index), 0) + amount
        ring._charged = moved(self._charged)
        return ring

    @property
    def newest_ms(self) -> int:
        """When the newest bucket begins that was ever used, Unix time; 0 when none was."""
        return self._newest * self.limit.bucket_ms

    @property
    def charged_in_all(self) -> int:
        """The sum of the buckets that were live when it was charged last."""
        return sum(self._buckets.values())

    def refund(self, index: int, amount: int) -> None:
        """Take `amount` back out of the bucket that it was charged to; dropped when that has left the ring.

        It never frees anything in a younger bucket: that would let the same amount through twice within one window.
        """
        if index in self._buckets:
            self._buckets[index] -= amount

    def _bucket_of(self, now_ms: int) -> int:
        return max(now_ms // self.limit.bucket_ms, self._newest)

    def _live(self, now_ms: int) -> list[tuple[int, int]]:
        """Return index and amount of the buckets that count now, oldest first (they are only ever added at the end)."""
        oldest = self._bucket_of(now_ms) - self.limit.buckets
        return [(index, amount) for index, amount in self._buckets.items() if index >= oldest]

    def _leaves_ms(self, index: int) -> int:
        """Return the Unix time at which a bucket has left the ring: B+1 widths after it began."""
        return (index + self.limit.buckets + 1) * self.limit.bucket_ms
