"""The counters of one partition in their plainest form: the reference of the scripts in `hotstate/lua`. Pure.

What the operations mean is told in `domain/reservations.py`, and why windows are counted as they are in
`domain/limits.py`. Nothing in the program counts here: the tests play every operation through this and through the
scripts, and both have to answer the same and to count the same. So nothing here is clever.

Redis forgets a resolved reservation after two minutes (a late repetition is then UNKNOWN); this never does.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from edgeproxy.domain.keys import KeyId, KeyRecord, KeyStatus, Mode
from edgeproxy.domain.limits import MAX_AMOUNT, NEVER_FITS, Amounts, Limit, WindowRing
from edgeproxy.domain.reservations import (
    NO_TIME_HELPS,
    TRANSITIONS,
    WHATEVER_HOLDS,
    ChargedScope,
    HeartbeatStatus,
    KeyUsage,
    KeyVersion,
    LedgerStatus,
    LimitReason,
    Outcome,
    Pending,
    PublishStatus,
    ReapStatus,
    RebuiltState,
    ReservationState,
    ReserveReply,
    ReserveStatus,
    SettleReply,
    SettleStatus,
    WindowLevel,
    WindowUsage,
)

LEASE_MS = 30_000


@dataclass(slots=True)
class _Window:
    since: int  # the version with which it began to count: older reservations did not charge it
    shaped: int  # the version with which its buckets were made: older reservations name others
    ring: WindowRing


@dataclass(slots=True)
class _KeyState:
    """The counters of one key."""

    record: KeyRecord
    windows: dict[str, _Window] = field(default_factory=dict)
    open: int = 0
    last_used_ms: int = 0
    seen_ms: int = 0
    totals: Amounts = field(default_factory=Amounts)
    balance: int = 0
    held: int = 0
    ledger: int = 0

    @property
    def balance_left(self) -> int | None:
        """The tokens that are neither used nor held, if the key has to have them."""
        return self.balance - self.held if self.record.prepaid else None


@dataclass(slots=True)
class _Reservation:
    state: ReservationState
    at_ms: int
    lease_ends_ms: int
    reserved: Amounts
    so_far: Amounts
    note: bytes
    charged: list[tuple[KeyId, ChargedScope]]


@dataclass(frozen=True, slots=True)
class _Objection:
    """Why a request does not fit. Of several, the one with most weight is told, of equal ones the first."""

    weight: float
    mode: Mode
    reason: LimitReason
    position: int
    retry_ms: int


class Partition:
    """The counters of the keys of one partition, their reservations, and the usage events in order."""

    def __init__(self) -> None:
        self._keys: dict[KeyId, _KeyState] = {}
        self._reservations: dict[str, _Reservation] = {}
        self.events: list[bytes] = []
        self.corrections: list[bytes] = []

    def publish(self, record: KeyRecord, now_ms: int) -> PublishStatus:
        """Make a version of a key hold. Windows that stay keep what they count, whatever their limit becomes."""
        state = self._keys.get(record.id)
        if state is None:
            state = self._keys[record.id] = _KeyState(record)
        elif record.version <= state.record.version:
            return PublishStatus.KEPT
        else:
            state.record = replace(record, prepaid=state.record.prepaid)  # decided when it was first published
        state.seen_ms = max(state.seen_ms, now_ms)
        wanted = {limit.id for limit in record.limits}
        gone = [window for name, window in state.windows.items() if name not in wanted]
        windows = {limit.id: _published(state, limit, gone) for limit in record.limits}
        state.windows = windows
        return PublishStatus.PUBLISHED

    def erase(self, key_id: KeyId) -> None:
        """Forget a key. Its open reservations can still be settled."""
        self._keys.pop(key_id, None)

    def rebuild(self, known: RebuiltState) -> None:
        """Count anew from what is known durably. Buckets of the same shape are those that reservations know."""
        old = self._keys.get(known.record.id)
        shaped = {name: window.shaped for name, window in old.windows.items()} if old else {}
        windows = {
            limit.id: _Window(0, shaped.get(limit.id, known.record.version), WindowRing(limit, buckets))
            for limit, buckets in zip(known.record.limits, known.windows, strict=True)
        }
        self._keys[known.record.id] = _KeyState(
            record=known.record,
            windows=windows,
            open=known.open,
            last_used_ms=known.last_used_ms,
            seen_ms=max([known.last_used_ms, *(window.ring.newest_ms for window in windows.values())]),
            totals=known.totals,
            balance=known.balance,
            held=known.held,
            ledger=known.ledger,
        )

    def reserve(
        self,
        request_id: str,
        scopes: Sequence[KeyVersion],
        amounts: Amounts,
        now_ms: int,
        note: bytes = b"",
        *,
        announce: bool = False,
    ) -> ReserveReply:
        """Charge `amounts` to every window of every scope, or to none. `announce`: whatever limits and versions say."""
        if request_id in self._reservations:
            return ReserveReply(ReserveStatus.DUPLICATE, now_ms)
        for scope in scopes:
            status = self._standing(scope, announce=announce)
            if status is not ReserveStatus.ADMITTED:
                return ReserveReply(status, now_ms)
        states = [self._keys[scope.key_id] for scope in scopes]
        objections = [] if announce else list(_objections(states, amounts, now_ms))
        enforced = [objection for objection in objections if objection.mode is Mode.ENFORCE]
        if enforced:
            return _reply(ReserveStatus.REFUSED, states, enforced, now_ms)
        charged = [(scope.key_id, _charge(state, amounts, now_ms)) for scope, state in zip(scopes, states, strict=True)]
        self._reservations[request_id] = _Reservation(
            ReservationState.PENDING, now_ms, now_ms + LEASE_MS, amounts, Amounts(), note, charged
        )
        status = ReserveStatus.OBSERVED if objections else ReserveStatus.ADMITTED
        return _reply(status, states, objections, now_ms)

    def settle(self, request_id: str, outcome: Outcome, actual: Amounts, event: bytes, now_ms: int) -> SettleReply:
        """Resolve a reservation, once, and record its event. `actual` is read with POST only."""
        reservation = self._reservations.get(request_id)
        state = None if reservation is None else reservation.state
        is_other = state is ReservationState.RELEASED and outcome is Outcome.POST
        if reservation is None or state is ReservationState.REAPED or is_other:
            if event and outcome is not Outcome.CANCEL:
                self.corrections.append(event)
            return SettleReply(SettleStatus.UNKNOWN if reservation is None else SettleStatus.REAPED, now_ms)
        if (reservation.state, outcome) not in TRANSITIONS:
            return SettleReply(SettleStatus.DUPLICATE, now_ms)
        reservation.state = TRANSITIONS[reservation.state, outcome]
        if outcome is Outcome.VOID:
            actual = Amounts(requests=reservation.reserved.requests)
        elif outcome is Outcome.CANCEL:
            actual = Amounts()
        self._resolve(reservation, actual, now_ms, was_used=outcome is not Outcome.CANCEL)
        if event and outcome is not Outcome.CANCEL:
            self.events.append(event)
        return SettleReply(SettleStatus.RESOLVED, now_ms)

    def heartbeat(self, request_id: str, so_far: Amounts, now_ms: int) -> HeartbeatStatus:
        """Renew the lease of an open reservation, and note how many tokens it used so far; that never falls."""
        reservation = self._reservations.get(request_id)
        if reservation is None or reservation.state is not ReservationState.PENDING:
            return HeartbeatStatus.UNKNOWN
        reservation.lease_ends_ms = now_ms + LEASE_MS
        reservation.so_far = Amounts(
            input_tokens=max(reservation.so_far.input_tokens, so_far.input_tokens),
            output_tokens=max(reservation.so_far.output_tokens, so_far.output_tokens),
        )
        return HeartbeatStatus.RENEWED

    def examine(self, request_id: str) -> Pending | None:
        """Return what an open reservation holds."""
        found = self._reservations.get(request_id)
        if found is None or found.state is not ReservationState.PENDING:
            return None
        scopes = tuple(scope for _, scope in found.charged)
        return Pending(found.at_ms, found.reserved, found.so_far, found.note, scopes)

    def reap(self, request_id: str, actual: Amounts, event: bytes, now_ms: int) -> ReapStatus:
        """Resolve a reservation whose lease is over."""
        reservation = self._reservations.get(request_id)
        if reservation is None:
            return ReapStatus.UNKNOWN
        if reservation.state is not ReservationState.PENDING:
            return ReapStatus.DUPLICATE
        if reservation.lease_ends_ms > now_ms:
            return ReapStatus.ALIVE
        reservation.state = ReservationState.REAPED
        self._resolve(reservation, actual, now_ms, was_used=True)
        if event:
            self.events.append(event)
        return ReapStatus.RESOLVED

    def credit(self, key_id: KeyId, seq: int, tokens: int) -> tuple[LedgerStatus, int]:
        """Add an entry of the ledger to the balance, once and in order."""
        status, state = self._entry(key_id, seq)
        if state is None:
            return status, 0
        if status is LedgerStatus.APPLIED:
            state.balance += tokens
            state.ledger = seq
        return status, state.ledger

    def adjust(
        self, key_id: KeyId, seq: int, differences: tuple[int, int, int], now_ms: int
    ) -> tuple[LedgerStatus, int]:
        """Add requests, input and output tokens that were settled too little, or take away what was too much."""
        status, state = self._entry(key_id, seq)
        if state is None:
            return status, 0
        if status is LedgerStatus.APPLIED:
            missing = Amounts(*differences)
            _add_to_totals(state, missing)
            for window in state.windows.values():
                if (amount := missing.of(window.ring.limit.dimension)) > 0:
                    window.ring.charge(now_ms, amount)
            state.seen_ms = max(state.seen_ms, now_ms)
            state.ledger = seq
        return status, state.ledger

    def inspect(self, key_id: KeyId, now_ms: int) -> KeyUsage | None:
        """Return what is counted of a key at `now_ms`; None when it is not published."""
        state = self._keys.get(key_id)
        if state is None:
            return None
        windows = tuple(
            WindowUsage(r.limit, r.used(now_ms), r.remaining(now_ms), r.reset_ms(now_ms))
            for r in (window.ring for window in state.windows.values())
        )
        return KeyUsage(
            version=state.record.version,
            status=state.record.status,
            totals=state.totals,
            last_used_ms=state.last_used_ms,
            open=state.open,
            mode=state.record.mode,
            prepaid=state.record.prepaid,
            balance=state.balance,
            held=state.held,
            ledger=state.ledger,
            windows=windows,
        )

    def pending(self) -> int:
        """Return how many reservations are open."""
        return sum(r.state is ReservationState.PENDING for r in self._reservations.values())

    def _standing(self, scope: KeyVersion, *, announce: bool) -> ReserveStatus:
        state = self._keys.get(scope.key_id)
        if state is None:
            return ReserveStatus.UNPUBLISHED
        if announce:
            return ReserveStatus.ADMITTED
        if scope.version not in (state.record.version, WHATEVER_HOLDS):
            return ReserveStatus.STALE
        if state.record.status is not KeyStatus.ACTIVE:
            return ReserveStatus.DISABLED
        return ReserveStatus.ADMITTED

    def _entry(self, key_id: KeyId, seq: int) -> tuple[LedgerStatus, _KeyState | None]:
        state = self._keys.get(key_id)
        if state is None:
            return LedgerStatus.UNPUBLISHED, None
        if seq <= state.ledger:
            return LedgerStatus.DUPLICATE, state
        return (LedgerStatus.GAP if seq > state.ledger + 1 else LedgerStatus.APPLIED), state

    def _resolve(self, reservation: _Reservation, actual: Amounts, now_ms: int, *, was_used: bool) -> None:
        """Replace what was reserved by what was used, in every scope that is still there."""
        reserved = reservation.reserved
        for key_id, scope in reservation.charged:
            state = self._keys.get(key_id)
            if state is None:
                continue
            _add_to_totals(state, actual)
            state.last_used_ms = max(state.last_used_ms, now_ms if was_used else 0)
            state.seen_ms = max(state.seen_ms, now_ms)
            # A key that was published anew after an erasure starts with none open and nothing held.
            state.open = max(state.open - 1, 0)
            if state.record.prepaid:
                state.held = max(state.held - reserved.input_tokens - reserved.output_tokens, 0)
            for name, window in state.windows.items():
                _correct(window, scope, scope.buckets.get(name), _excess(window, reserved, actual), now_ms)


def _published(state: _KeyState, limit: Limit, gone: Sequence[_Window]) -> _Window:
    """Return the window of a limit as a new version begins with it. `gone`: the windows that go away with it."""
    version = state.record.version
    if limit.id in state.windows:
        window = state.windows[limit.id]
        window.ring.limit = limit
        return window
    sources = [window for window in gone if window.ring.limit.dimension is limit.dimension]
    if not sources:
        return _Window(version, version, WindowRing(limit))
    source = max(sources, key=lambda window: window.ring.charged_in_all)
    return _Window(source.since, version, source.ring.taken_over(limit, state.seen_ms))


def _objections(states: Sequence[_KeyState], amounts: Amounts, now_ms: int) -> Iterator[_Objection]:
    """Yield everything that speaks against a request."""
    position = 0
    for number, state in enumerate(states):
        mode = state.record.mode
        for window in state.windows.values():
            wait_ms = window.ring.retry_ms(now_ms, amounts.of(window.ring.limit.dimension))
            if wait_ms == NEVER_FITS:
                yield _Objection(math.inf, mode, LimitReason.WINDOW, position, NEVER_FITS)
            elif wait_ms:
                yield _Objection(wait_ms, mode, LimitReason.WINDOW, position, wait_ms)
            position += 1
        left = state.balance_left
        if left is not None and amounts.input_tokens + amounts.output_tokens > left:
            yield _Objection(MAX_AMOUNT, mode, LimitReason.BALANCE, number, NO_TIME_HELPS)
        if state.record.concurrency is not None and state.open >= state.record.concurrency:
            yield _Objection(0, mode, LimitReason.CONCURRENCY, number, NO_TIME_HELPS)


def _reply(
    status: ReserveStatus, states: Sequence[_KeyState], objections: Sequence[_Objection], now_ms: int
) -> ReserveReply:
    """Return the reply that tells where balance and windows are now, and the objection that weighs most."""
    told = max(objections, key=lambda objection: objection.weight, default=None)
    rings = [window.ring for state in states for window in state.windows.values()]
    return ReserveReply(
        status,
        now_ms,
        reason=told.reason if told else LimitReason.NONE,
        position=told.position if told else 0,
        retry_ms=told.retry_ms if told else 0,
        balance=states[0].balance_left if states else None,
        windows=tuple(WindowLevel(ring.remaining(now_ms), ring.reset_ms(now_ms)) for ring in rings),
    )


def _charge(state: _KeyState, amounts: Amounts, now_ms: int) -> ChargedScope:
    """Count a request as open, and its amounts in every window."""
    state.open += 1
    state.seen_ms = max(state.seen_ms, now_ms)
    if state.record.prepaid:
        state.held += amounts.input_tokens + amounts.output_tokens
    buckets = {
        name: window.ring.charge(now_ms, amounts.of(window.ring.limit.dimension))
        for name, window in state.windows.items()
    }
    return ChargedScope(state.record.version, buckets)


def _excess(window: _Window, reserved: Amounts, actual: Amounts) -> int:
    dimension = window.ring.limit.dimension
    return actual.of(dimension) - reserved.of(dimension)


def _correct(window: _Window, scope: ChargedScope, bucket: int | None, excess: int, now_ms: int) -> None:
    """Give back what was reserved too much to its own bucket; charge what was used beyond it to the bucket of now.

    A window that was taken away and came back counts from nothing: a refund to it would give what was never taken.
    """
    if excess > 0 and window.since <= scope.version:
        window.ring.charge(now_ms, excess)
    elif excess < 0 and bucket is not None and window.shaped <= scope.version:
        window.ring.refund(bucket, -excess)


def _add_to_totals(state: _KeyState, amounts: Amounts) -> None:
    totals = state.totals
    state.totals = Amounts(
        requests=totals.requests + amounts.requests,
        input_tokens=totals.input_tokens + amounts.input_tokens,
        output_tokens=totals.output_tokens + amounts.output_tokens,
    )
    state.balance -= amounts.input_tokens + amounts.output_tokens
