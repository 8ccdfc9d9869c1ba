"""The name of every Redis key, and nothing else.

`{pNN}` is a hash tag: Redis Cluster keeps all keys with one tag on one node, so a script may touch them together.
A key record carries no tag, because a worker reads it before it knows the partition.
"""

INSTALL = "install"  # what was fixed at installation: number of partitions, fingerprint of the pepper


def key_record(digest: str) -> str:
    """STRING, JSON: what a worker has to know of the key with this digest."""
    return f"key:{digest}"


def state(partition: int, holder: str) -> str:
    """STRING, cmsgpack: status, open requests, totals, balance and window sums of a holder of limits, mostly a key."""
    return f"{{p{partition:02d}}}:state:{holder}"


def ring(partition: int, holder: str) -> str:
    """HASH, one packed value per window: closed buckets of the windows of a holder of limits."""
    return f"{{p{partition:02d}}}:ring:{holder}"


def reservation(partition: int, request_id: str) -> str:
    """STRING, cmsgpack: what was charged where for an open request; for two minutes after, that it is resolved."""
    return f"{{p{partition:02d}}}:reservation:{request_id}"


def leases(partition: int) -> str:
    """ZSET: open reservations by the time at which their worker has to have resolved them."""
    return f"{{p{partition:02d}}}:leases"


def events(partition: int) -> str:
    """STREAM: usage events that wait for the flush, one field `e`."""
    return f"{{p{partition:02d}}}:events"


def corrections(partition: int) -> str:
    """STREAM: usage events whose reservation was gone when they came, one field `e`: `jobs` finds out what is right."""
    return f"{{p{partition:02d}}}:corrections"


def epoch(partition: int) -> str:
    """STRING, JSON: on which servers (run ids) the counters of this partition are known to be complete, since when."""
    return f"{{p{partition:02d}}}:epoch"


def refusals(partition: int) -> str:
    """HASH: how often known keys were refused, by `<key id>:<minute>:<status>`."""
    return f"{{p{partition:02d}}}:refusals"
