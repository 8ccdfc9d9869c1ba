"""Reservations: how a request is counted before its cost is known, and put right afterwards. Pure: no I/O, no clock.

Nobody knows what a request to a model will use until the answer has ended, and a limit that is checked afterwards is
already exceeded. So an estimate is charged before the request is sent (reserve), and corrected when the answer is
there (settle). A reservation lives through these states, and leaves `pending` exactly once:

    from      what happens                        to
    -------   ---------------------------------   --------
    (none)    reserve, everything fits            pending
    (none)    reserve, something does not fit     (none)      nothing is charged anywhere: all or nothing
    pending   heartbeat                           pending     its lease is renewed; charges nothing
    pending   settle with POST                    settled     what it really used is charged
    pending   settle with VOID                    released    tokens are given back, the request itself counts
    pending   settle with CANCEL                  released    everything is given back, as if it had never been
    pending   reap, its lease is over             reaped      what is known of it is charged
    pending   reap, its lease is not over         pending     says ALIVE, changes nothing
    pending   reserve again                       pending     says DUPLICATE, changes nothing
    settled   reserve, settle or reap again       settled     says DUPLICATE, changes nothing
    released  reserve, void, cancel or reap       released    says DUPLICATE, changes nothing
    released  settle with POST                    released    says REAPED: whoever released it did not know better
    reaped    reserve or reap again               reaped      says DUPLICATE, changes nothing
    reaped    settle                              reaped      says REAPED; the event goes to the corrections
    (none)    settle                              (none)      says UNKNOWN; the event goes to the corrections

Settling corrects each window that the reservation charged. What was reserved too much goes back to the very bucket that
was charged, or nowhere when that bucket has left the window. What was used beyond it is charged to the bucket of now:
it is used, whatever the limit says, and what follows has to wait for it.

A window that was published after the reservation was made is left alone, because it never charged it; unless it took
over what another one counted (a limit whose length was changed). Then excess is charged to it like to the other; what
was reserved too much stays counted in it, because its buckets are others. A settle whose key is no longer there still
resolves the reservation and still records the event.

A prepaid key has a balance, too: credits, without everything that was settled. What is reserved is held, and a request
fits when the balance without what is held covers it.

A worker that dies leaves its reservations pending. Each has a lease, which heartbeats renew; when it is over, `jobs`
reaps it. A worker that was only stopped, and settles afterwards, is told REAPED. Its event, like that of a reservation
that nobody knows (any more), is not charged then, because nobody near the counters can know what of it was charged
before: it goes to the corrections, and the database decides.

Here are the words of all this. `domain/partition.py` is the behaviour in its plainest form, and the scripts in
`hotstate/lua` are the same inside Redis.
"""

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from functools import lru_cache
from typing import Any

import orjson

from edgeproxy.domain.keys import KeyId, KeyRecord, KeyStatus, Mode
from edgeproxy.domain.limits import Amounts, Limit
from edgeproxy.domain.records import record

NO_TIME_HELPS = -2  # retry_ms of a refusal by concurrency or balance: nobody knows when a request ends or money comes
BEATS_PER_LEASE = 3  # heartbeats of an open request: two may be missed
WHATEVER_HOLDS = -1  # as the version of a scope: the caller takes it as it is


class ReserveStatus(IntEnum):
    """First number of a reserve reply. All but ADMITTED and OBSERVED left everything as it was."""

    REFUSED = 0
    ADMITTED = 1
    DUPLICATE = 2  # this request id was reserved before
    UNPUBLISHED = 3  # Redis knows no such key: never a fresh budget
    STALE = 4  # the key changed since the caller read its record
    DISABLED = 5  # the key is revoked
    LAYOUT = 6  # the state was written by an incompatible version of this program
    OBSERVED = 7  # admitted although a limit is reached: it only observes


class LimitReason(IntEnum):
    """What refused a request, or would have if it did not only observe."""

    NONE = 0
    WINDOW = 1
    CONCURRENCY = 2
    BALANCE = 3


class SettleStatus(IntEnum):
    """First number of a settle reply. All but RESOLVED left the counters as they were."""

    RESOLVED = 1
    DUPLICATE = 2
    UNKNOWN = 3  # its event went to the corrections
    REAPED = 4  # its event went to the corrections


class HeartbeatStatus(IntEnum):
    """What became of one reservation's heartbeat."""

    RENEWED = 1
    UNKNOWN = 3  # there is no such reservation, or it is resolved


class ExamineStatus(IntEnum):
    """First number of an examine reply."""

    PENDING = 1
    RESOLVED = 2
    UNKNOWN = 3


class ReapStatus(IntEnum):
    """First number of a reap reply. All but RESOLVED left the counters as they were."""

    RESOLVED = 1
    DUPLICATE = 2
    UNKNOWN = 3
    ALIVE = 5  # its lease is not over


class LedgerStatus(IntEnum):
    """First number of a credit or adjust reply. All but APPLIED left everything as it was."""

    APPLIED = 1
    DUPLICATE = 2  # this entry, or a later one, was applied before
    UNPUBLISHED = 3
    GAP = 4  # an earlier entry has to come first
    LAYOUT = 6


class PublishStatus(IntEnum):
    """First number of a publish reply. All but PUBLISHED left everything as it was."""

    PUBLISHED = 1
    KEPT = 2  # the state is of this version or a newer one
    LAYOUT = 6


class RebuildStatus(IntEnum):
    """First number of a rebuild reply."""

    REBUILT = 1
    CHANGED = 2  # something was counted since the caller looked; nothing changed


class RefusalStatus(IntEnum):
    """First number of a refusal reply."""

    FULL = 0
    COUNTED = 1


class _Numbered(dict[int, Any]):
    def __missing__(self, number: int) -> Any:
        raise ValueError(f"no reply has the number {number}")


# Members by their numbers, for what is read with every request: ten times as fast as asking the enum.
NUMBERED = {
    kind: _Numbered({member.value: member for member in kind}) for kind in (ReserveStatus, LimitReason, SettleStatus)
}


class Outcome(StrEnum):
    """What a settle does with the reservation."""

    POST = "post"
    VOID = "void"
    CANCEL = "cancel"


class ReservationState(IntEnum):
    """The state of a reservation, as the table above names them."""

    PENDING = 1
    SETTLED = 2
    RELEASED = 3
    REAPED = 4


TRANSITIONS = {
    (ReservationState.PENDING, Outcome.POST): ReservationState.SETTLED,
    (ReservationState.PENDING, Outcome.VOID): ReservationState.RELEASED,
    (ReservationState.PENDING, Outcome.CANCEL): ReservationState.RELEASED,
}


@record
class WindowLevel:
    """A window as a reserve left it: what still fits, and in how many ms it is empty if nothing more comes."""

    remaining: int
    reset_ms: int


@record
class ReserveReply:
    """The answer to a reserve.

    REFUSED and OBSERVED: `reason` is what refuses. WINDOW: `position` (from 0, over the windows of all scopes in order)
    is the window that decides when the request fits, and `retry_ms` is when: in that many ms, or NEVER_FITS. The
    others: `position` is the scope (from 0), and `retry_ms` is NO_TIME_HELPS. Of several reasons the one is told that
    time helps least; concurrency last, because requests end by themselves.
    ADMITTED, REFUSED and OBSERVED: `balance` is what is left of the first scope when that is prepaid, below 0 by late
    excess; `windows` in the same order as the positions.
    """

    status: ReserveStatus
    now_ms: int
    reason: LimitReason = LimitReason.NONE
    position: int = 0
    retry_ms: int = 0
    balance: int | None = None
    windows: tuple[WindowLevel, ...] = ()


@record
class SettleReply:
    """The answer to a settle, and the time of Redis at which it ran."""

    status: SettleStatus
    now_ms: int


@dataclass(frozen=True, slots=True)
class ChargedScope:
    """What a reservation charged in one scope: the version of the key, and per window id the index of the bucket."""

    version: int
    buckets: dict[str, int]


@dataclass(frozen=True, slots=True)
class Pending:
    """An open reservation: made when, what was reserved, what the last heartbeat told (tokens only), and the note."""

    at_ms: int
    reserved: Amounts
    so_far: Amounts
    note: bytes
    scopes: tuple[ChargedScope, ...]


@dataclass(frozen=True, slots=True)
class Note:
    """What a gateway leaves in a reservation for whoever has to resolve it: whose it is, and the model's pattern.

    A note without a model is that of a reservation that has no event of its own. `is_bound` says that what is reserved
    is the most that the request can use.
    """

    holder: KeyId
    model: str
    is_bound: bool = False


@dataclass(frozen=True, slots=True)
class RebuiltState:
    """The counters of a key as they are known durably.

    `windows` in the order of the record's limits: per window index and amount of its buckets, oldest first, none older
    than the window is long. They count what is open, too, in the buckets that the reservations name.
    """

    record: KeyRecord
    open: int
    held: int
    last_used_ms: int
    totals: Amounts
    balance: int
    ledger: int
    windows: tuple[tuple[tuple[int, int], ...], ...]


@dataclass(frozen=True, slots=True)
class WindowUsage:
    """A window as it is now. `used` may exceed the limit by what requests used beyond their reservation."""

    limit: Limit
    used: int
    remaining: int
    reset_ms: int


@dataclass(frozen=True, slots=True)
class KeyUsage:
    """What the counters know of a key: everything ever settled, when last (0: never), and what is open and used now.

    `balance` and `held` are tokens: credits without everything settled, and what is reserved of a prepaid key. `ledger`
    is the number of the last ledger entry that is in it.
    """

    version: int
    status: KeyStatus
    totals: Amounts
    last_used_ms: int
    open: int
    mode: Mode
    prepaid: bool
    balance: int
    held: int
    ledger: int
    windows: tuple[WindowUsage, ...]


@dataclass(frozen=True, slots=True)
class KeyVersion:
    """A scope of a reservation: a key, and the version of it that the caller knows."""

    key_id: KeyId
    version: int


@lru_cache(maxsize=4096)
def encode_note(holder: KeyId, model: str, *, is_bound: bool = False) -> bytes:
    """Return the note as it is kept in a reservation."""
    return orjson.dumps({"holder": holder, "model": model, "is_bound": is_bound})


def decode_note(raw: bytes) -> Note:
    """Return the note that `encode_note` wrote. Raises ValueError for anything else."""
    row = orjson.loads(raw)
    if not isinstance(row, dict) or row.keys() != {"holder", "model", "is_bound"}:
        raise ValueError("not the note of a reservation")
    texts = (row["holder"], row["model"])
    if not all(isinstance(text, str) for text in texts) or not isinstance(row["is_bound"], bool):
        raise ValueError("not the note of a reservation")
    return Note(KeyId(row["holder"]), row["model"], row["is_bound"])
