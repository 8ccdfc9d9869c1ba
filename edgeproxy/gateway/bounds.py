"""How much is reserved for a request, by its key's own rule; and how much less when that does not fit.

Pure. The rule `estimate` holds back what a request will probably use, `strict` the most that it can use: then no limit
is ever exceeded, as long as three things hold, on which docs/metering.md has more.

- A token is at least one byte. So it is in every tokenizer that works on bytes, or falls back to them; and the text in
  a JSON body is never longer than the body. What is no text was found by `providers`, and is refused.
- What a provider puts around a request is less than `AROUND_TOKENS`.
- The provider keeps to the maximum of output that it is given, and to the one that the configuration has for a model.
"""

from dataclasses import replace

from edgeproxy.config import Model
from edgeproxy.domain.keys import KeyRecord, OnLimit, Reserve
from edgeproxy.domain.limits import Amounts, Dimension
from edgeproxy.domain.reservations import ReserveReply, ReserveStatus
from edgeproxy.errors import COUNTERS_UNAVAILABLE, NO_UPPER_BOUND, GatewayError
from edgeproxy.providers.base import NOT_EXAMINED, RequestFacts
from edgeproxy.providers.fields import MAX_COUNT

# Input that is billed and was never sent: chat templates, and what teaches a model to use tools. The most that is
# documented is Anthropic's 530 tokens for tools; recorded are about 350 for these, and xAI's 190 before any question.
# Each message's own framing is less than the JSON around it.
AROUND_TOKENS = 2048

LEAST_TOKENS = 16  # of an answer: with fewer, a refusal says more

_RETRY_MS = 1000


def wanted(
    record: KeyRecord, facts: RequestFacts, model: Model, body_bytes: int, reserve_output_tokens: int
) -> Amounts:
    """Return what is to be reserved. Raises GatewayError (400) where that has to be the most, and nothing bounds it."""
    if facts.is_free:
        return Amounts(requests=1)
    if record.reserve is Reserve.STRICT:
        return _most(facts, model, body_bytes)
    bounds = [reserve_output_tokens]
    if facts.output_max is not None:
        bounds.append(facts.output_max)
    if model.max_output_tokens:
        bounds.append(model.max_output_tokens)
    return Amounts(requests=1, input_tokens=facts.input_estimate, output_tokens=min(bounds))


def _most(facts: RequestFacts, model: Model, body_bytes: int) -> Amounts:
    if facts.unbounded == NOT_EXAMINED:  # the key's rule has just become this one
        raise GatewayError(COUNTERS_UNAVAILABLE, retry_after_ms=_RETRY_MS)
    if facts.unbounded:
        message = (
            "This API key reserves the most that a request can use, and there is no such bound with"
            f" {facts.unbounded}. Leave it out, or ask for a key that reserves an estimate."
        )
        raise GatewayError(NO_UPPER_BOUND, message)
    bounds = [] if facts.output_max is None else [facts.output_max]
    if model.max_output_tokens:
        bounds.append(model.max_output_tokens * facts.answers)
    if not bounds:
        raise GatewayError(NO_UPPER_BOUND)
    return Amounts(
        requests=1,
        input_tokens=min(body_bytes + AROUND_TOKENS, MAX_COUNT),
        output_tokens=min(*bounds, MAX_COUNT),
    )


def shrunk(record: KeyRecord, facts: RequestFacts, amounts: Amounts, reply: ReserveReply) -> Amounts | None:
    """Return the amounts with as many output tokens as are left, None where a refusal is not only about these.

    Where the key allows it, the answer is asked to be that short (`lowers_output`). Else less may be reserved where the
    output is only a guess of ours, for which nothing is refused.
    """
    if reply.status is not ReserveStatus.REFUSED:
        return None
    if lowers_output(record, facts):
        least = max(LEAST_TOKENS * facts.answers, facts.least_output or 0)
    elif facts.output_max is None and record.reserve is Reserve.ESTIMATE:
        least = 1
    else:
        return None
    left = _output_left(record, amounts, reply)
    return replace(amounts, output_tokens=left) if least <= left < amounts.output_tokens else None


def lowers_output(record: KeyRecord, facts: RequestFacts) -> bool:
    """Whether a request that was shrunk has to be sent with a lower maximum (`Endpoint.with_output_max`)."""
    return record.on_limit is OnLimit.SHRINK and facts.least_output is not None


def _output_left(record: KeyRecord, amounts: Amounts, reply: ReserveReply) -> int:
    """Return how many output tokens fit at most, below 1 where something else does not fit."""
    left = [amounts.output_tokens]
    if reply.balance is not None:
        left.append(reply.balance - amounts.input_tokens)
    for limit, level in zip(record.limits, reply.windows, strict=False):
        without = level.remaining - replace(amounts, output_tokens=0).of(limit.dimension)
        if without < 0 or limit.dimension in (Dimension.TOKENS, Dimension.OUTPUT_TOKENS):
            left.append(without)
    return min(left)
