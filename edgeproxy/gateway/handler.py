"""The way of a request, top to bottom: every stage is one call, and returns the ticket of the next.

Whatever happens, a client gets one answer in its own dialect; and what was admitted is settled, once.
"""

import re
import time
from dataclasses import dataclass

from aiohttp import web

from edgeproxy import logs
from edgeproxy.config import Settings
from edgeproxy.errors import BAD_HTTP, COUNTERS_UNAVAILABLE, INTERNAL, GatewayError, StoreUnavailable
from edgeproxy.gateway import routes
from edgeproxy.gateway.admission import LimitReached, RequestIds, Wish, admit, estimate
from edgeproxy.gateway.authentication import Authentication, KnownKey
from edgeproxy.gateway.forwarding import Relay, forward
from edgeproxy.gateway.metering import Meter
from edgeproxy.gateway.receiving import Bodies, Body, ClientGoneError
from edgeproxy.gateway.routes import Route
from edgeproxy.gateway.server import Written, write
from edgeproxy.gateway.settlement import CLIENT_GONE, Reservation, Settlements, Ticket
from edgeproxy.gateway.upstream import Upstreams
from edgeproxy.hotstate.commands import HotState
from edgeproxy.metrics import Metrics

_QUERY = re.compile(r"[!-~]*")  # visible ASCII: what may stand in a request line
_STORE_RETRY_MS = 1000
_LEASE_MARGIN_MS = 60_000  # a lease outlives every time limit of the request that holds it


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request as it came in: where it goes, when it came, and the id that its answer and its usage event carry."""

    request: web.BaseRequest
    path: str
    query: str
    request_id: str
    at: float


class Handler:
    """Serves the data plane. It owns nothing: `app` builds and closes what it is given."""

    def __init__(
        self,
        settings: Settings,
        hot: HotState,
        authentication: Authentication,
        upstreams: Upstreams,
        settlements: Settlements,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._hot = hot
        self._authentication = authentication
        self._upstreams = upstreams
        self._settlements = settlements
        self._metrics = metrics
        self._bodies = Bodies(settings.bounds)
        self._ids = RequestIds()

    async def handle(self, request: web.BaseRequest) -> Written:
        """Answer one request. Never raises but for cancellation."""
        path, _, query = request.raw_path.partition("?")
        if path in ("/healthz", "/readyz"):
            return self._health(request, path)
        arrival = Arrival(request, path, query, self._ids.next(self._hot.now_ms()), time.monotonic())
        try:
            route = routes.find(request.method, path)
            key = await self._authentication.authenticate(request.headers)
        except (GatewayError, StoreUnavailable) as error:
            return self._refuse(arrival, error)
        try:
            return await self._serve(arrival, route, key)
        except (GatewayError, StoreUnavailable) as error:
            return self._refuse(arrival, error)
        except ClientGoneError:
            return Written(keep_alive=False)
        except Exception as error:  # noqa: BLE001 - the last resort: a mistake of ours ends one request, not the worker
            logs.event("request_failed", error=type(error).__name__, request_id=arrival.request_id)
            return self._refuse(arrival, GatewayError(INTERNAL))

    async def _serve(self, arrival: Arrival, route: Route, key: KnownKey) -> Written:
        with self._bodies.holding() as held:
            try:
                ticket = await self._admit(arrival, route, key, held)
            except GatewayError as error:
                self._hot.count_refusal(key.record.partition, key.record.id, error.kind.status)
                raise
            with Reservation(ticket, self._settlements) as reservation:
                return await self._forward(arrival, route, reservation, held)

    async def _admit(self, arrival: Arrival, route: Route, key: KnownKey, held: Body) -> Ticket:
        """Take the body in, find out where it goes, and reserve what it may cost."""
        await self._bodies.read(arrival.request, held)
        facts = route.dialect.read_request(held.content)
        target = self._upstreams.choose(route, facts.model)
        if not _QUERY.fullmatch(arrival.query):
            raise GatewayError(BAD_HTTP)
        bounds = self._settings.bounds
        asks_for_usage = target.asks_for_usage(facts)
        model = target.model.upstream_model or facts.model
        held.content = route.dialect.outgoing_body(held.content, facts, model, ask_for_usage=asks_for_usage)
        amounts = estimate(facts, target.model, bounds.reserve_output_tokens)
        lease_ms = target.provider.total_timeout_ms + target.provider.drain_ms + _LEASE_MARGIN_MS
        wish = Wish(arrival.request_id, facts.model, amounts, lease_ms, guesses_output=facts.output_max is None)
        try:
            admission = await admit(wish, key, self._hot, self._authentication)
        except StoreUnavailable as away:
            if away.may_have_run:
                self._settlements.give_back(key, wish.request_id, target.model.match)
            raise
        meter = Meter(route.dialect, facts, asks_for_usage=asks_for_usage, max_bytes=bounds.max_metered_bytes)
        return Ticket(admission, target, facts, meter)

    async def _forward(self, arrival: Arrival, route: Route, reservation: Reservation, held: Body) -> Written:
        """Send the request upstream and carry the answer back."""
        target = reservation.ticket.target
        head = target.encode(route, arrival.query, arrival.request.headers, len(held.content))
        headers = route.dialect.limit_headers(reservation.ticket.admission.levels, self._hot.now_ms())
        name = target.provider.name
        try:
            connection = await target.pool.acquire()
            relay = Relay(arrival.request, connection, reservation, headers, held)
            reservation.sent_on(connection)
            self._metrics.overhead_seconds.observe(time.monotonic() - arrival.at)
            with self._metrics.open_streams.track_inprogress():
                await forward(connection, head + held.take(), relay, arrival.request)
        except GatewayError as error:
            self._metrics.upstream_errors.labels(name, error.kind.code).inc()
            raise
        if relay.status >= 400:
            self._metrics.upstream_errors.labels(name, str(relay.status)).inc()
        if relay.status:
            self._metrics.first_byte_seconds.labels(name).observe(relay.first_byte_at - arrival.at)
            self._metrics.total_seconds.labels(name).observe(time.monotonic() - arrival.at)
        self._metrics.requests.labels(route.dialect.name, str(relay.status or CLIENT_GONE)).inc()
        return Written(keep_alive=relay.keep_alive)

    def _refuse(self, arrival: Arrival, error: GatewayError | StoreUnavailable) -> Written:
        """Answer with an error of ours, in the dialect of the path."""
        if isinstance(error, StoreUnavailable):
            error = GatewayError(COUNTERS_UNAVAILABLE, retry_after_ms=_STORE_RETRY_MS)
        dialect = routes.dialect_of_errors(arrival.path)
        headers, body = dialect.error(error, arrival.request_id)
        if isinstance(error, LimitReached):
            headers += dialect.limit_headers(error.levels, self._hot.now_ms())
        self._metrics.refusals.labels(error.kind.code).inc()
        self._metrics.requests.labels(dialect.name, str(error.kind.status)).inc()
        # What of the request was not read cannot be told from the next one.
        return write(arrival.request, error.kind.status, headers, body, close=not arrival.request.content.is_eof())

    def _health(self, request: web.BaseRequest, path: str) -> Written:
        """`/healthz`: the process is alive. `/readyz`: it can admit requests."""
        is_ready = path == "/healthz" or self._hot.is_connected
        body = b"ok\n" if is_ready else b"redis is away\n"
        return write(request, 200 if is_ready else 503, [("content-type", "text/plain")], body)
