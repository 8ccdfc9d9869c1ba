"""API keys as they last: everything about a key except its secret, which exists nowhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from edgeproxy.domain.keys import KeyId, KeyRecord, KeyStatus, Mode, OnLimit, Reserve, partition_of
from edgeproxy.domain.limits import Limit, format_limit, parse_limit
from edgeproxy.domain.times import to_datetime, to_ms
from edgeproxy.store.database import Connection
from edgeproxy.store.statements import statements

FIRST_ID = KeyId(str(UUID(int=0)))  # before every key: where a list begins


@dataclass(frozen=True, slots=True)
class StoredKey:
    """One row of `keys`. Times are Unix ms; `concurrency` None is no cap, `expires_ms` None never, `models` () all."""

    id: KeyId
    name: str
    prefix: str
    digest: str
    status: KeyStatus
    version: int
    limits: tuple[Limit, ...]
    concurrency: int | None
    models: tuple[str, ...]
    created_ms: int
    expires_ms: int | None = None
    revoked_ms: int | None = None
    mode: Mode = Mode.ENFORCE
    reserve: Reserve = Reserve.ESTIMATE
    on_limit: OnLimit = OnLimit.REFUSE
    prepaid: bool = False

    def record(self, partitions: int) -> KeyRecord:
        """Return what workers have to know of it."""
        return KeyRecord(
            id=self.id,
            version=self.version,
            status=self.status,
            partition=partition_of(self.id, partitions),
            limits=self.limits,
            concurrency=self.concurrency,
            expires_ms=self.expires_ms,
            models=self.models,
            mode=self.mode,
            reserve=self.reserve,
            on_limit=self.on_limit,
            prepaid=self.prepaid,
        )


async def insert(connection: Connection, key: StoredKey) -> None:
    """Add a new key."""
    await connection.execute(
        statements("keys")["insert"],
        key.id,
        key.name,
        key.prefix,
        key.digest,
        [format_limit(limit) for limit in key.limits],
        key.concurrency,
        key.models,
        to_datetime(key.created_ms),
        _optional_datetime(key.expires_ms),
        key.mode,
        key.reserve,
        key.on_limit,
        key.prepaid,
    )


async def read(connection: Connection, key_id: KeyId) -> StoredKey | None:
    """Return a key, None when there is none of this id."""
    return _optional_key(await connection.fetchrow(statements("keys")["read"], key_id))


async def read_to_publish(connection: Connection, key_id: KeyId) -> StoredKey | None:
    """Return a key and keep it from being erased until the transaction ends."""
    return _optional_key(await connection.fetchrow(statements("keys")["read_to_publish"], key_id))


async def read_each_to_publish(connection: Connection, ids: Sequence[KeyId]) -> list[StoredKey]:
    """Return those of these keys that there are, and keep them from being erased until the transaction ends."""
    return [_key(row) for row in await connection.fetch(statements("keys")["read_each_to_publish"], ids)]


async def read_to_change(connection: Connection, key_id: KeyId) -> StoredKey | None:
    """Return a key and keep others from changing it until the transaction ends."""
    return _optional_key(await connection.fetchrow(statements("keys")["read_to_change"], key_id))


async def find(connection: Connection, text: str) -> list[KeyId]:
    """Return the ids of up to two keys of which `text` is the display prefix or the name."""
    return [KeyId(str(row["id"])) for row in await connection.fetch(statements("keys")["find"], text)]


async def page(connection: Connection, after: KeyId, count: int) -> list[StoredKey]:
    """Return up to `count` keys that were created after the key `after`."""
    return [_key(row) for row in await connection.fetch(statements("keys")["page"], after, count)]


async def update(connection: Connection, key: StoredKey) -> None:
    """Store the changed parts of a key."""
    await connection.execute(
        statements("keys")["update"],
        key.id,
        key.name,
        key.status,
        key.version,
        [format_limit(limit) for limit in key.limits],
        key.concurrency,
        key.models,
        _optional_datetime(key.expires_ms),
        _optional_datetime(key.revoked_ms),
        key.mode,
        key.reserve,
        key.on_limit,
    )


async def delete(connection: Connection, key_id: KeyId) -> None:
    """Remove the key's own row; its usage is removed apart."""
    await connection.execute(statements("keys")["delete"], key_id)


def _optional_key(row: Any | None) -> StoredKey | None:
    return None if row is None else _key(row)


def _key(row: Any) -> StoredKey:
    return StoredKey(
        id=KeyId(str(row["id"])),
        name=row["name"],
        prefix=row["prefix"],
        digest=row["digest"],
        status=KeyStatus(row["status"]),
        version=row["version"],
        limits=_limits(row["limits"]),
        concurrency=row["concurrency"],
        models=tuple(row["models"]),
        created_ms=to_ms(row["created_at"]),
        expires_ms=None if row["expires_at"] is None else to_ms(row["expires_at"]),
        revoked_ms=None if row["revoked_at"] is None else to_ms(row["revoked_at"]),
        mode=Mode(row["mode"]),
        reserve=Reserve(row["reserve"]),
        on_limit=OnLimit(row["on_limit"]),
        prepaid=row["prepaid"],
    )


def _limits(texts: Sequence[str]) -> tuple[Limit, ...]:
    return tuple(parse_limit(text) for text in texts)


def _optional_datetime(at_ms: int | None) -> Any:
    return None if at_ms is None else to_datetime(at_ms)
