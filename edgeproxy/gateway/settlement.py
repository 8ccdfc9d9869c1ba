"""The one way out of a reservation: what was charged is put right, once, whatever happened.

The settlement is written to Redis before the last bytes of an answer are written to the client; its reply is not waited
for. So a client that has a whole answer has been counted. What becomes of a settlement that Redis does not confirm is
told in `unconfirmed`.
"""

import asyncio
import time
from types import TracebackType
from typing import Any, Self, cast

from edgeproxy.domain.keys import Reserve
from edgeproxy.domain.limits import Amounts
from edgeproxy.domain.records import record
from edgeproxy.domain.reservations import Outcome
from edgeproxy.domain.usage import TOOLS, Usage, UsageEvent, encode_event, storable_model
from edgeproxy.errors import INTERNAL, GatewayError
from edgeproxy.gateway.access import AccessLog
from edgeproxy.gateway.admission import Admission, Hold
from edgeproxy.gateway.connections import Connection
from edgeproxy.gateway.journal import Settlement
from edgeproxy.gateway.metering import Charge, Meter
from edgeproxy.gateway.receiving import ClientGoneError
from edgeproxy.gateway.unconfirmed import Unconfirmed
from edgeproxy.gateway.upstream import Target
from edgeproxy.metrics import Metrics
from edgeproxy.providers.base import RequestFacts

CLIENT_GONE = 499  # what nginx and others record for a request whose client left before there was an answer
_STOP_S = 5.0  # how long a stop waits for Redis to confirm; what it has not is in the journal


@record
class Ticket:
    """A request that may be sent: what was reserved for it, where it goes, and who reads the answer."""

    admission: Admission
    target: Target
    facts: RequestFacts
    meter: Meter


class Settlements:
    """Sends settlements, and knows the reservations that have none yet."""

    def __init__(self, unconfirmed: Unconfirmed, metrics: Metrics) -> None:
        self._unconfirmed = unconfirmed
        self._metrics = metrics
        self.open: set[Reservation] = set()

    def send(self, holds: tuple[Hold, ...], charge: Charge, event: bytes) -> None:
        """Settle what a request holds; its event goes with the first, which is its key's."""
        for hold in holds:
            holder, amounts = hold.scope.holder, charge.usage.amounts
            self._unconfirmed.send(Settlement(hold.partition, holder, hold.id, charge.outcome, amounts, event))
            event = b""

    def give_back(self, hold: Hold) -> None:
        """Undo a reservation, or one that may have been made although its reply did not come: nothing was admitted."""
        holder = hold.scope.holder
        self._unconfirmed.send(Settlement(hold.partition, holder, hold.id, Outcome.CANCEL, Amounts(), b""))

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

        Within a bound: what Redis does not confirm then stays in the journal.
        """
        ending = {reservation.task for reservation in self.open}
        for task in ending:
            task.cancel()
        if ending:
            await asyncio.wait(ending)
        await self._unconfirmed.finish(_STOP_S)


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
        self.task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._sent_at = time.monotonic()
        admission = ticket.admission
        # Whether that much output was reserved, and no more may pass.
        self.is_bounded = admission.lowered_output is not None or admission.key.record.reserve is Reserve.STRICT

    @property
    def holds(self) -> tuple[Hold, ...]:
        """What is reserved."""
        return self.ticket.admission.holds

    @property
    def is_overdrawn(self) -> bool:
        """Whether more output has passed than may be."""
        return self.is_bounded and self.ticket.meter.is_over(self.holds[0].amounts.output_tokens)

    def is_held(self, lease_s: float) -> bool:
        """Whether it cannot have been settled in our place: this process may have been stopped for a while."""
        return time.monotonic() - min(hold.renewed_at for hold in self.holds) < lease_s

    @property
    def is_resolved(self) -> bool:
        """Whether its settlement was sent."""
        return self.charge is not None

    def so_far(self) -> tuple[int, int]:
        """Return the input and output tokens that have passed, as far as that is known cheaply."""
        return self.ticket.meter.so_far()

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
        self.charge = charge = self._charge_now()
        accepted = 200 <= status < 300
        event = UsageEvent(
            id=ticket.admission.request_id,
            key_id=ticket.admission.key.record.id,
            model=storable_model(ticket.facts.model, ticket.target.model.match, accepted=accepted),
            status=status,
            usage=charge.usage,
            latency_ms=round((time.monotonic() - self._sent_at) * 1000),
        )
        self._settlements.send(self.holds, charge, encode_event(event))
        self._settlements.count(ticket.target.provider.name, charge.usage)
        self._access.finished(event, ticket.meter.dialect.name, ticket.meter.operation)

    def __enter__(self) -> Self:
        self._settlements.open.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._settlements.open.discard(self)
        if isinstance(error, GatewayError):
            self.resolve(error.kind.status)
        else:
            self.resolve(CLIENT_GONE if isinstance(error, ClientGoneError) else INTERNAL.status)

    def _charge_now(self) -> Charge:
        connection = self._connection
        return self.ticket.meter.charge(written=connection is not None and connection.written)
