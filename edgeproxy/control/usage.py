"""What a key has used, as its holder may see it: totals and windows at once, from Redis, and the latest requests."""

from typing import Any

from edgeproxy.control.installation import Control
from edgeproxy.domain.keys import KeyRecord, KeyStatus, digest, is_well_formed
from edgeproxy.domain.limits import Amounts, format_window
from edgeproxy.domain.reservations import KeyUsage, WindowUsage
from edgeproxy.domain.times import rfc3339
from edgeproxy.domain.usage import UsageEvent
from edgeproxy.store import keys, usage

RECENT = 20  # requests shown


async def usage_report(control: Control, secret: str) -> dict[str, Any] | None:
    """Return the usage of the key with this secret as JSON; None unless the key is active.

    Shape: `key {id, prefix, name, created, expires, last_used}`, `windows [{dimension, limit, window, used, remaining,
    reset_ms}]`, `totals {requests, input_tokens, output_tokens}`, `recent [{id, at, model, status, ...}]`, and of a
    prepaid key `balance {left, held}`; times are RFC 3339 in UTC.
    Missing, malformed, unknown, revoked and expired keys are not told apart. Raises StoreUnavailable.
    """
    record = await _usable_record(control, secret)
    counted = None if record is None else await control.publishing.inspect(record)
    if record is None or counted is None or counted.status is not KeyStatus.ACTIVE:
        return None
    async with control.database.transaction() as connection:
        key = await keys.read(connection, record.id)
        recent = await usage.recent(connection, record.id, RECENT)
    if key is None:  # it is being erased
        return None
    balance = balance_json(counted)
    return {
        "key": {
            "id": key.id,
            "prefix": key.prefix,
            "name": key.name,
            "created": rfc3339(key.created_ms),
            "expires": time_json(key.expires_ms),
            "last_used": time_json(counted.last_used_ms or None),
        },
        "windows": [window_json(window) for window in counted.windows],
        "totals": totals_json(counted.totals),
        **({} if balance is None else {"balance": balance}),
        "recent": [_event_json(event) for event in recent],
    }


def time_json(at_ms: int | None) -> str | None:
    """Return a time as JSON writes it, None for none."""
    return None if at_ms is None else rfc3339(at_ms)


def window_json(window: WindowUsage) -> dict[str, Any]:
    """Return a limit and what of it is used now."""
    return {
        "dimension": window.limit.dimension,
        "limit": window.limit.amount,
        "window": format_window(window.limit.window_ms),
        "used": window.used,
        "remaining": window.remaining,
        "reset_ms": window.reset_ms,
    }


def totals_json(totals: Amounts) -> dict[str, int]:
    """Return what a key used since it exists. Input includes what was read from or written to a cache."""
    return {
        "requests": totals.requests,
        "input_tokens": totals.input_tokens,
        "output_tokens": totals.output_tokens,
    }


def balance_json(counted: KeyUsage) -> dict[str, int] | None:
    """Return the tokens that are left to a prepaid key for new requests, and those held for open ones; else None.

    What is left may be below 0, by what requests used beyond what was held for them.
    """
    return {"left": counted.balance - counted.held, "held": counted.held} if counted.prepaid else None


def _event_json(event: UsageEvent) -> dict[str, Any]:
    return {
        "id": event.id,
        "at": rfc3339(event.at_ms),
        "model": event.model,
        "status": event.status,
        "input_tokens": event.usage.input_total,
        "output_tokens": event.usage.output,
        "cache_read_tokens": event.usage.cache_read,
        "cache_write_tokens": event.usage.cache_write,
        "reasoning_tokens": event.usage.reasoning,
        "latency_ms": event.latency_ms,
        "estimated": event.usage.estimated,
    }


async def _usable_record(control: Control, secret: str) -> KeyRecord | None:
    if not is_well_formed(secret, control.key_prefix):
        return None
    found = None
    for pepper in control.peppers:  # all of them, so that the time taken does not tell under which one it is known
        found = await control.publishing.read_record(digest(secret, pepper)) or found
    return found if found is not None and found.is_usable(control.now_ms()) else None
