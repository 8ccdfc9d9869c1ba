"""Names of keys as Redis has them, a bounded sample of them: for a look at what is there, never for work on it."""

from edgeproxy.hotstate import keyspace
from edgeproxy.hotstate.calling import Caller

_ANY = "*"


async def sample(caller: Caller, partition: int, looks: int, *, at_once: int = 1000) -> list[str]:
    """Return names on the server that has a partition: all of them, or what so many looks show. Some may come twice.

    Raises StoreUnavailable. A look takes Redis about half a millisecond for a thousand names.
    """
    found: list[str] = []
    cursor = b"0"
    for _ in range(looks):
        cursor, *names = await caller.run("names", (1, keyspace.epoch(partition), cursor, _ANY, at_once))
        found += (name.decode(errors="replace") for name in names)
        if cursor == b"0":
            break
    return found
