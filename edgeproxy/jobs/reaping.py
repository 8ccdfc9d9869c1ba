"""Sweeps up what dead workers left open: a reservation whose lease is over is settled in its worker's place.

What had passed is not known here, so the larger of what the last heartbeat told and of the input's estimate is charged,
and the event is flagged `estimated`; of a key that reserves the most that a request can use, all of that. If the worker
was only slow, its own settlement comes to the corrections, which put the difference right. The event has the model of
the reservation's note, the time since the reservation was made as its latency, and the status 500: the client's
connection broke with the gateway's worker. (499: a client left.)

A lease has to be over at two looks that lie further apart than two heartbeats: a clock that jumps ahead ends all leases
at once, and those of workers that live are renewed by then.

Nothing is swept in a partition that is not open, or was opened less than one lease ago: workers announce their open
requests again to a Redis that has forgotten some. Any number of sweepers may work at once, because a reservation
resolves once.
"""

import time

from edgeproxy import logs
from edgeproxy.control.installation import Control
from edgeproxy.domain.keys import KeyId
from edgeproxy.domain.limits import Amounts
from edgeproxy.domain.reservations import BEATS_PER_LEASE, Note, Pending, ReapStatus, decode_note
from edgeproxy.domain.usage import Usage, UsageEvent, encode_event
from edgeproxy.errors import INTERNAL
from edgeproxy.hotstate import keyspace
from edgeproxy.hotstate.epochs import Epochs
from edgeproxy.hotstate.leases import Leases
from edgeproxy.hotstate.scripts import Scope
from edgeproxy.metrics import Metrics

MAX_SWEPT = 200  # of one partition in one round, about 100 ms, so that a dead worker's many keep no other waiting
_NOBODY = ""  # in the place of a holder that is not known: no state has this name


class Sweeper:
    """Sweeps all partitions."""

    def __init__(self, control: Control, metrics: Metrics) -> None:
        self._now_ms = control.streams.now_ms
        self._lease_ms = control.lease_ms
        self._epochs = Epochs(control.caller, control.partitions)
        self._leases = Leases(control.caller)
        self._metrics = metrics
        self._seen: dict[int, dict[str, float]] = {}  # by partition: what was overdue at the last look, since when

    async def sweep_once(self) -> int:
        """Settle what is overdue and return how much that was. Raises StoreUnavailable; what is settled stays so."""
        now_ms = await self._now_ms()
        reaped = 0
        for standing in await self._epochs.look():
            epoch = standing.epoch
            if standing.is_open and epoch is not None and not 0 <= now_ms - epoch.opened_ms < self._lease_ms:
                reaped += await self._sweep(standing.partition, now_ms)
        return reaped

    async def _sweep(self, partition: int, now_ms: int) -> int:
        reaped = 0
        seen, self._seen[partition] = self._seen.get(partition, {}), {}
        now_s = time.monotonic()
        for request_id in await self._leases.expired(partition, now_ms, MAX_SWEPT):
            first_s = self._seen[partition][request_id] = seen.get(request_id, now_s)
            if now_s - first_s >= self._lease_ms / 1000 / BEATS_PER_LEASE:
                reaped += await self._reap(partition, request_id, now_ms)
        if reaped:
            logs.event("reservations_reaped", partition=partition, count=reaped)
        return reaped

    async def _reap(self, partition: int, request_id: str, now_ms: int) -> bool:
        """Settle one reservation; a lease that none belongs to is taken away. Returns whether this settled it."""
        pending = await self._leases.examine(partition, request_id)
        if pending is None:
            await self._leases.reap(partition, request_id, (), Amounts(), b"")
            return False
        note = _note_of(pending)
        actual = pending.reserved if note is not None and note.is_bound else what_passed(pending)
        event = b"" if note is None or not note.model else _event(request_id, note, actual, now_ms - pending.at_ms)
        scopes = _scopes(partition, pending, note)
        status = await self._leases.reap(partition, request_id, scopes, actual, event)
        if status is not ReapStatus.RESOLVED:
            return False
        if note is None:
            logs.event("reservation_not_readable", partition=partition, request_id=request_id)
        self._metrics.reaped_reservations.labels("unreadable" if note is None else "charged").inc()
        return True


def what_passed(pending: Pending) -> Amounts:
    """Return what is charged for a request that nothing is heard of any more."""
    return Amounts(
        requests=pending.reserved.requests,
        input_tokens=max(pending.reserved.input_tokens, pending.so_far.input_tokens),
        output_tokens=pending.so_far.output_tokens,
    )


def _note_of(pending: Pending) -> Note | None:
    try:
        return decode_note(pending.note)
    except ValueError:
        return None


def _event(request_id: str, note: Note, actual: Amounts, latency_ms: int) -> bytes:
    usage = Usage(input_uncached=actual.input_tokens, output=actual.output_tokens, estimated=True)
    key_id = KeyId(note.holder)
    return encode_event(UsageEvent(request_id, key_id, note.model, INTERNAL.status, usage, max(latency_ms, 0)))


def _scopes(partition: int, pending: Pending, note: Note | None) -> list[Scope]:
    """Return what the reservation charged: the note names its holder, and a scope that nobody names stays as it is."""
    holders = [_NOBODY if note is None else note.holder, *[_NOBODY] * (len(pending.scopes) - 1)]
    return [
        Scope(holder, keyspace.state(partition, holder), keyspace.ring(partition, holder), scope.version)
        for holder, scope in zip(holders, pending.scopes, strict=True)
    ]
