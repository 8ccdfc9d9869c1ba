"""The name of every Redis key, and nothing else.

`{pNN}` is a hash tag: Redis Cluster keeps all keys with one tag on one node, so a script may touch them together.
A key record carries no tag, because a worker reads it before it knows the partition.
"""

from edgeproxy.domain.keys import KeyId

INSTALL = "install"  # what was fixed at installation: number of partitions, fingerprint of the pepper


def key_record(digest: str) -> str:
    """STRING, JSON: what a worker has to know of the key with this digest."""
    return f"key:{digest}"


def state(partition: int, key_id: KeyId) -> str:
    """STRING, cmsgpack: status, open requests, totals and window sums of a key."""
    return f"{{p{partition:02d}}}:state:{key_id}"


def ring(partition: int, key_id: KeyId) -> str:
    """HASH, one packed value per window: closed buckets of a key's windows."""
    return f"{{p{partition:02d}}}:ring:{key_id}"


def reservation(partition: int, request_id: str) -> str:
    """STRING, cmsgpack: what was charged where for an open request; for two minutes after, that it is resolved."""
    return f"{{p{partition:02d}}}:reservation:{request_id}"


def leases(partition: int) -> str:
    """ZSET: open reservations by the time at which their worker has to have resolved them."""
    return f"{{p{partition:02d}}}:leases"


def events(partition: int) -> str:
    """STREAM: usage events that wait for the flush, one field `e`."""
    return f"{{p{partition:02d}}}:events"


def refusals(partition: int) -> str:
    """HASH: how often known keys were refused, by `<key id>:<minute>:<status>`."""
    return f"{{p{partition:02d}}}:refusals"
