"""Keys as the operator sees them: what is stored of a key beside what is counted of it now."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from edgeproxy.control.installation import Control
from edgeproxy.control.usage import balance_json, time_json, totals_json, window_json
from edgeproxy.domain.keys import KeyId, KeyStatus
from edgeproxy.domain.limits import Amounts, format_limit
from edgeproxy.domain.reservations import KeyUsage
from edgeproxy.domain.times import rfc3339, to_datetime
from edgeproxy.errors import OperatorError, StoreUnavailable
from edgeproxy.store import keys, usage
from edgeproxy.store.keys import StoredKey
from edgeproxy.store.usage import DailySum, UsageSum

PAGE = 100
MAX_PAGE = 500
DAYS_SHOWN = 31


@dataclass(frozen=True, slots=True)
class KeyRow:
    """One key. `counted` is None when Redis does not answer, or does not know the key yet."""

    key: StoredKey
    counted: KeyUsage | None
    now_ms: int

    @property
    def status(self) -> str:
        """`active`, `revoked` or `expired`."""
        key = self.key
        if key.status is KeyStatus.ACTIVE and key.expires_ms is not None and key.expires_ms <= self.now_ms:
            return "expired"
        return key.status

    def to_json(self) -> dict[str, Any]:
        """Return the row under stable names; times are RFC 3339 in UTC."""
        counted = self.counted
        return key_json(self.key, self.status) | {
            "last_used": time_json(counted.last_used_ms or None) if counted else None,
            "totals": totals_json(counted.totals) if counted else None,
            "balance": self.balance_json(),
        }

    def balance_json(self) -> dict[str, int] | None:
        """Return the balance as `usage` shows it; None for a key that is not prepaid, or that is not counted now."""
        return balance_json(self.counted) if self.counted else None


@dataclass(frozen=True, slots=True)
class KeyPage:
    """Some keys in order of creation; `next` is what to ask for the ones after, None at the end."""

    rows: tuple[KeyRow, ...]
    next: KeyId | None


@dataclass(frozen=True, slots=True)
class KeyDetails:
    """One key with its windows, what PostgreSQL holds of its usage, and that by day and model."""

    row: KeyRow
    stored: Amounts
    daily: tuple[DailySum, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the details under stable names. `stored` lags behind `totals` by what still waits for the flush."""
        counted = self.row.counted
        return self.row.to_json() | {
            "open": counted.open if counted else None,
            "windows": [window_json(window) for window in counted.windows] if counted else None,
            "stored": totals_json(self.stored),
            "daily": [{"day": day.day.isoformat(), "model": day.model} | _sum_json(day.sum) for day in self.daily],
        }


def key_json(key: StoredKey, status: str) -> dict[str, Any]:
    """Return what is stored of a key under stable names."""
    return {
        "id": key.id,
        "name": key.name,
        "prefix": key.prefix,
        "status": status,
        "version": key.version,
        "limits": [format_limit(limit) for limit in key.limits],
        "concurrency": key.concurrency,
        "models": list(key.models),
        "mode": key.mode,
        "reserve": key.reserve,
        "on_limit": key.on_limit,
        "prepaid": key.prepaid,
        "created": rfc3339(key.created_ms),
        "expires": time_json(key.expires_ms),
        "revoked": time_json(key.revoked_ms),
    }


async def list_keys(control: Control, *, after: KeyId | None = None, count: int = PAGE) -> KeyPage:
    """Return up to `count` keys (at most 500), those created first first. Raises StoreUnavailable, OperatorError."""
    if not 1 <= count <= MAX_PAGE:
        raise OperatorError(f"a page of keys has 1 to {MAX_PAGE} rows")
    begin = keys.FIRST_ID if after is None else _checked_id(after)
    async with control.database.transaction() as connection:
        found = await keys.page(connection, begin, count + 1)
    shown, rest = found[:count], found[count:]
    return KeyPage(await _rows(control, shown), shown[-1].id if rest else None)


async def show_key(control: Control, ref: str) -> KeyDetails:
    """Return all that is known of one key. `ref` as in `resolve`. Raises OperatorError, StoreUnavailable."""
    key_id = await resolve(control, ref)
    since = to_datetime(control.now_ms()).date() - timedelta(days=DAYS_SHOWN - 1)
    async with control.database.transaction() as connection:
        key = existing(await keys.read(connection, key_id))
        stored = await usage.totals(connection, key_id)
        daily = await usage.daily(connection, key_id, since)
    return KeyDetails(await row_of(control, key), stored, tuple(daily))


async def row_of(control: Control, key: StoredKey) -> KeyRow:
    """Return a key with what is counted of it now."""
    rows = await _rows(control, [key])
    return rows[0]


async def resolve(control: Control, ref: str) -> KeyId:
    """Return the id of the key that a person means: its id, its display prefix, or its name if no other key has it.

    Raises OperatorError when that is none or several. The error does not repeat `ref`: it may be a secret.
    """
    try:
        return KeyId(str(UUID(ref)))
    except ValueError:
        pass  # not an id
    if not ref.isprintable():
        raise OperatorError("a key is named by its id, its display prefix or its name")
    async with control.database.transaction() as connection:
        found = await keys.find(connection, ref)
    if len(found) > 1:
        raise OperatorError("several keys have this name; give the id (edgeproxy keys list shows it)")
    if not found:
        raise OperatorError(_NO_SUCH_KEY)
    return found[0]


def existing(key: StoredKey | None) -> StoredKey:
    """Return the key. Raises OperatorError when there is none."""
    if key is None:
        raise OperatorError(_NO_SUCH_KEY)
    return key


_NO_SUCH_KEY = "no key has this id, display prefix or name; edgeproxy keys list shows all"


def _checked_id(text: str) -> KeyId:
    try:
        return KeyId(str(UUID(text)))
    except ValueError:
        raise OperatorError("a page of keys begins after a key's id") from None


async def _rows(control: Control, found: list[StoredKey]) -> tuple[KeyRow, ...]:
    """Return the keys with what is counted of them; after the first failure Redis is not asked again."""
    now_ms = control.now_ms()
    counted: list[KeyUsage | None] = []
    for key in found:
        try:
            counted.append(await control.publishing.inspect(key.record(control.partitions)))
        except StoreUnavailable:
            break
    counted += [None] * (len(found) - len(counted))
    return tuple(KeyRow(key, each, now_ms) for key, each in zip(found, counted, strict=True))


def _sum_json(total: UsageSum) -> dict[str, int]:
    used = total.usage
    return {
        "requests": total.requests,
        "input_tokens": used.input_total,
        "output_tokens": used.output,
        "cache_read_tokens": used.cache_read,
        "cache_write_tokens": used.cache_write,
        "reasoning_tokens": used.reasoning,
    }
