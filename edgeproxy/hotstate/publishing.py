"""Durable -> hot: make keys known to the gateway, take them away, and read what is counted of them.

It knows no PostgreSQL: what to publish, and when to try again, is the caller's.

A key is published in two places: its state (status, limits, counters: what a reserve decides by) and its record (what a
worker caches to know the key at all). The state comes first. So a revoked or changed key takes effect at the next
request everywhere, whatever workers have cached, and a new key is not known before it can be counted.
"""

import orjson

from edgeproxy.domain.keys import KeyId, KeyRecord, decode_record
from edgeproxy.domain.reservations import KeyUsage, PublishStatus
from edgeproxy.errors import OperatorError
from edgeproxy.hotstate import keyspace, scripts
from edgeproxy.hotstate.calling import Caller

FOREIGN_LAYOUT = "Redis holds counters of an incompatible version of edgeproxy: run the version that wrote them"


class Publishing:
    """Publishes, erases and inspects keys.

    Every method raises StoreUnavailable when Redis cannot be reached, refuses or does not answer in time.
    """

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def publish(self, record: KeyRecord, digest: str) -> PublishStatus:
        """Make this version of the key hold; KEPT when this version or a newer one holds already.

        Holds also when Redis has no memory left: a key can always be revoked. May be repeated after any failure.
        Raises ValueError when the limits cannot hold together, OperatorError when the counters are not readable.
        """
        status = await self.publish_state(record)
        await self._caller.run("record", scripts.record_args(record, digest))
        return status

    async def publish_state(self, record: KeyRecord) -> PublishStatus:
        """Make this version hold for what is counted, of a holder of limits that is no key."""
        status = scripts.decode_publish(await self._caller.run("publish", scripts.publish_args(record)))
        if status is PublishStatus.LAYOUT:
            raise OperatorError(FOREIGN_LAYOUT)
        return status

    async def erase(self, key_id: KeyId, partition: int, digest: str) -> None:
        """Forget the key and everything that is counted of it; nothing happens when it is not known.

        Revoke it and wait for its open requests before: what these use is counted nowhere but in their events.
        """
        await self._caller.command("DEL", keyspace.key_record(digest))
        await self._caller.run("erase", scripts.erase_args(partition, key_id))

    async def inspect(self, record: KeyRecord, now_ms: int | None = None) -> KeyUsage | None:
        """Return what is counted of the key now (`now_ms`: a test's clock); None when it is not published.

        Windows are those of the version that holds, which may be newer than `record`.
        Raises OperatorError when the counters are not readable.
        """
        reply = await self._caller.run("inspect", scripts.inspect_args(record.partition, record.id, now_ms=now_ms))
        try:
            return scripts.decode_inspect(reply)
        except ValueError:
            raise OperatorError(FOREIGN_LAYOUT) from None

    async def read_record(self, digest: str) -> KeyRecord | None:
        """Return what workers read of the key with this digest; None when it is not published.

        Raises ValueError when something else is there.
        """
        raw: bytes | None = await self._caller.command("GET", keyspace.key_record(digest))
        return None if raw is None else decode_record(raw)

    async def install(self, partitions: int, pepper_fingerprint: str, previous_fingerprint: str | None = None) -> None:
        """Fix the number of partitions and the pepper in an empty Redis, or check that they are the fixed ones.

        Either one changed would leave every key and every counter where nobody looks for them, so a difference raises
        OperatorError. During a rotation the fixed pepper may be the previous one, and is replaced.
        """
        wanted = orjson.dumps({"partitions": partitions, "pepper": pepper_fingerprint})
        await self._caller.command("SET", keyspace.INSTALL, wanted, "NX")
        there: bytes = await self._caller.command("GET", keyspace.INSTALL)
        _check_install(there, partitions, (pepper_fingerprint, previous_fingerprint))
        if there != wanted:
            await self._caller.command("SET", keyspace.INSTALL, wanted)


def _check_install(raw: bytes, partitions: int, fingerprints: tuple[str | None, ...]) -> None:
    try:
        there = orjson.loads(raw)
        fixed_partitions, fixed_pepper = there["partitions"], there["pepper"]
    except (KeyError, TypeError, orjson.JSONDecodeError):
        raise OperatorError(
            "Redis holds an entry `install` that is not edgeproxy's: give edgeproxy a Redis database of its own"
        ) from None
    if fixed_partitions != partitions:
        raise OperatorError(
            f"Redis was set up with {fixed_partitions} partitions and the configuration says {partitions}:"
            f" set stores.partitions = {fixed_partitions}"
        )
    if fixed_pepper not in fingerprints:
        raise OperatorError(
            "Redis was set up with another pepper: restore this installation's pepper file (secrets.pepper_file)"
        )
