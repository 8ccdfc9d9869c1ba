import json
from itertools import pairwise

import httpx2
import openai
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeproxy.domain.limits import Dimension, Limit
from edgeproxy.domain.usage import Usage
from edgeproxy.errors import BUDGET_EXHAUSTED, INVALID_KEY, KINDS, RATE_LIMITED, REQUEST_EXCEEDS_LIMIT, GatewayError
from edgeproxy.providers import sse
from edgeproxy.providers.base import LimitLevel
from edgeproxy.providers.openai import ObjectReader, OpenAI, StreamReader, read_usage

DIALECT = OpenAI()
SECRET = "Zq7-content-of-a-client"
WIDE = 1 << 20
ESTIMATE = 77  # of the input, where the provider's figures are not known

# Content that looks like what the reader is after.
CONTENTS = st.lists(
    st.one_of(
        st.sampled_from(['"usage": {"prompt_tokens": 9}', "data: [DONE]\n\n", '"error"', "[DONE]", "", "😀\u2028\r\n"]),
        st.text(max_size=20),
    ),
    min_size=1,
    max_size=6,
)
FIGURES = st.integers(0, 1_000_000)
USAGES = st.builds(
    lambda uncached, cached, written, output, reasoning: Usage(
        uncached, cached, written, output, min(reasoning, output)
    ),
    FIGURES,
    FIGURES,
    FIGURES,
    FIGURES,
    FIGURES,
)
PLACES = st.sampled_from(["own chunk", "last choice", "every chunk"])
FRAMINGS = st.sampled_from([("data: ", "\n"), ("data:", "\n"), ("data: ", "\r\n"), ("id: 1\ndata: ", "\n")])
CUTS = st.lists(st.integers(0, 10_000), max_size=12)


def body_of(**fields):
    return json.dumps({"model": "gpt-mock", "messages": [], **fields}).encode()


def figures(usage):
    """The provider's words for a usage."""
    prompt = usage.input_total
    return {
        "prompt_tokens": prompt,
        "completion_tokens": usage.output,
        "total_tokens": prompt + usage.output,
        "prompt_tokens_details": {"cached_tokens": usage.cache_read, "cache_write_tokens": usage.cache_write},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }


def chunks_of(contents, usage, place):
    """The objects of a stream; `usage` None: it brings none."""
    reported = None if usage is None else figures(usage)
    for number, content in enumerate(contents, 1):
        is_last = number == len(contents)
        choice = {"index": 0, "delta": {"content": content}, "finish_reason": "stop" if is_last else None}
        now = reported if place == "every chunk" or (is_last and place == "last choice") else None
        yield {"id": "c", "choices": [choice], "usage": now}
    if place == "own chunk" and reported:
        yield {"id": "c", "choices": [], "usage": reported}


def stream_of(contents, usage, place="own chunk", framing=("data: ", "\n")):
    """The events of a stream, each as its bytes."""
    prefix, newline = framing
    texts = [json.dumps(chunk, ensure_ascii=False) for chunk in chunks_of(contents, usage, place)]
    return [f"{prefix}{text}{newline}{newline}".encode() for text in (*texts, "[DONE]")]


def cut(stream, cuts):
    at = sorted({0, len(stream), *(each % (len(stream) + 1) for each in cuts)})
    return [stream[start:end] for start, end in pairwise(at)]


def read(pieces, *, drop=False, max_bytes=WIDE):
    """What is forwarded of a stream that ends in order, and its usage."""
    reader = StreamReader(max_bytes, drop_usage_chunk=drop)
    forwarded = b"".join(reader.feed(piece) for piece in pieces) + reader.end()
    return forwarded, reader.usage(ESTIMATE)


# --- requests


def test_a_plain_request_is_understood():
    body = body_of()
    facts = DIALECT.read_request(body)
    assert (facts.model, facts.stream, facts.output_max, facts.usage_requested) == ("gpt-mock", False, None, False)
    assert facts.input_estimate == len(body) // 4 + 1


@pytest.mark.parametrize(
    ("fields", "most"),
    [
        ({}, None),
        ({"max_tokens": 10}, 10),
        ({"max_completion_tokens": 20, "max_tokens": 10}, 20),
        ({"max_completion_tokens": 0, "max_tokens": 10}, 0),
        ({"max_completion_tokens": None, "max_tokens": 10}, 10),
        ({"max_tokens": 10, "n": 3}, 30),
        ({"max_tokens": 10, "n": None}, 10),
        ({"max_tokens": 10, "n": 0}, 10),
        ({"n": 3}, None),
    ],
)
def test_the_declared_maximum_is_that_of_all_choices(fields, most):
    assert DIALECT.read_request(body_of(**fields)).output_max == most


@pytest.mark.parametrize(
    ("options", "requested"),
    [
        (None, False),
        ({}, False),
        ({"include_usage": True}, True),
        ({"include_usage": False}, False),
        ({"include_usage": 1}, False),
        ({"include_usage": "true"}, False),
    ],
)
def test_usage_is_requested_only_by_a_plain_true(options, requested):
    assert DIALECT.read_request(body_of(stream=True, stream_options=options)).usage_requested is requested


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json " + SECRET.encode(),
        b"[]",
        json.dumps({"messages": [SECRET]}).encode(),
        body_of(model=None),
        body_of(model=""),
        body_of(model=[SECRET]),
        body_of(messages=SECRET),
        body_of(messages=None),
        body_of(messages={}),
        body_of(stream=SECRET),
        body_of(stream=1),
        body_of(max_tokens=-1),
        body_of(max_tokens=1.5),
        body_of(max_completion_tokens=SECRET),
        body_of(n="2"),
        body_of(n=2**60),
        body_of(stream=True, stream_options=SECRET),
        body_of(stream_options=[SECRET]),
        b'{"model":"a","messages":[],"model":"b"}',
        rb'{"model":"a","messages":[],"\u006dodel":"b"}',
        b'{"model":"a","messages":[],"stream":true,"stream":false}',
        b'{"model":"a","messages":[],"stream_options":{},"stream_options":{"include_usage":true}}',
        b'{"model":"a","messages":[],"max_tokens":1,"max_tokens":100000}',
    ],
)
def test_a_request_that_cannot_be_counted_is_refused_without_echo(body):
    with pytest.raises(GatewayError) as caught:
        DIALECT.read_request(body)
    assert caught.value.kind.status == 400
    _, answer = DIALECT.error(caught.value, "id")
    assert SECRET.encode() not in answer


# --- the body that is sent


def test_nothing_is_changed_when_nothing_has_to_be():
    body = b' { "model" : "gpt-mock" , "messages":[ ] , "unknown" : 1.50 } '
    facts = DIALECT.read_request(body)
    assert DIALECT.outgoing_body(body, facts, "gpt-mock", ask_for_usage=False) is body


def test_another_model_name_changes_that_name_only():
    body = b' { "messages":[ {"model":"gpt-mock"} ], "model" : "gpt-mock" , "x" : 1.50 } '
    facts = DIALECT.read_request(body)
    sent = DIALECT.outgoing_body(body, facts, 'o"ther', ask_for_usage=False)
    assert sent == body.replace(b': "gpt-mock" ,', b': "o\\"ther" ,')


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        ({}, {"include_usage": True}),
        ({"stream_options": None}, {"include_usage": True}),
        ({"stream_options": {}}, {"include_usage": True}),
        (
            {"stream_options": {"include_usage": False, "include_obfuscation": False}},
            {"include_usage": True, "include_obfuscation": False},
        ),
    ],
)
def test_usage_is_asked_for_beside_what_the_client_asked(options, sent):
    body = body_of(stream=True, **options, temperature=1)
    facts = DIALECT.read_request(body)
    changed = DIALECT.outgoing_body(body, facts, "other", ask_for_usage=True)
    assert orjson.loads(changed) == orjson.loads(body) | {"stream_options": sent, "model": "other"}
    assert DIALECT.read_request(changed).usage_requested


# --- headers


def test_only_listed_headers_go_to_the_provider():
    client = {
        "Accept": "text/event-stream",
        "OpenAI-Beta": "x=1",
        "Authorization": f"Bearer {SECRET}",
        "x-api-key": SECRET,
        "Cookie": SECRET,
        "OpenAI-Organization": SECRET,
        "OpenAI-Project": SECRET,
        "X-Stainless-OS": SECRET,
        "x-codex-turn-metadata": SECRET,
        "session-id": SECRET,
        "originator": SECRET,
        "User-Agent": SECRET,
        "X-Forwarded-For": SECRET,
        "Host": SECRET,
        "Content-Length": SECRET,
        "Transfer-Encoding": SECRET,
    }
    headers = DIALECT.outgoing_headers("operator", client)
    assert headers == [
        ("authorization", "Bearer operator"),
        ("content-type", "application/json"),
        ("accept", "text/event-stream"),
        ("openai-beta", "x=1"),
    ]


STRIPPED = [
    *("set-cookie", "openai-organization", "openai-project", "anthropic-organization-id", "anthropic-workspace-id"),
    *("x-ratelimit-limit-requests", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens", "cf-ray", "server"),
    *("anthropic-ratelimit-requests-limit", "x-amz-request-id", "x-request-id", "request-id", "alt-svc", "via"),
    *("transfer-encoding", "content-length", "connection", "x-ds-trace-id", "traceresponse", "retry-after"),
]


def test_only_listed_headers_come_back_and_the_request_id_is_ours():
    passing = [
        ("content-type", "text/event-stream"),
        ("content-encoding", "identity"),
        ("openai-processing-ms", "7"),
        ("x-should-retry", "false"),
    ]
    stripped = [(name, SECRET) for name in STRIPPED] + [(name.title(), SECRET) for name in STRIPPED]
    assert DIALECT.incoming_headers(200, [*stripped, *passing], "our-id") == [*passing, ("x-request-id", "our-id")]
    assert ("retry-after", "3") in DIALECT.incoming_headers(429, [("retry-after", "3")], "our-id")


@given(st.lists(st.tuples(st.from_regex(r"[a-z0-9-]{1,20}", fullmatch=True), st.just(SECRET)), max_size=20))
def test_a_header_that_nobody_listed_never_comes_back(headers):
    listed = {"content-type", "content-encoding", "content-language", "cache-control", "date", "x-should-retry"}
    listed |= {"openai-processing-ms", "openai-version"}
    passed = DIALECT.incoming_headers(200, headers, "our-id")[:-1]
    assert {name for name, _ in passed} <= listed


def test_limit_headers_tell_of_the_tightest_windows():
    levels = [
        LimitLevel(Limit(Dimension.REQUESTS, 60, 60_000), 3, 1500),
        LimitLevel(Limit(Dimension.REQUESTS, 1000, 86_400_000), 2, 9000),
        LimitLevel(Limit(Dimension.TOKENS, 500, 60_000), 70, 1),
        LimitLevel(Limit(Dimension.OUTPUT_TOKENS, 400, 60_000), 60, 20),
    ]
    assert dict(DIALECT.limit_headers(levels, 0)) == {
        "x-ratelimit-limit-requests": "1000",
        "x-ratelimit-remaining-requests": "2",
        "x-ratelimit-reset-requests": "9000ms",
        "x-ratelimit-limit-tokens": "400",
        "x-ratelimit-remaining-tokens": "60",
        "x-ratelimit-reset-tokens": "20ms",
    }
    assert DIALECT.limit_headers([], 0) == []


# --- errors


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.code)
def test_the_official_client_understands_every_error(kind):
    headers, body = DIALECT.error(GatewayError(kind, retry_after_ms=1500 if kind.retryable else None), "our-id")
    response = httpx2.Response(
        kind.status, headers=headers, content=body, request=httpx2.Request("POST", "http://gateway/v1/chat/completions")
    )
    with openai.OpenAI(api_key="x") as client:
        error = client._make_status_error_from_response(response)
        retries = client._should_retry(response)
        wait_s = client._parse_retry_after_header(response.headers)
    assert error.status_code == kind.status
    assert kind.message in error.message
    assert error.request_id == "our-id"
    assert isinstance(error.code, str)
    assert isinstance(error.type, str)
    assert error.param is None
    assert retries is kind.retryable
    assert wait_s == (1.5 if kind.retryable else None)
    assert ("www-authenticate" in response.headers) is (kind.status == 401)
    assert response.headers["content-type"] == "application/json"


def test_a_budget_that_is_used_up_makes_clients_stop_and_a_rate_limit_makes_them_wait():
    for kind in (BUDGET_EXHAUSTED, REQUEST_EXCEEDS_LIMIT):
        headers, body = DIALECT.error(GatewayError(kind), "id")
        row = orjson.loads(body)["error"]
        assert (row["type"], row["code"]) == ("insufficient_quota", "insufficient_quota")
        assert ("x-should-retry", "false") in headers
    headers, body = DIALECT.error(GatewayError(RATE_LIMITED, retry_after_ms=1), "id")
    assert orjson.loads(body)["error"]["code"] == "rate_limit_exceeded"
    assert "x-should-retry" not in dict(headers)


def test_the_type_of_an_error_says_who_has_to_act():
    types = {kind.code: orjson.loads(DIALECT.error(GatewayError(kind), "id")[1])["error"]["type"] for kind in KINDS}
    for kind in KINDS:
        if kind.status != 429:
            assert types[kind.code] == ("invalid_request_error" if kind.status < 500 else "server_error")
    assert types["rate_limited"] == types["concurrency_reached"] == "rate_limit_exceeded"


def test_a_message_of_ours_replaces_the_general_one():
    _, body = DIALECT.error(GatewayError(INVALID_KEY, "More precisely."), "id")
    assert orjson.loads(body)["error"]["message"] == "More precisely."


# --- usage


@pytest.mark.parametrize(
    ("reported", "usage"),
    [
        ({"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}, Usage(5, output=7)),
        ({"prompt_tokens": 5}, Usage(5)),
        # Reasoning left out of the completion: the total tells.
        (
            {
                "prompt_tokens": 12,
                "completion_tokens": 2,
                "total_tokens": 334,
                "prompt_tokens_details": {"cached_tokens": 2},
                "completion_tokens_details": {"reasoning_tokens": 320},
            },
            Usage(10, cache_read=2, output=322, reasoning=320),
        ),
        # More cached tokens than there are.
        ({"prompt_tokens": 7, "prompt_tokens_details": {"cached_tokens": 161}}, Usage(0, cache_read=7)),
        (
            {"prompt_tokens": 10, "prompt_tokens_details": {"cached_tokens": 6, "cache_write_tokens": 9}},
            Usage(0, cache_read=6, cache_write=4),
        ),
        ({"prompt_tokens": 9, "prompt_cache_hit_tokens": 4, "prompt_cache_miss_tokens": 5}, Usage(5, cache_read=4)),
        (
            {"prompt_tokens": 1, "completion_tokens": 3, "completion_tokens_details": {"reasoning_tokens": 8}},
            Usage(1, output=3, reasoning=3),
        ),
        ({"prompt_tokens": 4, "completion_tokens": None, "prompt_tokens_details": None}, Usage(4)),
        ({"prompt_tokens": 4, "completion_tokens": -3, "total_tokens": "9", "prompt_tokens_details": []}, Usage(4)),
    ],
)
def test_usage_is_read_into_the_normal_form(reported, usage):
    assert read_usage(reported) == usage


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        "x",
        1,
        {},
        {"completion_tokens": 1},
        *({"prompt_tokens": bad} for bad in (None, -1, 1.5, "1", True, 2**60)),
    ],
)
def test_what_has_no_count_of_the_prompt_is_no_usage(value):
    assert read_usage(value) is None


# --- streams


@given(CONTENTS, USAGES, PLACES, FRAMINGS, CUTS)
def test_any_cut_of_a_stream_gives_the_same_usage_and_the_same_bytes(contents, usage, place, framing, cuts):
    events = stream_of(contents, usage, place, framing)
    stream = b"".join(events)
    pieces = cut(stream, cuts)
    assert read(pieces) == (stream, usage)
    without = b"".join(events[:-2] + events[-1:]) if place == "own chunk" else stream
    assert read(pieces, drop=True) == (without, usage)


@given(CONTENTS, CUTS, st.booleans())
def test_a_stream_without_usage_is_estimated(contents, cuts, drop):
    stream = b"".join(stream_of(contents, None))
    forwarded, usage = read(cut(stream, cuts), drop=drop)
    assert forwarded == stream
    assert usage.estimated
    assert (usage.input_total, usage.cache_read) == (ESTIMATE, 0)
    assert usage.output >= len(contents)


@given(CONTENTS, USAGES, PLACES)
def test_a_stream_that_broke_off_is_a_lower_bound_and_says_so(contents, usage, place):
    events = stream_of(contents, usage, place)
    final = len(contents) + (place == "own chunk")  # how many events have to pass before the figures are final
    for passed in range(len(events) + 1):
        reader = StreamReader(WIDE, drop_usage_chunk=False)
        for event in events[:passed]:
            reader.feed(event)
        seen = reader.usage(0)
        assert seen.estimated is (passed < final)
        assert seen.input_total <= usage.input_total
        assert reader.is_finished is (passed == len(events))
        if passed >= final:
            assert seen == usage


@given(st.lists(st.binary(max_size=30), max_size=8), st.booleans(), st.integers(0, 50))
def test_garbage_passes_unharmed_and_is_estimated(pieces, drop, max_bytes):
    forwarded, usage = read(pieces, drop=drop, max_bytes=max_bytes)
    assert forwarded == b"".join(pieces)
    assert usage.estimated
    assert usage.input_total == ESTIMATE


WILD = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**65), 2**65), st.floats(), st.text(max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["prompt_tokens", "completion_tokens", "total_tokens", "finish_reason", "cached_tokens"]),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=8,
)


@given(st.lists(st.fixed_dictionaries({"usage": WILD, "choices": WILD, "error": WILD}), max_size=4), st.booleans())
def test_nonsense_in_the_right_places_never_raises_and_stays_countable(chunks, drop):
    events = [b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks]
    forwarded, usage = read(events, drop=drop)
    kept = sse.events(forwarded)
    assert all(event in events for event in kept)
    assert drop or kept == events
    assert 0 <= usage.input_total + usage.output <= 2**53
    assert min(usage.input_uncached, usage.cache_read, usage.cache_write, usage.output, usage.reasoning) >= 0


def test_an_event_beyond_the_bound_passes_and_leaves_an_estimate():
    events = stream_of(["a", "b" * 500, "c"], Usage(10, output=20))
    stream = b"".join(events)
    for drop in (False, True):
        forwarded, usage = read([stream[at : at + 7] for at in range(0, len(stream), 7)], drop=drop, max_bytes=200)
        assert forwarded == stream
        assert usage.estimated
        assert usage.input_total == ESTIMATE


def test_beyond_the_bound_nothing_is_taken_out_any_more():
    usage_chunk, _ = stream_of(["x"], Usage(10, output=20))[-2:]
    reader = StreamReader(100, drop_usage_chunk=True)
    assert reader.feed(b"data: " + b"x" * 200) == b"data: " + b"x" * 200
    assert reader.feed(b"\n\n" + usage_chunk) == b"\n\n" + usage_chunk
    assert reader.feed(usage_chunk) == usage_chunk
    assert reader.end() == b""
    assert reader.usage(ESTIMATE).estimated


@pytest.mark.parametrize(("letters", "tokens"), [(1, 50), (10_000, (50 * 10_046 - 50 * 200) // 4)])
def test_an_estimate_counts_events_and_what_they_hold(letters, tokens):
    event = b'data: {"choices":[{"delta":{"content":"' + b"x" * letters + b'"}}]}\n\n'
    reader = StreamReader(WIDE, drop_usage_chunk=False)
    for _ in range(50):
        reader.feed(event)
    assert len(event) == letters + 46
    assert reader.usage(ESTIMATE) == Usage(ESTIMATE, output=tokens, estimated=True)


def test_other_chunks_without_choices_stay():
    first = b'data: {"choices":[],"prompt_filter_results":[{}],"usage":null}\n\n'
    moderation = b'data: {"choices":[],"moderation":{}}\n\n'
    events = stream_of(["x"], Usage(3, output=4))
    stream = b"".join([b": PROCESSING\n\n", first, *events[:-1], moderation, events[-1]])
    forwarded, usage = read([stream], drop=True)
    assert forwarded == stream.replace(events[-2], b"")
    assert usage == Usage(3, output=4)


def test_the_last_event_counts_although_nothing_ends_it():
    events = stream_of(["x"], Usage(3, output=4))[:-1]
    stream = b"".join(events).removesuffix(b"\n\n")
    assert read([stream]) == (stream, Usage(3, output=4))
    assert read([stream], drop=True) == (events[0], Usage(3, output=4))


def test_growing_figures_are_final_only_where_the_answer_ended():
    events = stream_of(["a", "b", "c"], Usage(9, output=5), "every chunk")[:-1]
    unfinished = [event.replace(b'"stop"', b"null") for event in events]
    reader = StreamReader(WIDE, drop_usage_chunk=False)
    for event in unfinished:
        reader.feed(event)
    assert reader.usage(ESTIMATE).estimated
    assert reader.usage(ESTIMATE).input_total == 9
    reader.end()
    assert reader.usage(ESTIMATE) == Usage(9, output=5)


@pytest.mark.parametrize("error", [{"message": "overloaded"}, "overloaded"])
def test_figures_beside_an_error_in_the_stream_are_flagged(error):
    events = stream_of(["a"], Usage(9, output=5))
    broken = b"data: " + json.dumps({"error": error}).encode() + b"\n\n"
    forwarded, usage = read([*events[:-1], broken])
    assert forwarded == b"".join([*events[:-1], broken])
    assert usage.estimated
    assert (usage.input_total, usage.output >= 5) == (9, True)


def test_a_piece_is_not_copied_where_nothing_is_taken_out():
    piece = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n'
    assert StreamReader(WIDE, drop_usage_chunk=False).feed(piece) is piece
    assert StreamReader(WIDE, drop_usage_chunk=True).feed(piece) is piece


# --- single objects


@given(USAGES, CUTS, st.text("\n\r \t", max_size=5))
def test_a_single_object_is_read_wherever_it_was_cut(usage, cuts, lead):
    answer = lead.encode() + json.dumps({"choices": [{"message": {"content": "x"}}], "usage": figures(usage)}).encode()
    reader = ObjectReader(WIDE)
    assert b"".join(reader.feed(piece) for piece in cut(answer, cuts)) + reader.end() == answer
    assert reader.usage(ESTIMATE) == usage
    assert not reader.is_finished


@given(st.lists(st.binary(max_size=30), max_size=5))
def test_an_answer_that_is_no_object_is_estimated(pieces):
    reader = ObjectReader(WIDE)
    assert b"".join(reader.feed(piece) for piece in pieces) + reader.end() == b"".join(pieces)
    assert reader.usage(ESTIMATE) == Usage(ESTIMATE, output=sum(map(len, pieces)) // 4, estimated=True)


def test_an_answer_beyond_the_bound_passes_and_leaves_an_estimate():
    answer = json.dumps({"usage": figures(Usage(1, output=1)), "x": "y" * 400}).encode()
    reader = ObjectReader(len(answer) - 1)
    assert b"".join(reader.feed(answer[at : at + 50]) for at in range(0, len(answer), 50)) == answer
    assert reader.usage(ESTIMATE) == Usage(ESTIMATE, output=len(answer) // 4, estimated=True)
    exact = ObjectReader(len(answer))
    exact.feed(answer)
    assert exact.usage(ESTIMATE) == Usage(1, output=1)


def test_the_reader_fits_the_request():
    unary, streamed = (DIALECT.read_request(body_of(stream=stream)) for stream in (False, True))
    assert isinstance(DIALECT.reader(unary, ask_for_usage=False, max_bytes=1), ObjectReader)
    assert isinstance(DIALECT.reader(streamed, ask_for_usage=True, max_bytes=1), StreamReader)
