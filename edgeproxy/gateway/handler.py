"""The way of a request, top to bottom: every stage is one call, and returns the ticket of the next.

Whatever happens, a client gets one answer in its own dialect; and what was admitted is settled, once.
"""

import time
from dataclasses import replace

from edgeproxy import logs
from edgeproxy.config import Settings
from edgeproxy.domain.keys import Reserve
from edgeproxy.domain.peers import Peers
from edgeproxy.domain.records import record
from edgeproxy.errors import (
    COUNTERS_UNAVAILABLE,
    HTTPS_REQUIRED,
    INTERNAL,
    UPGRADE_REFUSED,
    GatewayError,
    StoreUnavailable,
)
from edgeproxy.gateway import listing, routes
from edgeproxy.gateway.access import AccessLog
from edgeproxy.gateway.admission import LimitReached, RequestIds, Wish, admit, admit_upstream
from edgeproxy.gateway.answers import Written, write
from edgeproxy.gateway.authentication import Authentication, KnownKey
from edgeproxy.gateway.connections import Connection
from edgeproxy.gateway.forwarding import Drains, Relay, forward
from edgeproxy.gateway.metering import Meter
from edgeproxy.gateway.origins import Origins
from edgeproxy.gateway.receiving import Bodies, Body, ClientGoneError, Upload
from edgeproxy.gateway.requests import Request
from edgeproxy.gateway.routes import NO_QUERY, Query, Route
from edgeproxy.gateway.settlement import CLIENT_GONE, Reservation, Settlements, Ticket
from edgeproxy.gateway.upstream import Upstreams
from edgeproxy.hotstate.commands import HotState
from edgeproxy.metrics import Metrics
from edgeproxy.providers.base import Body as BodyKind
from edgeproxy.providers.base import Incoming
from edgeproxy.providers.multipart import FormScanner

_OWN_PATHS = ("/", "/healthz", "/readyz")
_STORE_RETRY_MS = 1000


@record
class Arrival:
    """A request as it came in: where it goes, when it came, and the id that its answer and its usage event carry."""

    request: Request
    path: str
    query: Query
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
        self._access = AccessLog(settings.logs)
        self._bodies = Bodies(settings.bounds)
        self._lease_s = settings.stores.lease_ms / 1000
        self._drains = Drains(settings.bounds.max_drained)
        self._origins = Origins(settings.listen.cors_origins)
        self._ids = RequestIds()
        self._peers = Peers(settings.listen.trusted_proxies)
        self.is_draining = False  # a stop is near: what can go elsewhere should

    async def handle(self, request: Request) -> Written:
        """Answer one request. Never raises but for cancellation."""
        path, _, query = request.raw_path.partition("?")
        if path in _OWN_PATHS or request.method == "OPTIONS":
            own = self._own_answer(request, path)
            if own is not None:
                return own
        asked = Query(query) if query else NO_QUERY
        arrival = Arrival(request, path, asked, self._ids.next(self._hot.now_ms()), time.monotonic())
        try:
            if "x-forwarded-proto" in request.headers:
                self._require_https(request)
            route = routes.find(request.method, path, arrival.query, request.headers)
            key = self._authentication.known(request.headers)
            if key is None:
                query_key = arrival.query.get("key") if route.dialect.name == "gemini" else ""
                key = await self._authentication.authenticate(request.headers, query_key)
            if route.endpoint.body is not BodyKind.NONE:
                return await self._serve(arrival, route, key)
            key = await self._authentication.look_again(key)  # it may have been revoked, and nothing will be reserved
            body = listing.answer(route, key.record, self._upstreams, arrival.query)
            return self._answer(arrival, route, body)
        except (GatewayError, StoreUnavailable) as error:
            return self._refuse(arrival, error)
        except ClientGoneError:
            return Written(keep_alive=False)
        except Exception as error:  # noqa: BLE001 - the last resort: a mistake of ours ends one request, not the worker
            logs.event("request_failed", error=type(error).__name__, request_id=arrival.request_id)
            return self._refuse(arrival, GatewayError(INTERNAL))

    def _require_https(self, request: Request) -> None:
        """Refuse what a proxy that is trusted took in clear, before its key is looked at. Raises GatewayError."""
        if self._peers.came_plain(request.remote, request.values("x-forwarded-proto")):
            raise GatewayError(HTTPS_REQUIRED)

    async def _serve(self, arrival: Arrival, route: Route, key: KnownKey) -> Written:
        with Body(self._bodies) as held:
            try:
                if route.endpoint.body is BodyKind.JSON and arrival.request.whole:
                    self._bodies.read_whole(arrival.request, held)
                    incoming, form = Incoming(arrival.request.method, held.content, held.size, route.model), None
                else:
                    incoming, form = await self._take_in(arrival.request, route, held)
                ticket = await self._admit(arrival, route, key, incoming, held)
            except GatewayError as error:
                self._hot.count_refusal(key.record.partition, key.record.id, error.kind.status)
                self._access.refused(arrival.request_id, key.record.id, error.kind)
                raise
            except StoreUnavailable:
                self._access.refused(arrival.request_id, key.record.id, COUNTERS_UNAVAILABLE)
                raise
            with Reservation(ticket, self._settlements, self._access) as reservation:
                return await self._forward(arrival, route, reservation, held, form)

    async def _take_in(self, request: Request, route: Route, held: Body) -> tuple[Incoming, FormScanner | None]:
        """Take in as much of the body as has to be known; of a form the beginning, and who goes on reading it."""
        kind = route.endpoint.body
        if kind is BodyKind.ANY:
            return Incoming(request.method, b"", request.content_length or 0), None
        if kind is BodyKind.JSON:
            await self._bodies.read(request, held)
            return Incoming(request.method, held.content, len(held.content), route.model), None
        form = FormScanner(request.headers.get("content-type", ""))

        def is_enough(chunk: bytes) -> bool:
            form.feed(chunk)
            return form.found

        await self._bodies.read(request, held, is_enough)
        if request.is_read:
            form.end()
        # A form that does not say how long it is may be as long as any: what it is charged follows what comes.
        size = request.content_length or self._settings.bounds.max_body_bytes
        return Incoming(request.method, held.content, size, form.model, form.model_span), form

    async def _admit(self, arrival: Arrival, route: Route, key: KnownKey, incoming: Incoming, held: Body) -> Ticket:
        """Find out where the request goes, and reserve what it may cost."""
        strict = key.record.reserve is Reserve.STRICT
        facts = route.endpoint.read_request(replace(incoming, strict=True) if strict else incoming)
        target = self._upstreams.choose(route, facts)
        if facts.features:
            facts = target.with_charges(facts)
        bounds = self._settings.bounds
        asks_for_usage = target.asks_for_usage(facts)
        model = target.model.upstream_model or facts.model
        if asks_for_usage or model != facts.model:
            held.content = route.endpoint.outgoing_body(held.content, facts, model, ask_for_usage=asks_for_usage)
        size = max(incoming.size, len(held.content))
        wish = Wish(arrival.request_id, facts, target.model, size, bounds.reserve_output_tokens)
        give_back = self._settlements.give_back
        admission = await admit(wish, key, self._hot, self._authentication, give_back)
        try:
            if target.shared is not None:
                admission = await admit_upstream(admission, target.shared, self._hot, give_back)
            if admission.observed is not None:
                self._metrics.observed_refusals.labels(admission.observed.name.lower()).inc()
            if admission.lowered_output is not None:
                held.content = route.endpoint.with_output_max(held.content, facts, admission.lowered_output)
                facts = replace(facts, output_max=admission.lowered_output)
            meter = Meter(route, facts, asks_for_usage=asks_for_usage, max_bytes=bounds.max_metered_bytes)
        except BaseException:  # refused there, or cancelled: nothing was sent, and nothing is charged
            for hold in admission.holds:
                give_back(hold)
            raise
        return Ticket(admission, target, facts, meter)

    async def _forward(
        self, arrival: Arrival, route: Route, reservation: Reservation, held: Body, form: FormScanner | None
    ) -> Written:
        """Send the request upstream and carry the answer back."""
        target = reservation.ticket.target
        request = arrival.request
        upload, length = self._rest(request, held, form)
        if form is not None and request.content_length is None:
            reservation.ticket.meter.received = held.received
        head = target.encode(request.method, route, arrival.query, request.headers, length)
        headers = route.dialect.limit_headers(reservation.ticket.admission.levels, self._hot.now_ms())
        if self._origins.allowed:
            headers += self._origins.headers(request.headers)
        name = target.provider.name
        try:
            connection = None if upload is not None else target.pool.idle()
            if connection is None:
                connection = await target.pool.acquire(for_upload=upload is not None)
            self._require_held(reservation, connection)
            relay = Relay(request, connection, reservation, headers, held, self._drains)
            reservation.sent_on(connection)
            self._metrics.overhead_seconds.observe(time.monotonic() - arrival.at)
            body = held.take() if upload is None else upload.framed(held.take())
            self._metrics.open_streams.inc()
            try:
                await forward(connection, head + body, relay, request, upload)
            finally:
                self._metrics.open_streams.dec()
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

    def _require_held(self, reservation: Reservation, connection: Connection) -> None:
        """Send nothing for which nothing may be reserved any more. Raises GatewayError."""
        if not reservation.is_held(self._lease_s):
            connection.abort()
            raise GatewayError(COUNTERS_UNAVAILABLE, retry_after_ms=_STORE_RETRY_MS)

    def _rest(self, request: Request, held: Body, form: FormScanner | None) -> tuple[Upload | None, int | None]:
        """Return what of the body is still to come, None if nothing is; and how long the whole is, as it is sent.

        Raises GatewayError when it is a form that was cut short.
        """
        if request.is_read:
            if form is not None:
                form.end()
            return None, len(held.content)
        declared = request.content_length
        upload = Upload(self._bodies, request, held, form, is_chunked=declared is None)
        return upload, None if declared is None else declared - held.size + len(held.content)

    def _refuse(self, arrival: Arrival, error: GatewayError | StoreUnavailable) -> Written:
        """Answer with an error of ours, in the dialect of the path."""
        if isinstance(error, StoreUnavailable):
            error = GatewayError(COUNTERS_UNAVAILABLE, retry_after_ms=_STORE_RETRY_MS)
        request = arrival.request
        dialect = routes.dialect_of(request.method, arrival.path, arrival.query, request.headers)
        headers, body = dialect.error(error, arrival.request_id)
        if isinstance(error, LimitReached):
            headers += dialect.limit_headers(error.levels, self._hot.now_ms())
        if error.kind is UPGRADE_REFUSED:
            headers.append(("upgrade", "HTTP/1.1"))  # RFC 9110, 15.5.22: what to use instead
        self._metrics.refusals.labels(error.kind.code).inc()
        self._metrics.requests.labels(dialect.name, str(error.kind.status)).inc()
        return write(request, error.kind.status, headers + self._origins.headers(request.headers), body)

    def _answer(self, arrival: Arrival, route: Route, body: bytes) -> Written:
        """Answer with a page of ours, in the dialect of the route."""
        headers = [("content-type", "application/json"), *route.dialect.incoming_headers(200, [], arrival.request_id)]
        headers += self._origins.headers(arrival.request.headers)
        self._metrics.requests.labels(route.dialect.name, "200").inc()
        return write(arrival.request, 200, headers, body)

    def _own_answer(self, request: Request, path: str) -> Written | None:
        """Answer what needs no key: a page of our own, a browser's question."""
        if path in _OWN_PATHS:
            return self._own_page(request, path)
        preflight = self._origins.preflight(request.method, path, request.headers)
        return None if preflight is None else write(request, 200, preflight, b"")

    def _own_page(self, request: Request, path: str) -> Written:
        """`/`: there is a gateway here. `/healthz`: the process is alive. `/readyz`: it can admit requests."""
        reasons = []
        if path == "/readyz":
            reasons += [b"draining\n"] if self.is_draining else []
            if not self._hot.watch.any_open:
                is_there = self._hot.is_connected
                reasons.append(b"redis waits to be compared with postgresql\n" if is_there else b"redis is away\n")
        status = 503 if reasons else 200
        return write(request, status, [("content-type", "text/plain")], b"".join(reasons) or b"ok\n")
