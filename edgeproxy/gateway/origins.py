"""Which web pages may call the gateway from a browser: none, or those of an allow-list of origins.

A browser asks first (preflight), and hands an answer to a page only when the answer names the page's origin: the Fetch
standard, https://fetch.spec.whatwg.org/#http-cors-protocol. Cookies and the like are never allowed along, because the
gateway knows none; a key in a page is everybody's who opens it, which is for the operator to consider.
"""

from collections.abc import Mapping

from edgeproxy.providers.base import Headers
from edgeproxy.providers.registry import DIALECTS

# What the official clients say of themselves and of their tries.
_STAINLESS = (
    *("lang", "package-version", "os", "arch", "runtime", "runtime-version", "async", "timeout", "read-timeout"),
    *("retry-count", "helper", "helper-method", "stream-helper", "poll-helper", "custom-poll-interval"),
)
_REQUEST_HEADERS = (
    *("authorization", "content-type", "x-api-key", "x-goog-api-key", "idempotency-key", "user-agent"),
    *("anthropic-version", "anthropic-beta", "anthropic-dangerous-direct-browser-access"),
    *("openai-organization", "openai-project", "openai-beta", "x-goog-api-client", "x-server-timeout"),
    *(f"x-stainless-{name}" for name in _STAINLESS),
)
_ANSWER_HEADERS = (
    *("x-request-id", "request-id", "retry-after", "retry-after-ms", "x-should-retry"),
    *(f"x-ratelimit-{each}-{noun}" for each in ("limit", "remaining", "reset") for noun in ("requests", "tokens")),
    *(
        f"anthropic-ratelimit-{noun}-{each}"
        for noun in ("requests", "tokens", "input-tokens", "output-tokens")
        for each in ("limit", "remaining", "reset")
    ),
)
_MAX_AGE_S = 7200  # as long as Chromium believes it


class Origins:
    """The allow-list. An empty one adds no header to any answer."""

    def __init__(self, allowed: tuple[str, ...]) -> None:
        self.allowed = frozenset(allowed)

    def headers(self, asked: Mapping[str, str]) -> Headers:
        """Return what to add to an answer to a request with these headers."""
        if not self.allowed:
            return []
        added: Headers = [("vary", "Origin")]  # a cache must not give one page's answer to another's
        origin = asked.get("origin")
        if origin in self.allowed:
            added.append(("access-control-allow-origin", origin))
            added.append(("access-control-expose-headers", ", ".join(_ANSWER_HEADERS)))
        return added

    def preflight(self, method: str, path: str, asked: Mapping[str, str]) -> Headers | None:
        """Return what answers a browser that asks whether a page may call a path; None when that is no such question.

        None too for another origin, and for a path that is not served: the answer to those is that of anybody else.
        """
        is_question = method == "OPTIONS" and "access-control-request-method" in asked
        if not is_question or asked.get("origin") not in self.allowed:
            return None
        calls = (dialect.find(path) for dialect in DIALECTS.values())
        methods = sorted({name for call in calls if call is not None for name in call.endpoint.methods})
        if not methods:
            return None
        return [
            *self.headers(asked),
            ("access-control-allow-methods", ", ".join(methods)),
            ("access-control-allow-headers", ", ".join(_REQUEST_HEADERS)),
            ("access-control-max-age", str(_MAX_AGE_S)),
        ]
