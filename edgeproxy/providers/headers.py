"""Headers in both directions: what may pass is named; everything else stays out because it is not.

That keeps a client's identity from the provider, and the provider's cookies, organisation ids and rate limits, which
are the operator's, from the client.
"""

from collections.abc import Iterable, Sequence
from functools import cache

from edgeproxy.domain.limits import Dimension
from edgeproxy.errors import GatewayError
from edgeproxy.providers.base import Headers, LimitLevel


def tightest(levels: Sequence[LimitLevel], dimensions: Sequence[Dimension]) -> LimitLevel | None:
    """Return the window of these dimensions that has least left, None when the key has no such limit."""
    found: LimitLevel | None = None
    for level in levels:
        if level.limit.dimension in dimensions and (found is None or level.remaining < found.remaining):
            found = level
    return found


def pick(headers: Iterable[tuple[str, str]], allowed: frozenset[str]) -> Headers:
    """Return the headers that are on an allow-list (lower-case names), each as often as it stands there."""
    return [(lower, value) for name, value in headers if (lower := name.lower()) in allowed]


# What of a provider's answer may reach a client, in every dialect. Cookies, organisation ids, the provider's own
# rate limits and everything that a content delivery network adds stay out because they are not named.
ANSWER_HEADERS = frozenset({"content-type", "content-encoding", "content-language", "cache-control", "date"})
_RETRY_STATUSES = (429, 503, 529)


def answer_headers(status: int, headers: Headers, more: frozenset[str]) -> Headers:
    """Return the headers of a provider's answer that may be handed on; `retry-after` where it tells to wait."""
    return pick(headers, _allowed(more, may_wait=status in _RETRY_STATUSES))


@cache
def _allowed(more: frozenset[str], *, may_wait: bool) -> frozenset[str]:
    return ANSWER_HEADERS | more | ({"retry-after", "retry-after-ms"} if may_wait else set())


def retry_headers(error: GatewayError) -> Headers:
    """Return the headers that make SDKs wait or stop: they read these before any body.

    `retry-after` is in whole seconds, rounded up; `retry-after-ms` is exact and preferred by the official SDKs.
    """
    headers: Headers = []
    if error.retry_after_ms is not None:
        headers.append(("retry-after", str(-(-error.retry_after_ms // 1000))))
        headers.append(("retry-after-ms", str(error.retry_after_ms)))
    if not error.kind.retryable:
        headers.append(("x-should-retry", "false"))
    return headers
