"""Changes of keys that Redis has not confirmed yet: written with the change, removed when it is published.

So a change never stays known to PostgreSQL alone: whoever made it publishes at once, and `jobs` repeats what was not
confirmed.
"""

from dataclasses import dataclass
from enum import StrEnum

from edgeproxy.domain.keys import KeyId
from edgeproxy.store.database import Connection
from edgeproxy.store.statements import statements


class Action(StrEnum):
    """What is still to be done in Redis: write the key's record and state, or remove every trace of it."""

    PUBLISH = "publish"
    ERASE = "erase"


@dataclass(frozen=True, slots=True)
class Change:
    """One waiting change. An erasure names the digest, because the key's row is gone by then."""

    key_id: KeyId
    version: int
    action: Action
    digest: str


async def add(connection: Connection, change: Change) -> None:
    """Note a change, in the transaction that makes it."""
    await connection.execute(statements("outbox")["add"], change.key_id, change.version, change.action, change.digest)


async def waiting(connection: Connection, count: int) -> list[Change]:
    """Return up to `count` changes that wait, oldest first."""
    return [
        Change(KeyId(str(row["key_id"])), row["version"], Action(row["action"]), row["digest"])
        for row in await connection.fetch(statements("outbox")["waiting"], count)
    ]


async def remove_published(connection: Connection, key_id: KeyId, version: int) -> None:
    """Forget the changes up to `version`: Redis holds that version."""
    await connection.execute(statements("outbox")["remove_published"], key_id, version)


async def remove_erased(connection: Connection, key_id: KeyId) -> None:
    """Forget an erasure: nothing of the key is left."""
    await connection.execute(statements("outbox")["remove_erased"], key_id)
