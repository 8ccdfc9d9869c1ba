"""The mock provider's HTTP side: routes, authentication, errors, counts."""

import asyncio
import hmac
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import orjson
from aiohttp import web

from edgeproxy import logs
from edgeproxy.addresses import split_address
from edgeproxy.errors import OperatorError
from edgeproxy.mock_provider.counting import Counts, Served, last_request
from edgeproxy.mock_provider.delivery import GARBAGE, Answer, close_without_answer, deliver
from edgeproxy.mock_provider.directives import Behaviour
from edgeproxy.mock_provider.endpoint import Bill, Endpoint, Incoming, Problem, free
from edgeproxy.mock_provider.exchange import Exchange, Tokens
from edgeproxy.mock_provider.recordings import read_recording, slices
from edgeproxy.mock_provider.routes import routes

WRONG_SECRET = "wrong"  # noqa: S105  the one secret that is refused when none is expected
COUNTS = web.AppKey("COUNTS", Counts)

_MAX_BODY_BYTES = 64 * 1024 * 1024  # above what any provider takes
_BACKLOG = 1024  # connections that wait to be accepted: a load test opens hundreds at once
_GARBAGE_HEAD = b"\x16\x03\x01 this is not HTTP\r\n\r\n"
_WRONG_KEY = "Incorrect API key provided: sk-oper****ator."
_SECRET_HEADERS = ("x-goog-api-key", "x-api-key", "authorization")


@dataclass(frozen=True, slots=True)
class Options:
    """How a mock provider was started."""

    expected_secret: str | None = None  # None: any but "" and WRONG_SECRET
    interval_ms: int = 0  # pause between the events of a stream
    recordings: Path | None = None


_ORDINARY_OPTIONS = Options()


@dataclass(frozen=True, slots=True)
class RunningMock:
    """A mock provider that is listening."""

    host: str
    port: int
    counts: Counts

    @property
    def url(self) -> str:
        """Base address without a path: what goes into `base_url` of a provider."""
        return f"http://{self.host}:{self.port}"


@asynccontextmanager
async def running(
    listen: str | socket.socket = "127.0.0.1:0", options: Options = _ORDINARY_OPTIONS
) -> AsyncIterator[RunningMock]:
    """Listen on `listen` ("HOST:PORT", port 0 = any free one; or a bound socket) until the block ends.

    Raises OperatorError when the address cannot be used or there is no such folder of recordings.
    """
    if options.recordings is not None and not options.recordings.is_dir():
        raise OperatorError(f"--recordings: {options.recordings} is not a folder")
    app = make_app(options)
    # No access log: it would print paths with query strings. Handlers end when their client leaves, even in a pause.
    silent = logs.silent()
    runner = web.AppRunner(app, access_log=None, logger=silent, handler_cancellation=True, shutdown_timeout=1.0)
    await runner.setup()
    try:
        try:
            await _site(runner, listen).start()
        except OSError as error:
            raise OperatorError(f"cannot listen on {listen}: {error.strerror}") from None
        address = runner.addresses[0]
        yield RunningMock(host=str(address[0]), port=int(address[1]), counts=app[COUNTS])
    finally:
        await runner.cleanup()


def _site(runner: web.AppRunner, listen: str | socket.socket) -> web.BaseSite:
    if isinstance(listen, socket.socket):
        return web.SockSite(runner, listen, backlog=_BACKLOG)
    host, port = split_address(listen)
    return web.TCPSite(runner, host, port, backlog=_BACKLOG)


def make_app(options: Options = _ORDINARY_OPTIONS) -> web.Application:
    """Build the application; its counts are `app[COUNTS]`."""
    app = web.Application()
    app[COUNTS] = counts = Counts()
    mock = _Mock(options, counts)
    app.router.add_get("/__count", mock.report)
    app.router.add_post("/__reset", mock.reset)
    for method, path, endpoint in routes():
        app.router.add_route(method, path, partial(mock.handle, endpoint))
    return app


@dataclass(frozen=True, slots=True)
class _Plan:
    """What one request gets: the answer (None: no HTTP answer), how it is sent, where else it counts."""

    answer: Answer | None
    behaviour: Behaviour
    rows: tuple[Served, ...] = ()


class _Mock:
    """The handlers; one per application."""

    def __init__(self, options: Options, counts: Counts) -> None:
        self._options = options
        self._counts = counts

    async def report(self, _request: web.Request) -> web.Response:
        """GET /__count."""
        return web.Response(body=orjson.dumps(self._counts.snapshot()), content_type="application/json")

    async def reset(self, _request: web.Request) -> web.Response:
        """POST /__reset."""
        self._counts.reset()
        return web.Response(status=204)

    async def handle(self, endpoint: Endpoint, request: web.Request) -> web.StreamResponse:
        """Answer one request to one of the endpoints."""
        counts = self._counts
        counts.arrived(request.transport.get_extra_info("peername") if request.transport else None)
        body = bytearray()
        try:
            await self._receive(request, body)
            return await self._carry_out(request, self._plan(request, bytes(body), endpoint))
        finally:
            counts.open -= 1
            counts.receiving_bytes -= len(body)

    async def _receive(self, request: web.Request, body: bytearray) -> None:
        """Read the body as it comes, so that it can be seen to come. Forms, too, stay in memory: none is spooled."""
        async for part in request.content.iter_any():
            body += part
            self._counts.receiving_bytes += len(part)
            if len(body) > _MAX_BODY_BYTES:
                raise web.HTTPRequestEntityTooLarge(_MAX_BODY_BYTES, len(body))

    async def _carry_out(self, request: web.Request, plan: _Plan) -> web.StreamResponse:
        rows = [self._counts.total, *plan.rows]
        complete = False
        try:
            await asyncio.sleep(plan.behaviour.first_byte_ms / 1000)
            if plan.answer is None:
                return close_without_answer(request, _GARBAGE_HEAD if plan.behaviour.garbage_head else b"")
            self._counts.by_status[str(plan.answer.status)] += 1
            for row in rows:
                row.started += 1
            interval_ms = plan.behaviour.interval_ms
            pace_ms = self._options.interval_ms if interval_ms is None else interval_ms
            response, complete = await deliver(request, plan.answer, plan.behaviour, pace_ms / 1000)
            return response
        finally:
            # No await since the last byte left: whoever has the whole answer finds it counted.
            for row in rows:
                if not complete:
                    row.broken += 1
            if complete and plan.answer and plan.answer.status == 200:
                self._bill(plan.answer.bill, rows)

    def _bill(self, bill: Bill, rows: list[Served]) -> None:
        whole = sum(bill.values(), Tokens())
        for row in rows:
            row.complete(whole)
        for model, tokens in bill.items():
            self._counts.of_billed_model(model).complete(tokens)

    def _plan(self, request: web.Request, body: bytes, endpoint: Endpoint) -> _Plan:
        """Decide what this request gets."""
        accepted = self._note(request, body)
        incoming = Incoming(
            body=body,
            content_type=request.headers.get("content-type", ""),
            path_model=request.match_info.get("model", ""),
            query=request.query,
        )
        try:
            exchange = endpoint.read(incoming)
        except ValueError as error:
            problem = Problem(400, str(error)) if accepted else Problem(401, _WRONG_KEY, wrong_key=True)
            return _refusal(endpoint, problem)
        if not accepted:
            problem = Problem(401, _WRONG_KEY, exchange.behaviour, wrong_key=True, array=exchange.array)
            return _refusal(endpoint, problem)
        if not exchange.model:
            return _Plan(_made_up(endpoint, exchange), exchange.behaviour)
        row = self._counts.of_model(exchange.model)
        row.requests += 1
        behaviour = exchange.behaviour
        if behaviour.first is not None and row.requests > behaviour.first:
            exchange = replace(exchange, behaviour=behaviour.healthy())
        return replace(self._answer(endpoint, exchange), rows=(row,))

    def _answer(self, endpoint: Endpoint, exchange: Exchange) -> _Plan:
        behaviour = exchange.behaviour
        if behaviour.no_head or behaviour.garbage_head:
            return _Plan(None, behaviour)
        if behaviour.status != 200:
            problem = Problem(behaviour.status, "Asked for by the model name.", behaviour, array=exchange.array)
            return _refusal(endpoint, problem)
        if not behaviour.recording:
            return _Plan(_made_up(endpoint, exchange), behaviour)
        try:
            return _Plan(self._recorded(endpoint, exchange), behaviour)
        except LookupError as error:
            return _refusal(endpoint, Problem(404, str(error.args[0]), behaviour, array=exchange.array))

    def _note(self, request: web.Request, body: bytes) -> bool:
        """Remember what the request looked like; say whether its secret is the expected one."""
        where = next((name for name in _SECRET_HEADERS if request.headers.get(name)), "")
        secret = request.headers.get(where, "").removeprefix("Bearer ")
        if "key" in request.query:
            self._counts.keys_in_query += 1
            secret, where = secret or request.query["key"], "query"
        expected = self._options.expected_secret
        if expected is None:
            accepted = secret not in ("", WRONG_SECRET)
        else:
            accepted = hmac.compare_digest(secret.encode(errors="surrogateescape"), expected.encode())
        encodings = request.headers.get("accept-encoding", "")
        seen = last_request(request.path, body, request.headers, encodings)
        query = tuple(sorted(request.query))
        self._counts.last = replace(seen, query=query, secret_in=where if secret else "", secret_accepted=accepted)
        return accepted

    def _recorded(self, endpoint: Endpoint, exchange: Exchange) -> Answer:
        if self._options.recordings is None:
            raise LookupError("started without --recordings")
        recording = read_recording(self._options.recordings, exchange.behaviour.recording)
        bill = {} if endpoint.bill is free else recording.bill
        error_event = endpoint.error_event(exchange)
        return Answer(recording.status, recording.headers, recording.pieces(), bill, error_event)


def _refusal(endpoint: Endpoint, problem: Problem) -> _Plan:
    refused = endpoint.dialect.refusal(problem)
    return _Plan(Answer(refused.status, refused.headers, [refused.body]), problem.behaviour)


def _made_up(endpoint: Endpoint, exchange: Exchange) -> Answer:
    behaviour = exchange.behaviour
    if endpoint.events is None:
        exchange = replace(exchange, streamed=False)
    headers = endpoint.dialect.answer_headers(exchange)
    headers["content-type"] = endpoint.content_type(exchange)
    if behaviour.garbage:
        return Answer(200, headers, [GARBAGE])
    bill, error_event = endpoint.bill(exchange), endpoint.error_event(exchange)
    if endpoint.events is not None and exchange.streamed:
        return Answer(200, headers, endpoint.events(exchange), bill, error_event)
    body = endpoint.unary(exchange)
    if behaviour.length and not behaviour.gzip:
        headers["content-length"] = str(len(body))
    return Answer(200, headers, slices(body) if behaviour.fault else [body], bill, error_event)
