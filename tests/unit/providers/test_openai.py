import httpx2
import openai
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.pagination import SyncPage
from openai.types import Model

from edgeproxy.domain.features import Feature
from edgeproxy.domain.limits import Dimension, Limit
from edgeproxy.errors import (
    BUDGET_EXHAUSTED,
    INVALID_KEY,
    KINDS,
    RATE_LIMITED,
    REQUEST_EXCEEDS_LIMIT,
    GatewayError,
    Source,
)
from edgeproxy.providers.base import MODELS, Incoming, LimitLevel, ListedModel
from edgeproxy.providers.openai import OpenAI
from edgeproxy.providers.openai_chat import ChatCompletions, Completions
from edgeproxy.providers.openai_media import Embeddings, Images, Moderations, Speech, Transcriptions
from edgeproxy.providers.openai_responses import Compact, InputTokens, Responses

DIALECT = OpenAI()
SECRET = "Zq7-content-of-a-client"

# --- paths


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/v1/chat/completions", ChatCompletions),
        ("/v1/completions", Completions),
        ("/v1/responses", Responses),
        ("/v1/responses/compact", Compact),
        ("/v1/responses/input_tokens", InputTokens),
        ("/v1/embeddings", Embeddings),
        ("/v1/images/generations", Images),
        ("/v1/audio/speech", Speech),
        ("/v1/audio/transcriptions", Transcriptions),
        ("/v1/moderations", Moderations),
    ],
)
def test_a_path_names_an_operation(path, kind):
    call = DIALECT.find(path)
    assert isinstance(call.endpoint, kind)
    assert (call.path, call.model) == (path, "")


def test_clients_of_other_dialects_are_sent_to_a_path_that_there_is():
    assert DIALECT.find(DIALECT.example_path) is not None


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("/v1/models", ""),
        ("/v1/models/", ""),
        ("/v1/models/gpt-4o", "gpt-4o"),
        ("/v1/models/org/name:free", "org/name:free"),
        ("/v1/models/org%2Fname", "org/name"),
        ("/v1/models/../batches", "../batches"),  # goes nowhere: models are answered here
    ],
)
def test_all_models_or_one_are_asked_for(path, model):
    call = DIALECT.find(path)
    assert call.endpoint is MODELS
    assert call.model == model


@pytest.mark.parametrize(
    ("path", "feature", "is_free"),
    [
        ("/v1/batches", Feature.BATCHES, False),
        ("/v1/batches/batch_1", Feature.BATCHES, True),
        ("/v1/batches/batch_1/cancel", Feature.BATCHES, True),
        ("/v1/files", Feature.FILES, False),
        ("/v1/files/file-1/content", Feature.FILES, True),
        ("/v1/uploads", Feature.FILES, False),
        ("/v1/uploads/upload_1/parts", Feature.FILES, True),
        ("/v1/conversations", Feature.STORED_CONTEXT, False),
        ("/v1/conversations/conv_1/items/msg_1", Feature.STORED_CONTEXT, True),
        ("/v1/responses/resp_1", Feature.BACKGROUND, False),  # a POST here is a verb that nobody knows yet
        ("/v1/responses/resp_1/cancel", Feature.BACKGROUND, True),
    ],
)
def test_what_hides_its_bill_belongs_to_a_feature_and_costs_where_it_is_made(path, feature, is_free):
    call = DIALECT.find(path)
    facts = call.endpoint.read_request(Incoming("POST", b"", 0))
    assert (call.path, facts.features, facts.is_free) == (path, (feature,), is_free)


@pytest.mark.parametrize(
    "path",
    [
        *("", "/", "/v1", "/v1/", "/v1/chat", "/chat/completions", "/v1/chat/completions/", "/v1//chat/completions"),
        *("/V1/chat/completions", "/v1/chat/completions/x", "/v1/modelsx", "/v1beta/models", "/v1/engines"),
        *("/v1/batches/", "/v1/batches/../models", "/v1/files/%2e%2e", "/v1/files/a/b/c/d", "/v1/responses/"),
        *("/v1/realtime", "/v1/assistants", "/v1/vector_stores", "/v1/fine_tuning/jobs", "/v1/organization/users"),
    ],
)
def test_a_path_that_is_not_served_is_not_found(path):
    assert DIALECT.find(path) is None


@given(st.text(max_size=20) | st.text("/.%v1batchesflrmod", max_size=20))
def test_no_path_that_is_handed_on_leads_elsewhere(rest):
    for prefix in ("", "/v1/", "/v1/batches/", "/v1/responses/"):
        call = DIALECT.find(prefix + rest)
        if call is not None and call.endpoint is not MODELS:
            assert call.path == prefix + rest
            assert not {".", "%", "\\", "?", "#", "{", " ", "\r", "\n"} & set(call.path)
            assert "//" not in call.path


def test_looking_at_what_is_kept_is_free_and_making_it_is_not():
    for path in ("/v1/batches", "/v1/files", "/v1/conversations", "/v1/responses/resp_1"):
        endpoint = DIALECT.find(path).endpoint
        assert all(endpoint.read_request(Incoming(method, b"", 0)).is_free for method in ("GET", "DELETE"))
        assert not endpoint.read_request(Incoming("POST", b"", 0)).is_free


@pytest.mark.parametrize(
    ("base", "sent"),
    [
        ("", "/v1/chat/completions"),  # https://api.example.com
        ("/v1", "/v1/chat/completions"),
        ("/api/v1", "/api/v1/chat/completions"),
        ("/openai", "/openai/chat/completions"),
        ("/v1beta/openai", "/v1beta/openai/chat/completions"),
    ],
)
def test_the_base_of_a_provider_holds_the_version_as_in_the_official_client(base, sent):
    assert DIALECT.upstream_path(base, "/v1/chat/completions") == sent
    with openai.OpenAI(api_key="x", base_url=f"https://host{base or '/v1'}") as client:
        assert client._prepare_url("/chat/completions").path == sent


@given(st.from_regex(r"(/[a-z0-9]{1,5}){0,3}", fullmatch=True))
def test_a_base_is_kept_as_it_is(base):
    assert DIALECT.upstream_path(base, "/v1/batches/b_1") == (base or "/v1") + "/batches/b_1"


def test_a_query_is_passed_on_as_the_official_client_writes_it():
    fields = {"stream": True, "starting_after": 3, "include": ["a"], "include_obfuscation": False}
    fields |= {"after": "b_1", "limit": 5, "order": "asc", "purpose": "batch"}
    with openai.OpenAI(api_key="x") as client:
        request = client._build_request(openai._models.FinalRequestOptions(method="get", url="/batches", params=fields))
    assert set(request.url.params) <= set(DIALECT.query)
    assert not {"key", "beta", "alt", "access_token"} & set(DIALECT.query)


# --- models


def test_the_official_client_understands_the_models():
    listed = [ListedModel("gpt-a", "mock", 0), ListedModel("org/b", "other", 5)]
    page = SyncPage[Model].model_validate(orjson.loads(DIALECT.model_list(listed, {"limit": "1"})))
    assert [(each.id, each.owned_by, each.object) for each in page.data] == [
        ("gpt-a", "mock", "model"),
        ("org/b", "other", "model"),
    ]
    assert all(isinstance(each.created, int) for each in page.data)
    assert not page.has_next_page()
    assert Model.model_validate_json(DIALECT.model_card(listed[1])) == page.data[1]
    assert orjson.loads(DIALECT.model_list([], {})) == {"object": "list", "data": []}


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
        "Content-Type": SECRET,
        "Content-Length": SECRET,
        "Transfer-Encoding": SECRET,
    }
    headers = DIALECT.outgoing_headers("operator", client)
    assert headers == [
        ("authorization", "Bearer operator"),
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


# --- errors of the provider


@pytest.mark.parametrize(
    "body",
    [
        b'{"code":"Client specified an invalid argument","error":"Incorrect API key provided: ab***yz. You can ..."}',
        b'{"error":{"message":"Incorrect API key provided: ab***yz.","type":"invalid_request_error"}}',
    ],
)
def test_a_wrong_secret_of_ours_is_told_from_a_wrong_request(body):
    assert DIALECT.is_credentials_error(body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"Incorrect API key provided",
        b'"Incorrect API key provided"',
        b'["Incorrect API key provided"]',
        b'{"error":null}',
        b'{"error":["Incorrect API key provided"]}',
        b'{"error":{"message":["Incorrect API key provided"]}}',
        b'{"message":"Incorrect API key provided"}',
        # What a client sent is repeated to it: that must not look like a fault of ours.
        b'{"error":{"message":"Invalid value: \'Incorrect API key provided\'. Supported values are: \'user\'."}}',
        b'{"code":"invalid-argument","error":"Unknown field: Incorrect API key"}',
        b'{"error":"Incorrect API key',
    ],
)
def test_any_other_error_is_the_clients(body):
    assert not DIALECT.is_credentials_error(body)


@given(st.binary(max_size=60))
def test_any_body_of_an_error_can_be_looked_at(body):
    assert not DIALECT.is_credentials_error(body)


# --- errors of ours


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
            assert types[kind.code] == ("invalid_request_error" if kind.source is Source.CLIENT else "server_error")
    assert types["rate_limited"] == types["concurrency_reached"] == "rate_limit_exceeded"


def test_a_message_of_ours_replaces_the_general_one():
    _, body = DIALECT.error(GatewayError(INVALID_KEY, "More precisely."), "id")
    assert orjson.loads(body)["error"]["message"] == "More precisely."
