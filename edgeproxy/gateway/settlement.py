"""The one way out of a reservation: what was charged is put right, once, whatever happened.

The settlement is written to Redis before the last bytes of an answer are written to the client; its reply is not waited
for. So a client that has a whole answer has been counted. A settlement that Redis did not confirm is repeated for a
while, which is safe, because a reservation resolves once.
"""

import asyncio
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, cast

from edgeproxy import logs, tasks
from edgeproxy.domain.reservations import Outcome, SettleStatus
from edgeproxy.domain.usage import TOOLS, Usage, UsageEvent, encode_event, storable_model
from edgeproxy.errors import COUNTERS_UNAVAILABLE, INTERNAL, GatewayError, StoreUnavailable
from edgeproxy.gateway.access import AccessLog
from edgeproxy.gateway.admission import Admission
from edgeproxy.gateway.authentication import KnownKey
from edgeproxy.gateway.connections import Connection
from edgeproxy.gateway.metering import Charge, Meter
from edgeproxy.gateway.receiving import ClientGoneError
from edgeproxy.gateway.upstream import Target
from edgeproxy.hotstate import scripts
from edgeproxy.hotstate.commands import HotState
from edgeproxy.hotstate.connection import CommandFailed
from edgeproxy.metrics import Metrics
from edgeproxy.providers.base import RequestFacts

CLIENT_GONE = 499  # what nginx and others record for a request whose client left before there was an answer
_TRIES = 8  # with the waits below: about a minute, half of what Redis remembers a resolved reservation for
_FIRST_WAIT_S = 0.25


@dataclass(frozen=True, slots=True)
class Ticket:
    """A request that may be sent: what was reserved for it, where it goes, and who reads the answer."""

    admission: Admission
    target: Target
    facts: RequestFacts
    meter: Meter


class Settlements:
    """Sends settlements and sees to it that they are confirmed."""

    def __init__(self, hot: HotState, metrics: Metrics) -> None:
        self._hot = hot
        self._metrics = metrics
        self._unconfirmed: set[asyncio.Future[Any]] = set()  # replies of Redis, and tasks that try again
        self.open: set[asyncio.Task[Any]] = set()  # requests that hold a reservation

    def send(self, key: KnownKey, charge: Charge, event: UsageEvent) -> None:
        """Write the settlement of an admitted request to Redis now, or start trying."""
        arguments = _arguments(key, charge, event)
        try:
            reply = self._hot.settle(arguments)
        except StoreUnavailable:
            self._repeat(arguments)
        else:
            reply.add_done_callback(lambda reply: self._confirmed(reply, arguments))
            self._watch(reply)

    def give_back(self, key: KnownKey, request_id: str, model: str) -> None:
        """Void a reservation that may have been made although its reply did not come; the client was told 503."""
        event = UsageEvent(request_id, key.record.id, model, COUNTERS_UNAVAILABLE.status, Usage(), latency_ms=0)
        arguments = _arguments(key, Charge(Outcome.VOID, event.usage), event)
        self._watch(tasks.spawn("give back", self._try_again(arguments, certain=False)))

    def count(self, provider: str, usage: Usage) -> None:
        """Count one answer in the metrics."""
        for kind, number in (
            ("input", usage.input_uncached),
            ("cache_read", usage.cache_read),
            ("cache_write", usage.cache_write),
            ("output", usage.output),
        ):
            if number:
                self._metrics.tokens.labels(provider, kind).inc(number)
        for tool, number in usage.tool_calls:
            self._metrics.tool_calls.labels(provider, tool if tool in TOOLS else "other").inc(number)
        if usage.cost_nanos:
            self._metrics.provider_cost_usd.labels(provider).inc(usage.cost_nanos / 10**9)
        if usage.estimated:
            self._metrics.estimated.labels(provider).inc()

    async def finish(self) -> None:
        """End what still holds a reservation, such as an answer whose client left, and wait until all is confirmed.

        Bounded by the number of tries.
        """
        for task in self.open:
            task.cancel()
        while waiting := self.open | self._unconfirmed:
            await asyncio.wait(waiting)

    def _confirmed(self, reply: "asyncio.Future[Any]", arguments: scripts.Arguments) -> None:
        if reply.cancelled() or isinstance(reply.exception(), StoreUnavailable | CommandFailed):
            self._repeat(arguments)
        elif scripts.decode_settle(reply.result()).status is SettleStatus.UNKNOWN:
            self._lost("unknown_reservation")

    def _repeat(self, arguments: scripts.Arguments) -> None:
        self._watch(tasks.spawn("settlement", self._try_again(arguments)))

    def _watch(self, outcome: "asyncio.Future[Any]") -> None:
        self._unconfirmed.add(outcome)
        outcome.add_done_callback(self._unconfirmed.discard)

    async def _try_again(self, arguments: scripts.Arguments, *, certain: bool = True) -> None:
        """Repeat a settlement until Redis confirms it. `certain`: that there is a reservation to be settled."""
        wait_s = _FIRST_WAIT_S
        for _ in range(_TRIES):
            await asyncio.sleep(wait_s)
            wait_s *= 2
            try:
                reply = await self._hot.settle_again(arguments)
            except StoreUnavailable:
                continue
            if reply.status is SettleStatus.UNKNOWN and certain:
                break
            return
        self._lost("not_confirmed")

    def _lost(self, reason: str) -> None:
        self._metrics.settlements_lost.inc()
        logs.event("settlement_lost", error=reason)


def _arguments(key: KnownKey, charge: Charge, event: UsageEvent) -> scripts.Arguments:
    partition, amounts = key.record.partition, charge.usage.amounts
    return scripts.settle_args(partition, event.id, [key.scope], charge.outcome, amounts, encode_event(event))


class Reservation:
    """An admitted request until it is resolved. Leaving the block resolves it, if nothing else did before.

    Writing to Redis needs no waiting, so there is no exit, cancellation included, on which it could be missed.
    """

    def __init__(self, ticket: Ticket, settlements: Settlements, access: AccessLog) -> None:
        self.ticket = ticket
        self.charge: Charge | None = None  # set once resolved
        self._settlements = settlements
        self._access = access
        self._connection: Connection | None = None
        self._task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._sent_at = time.monotonic()

    def sent_on(self, connection: Connection) -> None:
        """From now on the request can have been billed."""
        self._connection = connection
        self._sent_at = time.monotonic()

    def resolve(self, status: int) -> None:
        """Settle with what is known now; only the first call does anything.

        `status` is what the client got, CLIENT_GONE if it left before there was an answer.
        """
        if self.charge is not None:
            return
        ticket = self.ticket
        written = self._connection is not None and self._connection.written
        self.charge = charge = ticket.meter.charge(written=written)
        accepted = 200 <= status < 300
        event = UsageEvent(
            id=ticket.admission.request_id,
            key_id=ticket.admission.key.record.id,
            model=storable_model(ticket.facts.model, ticket.target.model.match, accepted=accepted),
            status=status,
            usage=charge.usage,
            latency_ms=round((time.monotonic() - self._sent_at) * 1000),
        )
        self._settlements.send(ticket.admission.key, charge, event)
        self._settlements.count(ticket.target.provider.name, charge.usage)
        self._access.finished(event, ticket.meter.dialect.name, ticket.meter.operation)

    def __enter__(self) -> Self:
        self._settlements.open.add(self._task)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._settlements.open.discard(self._task)
        if isinstance(error, GatewayError):
            self.resolve(error.kind.status)
        else:
            self.resolve(CLIENT_GONE if isinstance(error, ClientGoneError) else INTERNAL.status)
