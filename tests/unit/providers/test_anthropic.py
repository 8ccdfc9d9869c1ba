import json
from itertools import pairwise

import anthropic
import httpx2
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from edgeproxy.domain.limits import Dimension, Limit
from edgeproxy.domain.usage import Usage
from edgeproxy.errors import BUDGET_EXHAUSTED, KINDS, RATE_LIMITED, UPSTREAM_CREDENTIALS, GatewayError
from edgeproxy.providers.anthropic import Anthropic, MessageReader, StreamReader, read_usage
from edgeproxy.providers.base import MAX_COUNT, LimitLevel

DIALECT = Anthropic()
SECRET = "Zq7-content-of-a-client"
WIDE = 1 << 20
ESTIMATE = 77  # of the input, where the provider's figures are not known

CONTENTS = st.lists(
    st.one_of(
        st.sampled_from(
            ['"usage": {"output_tokens": 9}', "event: message_stop", "message_delta", "\n\ndata: {}\n\n", "😀\u2028"]
        ),
        st.text(max_size=20),
    ),
    max_size=6,
)
FIGURES = st.integers(0, 1_000_000)
USAGES = st.builds(Usage, FIGURES, FIGURES, FIGURES, FIGURES)
FRAMINGS = st.sampled_from([(" ", "\n", ""), ("", "\n", "   "), (" ", "\r\n", " ")])
CUTS = st.lists(st.integers(0, 10_000), max_size=12)


def body_of(**fields):
    return json.dumps({"model": "claude-mock", "max_tokens": 100, "messages": [], **fields}).encode()


def figures(usage):
    """The provider's words for a usage."""
    return {
        "input_tokens": usage.input_uncached,
        "cache_creation_input_tokens": usage.cache_write,
        "cache_read_input_tokens": usage.cache_read,
        "output_tokens": usage.output,
    }


def event_of(row, framing=(" ", "\n", "")):
    space, newline, pad = framing
    text = json.dumps(row, ensure_ascii=False) + pad
    return f"event:{space}{row['type']}{newline}data:{space}{text}{newline}{newline}".encode()


def stream_of(contents, first, final, framing=(" ", "\n", "")):
    """The events of a stream, each as its bytes: `first` is the usage at its start, `final` the usage at its end."""
    texts = [
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}} for text in contents
    ]
    stop = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": figures(final)}
    rows = [
        {"type": "message_start", "message": {"model": "claude-mock", "usage": figures(first)}},
        {"type": "ping"},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *texts,
        {"type": "content_block_stop", "index": 0},
        stop,
        {"type": "message_stop"},
    ]
    return [event_of(row, framing) for row in rows]


def cut(stream, cuts):
    at = sorted({0, len(stream), *(each % (len(stream) + 1) for each in cuts)})
    return [stream[start:end] for start, end in pairwise(at)]


def read(pieces, *, max_bytes=WIDE):
    """What is forwarded of a stream that ends in order, and its usage."""
    reader = StreamReader(max_bytes)
    forwarded = b"".join(reader.feed(piece) for piece in pieces) + reader.end()
    return forwarded, reader.usage(ESTIMATE)


def broken_off(pieces):
    """The usage of a stream of which nothing more came."""
    reader = StreamReader(WIDE)
    for piece in pieces:
        reader.feed(piece)
    return reader.usage(ESTIMATE)


# --- requests


def test_a_plain_request_is_understood():
    body = body_of()
    facts = DIALECT.read_request(body)
    assert (facts.model, facts.stream, facts.output_max, facts.usage_requested) == ("claude-mock", False, 100, True)
    assert facts.input_estimate == len(body) // 4 + 1
    assert DIALECT.read_request(body_of(stream=True)).stream
    assert DIALECT.read_request(body_of(max_tokens=0)).output_max == 0
    assert DIALECT.read_request(b'{"model":"m","messages":[]}').output_max is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json " + SECRET.encode(),
        json.dumps([SECRET]).encode(),
        json.dumps({"messages": [SECRET]}).encode(),
        body_of(model=None),
        body_of(model=[SECRET]),
        body_of(messages=SECRET),
        body_of(stream=SECRET),
        body_of(stream=1),
        body_of(max_tokens=SECRET),
        body_of(max_tokens=-1),
        body_of(max_tokens=True),
        b'{"model":"a","messages":[],"model":"b"}',
        rb'{"model":"a","messages":[],"\u006dodel":"b"}',
        b'{"model":"a","messages":[],"max_tokens":1,"max_tokens":64000}',
    ],
)
def test_a_request_that_cannot_be_counted_is_refused_without_echo(body):
    with pytest.raises(GatewayError) as caught:
        DIALECT.read_request(body)
    assert caught.value.kind.status == 400
    _, answer = DIALECT.error(caught.value, "id")
    assert SECRET.encode() not in answer


def test_the_body_goes_as_it_came_but_for_the_model():
    body = b' {"messages":[{"model":"claude-mock"}], "model" : "claude-mock", "x":1.50, "messages2":"\\u00e9" }'
    facts = DIALECT.read_request(body)
    assert DIALECT.outgoing_body(body, facts, "claude-mock", ask_for_usage=True) is body
    sent = DIALECT.outgoing_body(body, facts, "other", ask_for_usage=True)
    assert sent == body.replace(b': "claude-mock", "x"', b': "other", "x"')


# --- headers


def test_only_listed_headers_go_to_the_provider():
    client = CIMultiDict(
        {
            "Accept": "application/json",
            "Anthropic-Version": "2026-10-21",
            "Authorization": f"Bearer {SECRET}",
            "X-Api-Key": SECRET,
            "Cookie": SECRET,
            "X-Claude-Code-Session-Id": SECRET,
            "X-Stainless-OS": SECRET,
            "User-Agent": SECRET,
            "X-Forwarded-For": SECRET,
            "Host": SECRET,
            "Content-Length": SECRET,
        }
    )
    assert DIALECT.outgoing_headers("operator", client) == [
        ("x-api-key", "operator"),
        ("content-type", "application/json"),
        ("accept", "application/json"),
        ("anthropic-version", "2026-10-21"),
    ]


def test_every_beta_flag_goes_on_however_often_the_header_stands_there():
    client = CIMultiDict([("Anthropic-Beta", "a-1,b-2"), ("anthropic-beta", "c-3")])
    sent = DIALECT.outgoing_headers("operator", client)
    assert [value for name, value in sent if name == "anthropic-beta"] == ["a-1,b-2", "c-3"]


STRIPPED = [
    *("set-cookie", "anthropic-organization-id", "anthropic-workspace-id", "openai-organization", "openai-project"),
    *("anthropic-ratelimit-requests-limit", "anthropic-ratelimit-tokens-reset", "x-ratelimit-limit-requests"),
    *("request-id", "x-request-id", "cf-ray", "server", "via", "traceresponse", "x-amz-request-id", "alt-svc"),
    *("transfer-encoding", "content-length", "connection", "retry-after", "retry-after-ms"),
]


def test_only_listed_headers_come_back_and_the_request_id_is_ours():
    passing = [("content-type", "text/event-stream"), ("cache-control", "no-cache"), ("x-should-retry", "false")]
    stripped = [(name, SECRET) for name in STRIPPED] + [(name.title(), SECRET) for name in STRIPPED]
    ids = [("x-request-id", "our-id"), ("request-id", "our-id")]
    assert DIALECT.incoming_headers(200, [*stripped, *passing], "our-id") == [*passing, *ids]
    assert ("retry-after", "3") in DIALECT.incoming_headers(529, [("retry-after", "3")], "our-id")


@given(st.lists(st.tuples(st.from_regex(r"[a-z0-9-]{1,20}", fullmatch=True), st.just(SECRET)), max_size=20))
def test_a_header_that_nobody_listed_never_comes_back(headers):
    listed = {"content-type", "content-encoding", "content-language", "cache-control", "date", "x-should-retry"}
    assert {name for name, _ in DIALECT.incoming_headers(200, headers, "our-id")[:-2]} <= listed


def test_limit_headers_tell_of_the_tightest_window_of_each_dimension():
    levels = [
        LimitLevel(Limit(Dimension.REQUESTS, 60, 60_000), 3, 1),
        LimitLevel(Limit(Dimension.INPUT_TOKENS, 500, 60_000), 70, 60_000),
        LimitLevel(Limit(Dimension.INPUT_TOKENS, 900, 3_600_000), 50, 86_400_000),
    ]
    assert dict(DIALECT.limit_headers(levels, 1_750_000_000_000)) == {
        "anthropic-ratelimit-requests-limit": "60",
        "anthropic-ratelimit-requests-remaining": "3",
        "anthropic-ratelimit-requests-reset": "2025-06-15T15:06:41Z",
        "anthropic-ratelimit-input-tokens-limit": "900",
        "anthropic-ratelimit-input-tokens-remaining": "50",
        "anthropic-ratelimit-input-tokens-reset": "2025-06-16T15:06:40Z",
    }
    assert DIALECT.limit_headers([], 0) == []


# --- errors

EXPECTED_CLASSES = {
    400: anthropic.BadRequestError,
    401: anthropic.AuthenticationError,
    403: anthropic.PermissionDeniedError,
    404: anthropic.NotFoundError,
    413: anthropic.RequestTooLargeError,
    429: anthropic.RateLimitError,
}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.code)
def test_the_official_client_understands_every_error(kind):
    headers, body = DIALECT.error(GatewayError(kind, retry_after_ms=1500 if kind.retryable else None), "our-id")
    response = httpx2.Response(
        kind.status, headers=headers, content=body, request=httpx2.Request("POST", "http://gateway/v1/messages")
    )
    with anthropic.Anthropic(api_key="x") as client:
        error = client._make_status_error_from_response(response)
        retries = client._should_retry(response)
        wait_s = client._parse_retry_after_header(response.headers)
    assert isinstance(error, EXPECTED_CLASSES.get(kind.status, anthropic.APIStatusError))
    assert error.status_code == kind.status
    assert kind.message in error.message
    assert error.request_id == "our-id"
    assert retries is kind.retryable
    assert wait_s == (1.5 if kind.retryable else None)
    assert ("www-authenticate" in response.headers) is (kind.status == 401)
    parsed = orjson.loads(body)
    assert parsed["type"] == "error"
    assert parsed["request_id"] == "our-id"
    assert parsed["error"]["details"]["error_code"] == kind.code


TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    502: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.code)
def test_the_type_of_an_error_is_the_one_of_its_status(kind):
    row = orjson.loads(DIALECT.error(GatewayError(kind), "id")[1])["error"]
    assert row["type"] == TYPES.get(kind.status, "invalid_request_error")


def test_clients_are_told_to_stop_where_waiting_does_not_help():
    for kind in (BUDGET_EXHAUSTED, UPSTREAM_CREDENTIALS):
        assert ("x-should-retry", "false") in DIALECT.error(GatewayError(kind), "id")[0]
    assert "x-should-retry" not in dict(DIALECT.error(GatewayError(RATE_LIMITED, retry_after_ms=1), "id")[0])


# --- usage


@pytest.mark.parametrize(
    ("reported", "usage"),
    [
        ({"input_tokens": 5, "output_tokens": 7}, Usage(5, output=7)),
        ({"output_tokens": 7}, Usage(output=7)),
        ({"input_tokens": None, "output_tokens": 7, "cache_read_input_tokens": None}, Usage(output=7)),
        (figures(Usage(1, 2, 3, 4)), Usage(1, 2, 3, 4)),
        (
            {"input_tokens": 1, "output_tokens": 9, "output_tokens_details": {"thinking_tokens": 6}},
            Usage(1, output=9, reasoning=6),
        ),
        ({"output_tokens": 2, "output_tokens_details": {"thinking_tokens": 6}}, Usage(output=2, reasoning=2)),
        # Passes of the server itself are billed beside the top level; messages are in it already.
        (
            {
                **figures(Usage(229, output=5)),
                "iterations": [
                    {"type": "compaction", **figures(Usage(100, 10, 55_096, 131))},
                    {"type": "message", **figures(Usage(229, output=5))},
                    {"type": "advisor_message", "output_tokens": 18, "output_tokens_details": {"thinking_tokens": 3}},
                    {"type": "unheard_of", **figures(Usage(9, 9, 9, 9))},
                    "nonsense",
                    None,
                ],
            },
            Usage(329, 10, 55_096, 154, reasoning=3),
        ),
        ({**figures(Usage(1, output=2)), "iterations": {"type": "compaction"}}, Usage(1, output=2)),
        ({"input_tokens": -1, "output_tokens": 2, "cache_read_input_tokens": "9"}, Usage(output=2)),
    ],
)
def test_usage_is_read_into_the_normal_form(reported, usage):
    assert read_usage(reported) == usage


@pytest.mark.parametrize(
    "value",
    [None, [], "x", 1, {}, {"input_tokens": 1}, *({"output_tokens": bad} for bad in (None, -1, 1.5, "1", True))],
)
def test_what_has_no_count_of_the_output_is_no_usage(value):
    assert read_usage(value) is None


def test_absurd_figures_stay_countable():
    rows = [{"type": "compaction", **figures(Usage(*[MAX_COUNT] * 4))}] * 1000
    usage = read_usage({**figures(Usage(*[MAX_COUNT] * 4)), "iterations": rows})
    assert usage.input_total + usage.output <= 2**53


# --- streams


@given(CONTENTS, USAGES, USAGES, FRAMINGS, CUTS)
def test_any_cut_of_a_stream_gives_the_same_usage_and_the_same_bytes(contents, first, final, framing, cuts):
    stream = b"".join(stream_of(contents, first, final, framing))
    assert read(cut(stream, cuts)) == (stream, final)


@given(CONTENTS, FIGURES, FIGURES, FIGURES)
def test_a_stream_that_broke_off_is_a_lower_bound_and_says_so(contents, uncached, cached, output):
    first = Usage(uncached, output=1)
    final = Usage(uncached, cached, 7, output + 1)
    events = stream_of(contents, first, final)
    for passed in range(len(events) + 1):
        seen = broken_off(events[:passed])
        if passed == 0:
            assert seen == Usage(ESTIMATE, estimated=True)
        elif passed < len(events) - 1:
            assert seen.estimated
            assert (seen.input_uncached, seen.cache_read, seen.cache_write) == (uncached, 0, 0)
            assert seen.output >= max(1, len([each for each in events[:passed] if b"text_delta" in each]))
        else:
            assert seen == final


@pytest.mark.parametrize("framing", [(" ", "\n", ""), ("", "\n", ""), (" ", "\r\n", "")])
@pytest.mark.parametrize("letters", [1, 10_000])
def test_an_estimate_counts_text_events_and_what_they_hold(framing, letters):
    start, *events = stream_of(["x" * letters] * 50, Usage(5, output=1), Usage(), framing)
    passed = [start, *(event for event in events if b"text_delta" in event)]
    tokens = 50 if letters == 1 else (len(b"".join(passed)) - 50 * 200) // 4
    assert broken_off(passed) == Usage(5, output=tokens, estimated=True)


@given(st.lists(st.binary(max_size=30), max_size=8), st.integers(0, 50))
def test_garbage_passes_unharmed_and_is_estimated(pieces, max_bytes):
    forwarded, usage = read(pieces, max_bytes=max_bytes)
    assert forwarded == b"".join(pieces)
    assert (usage.input_total, usage.estimated) == (ESTIMATE, True)
    assert usage.output <= len(pieces)  # what looks like the name of an event counts as one


WILD = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**65), 2**65), st.floats(), st.text(max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                ["usage", "input_tokens", "output_tokens", "cache_read_input_tokens", "iterations", "type"]
            ),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=8,
)
KINDS_OF_EVENTS = st.one_of(st.sampled_from(["message_start", "message_delta", "message_stop"]), WILD)


@given(
    st.lists(
        st.fixed_dictionaries({"type": KINDS_OF_EVENTS, "message": WILD, "usage": WILD, "delta": WILD}), max_size=4
    )
)
def test_nonsense_in_the_right_places_never_raises_and_stays_countable(rows):
    stream = b"".join(b"event: x\ndata: " + json.dumps(row).encode() + b"\n\n" for row in rows)
    forwarded, usage = read([stream])
    assert forwarded == stream
    assert 0 <= usage.input_total + usage.output <= 2**53
    assert min(usage.input_uncached, usage.cache_read, usage.cache_write, usage.output, usage.reasoning) >= 0


def test_an_event_beyond_the_bound_passes_and_leaves_an_estimate():
    events = stream_of(["a", "b" * 900, "c"], Usage(10, output=1), Usage(10, output=30))
    stream = b"".join(events)
    forwarded, usage = read([stream[at : at + 7] for at in range(0, len(stream), 7)], max_bytes=400)
    assert forwarded == stream
    assert usage.estimated
    assert usage.input_total == 10


def test_a_delta_replaces_what_it_names_and_may_lower_it():
    first = {"type": "message_start", "message": {"usage": {**figures(Usage(2225, 55_096, 3, 1)), "x": 1}}}
    grown = {"type": "message_delta", "delta": {}, "usage": {"input_tokens": 9447, "output_tokens": 11}}
    fallen = {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn"},
        "usage": {
            "input_tokens": 404,
            "cache_read_input_tokens": 0,
            "output_tokens": 12,
            "cache_creation_input_tokens": None,
        },
    }
    assert read(map(event_of, [first, grown, fallen]))[1] == Usage(404, 0, 3, 12)


def test_figures_are_final_only_where_the_message_stopped():
    first = {"type": "message_start", "message": {"usage": figures(Usage(5, output=1))}}
    grown = {"type": "message_delta", "delta": {"stop_reason": None}, "usage": {"output_tokens": 11}}
    assert broken_off(map(event_of, [first, grown])) == Usage(5, output=11, estimated=True)
    assert broken_off(map(event_of, [first, grown, {"type": "message_stop"}])) == Usage(5, output=11)
    assert read(map(event_of, [first, grown]))[1] == Usage(5, output=11)


def test_the_provisional_figures_of_the_start_are_never_final():
    first = {"type": "message_start", "message": {"usage": figures(Usage(5, output=1))}}
    bare = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}}
    stop = {"type": "message_stop"}
    stream = b"".join(map(event_of, [first, bare, stop]))
    for pieces in ([stream], [bytes([byte]) for byte in stream]):
        assert read(pieces)[1] == Usage(5, output=1, estimated=True)


def test_the_last_event_counts_although_nothing_ends_it():
    stream = b"".join(stream_of(["x"], Usage(3), Usage(3, output=4))[:-1]).removesuffix(b"\n\n")
    assert read([stream]) == (stream, Usage(3, output=4))


def test_an_error_in_the_stream_leaves_an_estimate():
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "x"}}
    events = [*stream_of(["x"], Usage(3, output=1), Usage(3, output=4))[:4], event_of(error)]
    usage = read(events)[1]
    assert usage.estimated
    assert (usage.input_total, usage.output >= 1) == (3, True)


def test_the_last_word_is_noticed():
    reader = StreamReader(WIDE)
    *events, last = stream_of(["message_stop", '{"type": "message_stop"}'], Usage(3), Usage(3, output=4))
    for event in events:
        reader.feed(event)
    assert not reader.is_finished
    reader.feed(last)
    assert reader.is_finished


# --- single messages


@given(USAGES, CUTS)
def test_a_single_message_is_read_wherever_it_was_cut(usage, cuts):
    answer = json.dumps({"type": "message", "content": [], "usage": figures(usage)}).encode()
    reader = MessageReader(WIDE)
    assert b"".join(reader.feed(piece) for piece in cut(answer, cuts)) + reader.end() == answer
    assert reader.usage(ESTIMATE) == usage


@pytest.mark.parametrize("answer", [b"", b"{}", b"[]", b'{"usage":null}', b'{"usage":{}}', b'{"usage":7}', b"\xff"])
def test_an_answer_without_usage_is_estimated(answer):
    reader = MessageReader(WIDE)
    assert reader.feed(answer) is answer
    assert reader.usage(ESTIMATE) == Usage(ESTIMATE, output=len(answer) // 4, estimated=True)


def test_the_reader_fits_the_request():
    unary, streamed = (DIALECT.read_request(body_of(stream=stream)) for stream in (False, True))
    assert isinstance(DIALECT.reader(unary, ask_for_usage=True, max_bytes=1), MessageReader)
    assert isinstance(DIALECT.reader(streamed, ask_for_usage=True, max_bytes=1), StreamReader)
