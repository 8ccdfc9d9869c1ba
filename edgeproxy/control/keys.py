"""What can be done with keys: create, change, revoke, delete.

A change commits in PostgreSQL together with a note in the outbox, and is then published to Redis at once. Where Redis
does not answer, the note makes `jobs` repeat it; a verb that takes something away says so instead of pretending that it
holds.
"""

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgeproxy.control.installation import Control
from edgeproxy.control.key_list import KeyRow, existing, key_json, resolve, row_of
from edgeproxy.control.key_rules import (
    KEEP,
    KeyChanges,
    checked_concurrency,
    checked_expiry,
    checked_limits,
    checked_models,
    checked_name,
    checked_whole,
)
from edgeproxy.control.publish import erase_key, publish_key
from edgeproxy.domain.identifiers import RANDOM_BITS, uuid7
from edgeproxy.domain.keys import (
    SECRET_BYTES,
    KeyId,
    KeyRecord,
    KeyStatus,
    Mode,
    OnLimit,
    Reserve,
    digest,
    display_prefix,
    issue_secret,
)
from edgeproxy.errors import OperatorError, StoreUnavailable
from edgeproxy.store import keys, outbox
from edgeproxy.store.database import Connection
from edgeproxy.store.keys import StoredKey

OPEN_WAIT_S = 5.0  # how long a deletion waits for the key's open requests; what settles later is dropped by the flush
_OPEN_POLLS = 50

_NOT_YET = (
    "the change is stored but does not hold yet, because {store} did not answer;"
    " jobs publishes it as soon as it can, or repeat the command"
)
_NOT_ALL_ERASED = (
    "the key is revoked and deleted, but {store} did not answer before every trace was removed;"
    " jobs removes the rest as soon as it can"
)


@dataclass(frozen=True, slots=True, repr=False)
class IssuedKey:
    """A new key. The secret exists here and with whoever is given it, nowhere else.

    `published` False: Redis did not answer; the key can be used once `jobs` has published it.
    """

    secret: str
    key: StoredKey
    published: bool

    def to_json(self) -> dict[str, Any]:
        """Return the key under stable names; `key` is the secret."""
        row = key_json(self.key, self.key.status)
        return {"id": row.pop("id"), "key": self.secret, **row, "published": self.published}


async def create_key(  # noqa: PLR0913 - the parts of a key, each with a default
    control: Control,
    *,
    name: str,
    limits: Sequence[str] = (),
    concurrency: int | None = None,
    expires_ms: int | None = None,
    models: Sequence[str] = (),
    mode: Mode = Mode.ENFORCE,
    reserve: Reserve = Reserve.ESTIMATE,
    on_limit: OnLimit = OnLimit.REFUSE,
    prepaid: bool = False,
) -> IssuedKey:
    """Issue a key. `limits` are texts such as `tokens=1000/1m`, `models` patterns (none: all).

    A prepaid key can be used once it is credited tokens.
    Raises OperatorError for a value that a key cannot have, or for values that do nothing together; StoreUnavailable
    when PostgreSQL does not answer.
    """
    now_ms = control.now_ms()
    secret = issue_secret(control.key_prefix, secrets.token_bytes(SECRET_BYTES))
    key = StoredKey(
        id=KeyId(uuid7(now_ms, secrets.randbits(RANDOM_BITS))),
        name=checked_name(name),
        prefix=display_prefix(secret, control.key_prefix),
        digest=digest(secret, control.peppers[0]),
        status=KeyStatus.ACTIVE,
        version=1,
        limits=checked_limits(limits),
        concurrency=checked_concurrency(concurrency),
        models=checked_models(models),
        created_ms=now_ms,
        expires_ms=checked_expiry(expires_ms, now_ms),
        mode=mode,
        reserve=reserve,
        on_limit=on_limit,
        prepaid=prepaid,
    )
    checked_whole(key)
    async with control.database.transaction() as connection:
        await keys.insert(connection, key)
        await _note(connection, key)
    try:
        await publish_key(control, key.id)
    except StoreUnavailable:
        return IssuedKey(secret, key, published=False)
    return IssuedKey(secret, key, published=True)


async def set_key(control: Control, ref: str, changes: KeyChanges) -> KeyRow:
    """Change a key, from the next request on. Windows that stay keep what they have counted.

    Raises OperatorError for a bad value, a revoked key, or when the change is stored but does not hold yet.
    """
    key_id = await resolve(control, ref)
    async with control.database.transaction() as connection:
        old = existing(await keys.read_to_change(connection, key_id))
        if old.status is KeyStatus.REVOKED:
            raise OperatorError("the key is revoked, for good; create another one")
        new = _changed(old, changes, control.now_ms())
        if new != old:
            new = replace(new, version=old.version + 1)
            await keys.update(connection, new)
        await _note(connection, new)
    await _publish_now(control, key_id)
    return await row_of(control, new)


async def revoke_key(control: Control, ref: str) -> KeyRow:
    """End a key for good. When this returns, no request is admitted with it anywhere. May be repeated.

    Raises OperatorError when there is no such key, or when the revocation is stored but does not hold yet.
    """
    key_id = await resolve(control, ref)
    async with control.database.transaction() as connection:
        key = existing(await keys.read_to_change(connection, key_id))
        if key.status is KeyStatus.ACTIVE:
            key = replace(key, status=KeyStatus.REVOKED, version=key.version + 1, revoked_ms=control.now_ms())
            await keys.update(connection, key)
        await _note(connection, key)
    await _publish_now(control, key_id)
    return await row_of(control, key)


async def delete_key(control: Control, ref: str) -> KeyRow:
    """Revoke a key and remove everything that is held of it, in both stores. Returns it as it last was.

    Deleting is dangerous while requests are open, because what they use would be counted nowhere: so it revokes first
    and waits a little for them. Raises OperatorError when there is no such key, or when something is left to `jobs`.
    """
    row = await revoke_key(control, ref)
    key = row.key
    await _wait_for_open(control, key.record(control.partitions))
    async with control.database.transaction() as connection:
        await keys.delete(connection, key.id)
        await outbox.add(connection, outbox.Change(key.id, key.version, outbox.Action.ERASE, key.digest))
    try:
        await erase_key(control, key.id, key.digest)
    except StoreUnavailable as error:
        raise OperatorError(_NOT_ALL_ERASED.format(store=error.store)) from None
    return row


def _changed(old: StoredKey, changes: KeyChanges, now_ms: int) -> StoredKey:
    new = replace(
        old,
        name=old.name if changes.name is KEEP else checked_name(changes.name),
        limits=changes.limits_of(old),
        concurrency=old.concurrency if changes.concurrency is KEEP else checked_concurrency(changes.concurrency),
        expires_ms=old.expires_ms if changes.expires_ms is KEEP else checked_expiry(changes.expires_ms, now_ms),
        models=old.models if changes.models is KEEP else checked_models(changes.models),
        mode=old.mode if changes.mode is KEEP else changes.mode,
        reserve=old.reserve if changes.reserve is KEEP else changes.reserve,
        on_limit=old.on_limit if changes.on_limit is KEEP else changes.on_limit,
    )
    return checked_whole(new)


async def _note(connection: Connection, key: StoredKey) -> None:
    await outbox.add(connection, outbox.Change(key.id, key.version, outbox.Action.PUBLISH, key.digest))


async def _publish_now(control: Control, key_id: KeyId) -> None:
    try:
        await publish_key(control, key_id)
    except StoreUnavailable as error:
        raise OperatorError(_NOT_YET.format(store=error.store)) from None


async def _wait_for_open(control: Control, record: KeyRecord) -> None:
    """Return when no request of the key is open, or after a bounded time: a worker that died leaves its own open."""
    try:
        for _ in range(_OPEN_POLLS):
            counted = await control.publishing.inspect(record)
            if counted is None or counted.open == 0:
                return
            await asyncio.sleep(OPEN_WAIT_S / _OPEN_POLLS)
    except StoreUnavailable as error:
        raise OperatorError(_NOT_YET.format(store=error.store)) from None
