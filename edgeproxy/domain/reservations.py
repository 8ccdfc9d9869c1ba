"""Reservations: how a request is counted before its cost is known, and put right afterwards. Pure: no I/O, no clock.

Nobody knows what a request to a model will use until the answer has ended, and a limit that is checked afterwards is
already exceeded. So an estimate is charged before the request is sent (reserve), and corrected when the answer is
there (settle). A reservation lives through these states, and leaves `pending` exactly once:

    from      what happens                        to
    -------   ---------------------------------   --------
    (none)    reserve, everything fits            pending
    (none)    reserve, something does not fit     (none)      nothing is charged anywhere: all or nothing
    pending   settle with POST                    settled     what it really used is charged
    pending   settle with VOID                    released    tokens are given back, the request itself counts
    pending   reserve again                       pending     says DUPLICATE, changes nothing
    settled   reserve or settle again             settled     says DUPLICATE, changes nothing
    released  reserve or settle again             released    says DUPLICATE, changes nothing
    (none)    settle                              (none)      says UNKNOWN, changes nothing

Settling corrects each window that the reservation charged. What was reserved too much goes back to the very bucket that
was charged, or nowhere when that bucket has left the window. What was used beyond it is charged to the bucket of now:
it is used, whatever the limit says, and what follows has to wait for it.

A window that was published after the reservation was made is left alone: it never charged it. A settle whose key is no
longer there still resolves the reservation and still records the event.

`Partition` is this behaviour in its plainest form: the reference that the scripts in `hotstate/lua` are played against.
Redis forgets a resolved reservation after two minutes (a late repetition is then UNKNOWN); the reference never does.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

from edgeproxy.domain.keys import KeyId, KeyStatus
from edgeproxy.domain.limits import NEVER_FITS, Amounts, Limit, WindowRing

NO_TIME_HELPS = -2  # retry_ms of a refusal by concurrency: it ends when another request ends, whenever that is


class ReserveStatus(IntEnum):
    """First number of a reserve reply. All but ADMITTED left everything as it was."""

    REFUSED = 0
    ADMITTED = 1
    DUPLICATE = 2  # this request id was reserved before
    UNPUBLISHED = 3  # Redis knows no such key: never a fresh budget
    STALE = 4  # the key changed since the caller read its record
    DISABLED = 5  # the key is revoked
    LAYOUT = 6  # the state was written by an incompatible version of this program


class SettleStatus(IntEnum):
    """First number of a settle reply. All but RESOLVED left everything as it was."""

    RESOLVED = 1
    DUPLICATE = 2
    UNKNOWN = 3


class PublishStatus(IntEnum):
    """First number of a publish reply. All but PUBLISHED left everything as it was."""

    PUBLISHED = 1
    KEPT = 2  # the state is of this version or a newer one
    LAYOUT = 6


class Outcome(StrEnum):
    """What a settle does with the reservation."""

    POST = "post"
    VOID = "void"


class ReservationState(IntEnum):
    """The state of a reservation, as the table above names them."""

    PENDING = 1
    SETTLED = 2
    RELEASED = 3


TRANSITIONS = {
    (ReservationState.PENDING, Outcome.POST): ReservationState.SETTLED,
    (ReservationState.PENDING, Outcome.VOID): ReservationState.RELEASED,
}


@dataclass(frozen=True, slots=True)
class WindowLevel:
    """A window as a reserve left it: what still fits, and in how many ms it is empty if nothing more comes."""

    remaining: int
    reset_ms: int


@dataclass(frozen=True, slots=True)
class ReserveReply:
    """The answer to a reserve.

    REFUSED: `limit_index` is the position (from 0, over the windows of all scopes in order) of the window that decides
    when the request fits, and `retry_ms` is when: in that many ms, or NEVER_FITS. When only concurrency refuses,
    `limit_index` is -1 for the first scope (-2 for the second, ...) and `retry_ms` is NO_TIME_HELPS.
    ADMITTED and REFUSED: `windows` in the same order as the positions.
    """

    status: ReserveStatus
    now_ms: int
    limit_index: int = 0
    retry_ms: int = 0
    windows: tuple[WindowLevel, ...] = ()


@dataclass(frozen=True, slots=True)
class SettleReply:
    """The answer to a settle, and the time of Redis at which it ran."""

    status: SettleStatus
    now_ms: int


@dataclass(frozen=True, slots=True)
class WindowUsage:
    """A window as it is now. `used` may exceed the limit by what requests used beyond their reservation."""

    limit: Limit
    used: int
    remaining: int
    reset_ms: int


@dataclass(frozen=True, slots=True)
class KeyUsage:
    """What the counters know of a key: everything ever settled, when last (0: never), and what is open and used now."""

    version: int
    status: KeyStatus
    totals: Amounts
    last_used_ms: int
    open: int
    windows: tuple[WindowUsage, ...]


@dataclass(frozen=True, slots=True)
class KeyVersion:
    """A scope of a reservation: a key, and the version of it that the caller knows."""

    key_id: KeyId
    version: int


@dataclass(slots=True)
class _Window:
    since: int  # the version with which it was published: older reservations did not charge it
    ring: WindowRing


@dataclass(slots=True)
class _KeyState:
    """The counters of one key."""

    version: int
    status: KeyStatus
    concurrency: int | None
    windows: dict[str, _Window]
    open: int = 0
    last_used_ms: int = 0
    totals: Amounts = field(default_factory=Amounts)


@dataclass(slots=True)
class _Reservation:
    state: ReservationState
    reserved: Amounts
    charged: list[tuple[KeyVersion, dict[str, int]]]  # per scope: window id -> index of the bucket


class Partition:
    """The counters of the keys of one partition, their reservations and the usage events in order."""

    def __init__(self) -> None:
        self._keys: dict[KeyId, _KeyState] = {}
        self._reservations: dict[str, _Reservation] = {}
        self.events: list[bytes] = []

    def publish(
        self,
        key: KeyVersion,
        status: KeyStatus,
        concurrency: int | None,
        limits: Sequence[Limit],
    ) -> PublishStatus:
        """Make a version of a key hold. Windows that stay keep what they count, whatever their limit becomes."""
        state = self._keys.setdefault(key.key_id, _KeyState(-1, status, concurrency, {}))
        if key.version <= state.version:
            return PublishStatus.KEPT
        windows: dict[str, _Window] = {}
        for limit in limits:
            windows[limit.id] = state.windows.get(limit.id) or _Window(key.version, WindowRing(limit))
            windows[limit.id].ring.limit = limit
        state.version, state.status, state.concurrency, state.windows = key.version, status, concurrency, windows
        return PublishStatus.PUBLISHED

    def erase(self, key_id: KeyId) -> None:
        """Forget a key. Its open reservations can still be settled."""
        self._keys.pop(key_id, None)

    def reserve(self, request_id: str, scopes: Sequence[KeyVersion], amounts: Amounts, now_ms: int) -> ReserveReply:
        """Charge `amounts` to every window of every scope, or to none."""
        if request_id in self._reservations:
            return ReserveReply(ReserveStatus.DUPLICATE, now_ms)
        for scope in scopes:
            status = self._standing(scope)
            if status is not ReserveStatus.ADMITTED:
                return ReserveReply(status, now_ms)
        states = [self._keys[scope.key_id] for scope in scopes]
        rings = [window.ring for state in states for window in state.windows.values()]
        refusal = _refusal(rings, amounts, now_ms) or _crowded(states)
        if refusal is not None:
            return ReserveReply(ReserveStatus.REFUSED, now_ms, *refusal, _levels(rings, now_ms))
        charged = []
        for scope, state in zip(scopes, states, strict=True):
            state.open += 1
            charged.append((scope, {name: _charge(w.ring, amounts, now_ms) for name, w in state.windows.items()}))
        self._reservations[request_id] = _Reservation(ReservationState.PENDING, amounts, charged)
        return ReserveReply(ReserveStatus.ADMITTED, now_ms, windows=_levels(rings, now_ms))

    def settle(self, request_id: str, outcome: Outcome, actual: Amounts, event: bytes, now_ms: int) -> SettleReply:
        """Resolve a reservation, once, and record its event. With VOID, `actual` is not read: no token was used."""
        reservation = self._reservations.get(request_id)
        if reservation is None:
            return SettleReply(SettleStatus.UNKNOWN, now_ms)
        if (reservation.state, outcome) not in TRANSITIONS:
            return SettleReply(SettleStatus.DUPLICATE, now_ms)
        reservation.state = TRANSITIONS[reservation.state, outcome]
        if outcome is Outcome.VOID:
            actual = Amounts(requests=reservation.reserved.requests)
        for scope, buckets in reservation.charged:
            state = self._keys.get(scope.key_id)
            if state is not None:
                _add_to_totals(state, actual, now_ms)
                for name, ring in _windows_charged(state, scope.version, buckets):
                    _correct(ring, buckets[name], reservation.reserved, actual, now_ms)
        self.events.append(event)
        return SettleReply(SettleStatus.RESOLVED, now_ms)

    def inspect(self, key_id: KeyId, now_ms: int) -> KeyUsage | None:
        """Return what is counted of a key at `now_ms`; None when it is not published."""
        state = self._keys.get(key_id)
        if state is None:
            return None
        windows = tuple(
            WindowUsage(r.limit, r.used(now_ms), r.remaining(now_ms), r.reset_ms(now_ms))
            for r in (window.ring for window in state.windows.values())
        )
        return KeyUsage(state.version, state.status, state.totals, state.last_used_ms, state.open, windows)

    def pending(self) -> int:
        """Return how many reservations are open."""
        return sum(r.state is ReservationState.PENDING for r in self._reservations.values())

    def _standing(self, scope: KeyVersion) -> ReserveStatus:
        state = self._keys.get(scope.key_id)
        if state is None:
            return ReserveStatus.UNPUBLISHED
        if state.version != scope.version:
            return ReserveStatus.STALE
        if state.status is not KeyStatus.ACTIVE:
            return ReserveStatus.DISABLED
        return ReserveStatus.ADMITTED


def _refusal(rings: Sequence[WindowRing], amounts: Amounts, now_ms: int) -> tuple[int, int] | None:
    """Return position and retry_ms of the window that makes the request wait longest; None when all have room."""
    waits = [ring.retry_ms(now_ms, amounts.of(ring.limit.dimension)) for ring in rings]
    if NEVER_FITS in waits:
        return waits.index(NEVER_FITS), NEVER_FITS
    longest = max(waits, default=0)
    return (waits.index(longest), longest) if longest else None


def _crowded(states: Sequence[_KeyState]) -> tuple[int, int] | None:
    """Return which scope has as many requests open as it may have, as `limit_index` and `retry_ms`; None when none."""
    for position, state in enumerate(states):
        if state.concurrency is not None and state.open >= state.concurrency:
            return -1 - position, NO_TIME_HELPS
    return None


def _levels(rings: Sequence[WindowRing], now_ms: int) -> tuple[WindowLevel, ...]:
    return tuple(WindowLevel(ring.remaining(now_ms), ring.reset_ms(now_ms)) for ring in rings)


def _charge(ring: WindowRing, amounts: Amounts, now_ms: int) -> int:
    return ring.charge(now_ms, amounts.of(ring.limit.dimension))


def _correct(ring: WindowRing, index: int, reserved: Amounts, actual: Amounts, now_ms: int) -> None:
    """Give back what was reserved too much to its own bucket; charge what was used beyond it to the bucket of now."""
    excess = actual.of(ring.limit.dimension) - reserved.of(ring.limit.dimension)
    if excess < 0:
        ring.refund(index, -excess)
    elif excess > 0:
        ring.charge(now_ms, excess)


def _windows_charged(state: _KeyState, version: int, buckets: dict[str, int]) -> Iterator[tuple[str, WindowRing]]:
    """Yield the windows that are still the ones that a reservation made with `version` charged.

    A window that was taken away and came back counts from nothing: a refund to it would give what was never taken.
    """
    for name, window in state.windows.items():
        if name in buckets and window.since <= version:
            yield name, window.ring


def _add_to_totals(state: _KeyState, actual: Amounts, now_ms: int) -> None:
    totals = state.totals
    state.totals = Amounts(
        requests=totals.requests + actual.requests,
        input_tokens=totals.input_tokens + actual.input_tokens,
        output_tokens=totals.output_tokens + actual.output_tokens,
    )
    state.last_used_ms = max(state.last_used_ms, now_ms)
    state.open = max(state.open - 1, 0)  # a key that was published anew after an erasure starts with none open
