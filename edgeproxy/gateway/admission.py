"""Whether a request may pass: an estimate, one script in Redis, a decision. The last stage before anything is sent.

The estimate and the decision are plain functions; between them lies one awaited line.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from edgeproxy.config import Model
from edgeproxy.domain.identifiers import RANDOM_BITS, uuid7
from edgeproxy.domain.keys import KeyId, Reserve
from edgeproxy.domain.limits import NEVER_FITS, Amounts, Limit, format_limit
from edgeproxy.domain.records import record
from edgeproxy.domain.reservations import LimitReason, ReserveReply, ReserveStatus, encode_note
from edgeproxy.errors import (
    BALANCE_EXHAUSTED,
    BUDGET_EXHAUSTED,
    CONCURRENCY_REACHED,
    INVALID_KEY,
    MODEL_NOT_ALLOWED,
    RATE_LIMITED,
    REQUEST_EXCEEDS_LIMIT,
    UPSTREAM_BUSY,
    ErrorKind,
    GatewayError,
    StoreUnavailable,
)
from edgeproxy.gateway.authentication import Authentication, KnownKey
from edgeproxy.gateway.bounds import lowers_output, shrunk, wanted
from edgeproxy.gateway.upstream import Shared
from edgeproxy.hotstate.commands import HotState
from edgeproxy.hotstate.scripts import Scope
from edgeproxy.providers.base import LimitLevel, RequestFacts

# A client may be asked to wait this long; for longer it is told to stop. The official SDKs draw the line here too: one
# refuses to wait longer, another would hang its caller for as long as it is told.
LONGEST_WAIT_MS = 120_000

_CONCURRENCY_RETRY_MS = 1000  # nobody knows when a request ends; a second is short for a person and long for a machine
_RANDOM_BYTES = -(-RANDOM_BITS // 8)
_BESIDE = ":provider"
_TRIES = 4  # a key that changes more often than this during one request is not usable just now


@dataclass(slots=True, eq=False)
class Hold:
    """What is reserved for a request with one holder of limits. `renewed_at` is monotonic seconds.

    `id` is the reservation's: the request's own with its key, and another beside it in the same partition.
    """

    id: str
    partition: int
    scope: Scope
    amounts: Amounts
    note: bytes  # for whoever has to settle it in our place
    renewed_at: float = field(default_factory=time.monotonic)


@record
class Admission:
    """A request that was admitted: its key as it is now, what is reserved, and where the key's windows stand.

    `observed` is the limit that would have refused it, if its key only observed; None when none would have.
    `lowered_output` is the maximum of output tokens to send in place of what the request declares, if not that.
    """

    request_id: str
    key: KnownKey
    levels: tuple[LimitLevel, ...]
    holds: tuple[Hold, ...]
    observed: LimitReason | None = None
    lowered_output: int | None = None


@record
class Wish:
    """What a request asks to be admitted for; how much that is, its key's own rule says.

    `body_bytes` is the length of what will be sent, `reserve_output_tokens` the setting of that name.
    """

    request_id: str
    facts: RequestFacts
    model: Model
    body_bytes: int
    reserve_output_tokens: int


class LimitReached(GatewayError):
    """A limit refuses the request; `levels` is where the key's windows stand."""

    def __init__(
        self,
        levels: tuple[LimitLevel, ...],
        kind: ErrorKind,
        message: str | None = None,
        retry_after_ms: int | None = None,
    ) -> None:
        super().__init__(kind, message, retry_after_ms)
        self.levels = levels


class RequestIds:
    """Makes the ids of requests from the time of Redis. The randomness need not be secret: an id is no credential."""

    def __init__(self) -> None:
        self._random = b""

    def next(self, now_ms: int) -> str:
        """Return a fresh id. The system is asked for randomness once for many of them."""
        if not self._random:
            self._random = os.urandom(_RANDOM_BYTES * 100)
        drawn, self._random = self._random[:_RANDOM_BYTES], self._random[_RANDOM_BYTES:]
        return uuid7(now_ms, int.from_bytes(drawn))


GiveBack = Callable[[Hold], None]


async def admit(
    wish: Wish, key: KnownKey, hot: HotState, authentication: Authentication, give_back: GiveBack
) -> Admission:
    """Reserve what a request may cost. The key's record may be behind: then it is read again.

    `give_back` is called with what may be reserved although the request is not admitted. Raises GatewayError (400, 403,
    429), or StoreUnavailable when nothing can be decided.
    """
    amounts: Amounts | None = None
    lowered = None
    for attempt in range(_TRIES):
        record = key.record
        if record.models and not all(map(record.allows, (wish.facts.model, *wish.facts.other_models))):
            raise GatewayError(MODEL_NOT_ALLOWED)
        amounts = amounts or wanted(record, wish.facts, wish.model, wish.body_bytes, wish.reserve_output_tokens)
        note = encode_note(record.id, wish.model.match, is_bound=record.reserve is Reserve.STRICT)
        hold = Hold(wish.request_id, record.partition, key.scope, amounts, note)
        reply = await _reserve(hold, hot, give_back)
        if reply.status is ReserveStatus.ADMITTED and lowered is None:
            return _admission(reply, wish.request_id, key, hold)
        if reply.status in (ReserveStatus.STALE, ReserveStatus.UNPUBLISHED):
            key, amounts, lowered = await authentication.look_again(key), None, None
        elif attempt < _TRIES - 1 and (smaller := shrunk(record, wish.facts, amounts, reply)) is not None:
            amounts = smaller
            lowered = amounts.output_tokens if lowers_output(record, wish.facts) else None
        else:
            return replace(decide(reply, wish.request_id, key, hold, authentication), lowered_output=lowered)
    raise StoreUnavailable("redis")


async def admit_upstream(admission: Admission, shared: Shared, hot: HotState, give_back: GiveBack) -> Admission:
    """Reserve the same with the limits that all keys share at the provider, second; give the first back on failure.

    Raises GatewayError (503) where they refuse, or StoreUnavailable.
    """
    (first,) = admission.holds
    note = encode_note(KeyId(shared.scope.holder), "")
    hold = Hold(admission.request_id + _BESIDE, shared.partition, shared.scope, first.amounts, note)
    reply = await _reserve(hold, hot, give_back)
    if reply.status is ReserveStatus.ADMITTED:
        return replace(admission, holds=(first, hold))
    if reply.status is ReserveStatus.REFUSED:
        message = "A limit of this gateway's own account at the provider is reached. Try again later."
        raise GatewayError(UPSTREAM_BUSY, message, reply.retry_ms if reply.retry_ms > 0 else None)
    raise StoreUnavailable("redis")  # its limits are not published yet


async def _reserve(hold: Hold, hot: HotState, give_back: GiveBack) -> ReserveReply:
    """Reserve, and give back what may be reserved although the reply will not be seen: also when cancelled."""
    try:
        return await hot.reserve(hold.partition, hold.id, hold.scope, hold.amounts, hold.note)
    except BaseException as error:
        if not isinstance(error, StoreUnavailable) or error.may_have_run:
            give_back(hold)
        raise


def decide(
    reply: ReserveReply, request_id: str, key: KnownKey, hold: Hold, authentication: Authentication
) -> Admission:
    """Return the admission that a reply means. Raises GatewayError for a refusal."""
    limits = key.record.limits
    levels = _levels(reply, key)
    if reply.status is ReserveStatus.ADMITTED:
        return _admission(reply, request_id, key, hold)
    if reply.status is ReserveStatus.OBSERVED:
        return Admission(request_id, key, levels, (hold,), reply.reason)
    if reply.status is ReserveStatus.DISABLED:
        authentication.forget(key)
        raise GatewayError(INVALID_KEY)
    if reply.status is not ReserveStatus.REFUSED:  # a foreign layout; a request id that was used before
        raise StoreUnavailable("redis")
    if reply.reason is LimitReason.CONCURRENCY:
        raise LimitReached(levels, CONCURRENCY_REACHED, retry_after_ms=_CONCURRENCY_RETRY_MS)
    if reply.reason is LimitReason.BALANCE:
        raise LimitReached(levels, BALANCE_EXHAUSTED)
    raise _window_reached(levels, limits[reply.position], reply.retry_ms)


def _admission(reply: ReserveReply, request_id: str, key: KnownKey, hold: Hold) -> Admission:
    return Admission(request_id, key, _levels(reply, key), (hold,))


def _levels(reply: ReserveReply, key: KnownKey) -> tuple[LimitLevel, ...]:
    levels = []
    for limit, level in zip(key.record.limits, reply.windows, strict=False):
        levels.append(LimitLevel(limit, level.remaining, level.reset_ms))
    return tuple(levels)


def _window_reached(levels: tuple[LimitLevel, ...], limit: Limit, retry_ms: int) -> LimitReached:
    name = format_limit(limit)
    if retry_ms == NEVER_FITS:
        message = f"This request alone is larger than the limit {name} of this API key. Ask for less."
        return LimitReached(levels, REQUEST_EXCEEDS_LIMIT, message)
    kind = RATE_LIMITED if retry_ms <= LONGEST_WAIT_MS else BUDGET_EXHAUSTED
    wait = f"{retry_ms / 1000:.1f} seconds" if kind is RATE_LIMITED else f"{retry_ms // 60_000} minutes"
    message = f"The limit {name} of this API key is reached. The request fits again in {wait}."
    return LimitReached(levels, kind, message, retry_ms)
