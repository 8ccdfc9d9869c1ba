"""API keys: how a secret is made and recognised, and what a worker has to know of a key. Pure: no I/O, no clock.

A secret is `<prefix><43 characters of 256 random bits><6 characters of checksum>`, all letters and digits, so that one
double click selects it. Only a keyed BLAKE3 digest and a display prefix are ever stored: without the pepper a stolen
table of digests cannot be tested against guesses, and 256 random bits leave nothing to guess.
"""

import zlib
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any, NewType

import orjson
from blake3 import blake3

from edgeproxy.domain.limits import Dimension, Limit

KeyId = NewType("KeyId", str)

SECRET_BYTES = 32
PEPPER_BYTES = 32

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_BODY_LENGTH = 43  # 62**43 > 2**256
_CHECKSUM_LENGTH = 6  # 62**6 > 2**32
_SHOWN_LENGTH = 8  # leaves more than 200 bits unknown


class KeyStatus(StrEnum):
    """Whether a key admits requests. There is no way back from revoked."""

    ACTIVE = "active"
    REVOKED = "revoked"


class Mode(StrEnum):
    """What a limit that is reached does: refuse, or only count and tell the operator."""

    ENFORCE = "enforce"
    OBSERVE = "observe"


class Reserve(StrEnum):
    """What is held back for a request before its cost is known.

    `estimate`: what it will probably use; what it uses beyond is charged when it is known. `strict`: the most that it
    can use, so that a limit is never exceeded; a request that has no such bound is refused.
    """

    ESTIMATE = "estimate"
    STRICT = "strict"


class OnLimit(StrEnum):
    """What becomes of a request whose answer may be longer than what is left: refused, or asked for a shorter one."""

    REFUSE = "refuse"
    SHRINK = "shrink"


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """What a worker needs of a key, as published at `key:<digest>`.

    `version` grows with every change; a worker that holds an older one is told so by the reserve script.
    `concurrency` None means no cap, `expires_ms` (Unix time) None means never, `models` empty means all. `prepaid` says
    that it has a balance of tokens, from which everything that it uses is taken.
    """

    id: KeyId
    version: int
    status: KeyStatus
    partition: int
    limits: tuple[Limit, ...]
    concurrency: int | None
    expires_ms: int | None
    models: tuple[str, ...]
    mode: Mode = Mode.ENFORCE
    reserve: Reserve = Reserve.ESTIMATE
    on_limit: OnLimit = OnLimit.REFUSE
    prepaid: bool = False

    def is_usable(self, now_ms: int) -> bool:
        """Whether the key is active and not past its expiry at `now_ms`."""
        return self.status is KeyStatus.ACTIVE and (self.expires_ms is None or now_ms < self.expires_ms)

    def allows(self, model: str) -> bool:
        """Whether the key's patterns (shell style, `*` only matters) let it use `model`."""
        return not self.models or any(fnmatchcase(model, pattern) for pattern in self.models)


def issue_secret(prefix: str, random_bytes: bytes) -> str:
    """Return the secret made of 32 random bytes. Raises ValueError for another number of bytes."""
    if len(random_bytes) != SECRET_BYTES:
        raise ValueError(f"a secret is made of {SECRET_BYTES} random bytes")
    unsigned = prefix + _base62(int.from_bytes(random_bytes), _BODY_LENGTH)
    return unsigned + _checksum(unsigned)


def is_well_formed(secret: str, prefix: str) -> bool:
    """Whether `secret` could have been issued here: garbage is turned away before any look-up."""
    if len(secret) != len(prefix) + _BODY_LENGTH + _CHECKSUM_LENGTH or not secret.isascii():
        return False
    unsigned = secret[:-_CHECKSUM_LENGTH]
    return unsigned.startswith(prefix) and _checksum(unsigned) == secret[-_CHECKSUM_LENGTH:]


def display_prefix(secret: str, prefix: str) -> str:
    """Return the part of a secret that may be stored and shown."""
    return secret[: len(prefix) + _SHOWN_LENGTH]


def digest(secret: str, pepper: bytes) -> str:
    """Return the keyed BLAKE3 digest (64 hex digits) under which a secret is known. `pepper` has 32 bytes."""
    return blake3(secret.encode(), key=pepper).hexdigest()


def pepper_fingerprint(pepper: bytes) -> str:
    """Return what may be stored to recognise a pepper: 32 hex digits from which it cannot be computed."""
    return blake3(pepper, derive_key_context="edgeproxy pepper fingerprint v1").hexdigest(length=16)


def partition_of(key_id: KeyId, partitions: int) -> int:
    """Return the partition, 0 up to `partitions` - 1, that holds all counters of a key."""
    return int.from_bytes(blake3(key_id.encode()).digest(length=8)) % partitions


def provider_holder(name: str) -> KeyId:
    """Return under which name the limits of our own account at a provider are counted, as if it were a key."""
    return KeyId(f"provider:{name}")


def encode_record(record: KeyRecord) -> bytes:
    """Return the record as the JSON object that is published for workers."""
    return orjson.dumps(
        {
            "id": record.id,
            "version": record.version,
            "status": record.status,
            "partition": record.partition,
            "limits": [[limit.dimension, limit.amount, limit.window_ms] for limit in record.limits],
            "concurrency": record.concurrency,
            "expires_ms": record.expires_ms,
            "models": record.models,
            "mode": record.mode,
            "reserve": record.reserve,
            "on_limit": record.on_limit,
            "prepaid": record.prepaid,
        }
    )


def decode_record(raw: bytes) -> KeyRecord:
    """Return the record that `encode_record` wrote. Raises ValueError for anything else."""
    try:
        row: dict[str, Any] = orjson.loads(raw)
        record = KeyRecord(
            id=KeyId(row["id"]),
            version=row["version"],
            status=KeyStatus(row["status"]),
            partition=row["partition"],
            limits=tuple(Limit(Dimension(name), amount, window_ms) for name, amount, window_ms in _list(row["limits"])),
            concurrency=row["concurrency"],
            expires_ms=row["expires_ms"],
            models=tuple(_list(row["models"])),
            mode=Mode(row["mode"]),
            reserve=Reserve(row["reserve"]),
            on_limit=OnLimit(row["on_limit"]),
            prepaid=row["prepaid"],
        )
    except (KeyError, TypeError, ValueError):
        raise ValueError("not a published key record") from None
    texts = (record.id, *record.models)
    numbers = [record.version, record.partition, *(n for each in record.limits for n in (each.amount, each.window_ms))]
    numbers += [number for number in (record.concurrency, record.expires_ms) if number is not None]
    well_typed = all(isinstance(text, str) for text in texts) and type(record.prepaid) is bool
    if not well_typed or not all(type(n) is int and 0 <= n < 2**63 for n in numbers):
        raise ValueError("not a published key record")
    return record


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError("a list is wanted")
    return value


def _base62(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, digit = divmod(number, 62)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))


def _checksum(text: str) -> str:
    return _base62(zlib.crc32(text.encode()), _CHECKSUM_LENGTH)
