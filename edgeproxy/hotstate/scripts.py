"""The scripts that run inside Redis: their sources, how their arguments are written and how their replies are read.

No I/O but reading the package's own `lua` folder, when asked to: whoever owns a connection sends
`EVALSHA <sha1> <arguments>` and, on NOSCRIPT, loads the source and repeats (safe: a repeated reserve or settle is a
no-op that says so). Every script opens with what it does, its KEYS, its ARGV with units, its reply and its statuses;
the enums of `domain/reservations.py` mirror those.

Times are those of Redis. `now_ms` is there for tests, which cannot wait a month.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from importlib import resources
from typing import Any

from edgeproxy.domain.keys import KeyId, KeyRecord, KeyStatus, encode_record
from edgeproxy.domain.limits import MAX_AMOUNT, Amounts, Dimension, Limit, check_limits
from edgeproxy.domain.reservations import (
    KeyUsage,
    Outcome,
    PublishStatus,
    ReserveReply,
    ReserveStatus,
    SettleReply,
    SettleStatus,
    WindowLevel,
    WindowUsage,
)
from edgeproxy.hotstate import keyspace

NAMES = ("reserve", "settle", "publish", "record", "erase", "inspect", "refusal")

MAX_REFUSAL_ROWS = 10_000  # per partition, about 1 MB: what a flood of refused requests may occupy until it is flushed

Arguments = tuple[str | int | bytes, ...]
"""What follows the SHA-1 in EVALSHA: the number of keys, the keys, the arguments."""

_INCLUDE = "-- include "
_NOW_OF_REDIS = ""
_NO_CAP = -1
_STATUS_NUMBERS = {KeyStatus.ACTIVE: 1, KeyStatus.REVOKED: 2}
_STATUS_OF_NUMBER = {number: status for status, number in _STATUS_NUMBERS.items()}
_DIMENSION_NUMBERS = {dimension: number for number, dimension in enumerate(Dimension, start=1)}
_WINDOW_REPLY = 4  # numbers per window in the reply of inspect


class EraseStatus(IntEnum):
    """First number of an erase reply."""

    ABSENT = 0
    ERASED = 1


class InspectStatus(IntEnum):
    """First number of an inspect reply."""

    FOUND = 1
    UNPUBLISHED = 3
    LAYOUT = 6


class RefusalStatus(IntEnum):
    """First number of a refusal reply."""

    FULL = 0
    COUNTED = 1


@dataclass(frozen=True, slots=True)
class Script:
    """A script as Redis gets it: includes put in, and the SHA-1 by which EVALSHA calls it."""

    name: str
    source: str
    sha1: str

    def command(self, arguments: Arguments) -> Arguments:
        """Return the whole EVALSHA command."""
        return ("EVALSHA", self.sha1, *arguments)


@dataclass(frozen=True, slots=True)
class Scope:
    """One holder of limits that a request has to fit into, with the version of it that the caller knows.

    A request has one today: its key. All scopes of a request lie in one partition. Made once per key record.
    """

    state: str
    ring: str
    version: int


def load() -> Mapping[str, Script]:
    """Read all scripts, by name. A line `-- include NAME` stands for the file NAME.lua."""
    folder = resources.files("edgeproxy.hotstate") / "lua"

    def read(name: str) -> str:
        lines = (folder / f"{name}.lua").read_text("utf-8").splitlines()
        return "\n".join(read(line.removeprefix(_INCLUDE)) if line.startswith(_INCLUDE) else line for line in lines)

    sources = {name: read(name) for name in NAMES}
    return {
        name: Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())
        for name, source in sources.items()
    }


def scope_of(record: KeyRecord) -> Scope:
    """Return the scope that a key is for its own requests."""
    return Scope(
        keyspace.state(record.partition, record.id), keyspace.ring(record.partition, record.id), record.version
    )


def reserve_args(
    partition: int,
    request_id: str,
    scopes: Sequence[Scope],
    amounts: Amounts,
    lease_ms: int,
    *,
    now_ms: int | None = None,
) -> Arguments:
    """Write the arguments of `reserve`. The lease ends `lease_ms` after now. Amounts lie between 0 and 2**53."""
    return (
        2 + 2 * len(scopes),
        keyspace.reservation(partition, request_id),
        keyspace.leases(partition),
        *(name for scope in scopes for name in (scope.state, scope.ring)),
        _NOW_OF_REDIS if now_ms is None else now_ms,
        request_id,
        lease_ms,
        *_checked(amounts),
        *(scope.version for scope in scopes),
    )


def decode_reserve(reply: Sequence[int]) -> ReserveReply:
    """Read the reply of `reserve`."""
    if len(reply) == 2:
        return ReserveReply(ReserveStatus(reply[0]), reply[1])
    status, now_ms, limit_index, retry_ms, *levels = reply
    windows = tuple(WindowLevel(*pair) for pair in zip(levels[::2], levels[1::2], strict=True))
    return ReserveReply(ReserveStatus(status), now_ms, limit_index, retry_ms, windows)


def settle_args(
    partition: int,
    request_id: str,
    scopes: Sequence[Scope],
    outcome: Outcome,
    actual: Amounts,
    event: bytes,
    *,
    now_ms: int | None = None,
) -> Arguments:
    """Write the arguments of `settle`: the scopes of the reserve, what was really used, and the encoded usage event.

    With VOID `actual` is not read: tokens are given back and the request itself counts.
    """
    return (
        3 + 2 * len(scopes),
        keyspace.reservation(partition, request_id),
        keyspace.leases(partition),
        keyspace.events(partition),
        *(name for scope in scopes for name in (scope.state, scope.ring)),
        _NOW_OF_REDIS if now_ms is None else now_ms,
        request_id,
        outcome,
        *_checked(actual),
        event,
    )


def decode_settle(reply: Sequence[int]) -> SettleReply:
    """Read the reply of `settle`."""
    status, now_ms = reply
    return SettleReply(SettleStatus(status), now_ms)


def publish_args(record: KeyRecord) -> Arguments:
    """Write the arguments of `publish`. Raises ValueError when the record's limits cannot hold together."""
    check_limits(record.limits)
    scope = scope_of(record)
    return (
        2,
        scope.state,
        scope.ring,
        record.version,
        _STATUS_NUMBERS[record.status],
        _NO_CAP if record.concurrency is None else record.concurrency,
        *(part for limit in record.limits for part in _window(limit)),
    )


def decode_publish(reply: Sequence[int]) -> PublishStatus:
    """Read the reply of `publish`."""
    (status,) = reply
    return PublishStatus(status)


def record_args(record: KeyRecord, digest: str) -> Arguments:
    """Write the arguments of `record`, which writes the key's record for workers. Its reply is that of `publish`."""
    return (1, keyspace.key_record(digest), record.version, encode_record(record))


def erase_args(partition: int, key_id: KeyId) -> Arguments:
    """Write the arguments of `erase`."""
    return (
        3,
        keyspace.state(partition, key_id),
        keyspace.ring(partition, key_id),
        keyspace.refusals(partition),
        key_id,
    )


def decode_erase(reply: Sequence[int]) -> EraseStatus:
    """Read the reply of `erase`."""
    (status,) = reply
    return EraseStatus(status)


def inspect_args(partition: int, key_id: KeyId, *, now_ms: int | None = None) -> Arguments:
    """Write the arguments of `inspect`."""
    return (
        2,
        keyspace.state(partition, key_id),
        keyspace.ring(partition, key_id),
        _NOW_OF_REDIS if now_ms is None else now_ms,
    )


def decode_inspect(reply: Sequence[Any]) -> KeyUsage | None:
    """Read the reply of `inspect`; None when the key is not published. Raises ValueError for a foreign layout."""
    status = InspectStatus(reply[0])
    if status is InspectStatus.LAYOUT:
        raise ValueError("the state of this key was written by an incompatible version")
    if status is InspectStatus.UNPUBLISHED:
        return None
    _, version, key_status, requests, input_tokens, output_tokens, last_used_ms, open_requests, *windows = reply
    rows = [windows[at : at + _WINDOW_REPLY] for at in range(0, len(windows), _WINDOW_REPLY)]
    return KeyUsage(
        version=version,
        status=_STATUS_OF_NUMBER[key_status],
        totals=Amounts(requests, input_tokens, output_tokens),
        last_used_ms=last_used_ms,
        open=open_requests,
        windows=tuple(_window_usage(*row) for row in rows),
    )


def refusal_args(partition: int, key_id: KeyId, status: int, *, now_ms: int | None = None) -> Arguments:
    """Write the arguments of `refusal`: count one refused request of a key, by the HTTP status that it got."""
    return (
        1,
        keyspace.refusals(partition),
        _NOW_OF_REDIS if now_ms is None else now_ms,
        key_id,
        status,
        MAX_REFUSAL_ROWS,
    )


def decode_refusal(reply: Sequence[int]) -> RefusalStatus:
    """Read the reply of `refusal`."""
    (status,) = reply
    return RefusalStatus(status)


def _checked(amounts: Amounts) -> tuple[int, int, int]:
    """Return the amounts in the scripts' order. Raises ValueError for what the scripts cannot count exactly."""
    values = (amounts.requests, amounts.input_tokens, amounts.output_tokens)
    if min(values) < 0 or amounts.input_tokens + amounts.output_tokens > MAX_AMOUNT:
        raise ValueError(f"an amount lies between 0 and {MAX_AMOUNT}")
    return values


def _window(limit: Limit) -> Arguments:
    return (limit.id, _DIMENSION_NUMBERS[limit.dimension], limit.bucket_ms, limit.buckets, limit.amount)


def _window_usage(window_id: bytes, amount: int, used: int, reset_ms: int) -> WindowUsage:
    dimension, _, window_ms = window_id.decode().partition("/")
    limit = Limit(Dimension(dimension), amount, int(window_ms))
    return WindowUsage(limit, used, max(amount - used, 0), reset_ms)
