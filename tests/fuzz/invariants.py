"""What has to hold whatever bytes come: in an answer, a request, a form, a path.

The property tests (`tests/integration/test_any_bytes.py`) and the fuzzer (`fuzzer.py` beside this) check the same here.
Nothing of this knows how a reader works: only what goes in, what comes out, and what must never be.
"""

import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from itertools import cycle

import orjson

from edgeproxy.domain.identifiers import uuid7
from edgeproxy.domain.keys import KeyId
from edgeproxy.domain.reservations import Outcome
from edgeproxy.domain.usage import Usage, UsageEvent, decode_event, encode_event, is_model_name
from edgeproxy.errors import GatewayError
from edgeproxy.gateway import routes
from edgeproxy.gateway.metering import Meter
from edgeproxy.gateway.routes import Query, Route
from edgeproxy.providers import anthropic, gemini, openai, sse
from edgeproxy.providers.base import Body, Headers, Incoming, RequestFacts
from edgeproxy.providers.fields import MAX_COUNT
from edgeproxy.providers.multipart import FormScanner
from edgeproxy.providers.registry import DIALECTS
from tests.support.recordings import REQUEST, WIDE

GEMINI_MODEL = "m"  # as the requests name it
# Every operation there is, of every dialect; and one that hides its bill, for all of its kind.
PATHS = (
    *openai._ENDPOINTS,
    *anthropic._ENDPOINTS,
    *(f"/v1beta/models/{GEMINI_MODEL}:{method}" for method in gemini._METHODS),
    "/v1/batches",
)
KINDS = ("text/event-stream", "application/json", "audio/mpeg", "audio/wav", "text/plain", "")
FORM_TYPE = 'multipart/form-data; boundary="XX"'
OTHER = "another-model"
MOST_PIECES = 300
_FIGURES = [each.name for each in fields(Usage) if each.type in (int, "int")]


@dataclass(frozen=True)
class Answer:
    """How an answer comes: to which request, as what it calls itself, and in which pieces."""

    path: str
    kind: str
    sizes: tuple[int, ...] = ()  # of the pieces, over and over; none: in one piece
    asks: bool = False  # whether we asked for usage that the client did not ask for
    encoding: str = ""
    max_bytes: int = WIDE

    @property
    def is_free(self) -> bool:
        return asked(self.path)[1].is_free

    def meter(self) -> Meter:
        """A meter that has seen the head of this answer."""
        route, facts = asked(self.path)
        meter = Meter(route, facts, asks_for_usage=self.asks, max_bytes=self.max_bytes)
        headers: Headers = [("content-type", self.kind)] if self.kind else []
        meter.begin(200, [*headers, *([("content-encoding", self.encoding)] if self.encoding else [])])
        return meter


@cache
def asked(path: str) -> tuple[Route, RequestFacts]:
    """An ordinary request to this path, which gets the answer."""
    route = routes.find("POST", path, Query(""), {})
    request = {name: value for name, value in REQUEST.items() if name != "prompt" or "responses" not in path}
    body = json.dumps(request | {"stream": True}).encode()
    model = "m" if route.endpoint.body is Body.FORM else route.model
    return route, route.endpoint.read_request(Incoming("POST", body, len(body), model))


def check_answer(answer: Answer, body: bytes) -> Usage:
    """Any bytes pass, and are charged something that can be kept. Returns what."""
    meter = answer.meter()
    passed = []
    for number, piece in enumerate(cut(body, answer.sizes)):
        passed.append(meter.feed(piece))
        if number % 50 == 0:  # a client can leave at any time
            check_usage(meter.charge(written=True).usage)
    passed.append(meter.end())
    charge = meter.charge(written=True)
    check_usage(charge.usage)
    if answer.is_free:
        assert (charge.outcome, charge.usage) == (Outcome.VOID, Usage())
    else:
        assert charge.outcome is Outcome.POST
    if meter.may_change_length:
        check_taken_out(b"".join(passed), body)
    else:
        assert b"".join(passed) == body
    return charge.usage


def check_any_answer(answer: Answer, body: bytes) -> None:
    """Beyond that: what is charged does not hang on how it came, and what tells no usage is an estimate."""
    usage = check_answer(answer, body)
    assert check_answer(replace(answer, sizes=()), body) == usage or answer.max_bytes < WIDE
    if answer.encoding == "" and answer.max_bytes == WIDE and not answer.asks:
        packed = gzip.compress(body, 1, mtime=0)
        assert check_answer(replace(answer, encoding="gzip"), packed) == usage
    if answer.encoding in ("", "identity") and b"usage" not in body and b"\\u" not in body:
        assert usage.estimated or answer.is_free


def check_usage(usage: Usage) -> None:
    """The normal form holds: counts that Redis can add up, names that may be kept, parts that are the whole."""
    for each in (usage, *usage.parts):
        for name in _FIGURES:
            figure = getattr(each, name)
            assert type(figure) is int, (name, each)
            assert 0 <= figure <= MAX_COUNT, (name, each)
        assert each.input_total + each.output < 2**53, each
        assert each.reasoning <= each.output, each
        assert each.cache_write_1h <= each.cache_write, each
        assert each.model == "" or is_model_name(each.model), each
        assert list(each.tool_calls) == sorted(dict(each.tool_calls).items()), each
        assert all(len(name) < 64 and 0 < number <= MAX_COUNT for name, number in each.tool_calls), each
        assert each.cost_nanos is None or 0 <= each.cost_nanos <= MAX_COUNT, each
    if usage.parts:
        for name in _FIGURES:
            total = sum(getattr(part, name) for part in usage.parts)
            assert getattr(usage, name) == min(total, MAX_COUNT), (name, usage)
    assert len(usage.tool_calls) + len(usage.parts) < 64
    event = UsageEvent(uuid7(1, 0), KeyId("k"), "m", 200, usage, 1)
    kept = decode_event(encode_event(event)).usage
    assert (kept.input_total, kept.output) == (usage.input_total, usage.output)


def check_taken_out(passed: bytes, body: bytes) -> None:
    """What passed is what came, but for whole events that say nothing but the usage that only we had asked for."""
    at = 0
    for event in sse.events(body):
        if passed.startswith(event, at):
            at += len(event)
        else:
            assert is_usage_chunk(event), event
    assert at == len(passed)


def is_usage_chunk(event: bytes) -> bool:
    """Whether this is a chunk without choices that has usage. Written apart from the code under test."""
    lines = event.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    try:
        chunk = orjson.loads(b"\n".join(line[5:] for line in lines if line[:5] == b"data:"))
    except ValueError:
        return False
    return isinstance(chunk, dict) and chunk.get("choices") == [] and isinstance(chunk.get("usage"), dict)


def check_request(path: str, body: bytes) -> RequestFacts | None:
    """Any bytes are understood, or refused with a 400. What is sent on says the same, with another model's name."""
    route = routes.find("POST", path, Query(""), {})
    endpoint = route.endpoint
    model = "m" if endpoint.body is Body.FORM else route.model
    try:
        facts = endpoint.read_request(Incoming("POST", body, len(body), model))
    except GatewayError as error:
        _is_status_of(error, 400)
        return None
    assert facts.model
    assert 0 < facts.input_estimate < 2**53 or facts.is_free or endpoint.body is Body.ANY
    assert facts.output_max is None or facts.output_max >= 0
    assert endpoint.outgoing_body(body, facts, facts.model, ask_for_usage=False) is body
    if endpoint.body is Body.JSON:
        check_outgoing(route, body, facts)
    return facts


def check_outgoing(route: Route, body: bytes, facts: RequestFacts) -> None:
    """A body that is changed on its way says what it said before."""
    endpoint = route.endpoint
    asks = facts.stream and not facts.usage_requested
    try:
        sent = endpoint.outgoing_body(body, facts, OTHER, ask_for_usage=asks)
    except GatewayError as error:
        _is_status_of(error, 400)
        return
    again = endpoint.read_request(Incoming("POST", sent, len(sent), OTHER if route.model else ""))
    assert (again.model, again.stream, again.output_max) == (OTHER, facts.stream, facts.output_max)
    assert (again.is_free, again.features, again.long_cache) == (facts.is_free, facts.features, facts.long_cache)
    assert again.usage_requested or not asks
    if not route.model:
        options = {"stream_options": {**(facts.stream_options or {}), "include_usage": True}} if asks else {}
        assert orjson.loads(sent) == {**orjson.loads(body), **options, "model": OTHER}


def check_form(content_type: str, body: bytes, sizes: Sequence[int]) -> None:
    """Any bytes are a form with one model, or refused with a 400; the same wherever the network cut them."""
    whole = _scanned(content_type, [body])
    assert _scanned(content_type, list(cut(body, sizes))) == whole
    if whole is not None:
        model, (start, end) = whole
        assert body[start:end] == model.encode()
        assert model.isprintable()


def _scanned(content_type: str, pieces: list[bytes]) -> tuple[str, tuple[int, int]] | None:
    """The model in a form and where it stands, None when the form is refused."""
    try:
        form = FormScanner(content_type)
        for piece in pieces:
            form.feed(piece)
        form.end()
    except GatewayError as error:
        _is_status_of(error, 400)
        return None
    return form.model, form.model_span


def check_path(method: str, path: str, query: str, headers: dict[str, str]) -> None:
    """Any path is served or refused; what is sent on stays in its place, and can stand in a request line."""
    try:
        route = routes.find(method, path, Query(query), headers)
    except GatewayError as error:
        _is_status_of(error, 404, 405, 426)
        return
    assert route.dialect is routes.dialect_of(method, path, Query(query), headers)
    if route.endpoint.body is Body.NONE:
        return
    sent = route.upstream_path("/base/v1", route.model)
    assert sent.startswith("/base/")
    assert sent.isascii()
    assert sent.isprintable()
    assert not set(sent) & set(" ?#\\")
    assert ".." not in sent.split("/")
    passed = Query(query).only(route.dialect.query)
    assert "key" not in Query(passed).parameters()


def check_error_body(body: bytes) -> None:
    """Whether any body of a provider's error is about our secret can be told."""
    for dialect in DIALECTS.values():
        assert dialect.is_credentials_error(body) in (True, False)


def _is_status_of(error: GatewayError, *statuses: int) -> None:
    assert error.kind.status in statuses, error


def cut(body: bytes, sizes: Sequence[int]) -> Iterator[bytes]:
    """The pieces of a body: of these sizes, over and over; of a long one the middle comes in one piece."""
    edge = MOST_PIECES // 2 * sum(sizes) // max(1, len(sizes))
    middle = body[edge:-edge] if len(body) > 2 * edge else b""
    for part in (body[:edge], body[-edge:]) if middle else (body,):
        at = 0
        for size in cycle(sizes or (len(body) + 1,)):
            if at >= len(part):
                break
            yield part[at : at + size]
            at += size
        if middle:
            yield middle
            middle = b""
