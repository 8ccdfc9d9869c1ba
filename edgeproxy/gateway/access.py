"""Access lines: one per finished request and one per refusal of a known key, where `logs.access` asks for them.

They hold what is kept of a request anyway, and nothing else of it: no path, no query, no header, no address. What does
not come with a key that is known leaves no line, so that nobody can write into the log.
"""

from edgeproxy import logs
from edgeproxy.config import Logs
from edgeproxy.domain.keys import KeyId
from edgeproxy.domain.usage import UsageEvent
from edgeproxy.errors import ErrorKind


class AccessLog:
    """Writes access lines, or does not."""

    def __init__(self, settings: Logs) -> None:
        self._is_on = settings.access

    def finished(self, event: UsageEvent, dialect: str, operation: str) -> None:
        """Tell of a request that was admitted and is settled. `dialect` and `operation` are names of ours."""
        if not self._is_on:
            return
        usage = event.usage
        logs.line(
            "request_finished",
            {
                "request_id": event.id,
                "key_id": event.key_id,
                "dialect": dialect,
                "operation": operation,
                "model": event.model,
                "status": event.status,
                "input_uncached": usage.input_uncached,
                "cache_read": usage.cache_read,
                "cache_write": usage.cache_write,
                "output": usage.output,
                "reasoning": usage.reasoning,
                "estimated": usage.estimated,
                "latency_ms": event.latency_ms,
            },
        )

    def refused(self, request_id: str, key_id: KeyId, kind: ErrorKind) -> None:
        """Tell of a request that a known key made and that was not admitted."""
        if self._is_on:
            logs.line(
                "request_refused",
                {"request_id": request_id, "key_id": key_id, "status": kind.status, "error": kind.code},
            )
