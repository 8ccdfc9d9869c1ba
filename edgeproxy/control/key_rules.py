"""What a key may be given: each value checked, and refused in one line that says what is right. Pure."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, Literal

from edgeproxy.domain.keys import Mode, OnLimit, Reserve
from edgeproxy.domain.limits import Dimension, Limit, check_limits, format_limit, parse_limit, parse_limits
from edgeproxy.errors import OperatorError
from edgeproxy.store.keys import StoredKey

NAME_LENGTH = 200
MAX_CONCURRENCY = 1_000_000
MAX_MODELS = 100
MAX_TIME_MS = 253_402_300_799_999  # the end of the year 9999: what is written with four digits

_MODEL_PATTERN = re.compile(r"[A-Za-z0-9._:/*-]{1,64}")


class Keep(Enum):
    """The value of a change that changes nothing: None already means "no cap" or "never"."""

    KEEP = "keep"


KEEP: Final = Keep.KEEP


@dataclass(frozen=True, slots=True)
class KeyChanges:
    """What to change of a key. Limits are texts such as `tokens=1000/1m`.

    `limits` replaces all of them; `add_limits` adds, or gives a new amount to the limit of the same dimension and
    window; `remove_limits` takes away those (`tokens/1m` is enough). `concurrency` None is no cap, `expires_ms` None
    never, `models` () all. Whether a key is prepaid is decided when it is created, and never changes.
    """

    name: str | Literal[Keep.KEEP] = KEEP
    limits: Sequence[str] | Literal[Keep.KEEP] = KEEP
    add_limits: Sequence[str] = ()
    remove_limits: Sequence[str] = ()
    concurrency: int | Literal[Keep.KEEP] | None = KEEP
    expires_ms: int | Literal[Keep.KEEP] | None = KEEP
    models: Sequence[str] | Literal[Keep.KEEP] = KEEP
    mode: Mode | Literal[Keep.KEEP] = KEEP
    reserve: Reserve | Literal[Keep.KEEP] = KEEP
    on_limit: OnLimit | Literal[Keep.KEEP] = KEEP

    def limits_of(self, key: StoredKey) -> tuple[Limit, ...]:
        """Return the limits that the key has after the change. Raises OperatorError."""
        kept = {limit.id: limit for limit in (key.limits if self.limits is KEEP else checked_limits(self.limits))}
        for text in self.remove_limits:
            if kept.pop(_removed(text).id, None) is None:
                there = ", ".join(format_limit(limit) for limit in key.limits) or "no limits"
                raise OperatorError(f"the key has no limit {text!r} to remove; it has {there}")
        for limit in checked_limits(self.add_limits):
            kept[limit.id] = limit
        limits = tuple(kept.values())
        try:
            check_limits(limits)
        except ValueError as error:
            raise OperatorError(str(error)) from None
        return limits


def checked_name(name: str) -> str:
    """Return the name of a key: the operator's own words, on one line."""
    if not 1 <= len(name) <= NAME_LENGTH or not name.isprintable() or name != name.strip():
        raise OperatorError(f"a key's name has 1 to {NAME_LENGTH} printable characters, none of them a space at an end")
    return name


def checked_limits(texts: Iterable[str]) -> tuple[Limit, ...]:
    """Return the limits that are written in `texts`, one per dimension and window."""
    try:
        return parse_limits(texts)
    except ValueError as error:
        raise OperatorError(str(error)) from None


def checked_concurrency(cap: int | None) -> int | None:
    """Return how many requests may be open at once."""
    if cap is not None and not 1 <= cap <= MAX_CONCURRENCY:
        raise OperatorError(f"concurrency is 1 to {MAX_CONCURRENCY}, or left away for no cap")
    return cap


def checked_expiry(expires_ms: int | None, now_ms: int) -> int | None:
    """Return when a key expires."""
    if expires_ms is not None and not now_ms < expires_ms <= MAX_TIME_MS:
        raise OperatorError("a key expires in the future, before the year 10000; to end it now, revoke it")
    return expires_ms


def checked_models(patterns: Iterable[str]) -> tuple[str, ...]:
    """Return the patterns of the models that a key may use, each once."""
    models = tuple(dict.fromkeys(patterns))
    if len(models) > MAX_MODELS:
        raise OperatorError(f"a key has at most {MAX_MODELS} model patterns")
    for pattern in models:
        if not _MODEL_PATTERN.fullmatch(pattern):
            raise OperatorError(
                f"model pattern {pattern!r}: write 1 to 64 letters, digits or . _ : / - and * for any, as in claude-*"
            )
    return models


def checked_whole(key: StoredKey) -> StoredKey:
    """Return a key whose parts fit together: nothing is set that would never do anything."""
    counted = {limit.dimension for limit in key.limits}
    if key.mode is Mode.OBSERVE and not (counted or key.concurrency or key.prepaid):
        raise OperatorError("mode observe needs a limit to observe; add one with --limit, or leave the mode at enforce")
    if key.prepaid:
        return key
    if key.reserve is Reserve.STRICT and counted <= {Dimension.REQUESTS}:
        raise OperatorError(
            "reserve strict needs a limit of tokens to hold; add one such as --limit tokens=200000/5h,"
            " or leave it at estimate"
        )
    if key.on_limit is OnLimit.SHRINK and not counted & {Dimension.TOKENS, Dimension.OUTPUT_TOKENS}:
        raise OperatorError(
            "on-limit shrink needs a limit of tokens or output_tokens to shrink answers to; add one such as"
            " --limit tokens=200000/5h, or leave it at refuse"
        )
    return key


def _removed(text: str) -> Limit:
    """Return the limit that `tokens/1m` or `tokens=1000/1m` names; the amount does not matter."""
    dimension, slash, window = text.partition("/")
    try:
        return parse_limit(text if "=" in text else f"{dimension}=0{slash}{window}")
    except ValueError:
        raise OperatorError(f"limit {text!r}: name it as DIMENSION/WINDOW, for example tokens/1m") from None
