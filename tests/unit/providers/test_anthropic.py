import json

import anthropic
import httpx2
import orjson
import pytest
from anthropic.types import ModelInfo
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from edgeproxy.domain.features import Feature
from edgeproxy.domain.limits import Dimension, Limit
from edgeproxy.domain.usage import Usage
from edgeproxy.errors import BUDGET_EXHAUSTED, KINDS, RATE_LIMITED, UPSTREAM_CREDENTIALS, GatewayError
from edgeproxy.providers.anthropic import Anthropic
from edgeproxy.providers.anthropic_usage import StreamReader
from edgeproxy.providers.base import MODELS, Incoming, LimitLevel, ListedModel, RequestFacts
from edgeproxy.providers.readers import ObjectReader

DIALECT = Anthropic()
SECRET = "Zq7-content-of-a-client"
MESSAGES = DIALECT.find("/v1/messages").endpoint
COUNT_TOKENS = DIALECT.find("/v1/messages/count_tokens").endpoint


def body_of(**fields):
    return json.dumps({"model": "claude-mock", "max_tokens": 100, "messages": [], **fields}).encode()


def incoming(body, method="POST"):
    return Incoming(method, body, len(body))


def facts_of(**fields):
    return MESSAGES.read_request(incoming(body_of(**fields)))


# --- paths


@pytest.mark.parametrize(
    ("path", "name", "methods"),
    [
        ("/v1/messages", "messages", ("POST",)),
        ("/v1/messages/count_tokens", "count tokens", ("POST",)),
        ("/v1/models", "models", ("GET", "HEAD")),
        ("/v1/models/claude-mock", "models", ("GET", "HEAD")),
    ],
)
def test_a_path_leads_to_its_operation_and_goes_on_unchanged(path, name, methods):
    call = DIALECT.find(path)
    assert (call.endpoint.name, call.endpoint.methods, call.path) == (name, methods, path)


def test_the_model_in_a_path_is_decoded():
    assert DIALECT.find("/v1/models").model == DIALECT.find("/v1/messages").model == ""
    assert DIALECT.find("/v1/models/claude-mock%3Achunks-3").model == "claude-mock:chunks-3"
    assert DIALECT.find("/v1/models/vendor/claude").model == "vendor/claude"


@pytest.mark.parametrize(
    "path",
    [
        *("", "/", "/v1", "/v1/complete", "/v1/message", "/v1/messages/", "/v1/messages/x", "/v1/modelss"),
        *("/v2/messages", "/v1/messages/count_tokens/x", "/v1/messages/batches/..", "/v1/files/a/b/c/d"),
        *("/v1/agents", "/v1/skills", "/v1/sessions", "/v1/environments", "/v1/organizations/me"),
    ],
)
def test_what_is_not_served_is_not_found(path):
    assert DIALECT.find(path) is None


@pytest.mark.parametrize(
    ("path", "method", "feature", "is_free"),
    [
        ("/v1/messages/batches", "POST", Feature.BATCHES, False),
        ("/v1/messages/batches", "GET", Feature.BATCHES, True),
        ("/v1/messages/batches/msgbatch_01/results", "GET", Feature.BATCHES, True),
        ("/v1/messages/batches/msgbatch_01/cancel", "POST", Feature.BATCHES, True),
        ("/v1/files", "POST", Feature.FILES, False),
        ("/v1/files/file_01/content", "GET", Feature.FILES, True),
        ("/v1/files/file_01", "DELETE", Feature.FILES, True),
    ],
)
def test_what_hides_its_bill_is_named(path, method, feature, is_free):
    endpoint = DIALECT.find(path).endpoint
    facts = endpoint.read_request(incoming(b"", method))
    assert method in endpoint.methods
    assert (facts.features, facts.is_free) == ((feature,), is_free)


@pytest.mark.parametrize(
    ("base", "whole"),
    [
        ("", "/v1/messages"),
        ("/v1", "/v1/messages"),
        ("/anthropic", "/anthropic/v1/messages"),
        ("/anthropic/v1", "/anthropic/v1/messages"),
    ],
)
def test_the_version_stands_once_in_the_path_to_the_provider(base, whole):
    assert DIALECT.upstream_path(base, "/v1/messages") == whole


def test_beta_flags_and_pages_may_pass_in_the_query_and_keys_may_not():
    assert set(DIALECT.query) == {"beta", "limit", "after_id", "before_id"}
    assert DIALECT.find(DIALECT.example_path).endpoint is MESSAGES


# --- requests


def test_a_plain_request_is_understood():
    estimate = len(body_of()) // 4 + 1
    plain = RequestFacts("claude-mock", stream=False, input_estimate=estimate, output_max=100, least_output=1)
    assert facts_of() == plain
    assert facts_of(stream=True).stream
    assert facts_of().usage_requested


@pytest.mark.parametrize(
    ("fields", "most"),
    [
        ({"max_tokens": 0}, 0),
        ({"max_tokens": None}, None),
        ({"fallbacks": None}, 100),
        ({"fallbacks": "default"}, 100),
        ({"fallbacks": []}, 100),
        ({"fallbacks": [{"model": "a"}, {"model": "b", "max_tokens": None}]}, 100),
        ({"fallbacks": [{"model": "a", "max_tokens": 50}]}, 100),
        ({"fallbacks": [{"model": "a", "max_tokens": 50}, {"model": "b", "max_tokens": 900}, "nonsense"]}, 900),
        ({"max_tokens": None, "fallbacks": [{"model": "a", "max_tokens": 900}]}, None),
        # No bound at all: the provider asks itself again. The excess is charged when it is known.
        ({"tools": [{"type": "web_search_20260318", "name": "web_search", "max_uses": 5}]}, 100),
    ],
)
def test_the_declared_maximum_is_the_largest_of_all_attempts(fields, most):
    assert facts_of(**fields).output_max == most


def test_a_request_that_continues_a_stored_thread_says_so():
    assert facts_of(thread={"type": "create"}).features == (Feature.STORED_CONTEXT,)
    assert facts_of(thread={"type": "continue", "previous_message_id": "msg_1"}).features == (Feature.STORED_CONTEXT,)
    assert facts_of(thread=None).features == ()


@pytest.mark.parametrize("ttl", [b'"ttl":"1h"', b'"ttl": "1h"', b'"ttl"\n :\t"1h"'])
def test_a_cache_of_an_hour_is_noticed_however_it_is_spaced(ttl):
    body = b'{"model":"m","messages":[],"cache_control":{"type":"ephemeral",%b}}' % ttl
    assert MESSAGES.read_request(incoming(body)).long_cache


def test_what_only_speaks_of_an_hour_asks_for_none():
    assert not facts_of(cache_control={"type": "ephemeral", "ttl": "5m"}).long_cache
    assert not facts_of(messages=[{"role": "user", "content": 'write {"ttl": "1h"}'}]).long_cache


@pytest.mark.parametrize(
    "fields",
    [
        {"context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}},
        {"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}, "metadata": {"user_id": "x"}},
        {"inference_geo": "us", "speed": "fast", "service_tier": "auto", "mcp_servers": [{}], "unheard_of": [1]},
    ],
)
def test_what_does_not_concern_us_is_neither_refused_nor_changed(fields):
    body = body_of(**fields)
    facts = MESSAGES.read_request(incoming(body))
    assert facts.features == ()
    assert MESSAGES.outgoing_body(body, facts, "claude-mock", ask_for_usage=True) is body


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
        b'{"model":"a","messages":[],"thread":{"type":"create"},"thread":null}',
        b'{"model":"a","messages":[],"fallbacks":[],"fallbacks":"default"}',
        body_of(fallbacks=[{"model": "a", "max_tokens": SECRET}]),
        body_of(fallbacks=[{"model": "a", "max_tokens": -1}]),
    ],
)
def test_a_request_that_cannot_be_counted_is_refused_without_echo(body):
    with pytest.raises(GatewayError) as caught:
        MESSAGES.read_request(incoming(body))
    assert caught.value.kind.status == 400
    _, answer = DIALECT.error(caught.value, "id")
    assert SECRET.encode() not in answer


def test_the_body_goes_as_it_came_but_for_the_model():
    body = b' {"messages":[{"model":"claude-mock"}], "model" : "claude-mock", "x":1.50, "messages2":"\\u00e9" }'
    facts = MESSAGES.read_request(incoming(body))
    assert MESSAGES.outgoing_body(body, facts, "claude-mock", ask_for_usage=True) is body
    sent = MESSAGES.outgoing_body(body, facts, "other", ask_for_usage=True)
    assert sent == body.replace(b': "claude-mock", "x"', b': "other", "x"')


def test_counting_tokens_is_free_and_needs_a_model_and_messages():
    facts = COUNT_TOKENS.read_request(incoming(b'{"model":"claude-mock","messages":[],"system":"x"}'))
    assert facts == RequestFacts("claude-mock", stream=False, input_estimate=0, output_max=0, is_free=True)
    for body in (b"", b"[]", b'{"model":"m"}', b'{"messages":[]}', b'{"model":"a","messages":[],"model":"b"}'):
        with pytest.raises(GatewayError) as caught:
            COUNT_TOKENS.read_request(incoming(body))
        assert caught.value.kind.status == 400


# --- answers


def test_the_reader_fits_what_came_and_not_what_was_asked_for():
    for stream in (True, False):
        facts = facts_of(stream=stream)
        readers = [
            MESSAGES.reader(facts, content_type, ask_for_usage=False, max_bytes=100)
            for content_type in ("text/event-stream", "application/json", "")
        ]
        assert [type(reader) for reader in readers] == [StreamReader, ObjectReader, ObjectReader]


@pytest.mark.parametrize("long_cache", [True, False])
def test_the_reader_knows_of_a_long_cache(long_cache):
    facts = facts_of(cache_control={"type": "ephemeral", "ttl": "1h" if long_cache else "5m"})
    usage = {"input_tokens": 1, "cache_creation_input_tokens": 9, "output_tokens": 2}
    start = {"type": "message_start", "message": {"usage": usage}}
    stop = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}}
    stream = b"".join(b"data: %b\n\n" % orjson.dumps(each) for each in (start, stop))
    expected = Usage(1, cache_write=9, output=2, cache_write_1h=9 if long_cache else 0)
    for content_type, answer in (
        ("application/json", orjson.dumps({"usage": usage})),
        ("text/event-stream", stream),
    ):
        reader = MESSAGES.reader(facts, content_type, ask_for_usage=False, max_bytes=1000)
        reader.feed(answer)
        assert reader.usage(77) == expected


@pytest.mark.parametrize("answer", [b"", b"{}", b"[]", b'{"usage":null}', b'{"usage":{}}', b'{"usage":7}', b"\xff"])
def test_a_message_without_usage_is_estimated_up_to_what_was_asked_for(answer):
    for most in (100, 1):
        reader = MESSAGES.reader(facts_of(max_tokens=most), "application/json", ask_for_usage=False, max_bytes=100)
        assert reader.feed(answer) is answer
        assert reader.usage(77) == Usage(77, output=min(len(answer) // 4, most), estimated=True)


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
            "Content-Type": SECRET,
            "Content-Length": SECRET,
        }
    )
    assert DIALECT.outgoing_headers("operator", client) == [
        ("x-api-key", "operator"),
        ("accept", "application/json"),
        ("anthropic-version", "2026-10-21"),
    ]


def test_every_beta_flag_goes_on_however_often_the_header_stands_there():
    client = CIMultiDict([("Anthropic-Beta", "a-1,b-2 ,  x"), ("anthropic-beta", "c-3")])
    sent = DIALECT.outgoing_headers("operator", client)
    assert [value for name, value in sent if name == "anthropic-beta"] == ["a-1,b-2 ,  x", "c-3"]


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
    assert row["type"] == TYPES.get(kind.status, "invalid_request_error" if kind.status < 500 else "api_error")


def test_a_bad_request_is_never_about_our_own_secret():
    assert not DIALECT.is_credentials_error(b'{"type":"error","error":{"type":"authentication_error"}}')


def test_clients_are_told_to_stop_where_waiting_does_not_help():
    for kind in (BUDGET_EXHAUSTED, UPSTREAM_CREDENTIALS):
        assert ("x-should-retry", "false") in DIALECT.error(GatewayError(kind), "id")[0]
    assert "x-should-retry" not in dict(DIALECT.error(GatewayError(RATE_LIMITED, retry_after_ms=1), "id")[0])


# --- models

MODELS_HERE = [ListedModel(f"claude-{number}", "anthropic", 1000 * number) for number in range(30)]


def page_of(**query):
    return orjson.loads(DIALECT.model_list(MODELS_HERE, query))


def numbers(page):
    return [int(row["id"].removeprefix("claude-")) for row in page["data"]]


@pytest.mark.parametrize(
    ("query", "shown", "has_more"),
    [
        ({}, range(20), True),
        ({"limit": "1000"}, range(30), False),
        ({"limit": "30"}, range(30), False),
        ({"limit": "29"}, range(29), True),
        ({"limit": "2", "after_id": "claude-27"}, [28, 29], False),
        ({"limit": "2", "after_id": "claude-26"}, [27, 28], True),
        ({"limit": "3", "before_id": "claude-10"}, [7, 8, 9], True),
        ({"limit": "3", "before_id": "claude-2"}, [0, 1], False),
        ({"after_id": "claude-29"}, [], False),
        ({"after_id": "gone"}, [], False),
        ({"before_id": "gone"}, [], False),
        ({"before_id": "claude-0"}, [], False),
        *(({"limit": bad}, range(20), True) for bad in ("", "-1", "x", "1.5", "\u0663", "9" * 5000)),
        ({"limit": "0"}, [0], True),
        ({"limit": "999999999"}, range(30), False),
    ],
)
def test_models_come_in_pages(query, shown, has_more):
    page = page_of(**query)
    assert numbers(page) == list(shown)
    ends = [f"claude-{number}" for number in (shown[0], shown[-1])] if shown else [None, None]
    assert [page["has_more"], page["first_id"], page["last_id"]] == [has_more, *ends]


@given(st.integers(1, 40))
@pytest.mark.parametrize(
    ("turn", "end", "first", "models"),
    [("after_id", "last_id", {}, 30), ("before_id", "first_id", {"before_id": "claude-29"}, 29)],
)
def test_whoever_turns_all_pages_sees_every_model_once(turn, end, first, models, size):
    page = page_of(limit=str(size), **first)
    seen = numbers(page)
    while page["has_more"]:
        page = page_of(limit=str(size), **{turn: page[end]})
        seen += numbers(page)
    assert sorted(seen) == list(range(models))


def test_the_official_client_understands_models_and_their_pages():
    def answer(request):
        call = DIALECT.find(request.url.path)
        assert call.endpoint is MODELS
        query = dict(request.url.params)
        assert set(query) <= set(DIALECT.query)
        body = DIALECT.model_card(MODELS_HERE[1]) if call.model else DIALECT.model_list(MODELS_HERE, query)
        return httpx2.Response(200, headers={"content-type": "application/json"}, content=body)

    http = httpx2.Client(transport=httpx2.MockTransport(answer))
    with anthropic.Anthropic(api_key="x", base_url="http://gateway", http_client=http) as client:
        listed = list(client.models.list(limit=7))
        card = client.models.retrieve("claude-1")
    assert [model.id for model in listed] == [model.name for model in MODELS_HERE]
    assert (card.id, card.display_name, card.type, card.max_tokens) == ("claude-1", "claude-1", "model", 1000)
    assert ModelInfo.model_validate(orjson.loads(DIALECT.model_card(MODELS_HERE[1]))) == card


def test_an_unknown_maximum_is_left_open():
    assert orjson.loads(DIALECT.model_card(MODELS_HERE[0]))["max_tokens"] is None


# --- a lower maximum


def test_a_lower_maximum_is_put_in_place_of_the_declared_one():
    body = body_of(max_tokens=64_000, messages=[{"role": "user", "content": '"max_tokens": 1'}])
    sent = MESSAGES.with_output_max(body, facts_of(), 40)
    assert sent == body.replace(b"64000", b"40")


def test_the_budget_of_thinking_stays_below_the_maximum():
    assert facts_of(thinking={"type": "enabled", "budget_tokens": 1024}).least_output == 1025
    assert facts_of(thinking={"type": "adaptive"}).least_output == 1


@pytest.mark.parametrize("fallbacks", ["default", [{"model": "claude-mock", "max_tokens": 900}]])
def test_what_fallbacks_may_write_cannot_be_lowered(fallbacks):
    assert facts_of(fallbacks=fallbacks).least_output is None
