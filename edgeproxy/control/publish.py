"""Makes Redis agree with PostgreSQL, one key at a time: publishing what changed, erasing what was deleted.

Both may be repeated after any failure, and both are: by whoever made the change, at once, and by `jobs` for as long as
the change waits in the outbox.
"""

from edgeproxy.control.installation import Control
from edgeproxy.domain.keys import KeyId, partition_of
from edgeproxy.store import keys, ledger, outbox, refusals, usage

PENDING_BATCH = 100  # changes published in one round of `jobs`


async def publish_key(control: Control, key_id: KeyId) -> None:
    """Make the key's stored version hold in Redis; nothing happens when the key is gone.

    The key's row is held meanwhile, so that an erasure waits: otherwise a slow publication could bring an erased key
    back. Raises StoreUnavailable.
    """
    async with control.database.transaction() as connection:
        key = await keys.read_to_publish(connection, key_id)
        if key is not None:
            await control.publishing.publish(key.record(control.partitions), key.digest)
            await outbox.remove_published(connection, key.id, key.version)


async def erase_key(control: Control, key_id: KeyId, digest: str) -> None:
    """Remove whatever is left of a key whose row is gone, in both stores. Raises StoreUnavailable.

    Deleting is dangerous where something else may still write. Nothing does: the flush and the roll-up of refusals
    store nothing of a key without a row, and a revoked key admits no request. What settles late is dropped by the
    flush.
    """
    more = True
    while more:  # ends: rows of this key are only ever removed
        async with control.database.transaction() as connection:
            more = await usage.delete_events(connection, key_id)
    partition = partition_of(key_id, control.partitions)
    await control.publishing.erase(key_id, partition, digest)
    await control.streams.remove_of_key(partition, key_id)
    async with control.database.transaction() as connection:
        await usage.delete_sums(connection, key_id)
        await refusals.delete(connection, key_id)
        await ledger.delete(connection, key_id)
        await outbox.remove_erased(connection, key_id)


async def publish_pending(control: Control) -> int:
    """Repeat changes that Redis has not confirmed, oldest first, and return how many were made to hold.

    Raises StoreUnavailable at the first that cannot be.
    """
    async with control.database.transaction() as connection:
        changes = await outbox.waiting(connection, PENDING_BATCH)
    for change in changes:
        if change.action is outbox.Action.ERASE:
            await erase_key(control, change.key_id, change.digest)
        else:
            await publish_key(control, change.key_id)
    return len(changes)
