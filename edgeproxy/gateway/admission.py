"""Whether a request may pass: an estimate, one script in Redis, a decision. The last stage before anything is sent.

The estimate and the decision are plain functions; between them lies one awaited line.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgeproxy.config import Model
from edgeproxy.domain.identifiers import RANDOM_BITS, uuid7
from edgeproxy.domain.limits import NEVER_FITS, Amounts, Dimension, Limit, format_limit
from edgeproxy.domain.reservations import ReserveReply, ReserveStatus
from edgeproxy.errors import (
    BUDGET_EXHAUSTED,
    CONCURRENCY_REACHED,
    INVALID_KEY,
    MODEL_NOT_ALLOWED,
    RATE_LIMITED,
    REQUEST_EXCEEDS_LIMIT,
    ErrorKind,
    GatewayError,
    StoreUnavailable,
)
from edgeproxy.gateway.authentication import Authentication, KnownKey
from edgeproxy.hotstate.commands import HotState
from edgeproxy.providers.base import LimitLevel, RequestFacts

# A client may be asked to wait this long; for longer it is told to stop. The official SDKs draw the line here too: one
# refuses to wait longer, another would hang its caller for as long as it is told.
LONGEST_WAIT_MS = 120_000

_CONCURRENCY_RETRY_MS = 1000  # nobody knows when a request ends; a second is short for a person and long for a machine
_TRIES = 4  # a key that changes more often than this during one request is not usable just now


@dataclass(frozen=True, slots=True)
class Admission:
    """A request that was admitted: its key as it is now, its reservation's id, and where the key's windows stand."""

    request_id: str
    key: KnownKey
    levels: tuple[LimitLevel, ...]


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request asks to be admitted for: models and an estimate; its reservation's lease ends by itself.

    `guesses_output` says that the request declares no maximum, so that its output tokens are a guess of ours.
    """

    request_id: str
    models: tuple[str, ...]
    amounts: Amounts
    lease_ms: int
    guesses_output: bool


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
        self._random = random.SystemRandom()

    def next(self, now_ms: int) -> str:
        """Return a fresh id."""
        return uuid7(now_ms, self._random.getrandbits(RANDOM_BITS))


def estimate(facts: RequestFacts, model: Model, reserve_output_tokens: int) -> Amounts:
    """Return what is reserved: the input estimate, and of the output what is declared or possible, up to a setting."""
    bounds = [reserve_output_tokens]
    if facts.output_max is not None:
        bounds.append(facts.output_max)
    if model.max_output_tokens:
        bounds.append(model.max_output_tokens)
    return Amounts(requests=1, input_tokens=facts.input_estimate, output_tokens=min(bounds))


async def admit(wish: Wish, key: KnownKey, hot: HotState, authentication: Authentication) -> Admission:
    """Reserve what a request may cost. The key's record may be behind: then it is read again.

    Raises GatewayError (401, 403, 429), or StoreUnavailable when nothing can be decided.
    """
    for _ in range(_TRIES):
        if not all(map(key.record.allows, wish.models)):
            raise GatewayError(MODEL_NOT_ALLOWED)
        reply = await hot.reserve(key.record.partition, wish.request_id, key.scope, wish.amounts, wish.lease_ms)
        if reply.status in (ReserveStatus.STALE, ReserveStatus.UNPUBLISHED):
            key = await authentication.look_again(key)
        elif (smaller := with_smaller_guess(wish, reply, key.record.limits)) is not None:
            wish = smaller
        else:
            return decide(reply, wish.request_id, key, authentication)
    raise StoreUnavailable("redis")


def with_smaller_guess(wish: Wish, reply: ReserveReply, limits: Sequence[Limit]) -> Wish | None:
    """Return the wish with as many output tokens as are left, None where that would not help.

    A request is not refused for a guess of ours. What a client declares is no guess: that has to fit.
    """
    if reply.status is not ReserveStatus.REFUSED or not wish.guesses_output:
        return None
    left = [wish.amounts.output_tokens]
    for limit, level in zip(limits, reply.windows, strict=True):
        if limit.dimension is Dimension.TOKENS:
            left.append(level.remaining - wish.amounts.input_tokens)
        elif limit.dimension is Dimension.OUTPUT_TOKENS:
            left.append(level.remaining)
    if not 0 < min(left) < wish.amounts.output_tokens:
        return None
    return replace(wish, amounts=replace(wish.amounts, output_tokens=min(left)))


def decide(reply: ReserveReply, request_id: str, key: KnownKey, authentication: Authentication) -> Admission:
    """Return the admission that a reply means. Raises GatewayError for a refusal."""
    limits = key.record.limits
    levels = tuple(
        LimitLevel(limit, level.remaining, level.reset_ms) for limit, level in zip(limits, reply.windows, strict=False)
    )
    if reply.status is ReserveStatus.ADMITTED:
        return Admission(request_id, key, levels)
    if reply.status is ReserveStatus.DISABLED:
        authentication.forget(key)
        raise GatewayError(INVALID_KEY)
    if reply.status is not ReserveStatus.REFUSED:  # a foreign layout; a request id that was used before
        raise StoreUnavailable("redis")
    if reply.limit_index < 0:
        raise LimitReached(levels, CONCURRENCY_REACHED, retry_after_ms=_CONCURRENCY_RETRY_MS)
    name = format_limit(limits[reply.limit_index])
    if reply.retry_ms == NEVER_FITS:
        message = f"This request alone is larger than the limit {name} of this API key. Ask for less."
        raise LimitReached(levels, REQUEST_EXCEEDS_LIMIT, message)
    kind = RATE_LIMITED if reply.retry_ms <= LONGEST_WAIT_MS else BUDGET_EXHAUSTED
    wait = f"{reply.retry_ms / 1000:.1f} seconds" if kind is RATE_LIMITED else f"{reply.retry_ms // 60_000} minutes"
    message = f"The limit {name} of this API key is reached. The request fits again in {wait}."
    raise LimitReached(levels, kind, message, reply.retry_ms)
