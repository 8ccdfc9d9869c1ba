"""Epochs: on which Redis servers the counters of a partition are known to be complete.

A server that was started again, promoted or emptied may hold less than it once confirmed. Servers are told apart by
their run ids, which each makes up when it starts. `jobs` writes an epoch once it has compared; nothing is admitted in a
partition on a server that its epoch does not name. Which servers those are is decided elsewhere: here they are read
and written.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from edgeproxy.errors import OperatorError
from edgeproxy.hotstate import keyspace
from edgeproxy.hotstate.calling import Caller


@dataclass(frozen=True, slots=True)
class Epoch:
    """The servers, by their run ids, on which a partition is complete, and since when (Unix ms)."""

    run_ids: tuple[str, ...]
    opened_ms: int


@dataclass(frozen=True, slots=True)
class Standing:
    """A partition as it is now: the run id of the server that has it, and its epoch."""

    partition: int
    run_id: str
    epoch: Epoch | None

    @property
    def is_open(self) -> bool:
        """Whether the counters are known to be complete where they are."""
        return self.epoch is not None and self.run_id in self.epoch.run_ids


class Epochs:
    """The epochs of all partitions, and the servers these lie on. Every method raises StoreUnavailable."""

    def __init__(self, caller: Caller, partitions: int) -> None:
        self._caller = caller
        self._names = [keyspace.epoch(partition) for partition in range(partitions)]

    async def look(self) -> list[Standing]:
        """Return how each partition stands."""
        replies = await self._caller.run_each("epoch", [(1, name) for name in self._names])
        return [
            Standing(partition, run_id.decode(), decode_epoch(raw)) for partition, (run_id, raw) in enumerate(replies)
        ]

    async def refuse_forgetful(self) -> None:
        """Return if every server keeps what it is told. Raises OperatorError, which says what to set.

        A server that does not say (some are hosted) is believed.
        """
        for keeps, policy in await self._caller.run_each("keeping", [(1, name) for name in self._names]):
            if keeps == b"0":
                raise OperatorError("Redis forgets what was counted when it is restarted; set appendonly yes there")
            if policy not in (None, b"noeviction"):
                raise OperatorError("Redis evicts keys, and what they have used; set maxmemory-policy noeviction there")

    async def write(self, epochs: Mapping[int, Epoch]) -> None:
        """Let each of these partitions have its epoch."""
        await self._caller.commands(
            [("SET", self._names[partition], encode_epoch(epoch)) for partition, epoch in epochs.items()]
        )


def encode_epoch(epoch: Epoch) -> bytes:
    """Return the epoch as it is kept in Redis."""
    return orjson.dumps({"run_ids": epoch.run_ids, "opened_ms": epoch.opened_ms})


def decode_epoch(raw: bytes | None) -> Epoch | None:
    """Return the epoch that `encode_epoch` wrote; None for anything else, so that nothing is admitted by it."""
    try:
        row: Any = orjson.loads(raw or b"")
        run_ids, opened_ms = row["run_ids"], row["opened_ms"]
    except (KeyError, TypeError, orjson.JSONDecodeError):
        return None
    well_typed = isinstance(run_ids, list) and all(isinstance(each, str) and each for each in run_ids)
    return Epoch(tuple(run_ids), opened_ms) if well_typed and type(opened_ms) is int and opened_ms >= 0 else None
