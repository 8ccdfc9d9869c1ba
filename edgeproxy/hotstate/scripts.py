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
from importlib.resources.abc import Traversable
from itertools import chain, starmap
from operator import attrgetter
from typing import Any

from edgeproxy.domain.keys import KeyId, KeyRecord, KeyStatus, Mode, encode_record
from edgeproxy.domain.limits import MAX_AMOUNT, Amounts, Dimension, Limit, check_limits
from edgeproxy.domain.reservations import (
    NUMBERED,
    ChargedScope,
    ExamineStatus,
    HeartbeatStatus,
    KeyUsage,
    LedgerStatus,
    LimitReason,
    Outcome,
    Pending,
    PublishStatus,
    ReapStatus,
    RebuildStatus,
    RebuiltState,
    RefusalStatus,
    ReserveReply,
    ReserveStatus,
    SettleReply,
    SettleStatus,
    WindowLevel,
    WindowUsage,
)
from edgeproxy.hotstate import keyspace
from edgeproxy.hotstate.inlining import inlined

NAMES = (
    *("reserve", "settle", "heartbeat", "examine", "reap", "credit", "adjust", "publish", "rebuild"),
    *("record", "erase", "inspect", "refusal", "epoch", "keeping", "names"),
)

MAX_REFUSAL_ROWS = 10_000  # per partition, about 1 MB: what a flood of refused requests may occupy until it is flushed

Arguments = tuple[str | int | bytes, ...]
"""What follows the SHA-1 in EVALSHA: the number of keys, the keys, the arguments."""

_INCLUDE = "-- include "
_NOW_OF_REDIS = ""
_NO_CAP = -1
_VERSION, _STATE_AND_RING = attrgetter("version"), attrgetter("state", "ring")
_STATUS_NUMBERS = {KeyStatus.ACTIVE: 1, KeyStatus.REVOKED: 2}
_MODE_NUMBERS = {Mode.ENFORCE: 1, Mode.OBSERVE: 2}
_MODE_OF_NUMBER = {number: mode for mode, number in _MODE_NUMBERS.items()}
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


@dataclass(frozen=True, slots=True)
class Script:
    """A script as Redis gets it: includes and constants put in, and the SHA-1 by which EVALSHA calls it."""

    name: str
    source: str
    sha1: str

    def command(self, arguments: Arguments) -> Arguments:
        """Return the whole EVALSHA command."""
        return ("EVALSHA", self.sha1, *arguments)


@dataclass(frozen=True, slots=True)
class Beat:
    """What one open request used so far, in tokens."""

    request_id: str
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Scope:
    """One holder of limits that a request has to fit into, with the version of it that the caller knows.

    All scopes of a request lie in one partition. Made once per key record.
    """

    holder: str
    state: str
    ring: str
    version: int


def load(folder: Traversable | None = None) -> Mapping[str, Script]:
    """Read all scripts, by name; from another folder than ours if told so. `-- include NAME` stands for NAME.lua."""
    place = folder or resources.files("edgeproxy.hotstate") / "lua"

    def read(name: str) -> str:
        lines = (place / f"{name}.lua").read_text("utf-8").splitlines()
        return "\n".join(read(line.removeprefix(_INCLUDE)) if line.startswith(_INCLUDE) else line for line in lines)

    sources = {name: inlined(read(name)) for name in NAMES}
    return {
        name: Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())
        for name, source in sources.items()
    }


def scope_of(record: KeyRecord) -> Scope:
    """Return the scope that a key is for its own requests."""
    state, ring = keyspace.state(record.partition, record.id), keyspace.ring(record.partition, record.id)
    return Scope(record.id, state, ring, record.version)


def reserve_args(  # noqa: PLR0913 - what the script is told, one by one
    partition: int,
    request_id: str,
    scopes: Sequence[Scope],
    amounts: Amounts,
    lease_ms: int,
    note: bytes,
    *,
    announce: bool = False,
    now_ms: int | None = None,
) -> Arguments:
    """Write the arguments of `reserve`. The lease ends `lease_ms` after now. Amounts lie between 0 and 2**53.

    `announce`: the request was admitted before Redis lost it, and is charged whatever limits and versions say.
    """
    return (
        2 + 2 * len(scopes),
        keyspace.reservation(partition, request_id),
        keyspace.leases(partition),
        *_names(scopes),
        _now(now_ms),
        request_id,
        lease_ms,
        *_checked(amounts),
        "announce" if announce else "admit",
        note,
        *map(_VERSION, scopes),
    )


def decode_reserve(reply: Sequence[Any]) -> ReserveReply:
    """Read the reply of `reserve`."""
    if len(reply) == 2:
        return ReserveReply(ReserveStatus(reply[0]), reply[1])
    status, now_ms, reason, position, retry_ms, balance, *levels = reply
    windows = tuple(starmap(WindowLevel, zip(levels[::2], levels[1::2], strict=True)))
    left = None if balance == b"" else balance
    known, why = NUMBERED[ReserveStatus][status], NUMBERED[LimitReason][reason]
    return ReserveReply(known, now_ms, why, position, retry_ms, left, windows)


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

    `actual` is read with POST only; b"" is no event.
    """
    return (
        4 + 2 * len(scopes),
        keyspace.reservation(partition, request_id),
        keyspace.leases(partition),
        keyspace.events(partition),
        keyspace.corrections(partition),
        *_names(scopes),
        _now(now_ms),
        request_id,
        outcome,
        *_checked(actual),
        event,
    )


def decode_settle(reply: Sequence[int]) -> SettleReply:
    """Read the reply of `settle`."""
    return SettleReply(NUMBERED[SettleStatus][reply[0]], reply[1])


def heartbeat_args(partition: int, lease_ms: int, beats: Sequence[Beat], *, now_ms: int | None = None) -> Arguments:
    """Write the arguments of `heartbeat`. The leases end `lease_ms` after now."""
    return (
        1 + len(beats),
        keyspace.leases(partition),
        *(keyspace.reservation(partition, beat.request_id) for beat in beats),
        _now(now_ms),
        lease_ms,
        *(part for beat in beats for part in (beat.request_id, beat.input_tokens, beat.output_tokens)),
    )


def decode_heartbeat(reply: Sequence[int]) -> list[HeartbeatStatus]:
    """Read the reply of `heartbeat`: what became of each beat, in their order."""
    return [HeartbeatStatus(status) for status in reply[1:]]


def examine_args(partition: int, request_id: str) -> Arguments:
    """Write the arguments of `examine`."""
    return (1, keyspace.reservation(partition, request_id))


def decode_examine(reply: Sequence[Any]) -> Pending | None:
    """Read the reply of `examine`; None when the reservation is resolved or unknown."""
    if ExamineStatus(reply[0]) is not ExamineStatus.PENDING:
        return None
    _, at_ms, requests, input_tokens, output_tokens, input_so_far, output_so_far, note, *rest = reply
    scopes = []
    while rest:
        version, count, *rest = rest
        ids = [window_id.decode() for window_id in rest[: 2 * count : 2]]
        scopes.append(ChargedScope(version, dict(zip(ids, rest[1 : 2 * count : 2], strict=True))))
        rest = rest[2 * count :]
    so_far = Amounts(0, input_so_far, output_so_far)
    return Pending(at_ms, Amounts(requests, input_tokens, output_tokens), so_far, note, tuple(scopes))


def reap_args(
    partition: int,
    request_id: str,
    scopes: Sequence[Scope],
    actual: Amounts,
    event: bytes,
    *,
    now_ms: int | None = None,
) -> Arguments:
    """Write the arguments of `reap`: the scopes of the reserve, what is charged, and the usage event; b"" is none."""
    return (
        3 + 2 * len(scopes),
        keyspace.reservation(partition, request_id),
        keyspace.leases(partition),
        keyspace.events(partition),
        *_names(scopes),
        _now(now_ms),
        request_id,
        *_checked(actual),
        event,
    )


def decode_reap(reply: Sequence[int]) -> ReapStatus:
    """Read the reply of `reap`."""
    (status,) = reply
    return ReapStatus(status)


def credit_args(partition: int, key_id: KeyId, seq: int, tokens: int) -> Arguments:
    """Write the arguments of `credit`: entry number `seq` of the key's ledger; tokens below 0 are taken away."""
    return (1, keyspace.state(partition, key_id), seq, _exact(tokens))


def adjust_args(
    partition: int,
    key_id: KeyId,
    seq: int,
    requests: int,
    input_tokens: int,
    output_tokens: int,
    *,
    now_ms: int | None = None,
) -> Arguments:
    """Write the arguments of `adjust`: entry number `seq`, the differences to what was settled before."""
    names = (keyspace.state(partition, key_id), keyspace.ring(partition, key_id))
    return (2, *names, _now(now_ms), seq, _exact(requests), _exact(input_tokens), _exact(output_tokens))


def decode_ledger(reply: Sequence[int]) -> tuple[LedgerStatus, int]:
    """Read the reply of `credit` or `adjust`: what became of the entry, and the number of the last one applied."""
    status, applied = reply
    return LedgerStatus(status), applied


def publish_args(record: KeyRecord, *, now_ms: int | None = None) -> Arguments:
    """Write the arguments of `publish`. Raises ValueError when the record's limits cannot hold together."""
    check_limits(record.limits)
    scope = scope_of(record)
    windows = (part for limit in record.limits for part in _window(limit))
    return (2, scope.state, scope.ring, _now(now_ms), *_standing(record), *windows)


def decode_publish(reply: Sequence[int]) -> PublishStatus:
    """Read the reply of `publish`."""
    (status,) = reply
    return PublishStatus(status)


def rebuild_args(partition: int, expected: bytes, state: RebuiltState) -> Arguments:
    """Write the arguments of `rebuild`. `expected` is the packed state that is there now, b"" when there is none.

    Raises ValueError when the limits cannot hold together, or a window's buckets are not those of one ring.
    """
    check_limits(state.record.limits)
    scope, totals = scope_of(state.record), state.totals
    windows = zip(state.record.limits, state.windows, strict=True)
    return (
        *(2, keyspace.state(partition, scope.holder), keyspace.ring(partition, scope.holder)),
        expected,
        *_standing(state.record),
        *(state.open, state.held, state.last_used_ms),
        *(totals.requests, totals.input_tokens, totals.output_tokens, state.balance, state.ledger),
        *(part for limit, buckets in windows for part in (*_window(limit), *_buckets(limit, buckets))),
    )


def decode_rebuild(reply: Sequence[int]) -> RebuildStatus:
    """Read the reply of `rebuild`."""
    (status,) = reply
    return RebuildStatus(status)


def record_args(record: KeyRecord, digest: str) -> Arguments:
    """Write the arguments of `record`, which writes the key's record for workers. Its reply is that of `publish`."""
    return (1, keyspace.key_record(digest), record.version, encode_record(record))


def erase_args(partition: int, key_id: KeyId) -> Arguments:
    """Write the arguments of `erase`."""
    names = (keyspace.state(partition, key_id), keyspace.ring(partition, key_id), keyspace.refusals(partition))
    return (3, *names, key_id)


def decode_erase(reply: Sequence[int]) -> EraseStatus:
    """Read the reply of `erase`."""
    (status,) = reply
    return EraseStatus(status)


def inspect_args(partition: int, key_id: KeyId, *, now_ms: int | None = None) -> Arguments:
    """Write the arguments of `inspect`."""
    return (2, keyspace.state(partition, key_id), keyspace.ring(partition, key_id), _now(now_ms))


def decode_inspect(reply: Sequence[Any]) -> KeyUsage | None:
    """Read the reply of `inspect`; None when the key is not published. Raises ValueError for a foreign layout."""
    status = InspectStatus(reply[0])
    if status is InspectStatus.LAYOUT:
        raise ValueError("the state of this key was written by an incompatible version")
    if status is InspectStatus.UNPUBLISHED:
        return None
    _, version, key_status, requests, input_tokens, output_tokens, last_used_ms, open_requests, *rest = reply
    mode, prepaid, balance, held, ledger, *windows = rest
    rows = [windows[at : at + _WINDOW_REPLY] for at in range(0, len(windows), _WINDOW_REPLY)]
    return KeyUsage(
        version=version,
        status=_STATUS_OF_NUMBER[key_status],
        totals=Amounts(requests, input_tokens, output_tokens),
        last_used_ms=last_used_ms,
        open=open_requests,
        mode=_MODE_OF_NUMBER[mode],
        prepaid=bool(prepaid),
        balance=balance,
        held=held,
        ledger=ledger,
        windows=tuple(_window_usage(*row) for row in rows),
    )


def refusal_args(partition: int, key_id: KeyId, status: int, *, now_ms: int | None = None) -> Arguments:
    """Write the arguments of `refusal`: count one refused request of a key, by the HTTP status that it got."""
    return (1, keyspace.refusals(partition), _now(now_ms), key_id, status, MAX_REFUSAL_ROWS)


def decode_refusal(reply: Sequence[int]) -> RefusalStatus:
    """Read the reply of `refusal`."""
    (status,) = reply
    return RefusalStatus(status)


def _now(now_ms: int | None) -> str | int:
    return _NOW_OF_REDIS if now_ms is None else now_ms


def _names(scopes: Sequence[Scope]) -> tuple[str, ...]:
    return tuple(chain.from_iterable(map(_STATE_AND_RING, scopes)))


def _exact(difference: int) -> int:
    """Return the number. Raises ValueError for what the scripts cannot count exactly."""
    if abs(difference) > MAX_AMOUNT:
        raise ValueError(f"an amount lies between 0 and {MAX_AMOUNT}")
    return difference


def _standing(record: KeyRecord) -> tuple[int, ...]:
    """Return what `publish` and `rebuild` are told of a key, without its windows."""
    cap = _NO_CAP if record.concurrency is None else record.concurrency
    return (record.version, _STATUS_NUMBERS[record.status], cap, _MODE_NUMBERS[record.mode], int(record.prepaid))


def _checked(amounts: Amounts) -> tuple[int, int, int]:
    """Return the amounts in the scripts' order. Raises ValueError for what the scripts cannot count exactly."""
    requests, tokens_in, tokens_out = amounts.requests, amounts.input_tokens, amounts.output_tokens
    if requests < 0 or tokens_in < 0 or tokens_out < 0 or tokens_in + tokens_out > MAX_AMOUNT:
        raise ValueError(f"an amount lies between 0 and {MAX_AMOUNT}")
    return requests, tokens_in, tokens_out


def _window(limit: Limit) -> Arguments:
    return (limit.id, _DIMENSION_NUMBERS[limit.dimension], limit.bucket_ms, limit.buckets, limit.amount)


def _buckets(limit: Limit, buckets: Sequence[tuple[int, int]]) -> Arguments:
    """Return how many buckets a window has, and each. Raises ValueError for what is not one ring, oldest first."""
    indices = [index for index, _ in buckets]
    if indices != sorted(set(indices)) or (indices and indices[-1] - indices[0] > limit.buckets):
        raise ValueError("the buckets of a window are given oldest first, and none that has left it")
    return (len(buckets), *(part for bucket in buckets for part in bucket))


def _window_usage(window_id: bytes, amount: int, used: int, reset_ms: int) -> WindowUsage:
    dimension, _, window_ms = window_id.decode().partition("/")
    limit = Limit(Dimension(dimension), amount, int(window_ms))
    return WindowUsage(limit, used, max(amount - used, 0), reset_ms)
