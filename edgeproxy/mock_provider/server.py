"""The mock provider's HTTP side: routes, authentication, errors, counts."""

import asyncio
import hmac
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import orjson
from aiohttp import web

from edgeproxy.config import split_address
from edgeproxy.errors import OperatorError
from edgeproxy.mock_provider import anthropic, openai
from edgeproxy.mock_provider.counting import Counts, Served, last_request
from edgeproxy.mock_provider.delivery import GARBAGE, Answer, close_without_answer, deliver
from edgeproxy.mock_provider.directives import Behaviour
from edgeproxy.mock_provider.exchange import Dialect, Exchange, Tokens, exchange_of
from edgeproxy.mock_provider.recordings import read_recording

WRONG_SECRET = "wrong"  # noqa: S105  the one secret that is refused when none is expected
COUNTS = web.AppKey("COUNTS", Counts)

_MAX_BODY_BYTES = 64 * 1024 * 1024  # above what any provider takes
_BACKLOG = 1024  # connections that wait to be accepted: a load test opens hundreds at once
_UNARY_SLICES = 4  # pieces of a unary body that is to break off somewhere
_GARBAGE_HEAD = b"\x16\x03\x01 this is not HTTP\r\n\r\n"
_STREAM_TYPE = "text/event-stream; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Options:
    """How a mock provider was started."""

    expected_secret: str | None = None  # None: any but "" and WRONG_SECRET
    interval_ms: int = 0  # pause between the events of a stream
    recordings: Path | None = None


_ORDINARY_OPTIONS = Options()
_ORDINARY = Behaviour()


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
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
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
    app = web.Application(client_max_size=_MAX_BODY_BYTES)
    app[COUNTS] = counts = Counts()
    mock = _Mock(options, counts)
    app.router.add_get("/__count", mock.report)
    app.router.add_post("/__reset", mock.reset)
    for path in ("/v1/chat/completions", "/chat/completions"):
        app.router.add_post(path, mock.chat_completions)
    app.router.add_post("/v1/messages", mock.messages)
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

    async def chat_completions(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/chat/completions."""
        return await self._handle(request, openai)

    async def messages(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/messages."""
        return await self._handle(request, anthropic)

    async def _handle(self, request: web.Request, dialect: Dialect) -> web.StreamResponse:
        counts = self._counts
        counts.arrived(request.transport.get_extra_info("peername") if request.transport else None)
        try:
            plan = self._plan(request, await request.read(), dialect)
            return await self._carry_out(request, plan)
        finally:
            counts.open -= 1

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
                elif plan.answer and plan.answer.status == 200:
                    row.complete(plan.answer.tokens)

    def _plan(self, request: web.Request, body: bytes, dialect: Dialect) -> _Plan:
        """Decide what this request gets."""
        if not self._note(request, body):
            return _refusal(dialect, 401, "Incorrect API key provided: sk-oper****ator.")
        try:
            exchange = exchange_of(body)
        except ValueError as error:
            return _refusal(dialect, 400, str(error))
        row = self._counts.of_model(exchange.model)
        row.requests += 1
        behaviour = exchange.behaviour
        if behaviour.first is not None and row.requests > behaviour.first:
            behaviour = behaviour.healthy()
            exchange = replace(exchange, behaviour=behaviour)
        return self._answer(dialect, exchange, row)

    def _answer(self, dialect: Dialect, exchange: Exchange, row: Served) -> _Plan:
        behaviour = exchange.behaviour
        if behaviour.no_head or behaviour.garbage_head:
            return _Plan(None, behaviour, (row,))
        if behaviour.status != 200:
            return _refusal(dialect, behaviour.status, "Asked for by the model name.", behaviour, row)
        if not behaviour.recording:
            return _Plan(_made_up(dialect, exchange), behaviour, (row,))
        try:
            return _Plan(self._recorded(behaviour.recording), behaviour, (row,))
        except LookupError as error:
            return _refusal(dialect, 404, str(error.args[0]), behaviour, row)

    def _note(self, request: web.Request, body: bytes) -> bool:
        """Remember what the request looked like; say whether its secret is the expected one."""
        where = "x-api-key" if "x-api-key" in request.headers else "authorization"
        secret = request.headers.get(where, "").removeprefix("Bearer ")
        expected = self._options.expected_secret
        if expected is None:
            accepted = secret not in ("", WRONG_SECRET)
        else:
            accepted = hmac.compare_digest(secret.encode(errors="surrogateescape"), expected.encode())
        encodings = request.headers.get("accept-encoding", "")
        seen = last_request(request.path, body, request.headers, encodings)
        self._counts.last = replace(seen, secret_in=where if secret else "", secret_accepted=accepted)
        return accepted

    def _recorded(self, name: str) -> Answer:
        if self._options.recordings is None:
            raise LookupError("started without --recordings")
        recording = read_recording(self._options.recordings, name)
        headers = {"content-type": recording.content_type}
        if recording.gzipped:
            headers["content-encoding"] = "gzip"
        return Answer(recording.status, headers, recording.events(), recording.tokens)


def _refusal(dialect: Dialect, status: int, message: str, behaviour: Behaviour = _ORDINARY, *rows: Served) -> _Plan:
    headers = {"content-type": "application/json", "set-cookie": "__cf_bm=operators-cookie; path=/"}
    if behaviour.retry_after is not None:
        headers["retry-after"] = str(behaviour.retry_after)
    if status == 401:
        headers["www-authenticate"] = 'Bearer realm="mock"'
    return _Plan(Answer(status, headers, [dialect.error_body(status, message)], Tokens()), behaviour, rows)


def _made_up(dialect: Dialect, exchange: Exchange) -> Answer:
    behaviour = exchange.behaviour
    headers = dialect.answer_headers(exchange)
    headers["content-type"] = _STREAM_TYPE if exchange.streamed else "application/json"
    if behaviour.garbage:
        return Answer(200, headers, [GARBAGE], Tokens())
    if exchange.streamed:
        return Answer(200, headers, dialect.events(exchange), exchange.tokens, dialect.error_event())
    body = dialect.unary(exchange)
    if behaviour.length and not behaviour.gzip:
        headers["content-length"] = str(len(body))
    pieces = _slices(body) if behaviour.fault else [body]
    return Answer(200, headers, pieces, exchange.tokens, dialect.error_event())


def _slices(body: bytes) -> Iterator[bytes]:
    size = max(1, -(-len(body) // _UNARY_SLICES))
    return (body[start : start + size] for start in range(0, len(body), size))
