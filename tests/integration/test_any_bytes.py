"""Whatever bytes come, from a provider or from a client: nothing breaks, nothing is held, and something is charged.

What has to hold is told by `tests/fuzz/invariants.py`. Here it is tried on bytes without any order, on answers as they
really are and spoiled, and on JSON that has the right names in the wrong places. `make fuzz` looks further.
"""

import copy
import gzip
import json
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeproxy.errors import GatewayError
from edgeproxy.gateway import routes
from edgeproxy.gateway.routes import Query
from edgeproxy.providers import anthropic, gemini, openai, sse
from edgeproxy.providers.base import Body, Incoming
from tests.fuzz import targets
from tests.fuzz.invariants import (
    FORM_TYPE,
    KINDS,
    OTHER,
    PATHS,
    Answer,
    check_answer,
    check_any_answer,
    check_error_body,
    check_form,
    check_path,
    check_request,
)
from tests.support.recordings import WIDE, Recording, all_recordings

RECORDINGS = all_recordings()
FOUND = Path(__file__).parents[1] / "fuzz" / "found"
LONGEST = 8 * 1024  # of a recording that is spoiled: its beginning and its end
MANY = settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])

# Names and values that readers look for: the right ones, in any place.
NAMES = (
    *("usage", "usageMetadata", "type", "message", "response", "delta", "choices", "error", "model", "modelVersion"),
    *("prompt_tokens", "completion_tokens", "total_tokens", "input_tokens", "output_tokens", "cached_tokens", "cost"),
    *("prompt_tokens_details", "completion_tokens_details", "reasoning_tokens", "cost_in_usd_ticks", "total_cost"),
    *("input_tokens_details", "output_tokens_details", "cache_write_tokens", "cache_write_tokens_details", "item"),
    *("cache_read_input_tokens", "cache_creation_input_tokens", "cache_creation", "ephemeral_1h_input_tokens"),
    *("iterations", "server_tool_use", "web_search_requests", "stop_reason", "finish_reason", "tool_usage", "output"),
    *("image_gen", "web_search", "num_requests", "tools", "server_side_tool_usage_details", "web_search_calls"),
    *("promptTokenCount", "candidatesTokenCount", "thoughtsTokenCount", "totalTokenCount", "toolUsePromptTokenCount"),
    *("cachedContentTokenCount", "candidates", "content", "parts", "text", "finishReason", "index", "promptFeedback"),
    *(
        "blockReason",
        "groundingMetadata",
        "webSearchQueries",
        "functionCall",
        "data",
        "duration",
        "seconds",
        "svg_usage",
    ),
)
WORDS = (
    *("message_start", "message_delta", "message_stop", "error", "response.completed", "response.failed", "STOP"),
    *("response.output_item.done", "response.output_text.delta", "web_search_call", "image_generation_call"),
    *("advisor_message", "compaction", "fallback_message", "stop", "end_turn", "transcript.text.delta"),
    *("speech.audio.delta", "image_generation.partial_image", "image_generation.completed", "m", "../m", "", "\0"),
)
EXTREMES = (0, 1, 100, -1, 2**31, 2**50, 2**50 + 1, 2**53, 2**63, 2**64, 10**30, 0.5, -0.0, 1e308, 5e-324)
numbers = st.one_of(st.integers(0, 100), st.sampled_from(EXTREMES))
scalars = st.one_of(numbers, st.sampled_from(WORDS), st.sampled_from((None, True, False)), st.text(max_size=4))
trees = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(NAMES), inner, max_size=5)),
    max_leaves=12,
)
objects = st.dictionaries(st.sampled_from(NAMES), trees, min_size=1, max_size=8)
LIKELY_KINDS = (*KINDS[:1] * 4, *KINDS[1:2] * 3, *KINDS)
sizes = st.lists(st.sampled_from((1, 1, 2, 3, 7, 50, 200)), max_size=4).map(tuple)


@st.composite
def answers(draw: st.DrawFn) -> Answer:
    """Any answer to any request: bounded widely, so that how it is cut makes no difference."""
    path, kind = draw(st.sampled_from(PATHS)), draw(st.sampled_from(LIKELY_KINDS))
    return Answer(path, kind, draw(sizes), asks=draw(st.booleans()))


@st.composite
def framed(draw: st.DrawFn) -> bytes:
    """JSON with the right names: bare, as the array of a stream, or as events of one kind or another."""
    values = [json.dumps(value).encode() for value in draw(st.lists(objects, min_size=1, max_size=4))]
    newline = draw(st.sampled_from((b"\n", b"\r\n", b"\r")))
    match draw(st.integers(0, 4)):
        case 0:
            return b"\n" * draw(st.integers(0, 2)) + values[0]
        case 1:
            return b"[" + b"\n,\r\n".join(values) + draw(st.sampled_from((b"]", b"", b"\n]", b",")))
        case _:  # most often
            events = [b"event: x" + newline + b"data: " + value + newline * 2 for value in values]
            return b"".join(events) + draw(st.sampled_from((b"", b"data: [DONE]" + newline * 2, b"data: {")))


@st.composite
def spoiled(draw: st.DrawFn, whole: bytes) -> bytes:
    """The bytes of something real with a few changes: bytes replaced, parts taken out, doubled or put elsewhere."""
    body = bytearray(whole if len(whole) <= LONGEST else whole[: LONGEST // 2] + whole[-LONGEST // 2 :])
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(body)))
        end = min(len(body), start + draw(st.sampled_from((1, 2, 10, 100, 1000))))
        match draw(st.sampled_from(("flip", "cut", "double", "splice", "end", "number"))):
            case "flip":
                body[start:end] = bytes(byte ^ 1 << draw(st.integers(0, 7)) for byte in body[start : start + 1])
            case "cut":
                del body[start:end]
            case "double":
                body[start:start] = body[start:end]
            case "splice":
                other = draw(st.sampled_from(RECORDINGS)).body
                at = draw(st.integers(0, len(other)))
                body[start:end] = other[at : at + 500]
            case "number":
                body[:] = body.replace(b": 1", b": " + str(draw(numbers)).encode())
            case "end":
                del body[start:]
    return bytes(body)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in JSON that has a value: what holds it, and at which name or index."""
    for at, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, at
        if isinstance(inner, dict | list):
            yield from places(inner)


def reshaped(body: bytes, random: Random) -> bytes:
    """The same JSON with some values put elsewhere, left out, or replaced by extremes; not JSON: the same."""
    try:
        value = json.loads(body)
    except ValueError:
        return body
    for _ in range(random.choice((0, 1, 2, 6))):
        found = list(places(value)) if isinstance(value, dict | list) else []
        if not found:
            break
        numeric = [(row, at) for row, at in found if isinstance(row[at], int)]
        row, at = random.choice(numeric if numeric and random.random() < 0.6 else found)
        match random.choice(("number", "number", "word", "none", "other", "more", "gone")):
            case "number":
                row[at] = random.choice(EXTREMES)
            case "word":
                row[at] = random.choice(WORDS)
            case "none":
                row[at] = None
            case "other":
                holder, place = random.choice(found)
                row[at] = copy.deepcopy(holder[place])
            case "more":
                row[at] = [row[at]] * random.choice((0, 1, 3))
            case "gone":
                del row[at]
    return json.dumps(value).encode()


def reshaped_answer(recording: Recording, random: Random) -> bytes:
    """An answer as it really is, each object in it reshaped: the beginning and the end of a stream."""
    if recording.headers[0][1].partition(";")[0] != KINDS[0]:
        return reshaped(recording.body, random)
    whole = sse.events(recording.body)
    newline = b"\r\n" if b"\r\n" in recording.body else b"\n"
    kept = whole if len(whole) <= 8 else whole[:3] + whole[-5:]
    random.shuffle(kept) if random.random() < 0.1 else None
    return b"".join(b"data: " + reshaped(sse.data(event), random) + newline * 2 for event in kept)


@settings(MANY, max_examples=250)
@given(st.randoms(use_true_random=True), st.sampled_from(RECORDINGS), sizes)
def test_a_real_answer_with_other_values_passes_and_counts_within_bounds(
    random: Random, recording: Recording, sizes: tuple[int, ...]
) -> None:
    path = recording.route.path.replace("{model}", "m")
    kind = recording.headers[0][1].partition(";")[0]
    check_any_answer(Answer(path, kind, sizes, asks=random.random() < 0.5), reshaped_answer(recording, random))


@MANY
@given(answers(), st.binary(max_size=400))
def test_bytes_without_any_order_pass_and_are_an_estimate(answer: Answer, body: bytes) -> None:
    check_any_answer(answer, body)
    check_error_body(body)


@MANY
@given(answers(), framed())
def test_the_right_names_in_the_wrong_places_pass_and_count_within_bounds(answer: Answer, body: bytes) -> None:
    check_any_answer(answer, body)
    check_error_body(body)


@MANY
@given(st.data(), st.sampled_from(RECORDINGS), sizes)
def test_a_real_answer_that_was_spoiled_passes_and_counts_within_bounds(
    data: st.DataObject, recording: Recording, sizes: tuple[int, ...]
) -> None:
    asks = data.draw(st.booleans())
    path = recording.route.path.replace("{model}", "m")
    kind = data.draw(st.sampled_from((*[recording.headers[0][1].partition(";")[0]] * 9, *KINDS)))
    check_any_answer(Answer(path, kind, sizes, asks=asks), data.draw(spoiled(recording.body)))


@settings(MANY, max_examples=50)
@given(st.data(), answers(), st.sampled_from(RECORDINGS), st.sampled_from(("gzip", "x-gzip", "deflate", "br")))
def test_what_does_not_decode_passes_and_is_an_estimate(
    data: st.DataObject, answer: Answer, recording: Recording, encoding: str
) -> None:
    whole = gzip.compress(recording.body[:LONGEST], mtime=0)
    for body in (data.draw(spoiled(whole)), whole + b"more", recording.body[:LONGEST]):
        usage = check_answer(replace(answer, encoding=encoding), body)
        assert usage.estimated or encoding != "br" or answer.is_free


@MANY
@given(answers(), framed(), st.sampled_from((1, 16, 64, 300)))
def test_an_answer_that_is_too_long_to_be_held_passes_all_the_same(answer: Answer, body: bytes, max_bytes: int) -> None:
    check_answer(replace(answer, max_bytes=max_bytes), body)


MAX_BYTES = 16 * 1024
HELD = 2**20  # what a reader may hold at most that may hold MAX_BYTES of an answer: parsed, they take more
ENDLESS = (
    *(b"x", b'"', b"\\", b"[", b"{", b'{"usage":', b'data: {"usage":{"prompt_tokens":1,', b"data: \n", b": ping\r"),
    *(b'{"candidates":[{"content":{"parts":[{"text":"', b"\r\n ", b'"delta":{"text":"a"', b'\\"'),
)


def readers() -> list[Any]:
    """One answer for each kind of reader that there is."""
    found: dict[str, Answer] = {}
    for path in PATHS:
        for kind in KINDS:
            for asks in (False, True):
                answer = Answer(path, kind, asks=asks, max_bytes=MAX_BYTES)
                reader = answer.meter().reader
                takes_out = " that takes out" if getattr(reader, "_drop", False) else ""
                name = f"{type(reader).__module__.rpartition('.')[2]} {type(reader).__name__}{takes_out}"
                found.setdefault(name, answer)
    return [pytest.param(each, id=name) for name, each in found.items()]


def held_by(feed: Callable[[bytes], bytes], pieces: Iterator[bytes]) -> tuple[int, int]:
    """How much is held after all pieces have been fed, and at most meanwhile."""
    tracemalloc.start()
    try:
        for piece in pieces:
            feed(piece)
        del piece
        return tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()


def endless(pattern: bytes) -> Iterator[bytes]:
    """8 MB of something, in small pieces first and then in large ones, each an object of its own."""
    for size in [2 * 1024] * 16 + [256 * 1024] * 32:
        yield bytes(bytearray(pattern * (size // len(pattern))))


@pytest.mark.parametrize("answer", readers())
def test_what_never_ends_is_not_held(answer: Answer) -> None:
    for pattern in ENDLESS:
        held, peak = held_by(answer.meter().feed, endless(pattern))
        assert held < HELD, pattern
        assert peak < 2 * HELD, pattern


@pytest.fixture(scope="module")
def packed() -> bytes:
    """64 MB in a few kilobytes."""
    return gzip.compress(bytes(64 * 2**20), 6, mtime=0)


@pytest.mark.parametrize("answer", readers())
def test_what_expands_without_end_is_not_held(answer: Answer, packed: bytes) -> None:
    held, peak = held_by(replace(answer, encoding="gzip").meter().feed, iter([packed]))
    assert held < HELD
    assert peak < 2 * HELD


CROWDED = ("[" + "[]," * 3000 + "[]]", "{" + ",".join(f'"a{n}_requests":1' for n in range(700)) + "}")
HOLDERS = ("usage", "usageMetadata", "input_tokens", "iterations", "server_tool_use", "cache_creation", "output")


@pytest.mark.parametrize("answer", [each for each in readers() if "StreamReader" in each.id])
@pytest.mark.parametrize("value", CROWDED, ids=["lists", "names"])
def test_what_an_event_has_beside_the_figures_is_not_kept(answer: Answer, value: str) -> None:
    """Members that readers look at have values of thousands of parts: such events may pass, but nothing stays."""
    events = []
    for name in HOLDERS:
        usage = f'{{"output_tokens":1,"prompt_tokens":1,"promptTokenCount":1,"{name}":{value}}}'
        for kind in ("message_start", "message_delta", "response.completed"):
            row = f'{{"type":"{kind}","message":{{"usage":{usage}}},"response":{{"usage":{usage}}},"usage":{usage}}}'
            events.append(f"data: {row}\n\n".encode())
    held, _ = held_by(replace(answer, max_bytes=WIDE).meter().feed, iter(events))
    assert held < HELD // 8


@MANY
@given(
    st.sampled_from(PATHS), st.one_of(st.binary(max_size=300), objects.map(lambda value: json.dumps(value).encode()))
)
def test_any_request_is_understood_or_refused(path: str, body: bytes) -> None:
    check_request(path, body)


REQUESTS = [seed[1:] for seed in targets.seeds("requests")]
REQUEST_NAMES = sorted({name for seed in REQUESTS[:1] for name in json.loads(seed)})


@MANY
@given(st.data(), st.sampled_from(PATHS))
def test_a_request_that_was_spoiled_is_understood_or_refused(data: st.DataObject, path: str) -> None:
    check_request(path, data.draw(spoiled(data.draw(st.sampled_from(REQUESTS)))))
    value = json.loads(REQUESTS[0])
    value |= data.draw(st.dictionaries(st.sampled_from(REQUEST_NAMES), trees, min_size=1, max_size=3))
    check_request(path, json.dumps(value).encode())


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages", "/v1beta/models/m:generateContent"])
@pytest.mark.parametrize(
    "body",
    [b"[" * 200_000, b'{"a":' * 200_000, b'{"messages":[' + b"[[]]," * 100_000 + b'[]],"model":"m","model":"m"}'],
)
def test_a_request_of_nothing_but_brackets_is_refused(path: str, body: bytes) -> None:
    assert check_request(path, body) is None


def test_a_request_that_is_too_intricate_to_be_changed_is_refused_and_no_mistake_of_ours() -> None:
    """Reading it needs no walk through its brackets; sending another model's name does."""
    body = b'{"messages":[' + b"[[]]," * 100_000 + b'[]],"model":"m","stream_options":{},"stream":true}'
    endpoint = routes.find("POST", "/v1/chat/completions", Query(""), {}).endpoint
    facts = endpoint.read_request(Incoming("POST", body, len(body)))
    with pytest.raises(GatewayError):
        endpoint.outgoing_body(body, facts, OTHER, ask_for_usage=True)


FORMS = [seed[1:] for seed in targets.seeds("forms")]
forms = st.one_of(st.binary(max_size=300), st.lists(st.sampled_from(FORMS)).map(b"".join))


@MANY
@given(st.data(), forms, sizes)
def test_any_form_has_one_model_or_is_refused_wherever_it_is_cut(
    data: st.DataObject, body: bytes, sizes: tuple[int, ...]
) -> None:
    check_form(FORM_TYPE, body, sizes)
    check_form(FORM_TYPE, data.draw(spoiled(data.draw(st.sampled_from(FORMS)))), sizes)


@MANY
@given(st.one_of(st.text(max_size=60), st.sampled_from(("", FORM_TYPE)).map(lambda text: text + ";")))
def test_any_content_type_names_a_boundary_or_is_refused(content_type: str) -> None:
    check_form(content_type, FORMS[0], ())
    check_form(FORM_TYPE + content_type, FORMS[0], ())


segments = st.one_of(
    st.sampled_from(("v1", "v1beta", "models", "m", "messages", "..", "%2e%2e", "a%2Fb", "m:generateContent", "files")),
    st.text(st.characters(min_codepoint=33), max_size=12),
)


@MANY
@given(
    st.sampled_from(targets.METHODS),
    st.one_of(st.sampled_from(PATHS), st.lists(segments, max_size=5).map(lambda parts: "/" + "/".join(parts))),
    st.one_of(st.text(max_size=30), st.sampled_from(("key=k&alt=sse", "k%65y=k", "alt=sse&alt=json&&=;key=1"))),
    st.sampled_from(targets.HEADERS),
)
def test_any_path_is_served_or_refused_and_stays_in_its_place(
    method: str, path: str, query: str, headers: dict[str, str]
) -> None:
    check_path(method, path, query, headers)


@pytest.mark.parametrize("target", targets.TARGETS)
def test_what_the_fuzzer_starts_from_and_has_found_holds(target: str) -> None:
    for seed in targets.seeds(target):
        targets.TARGETS[target](seed)
    for path in sorted(FOUND.glob(f"{target}-*")):
        targets.TARGETS[target](path.read_bytes())


def test_every_operation_is_tried() -> None:
    methods = {path.rpartition(":")[2] for path in PATHS if ":" in path}
    assert {*openai._ENDPOINTS, *anthropic._ENDPOINTS} <= set(PATHS)
    assert methods == set(gemini._METHODS)
    for path in PATHS:
        assert routes.find("POST", path, Query(""), {}).endpoint.body is not Body.NONE
