import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from edgeproxy.domain.features import Feature
from edgeproxy.domain.limits import Dimension, Limit
from edgeproxy.errors import (
    BUDGET_EXHAUSTED,
    CONCURRENCY_REACHED,
    COUNTERS_UNAVAILABLE,
    INVALID_FIELD,
    INVALID_KEY,
    KINDS,
    MODEL_NOT_ALLOWED,
    MODEL_NOT_FOUND,
    RATE_LIMITED,
    REQUEST_EXCEEDS_LIMIT,
    UPSTREAM_CREDENTIALS,
    UPSTREAM_FAILED,
    UPSTREAM_TIMEOUT,
    GatewayError,
)
from edgeproxy.providers.base import MODELS, Incoming, LimitLevel, ListedModel
from edgeproxy.providers.gemini import Gemini
from edgeproxy.providers.gemini_requests import CountTokens, EmbedContent, GenerateContent
from edgeproxy.providers.unmetered import Unmetered

DIALECT = Gemini()
SECRET = "Zq7-content-of-a-client"
TYPES = "type.googleapis.com/google.rpc."


def body_of(error):
    headers, body = DIALECT.error(error, "id")
    return dict(headers), json.loads(body)["error"]


def details_of(error):
    """The details of an error by the last word of their type."""
    _, row = body_of(error)
    assert all(each["@type"].startswith(TYPES) for each in row["details"])
    return {each["@type"].removeprefix(TYPES): each for each in row["details"]}


def feature_of(path, method="POST"):
    call = DIALECT.find(path)
    assert call is not None
    assert isinstance(call.endpoint, Unmetered)
    assert call.path == path
    facts = call.endpoint.read_request(Incoming(method, b"", 0))
    return facts.features, facts.is_free


# --- paths


@pytest.mark.parametrize("version", ["v1", "v1beta"])
@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("generateContent", GenerateContent),
        ("streamGenerateContent", GenerateContent),
        ("countTokens", CountTokens),
        ("embedContent", EmbedContent),
        ("batchEmbedContents", EmbedContent),
    ],
)
def test_every_operation_is_found_under_both_versions(version, method, kind):
    call = DIALECT.find(f"/{version}/models/gemini-2.5-flash:{method}")
    assert call is not None
    assert isinstance(call.endpoint, kind)
    assert call.path == f"/{version}/models/{{model}}:{method}"
    assert call.model == "gemini-2.5-flash"
    assert call.endpoint.methods == ("POST",)


@pytest.mark.parametrize(
    ("written", "model"),
    [
        ("gemini-mock:chunks-3", "gemini-mock:chunks-3"),
        ("gemini-mock%3Achunks-3", "gemini-mock:chunks-3"),
        ("models%2Fgemini-mock", "gemini-mock"),
        ("models%2fgemini-mock", "gemini-mock"),
        ("team%2Fgemini-mock", "team/gemini-mock"),
        ("gemini%252Fmock", "gemini%2Fmock"),
        ("a%3Fb%23c", "a?b#c"),
        ("gemini-mock:generateContent", "gemini-mock:generateContent"),
    ],
)
def test_a_name_is_decoded_and_the_operation_stands_behind_the_last_colon(written, model):
    for colon in (":", "%3A"):
        call = DIALECT.find(f"/v1beta/models/{written}{colon}streamGenerateContent")
        assert call is not None
        assert call.model == model
        assert call.path == "/v1beta/models/{model}:streamGenerateContent"
        assert call.endpoint.name == "stream generate content"


@pytest.mark.parametrize(
    "path",
    [
        "/v1beta/models/:generateContent",
        "/v1beta/models/models%2F:generateContent",
        "/v1beta/models/a/b:generateContent",
        "/v1beta/models/..%2F..%2Ffiles:generateContent",
        "/v1beta/models/%2E%2E:generateContent",
        "/v1beta/models/a%2F%2e%2e%2Fb:generateContent",
        "/v1beta/models/a%2F%2Fb:generateContent",
        "/v1beta/models/a%20b:generateContent",
        "/v1beta/models/a%0D%0Ab:generateContent",
        "/v1beta/models/a%00:generateContent",
        "/v1beta/models/a%FF:generateContent",
        "/v1beta/models/a\udcff:generateContent",
        "/v1beta/models/é:generateContent",
        "/v1beta/models/a:predict",
        "/v1beta/models/a:predictLongRunning",
        "/v1beta/models/a:GenerateContent",
        "/v1beta/models/a:generatecontent",
        "/v1beta/models/",
        "/v1beta/models/a/",
        "/v1beta/models/..",
        "/v1alpha/models/a:generateContent",
        "/v1beta/tunedModels/a:generateContent",
        "/v1beta/openai/chat/completions",
        "/v2/models",
        "v1/models",
        "/v1/models\n",
        "/x/v1/models",
        "/",
        "",
    ],
)
def test_what_is_not_served_is_not_found(path):
    assert DIALECT.find(path) is None


@given(st.text(max_size=30))
def test_no_name_leads_out_of_its_place(text):
    call = DIALECT.find(f"/v1/models/{text}:generateContent")
    if call is not None:
        assert call.path == "/v1/models/{model}:generateContent"
        assert call.model.isascii()
        assert not {".", "..", ""} & set(call.model.split("/"))


@pytest.mark.parametrize("version", ["v1", "v1beta"])
def test_models_are_listed_and_shown_here(version):
    every = DIALECT.find(f"/{version}/models")
    assert every is not None
    assert (every.endpoint, every.model) == (MODELS, "")
    for written in ("gemini-2.5-flash", "models%2Fgemini-2.5-flash"):
        one = DIALECT.find(f"/{version}/models/{written}")
        assert one is not None
        assert (one.endpoint, one.model) == (MODELS, "gemini-2.5-flash")
    for name in ("gemini-mock:chunks-3", "gemini"):
        one = DIALECT.find(f"/{version}/models/{name}")
        assert one is not None
        assert (one.endpoint, one.model) == (MODELS, name)


@pytest.mark.parametrize("version", ["v1", "v1beta"])
@pytest.mark.parametrize(
    ("path", "feature", "creates"),
    [
        ("/{}/models/gemini-2.5-flash:batchGenerateContent", Feature.BATCHES, True),
        ("/{}/models/gemini-mock:chunks-3:batchGenerateContent", Feature.BATCHES, True),
        ("/{}/models/gemini-embedding-001:asyncBatchEmbedContent", Feature.BATCHES, True),
        ("/{}/batches", Feature.BATCHES, False),
        ("/{}/batches/abc-123", Feature.BATCHES, False),
        ("/{}/batches/abc-123:cancel", Feature.BATCHES, False),
        ("/{}/files", Feature.FILES, True),
        ("/upload/{}/files", Feature.FILES, True),
        ("/{}/files/abc-123", Feature.FILES, False),
        ("/{}/files/abc-123:download", Feature.FILES, False),
        ("/{}/cachedContents", Feature.STORED_CONTEXT, True),
        ("/{}/cachedContents/abc", Feature.STORED_CONTEXT, False),
        ("/{}/interactions", Feature.STORED_CONTEXT, True),
        ("/{}/interactions/abc/cancel", Feature.STORED_CONTEXT, False),
    ],
)
def test_what_hides_its_bill_is_a_feature(version, path, feature, creates):
    assert feature_of(path.format(version)) == ((feature,), not creates)
    assert feature_of(path.format(version), "GET") == ((feature,), True)


@pytest.mark.parametrize(
    "path",
    [
        "/v1beta/files/..",
        "/v1beta/files/../models",
        "/v1beta/files/%2e%2e/models",
        "/v1beta/files/a/b/c/d",
        "/v1beta/files//a",
        "/v1beta/files/a:b:c",
        "/v1beta/files/a:",
        "/v1beta/files?x",
        "/v1beta/filesystem",
        "/upload/v1beta/files/..",
        "/upload/v1beta/models",
        "/upload/v1beta/cachedContents",
        "/v1beta/batches/a%2Fb",
        "/v1beta/cachedContents/..%2F..",
        "/v1beta/interactions/a\n",
        "/v1beta/models/..%2F..:batchGenerateContent",
        "/v1beta/models/a/../b:batchGenerateContent",
        "/v1beta/models/:batchGenerateContent",
    ],
)
def test_nothing_gets_out_of_a_feature(path):
    assert DIALECT.find(path) is None


@pytest.mark.parametrize(
    ("base", "path", "expected"),
    [
        ("", "/v1beta/models/a:b", "/v1beta/models/a:b"),
        ("/v1beta", "/v1beta/models/a:b", "/v1beta/models/a:b"),
        ("/v1", "/v1beta/models/a:b", "/v1beta/models/a:b"),
        ("/v1beta", "/v1/models/a:b", "/v1/models/a:b"),
        ("/google", "/v1/models/a:b", "/google/v1/models/a:b"),
        ("/google/v1beta", "/upload/v1beta/files", "/google/upload/v1beta/files"),
        ("/v1/google", "/v1/models/a:b", "/v1/google/v1/models/a:b"),
        ("/xv1", "/v1/models/a:b", "/xv1/v1/models/a:b"),
    ],
)
def test_a_version_in_the_base_is_not_doubled(base, path, expected):
    assert DIALECT.upstream_path(base, path) == expected


def test_the_query_holds_no_credentials_and_nothing_that_takes_usage_away():
    assert set(DIALECT.query) == {"alt", "prettyPrint", "pageSize", "pageToken"}
    assert DIALECT.query["alt"] == {"json", "sse"}


# --- headers


def test_only_listed_headers_go_to_the_provider():
    client = CIMultiDict(
        {
            "X-Server-Timeout": "60",
            "Accept": "application/x-protobuf",
            "Authorization": f"Bearer {SECRET}",
            "X-Goog-Api-Key": SECRET,
            "X-Goog-Api-Client": SECRET,
            "X-Goog-User-Project": SECRET,
            "X-Goog-FieldMask": "candidates",
            "X-Gemini-Api-Privileged-User-Id": SECRET,
            "Cookie": SECRET,
        }
    )
    assert DIALECT.outgoing_headers("ours", client) == [("x-goog-api-key", "ours"), ("x-server-timeout", "60")]


def test_only_listed_headers_come_back():
    answer = [
        ("Content-Type", "application/json; charset=UTF-8"),
        ("X-Gemini-Service-Tier", "standard"),
        ("Set-Cookie", "a=b"),
        ("Server-Timing", "gfet4t7; dur=512"),
        ("X-Request-Id", "theirs"),
        ("Retry-After", "9"),
    ]
    expected = [("content-type", answer[0][1]), ("x-gemini-service-tier", "standard"), ("x-request-id", "ours")]
    assert DIALECT.incoming_headers(200, answer, "ours") == expected
    assert ("retry-after", "9") in DIALECT.incoming_headers(429, answer, "ours")


def test_there_are_no_headers_about_limits():
    assert DIALECT.limit_headers([LimitLevel(Limit(Dimension.REQUESTS, 5, 60_000), 0, 100)], 0) == []


# --- errors of the provider


def wrong_key(reason="API_KEY_INVALID"):
    info = {"@type": f"{TYPES}ErrorInfo", "reason": reason, "domain": "googleapis.com"}
    return {"error": {"code": 400, "message": "m", "status": "INVALID_ARGUMENT", "details": [None, {}, info]}}


def test_a_wrong_secret_is_told_from_other_bad_requests():
    assert DIALECT.is_credentials_error(json.dumps(wrong_key()).encode())
    assert DIALECT.is_credentials_error(json.dumps([wrong_key()]).encode())


@pytest.mark.parametrize(
    "value",
    [
        {},
        [],
        "API_KEY_INVALID",
        {"error": "API_KEY_INVALID"},
        {"error": {"message": "API_KEY_INVALID", "details": "API_KEY_INVALID"}},
        {"error": {"message": '"reason": "API_KEY_INVALID"', "details": []}},
        wrong_key("SERVICE_DISABLED"),
        wrong_key(["API_KEY_INVALID"]),
        {"reason": "API_KEY_INVALID"},
    ],
)
def test_what_a_client_wrote_does_not_pass_for_it(value):
    assert not DIALECT.is_credentials_error(json.dumps(value).encode())


@given(st.binary(max_size=60))
def test_garbage_is_no_credentials_error(body):
    assert not DIALECT.is_credentials_error(body)


# --- errors of ours


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.code)
def test_every_error_has_the_shape_that_clients_parse(kind):
    headers, row = body_of(GatewayError(kind))
    assert headers["content-type"].startswith("application/json")
    assert headers["x-request-id"] == "id"
    assert set(row) == {"code", "message", "status", "details"}
    assert (row["code"], row["message"]) == (kind.status, kind.message)
    info = {"@type": f"{TYPES}ErrorInfo", "reason": kind.code.upper(), "domain": "edgeproxy"}
    assert row["details"][0] == info


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (INVALID_FIELD, "INVALID_ARGUMENT"),
        (INVALID_KEY, "UNAUTHENTICATED"),
        (MODEL_NOT_ALLOWED, "PERMISSION_DENIED"),
        (MODEL_NOT_FOUND, "NOT_FOUND"),
        (RATE_LIMITED, "RESOURCE_EXHAUSTED"),
        (COUNTERS_UNAVAILABLE, "UNAVAILABLE"),
        (UPSTREAM_FAILED, "UNAVAILABLE"),
        (UPSTREAM_CREDENTIALS, "INTERNAL"),
        (UPSTREAM_TIMEOUT, "DEADLINE_EXCEEDED"),
    ],
)
def test_an_error_has_googles_word_for_it(kind, status):
    assert body_of(GatewayError(kind))[1]["status"] == status


def test_a_rate_limit_says_how_long_to_wait():
    details = details_of(GatewayError(RATE_LIMITED, retry_after_ms=34_200))
    assert details["RetryInfo"]["retryDelay"] == "34.2s"
    assert "PerMinute" in details["QuotaFailure"]["violations"][0]["quotaId"]
    headers, _ = body_of(GatewayError(RATE_LIMITED, retry_after_ms=34_200))
    assert headers["retry-after"] == "35"
    assert "x-should-retry" not in headers


@pytest.mark.parametrize(
    ("wait_ms", "text"),
    [(0, "0s"), (1, "0.001s"), (50, "0.05s"), (1000, "1s"), (10_000, "10s"), (10_010, "10.01s"), (10**9, "1000000s")],
)
def test_a_wait_is_exact(wait_ms, text):
    assert details_of(GatewayError(RATE_LIMITED, retry_after_ms=wait_ms))["RetryInfo"]["retryDelay"] == text


@pytest.mark.parametrize("kind", [BUDGET_EXHAUSTED, REQUEST_EXCEEDS_LIMIT])
def test_where_asking_again_is_no_use_the_limit_has_a_day_in_its_name(kind):
    details = details_of(GatewayError(kind))
    assert "PerDay" in details["QuotaFailure"]["violations"][0]["quotaId"]
    assert "RetryInfo" not in details
    assert body_of(GatewayError(kind))[0]["x-should-retry"] == "false"


@pytest.mark.parametrize(("wait_ms", "names_a_day"), [(300_000, True), (300_001, False), (540_000_000, False)])
def test_a_budget_that_comes_back_says_when_and_a_long_wait_says_enough(wait_ms, names_a_day):
    details = details_of(GatewayError(BUDGET_EXHAUSTED, retry_after_ms=wait_ms))
    assert ("PerDay" in str(details.get("QuotaFailure"))) is names_a_day
    assert float(details["RetryInfo"]["retryDelay"].removesuffix("s")) == wait_ms / 1000


def test_too_many_open_requests_are_no_limit_of_a_time():
    details = details_of(GatewayError(CONCURRENCY_REACHED, retry_after_ms=1000))
    assert "QuotaFailure" not in details
    assert details["RetryInfo"]["retryDelay"] == "1s"


@pytest.mark.parametrize("kind", [INVALID_KEY, MODEL_NOT_FOUND, UPSTREAM_CREDENTIALS])
def test_only_a_limit_fails_a_limit(kind):
    assert set(details_of(GatewayError(kind))) == {"ErrorInfo"}


def test_a_wrong_key_says_how_to_send_one():
    assert body_of(GatewayError(INVALID_KEY))[0]["www-authenticate"] == "Bearer"
    assert "www-authenticate" not in body_of(GatewayError(MODEL_NOT_ALLOWED))[0]


# --- models


def listed(count):
    return [ListedModel(f"gemini-{number}", "google", 0) for number in range(count)]


def page_of(models, **query):
    page = json.loads(DIALECT.model_list(models, query))
    return [each["name"] for each in page["models"]], page.get("nextPageToken")


def test_a_model_is_shown_in_googles_words():
    card = json.loads(DIALECT.model_card(ListedModel("gemini-2.5-flash", "google", 65536)))
    assert card == {
        "name": "models/gemini-2.5-flash",
        "baseModelId": "gemini-2.5-flash",
        "version": "",
        "displayName": "gemini-2.5-flash",
        "supportedGenerationMethods": ["generateContent", "countTokens"],
        "outputTokenLimit": 65536,
    }
    assert "outputTokenLimit" not in json.loads(DIALECT.model_card(listed(1)[0]))
    embedding = json.loads(DIALECT.model_card(ListedModel("gemini-embedding-001", "google", 0)))
    assert "embedContent" in embedding["supportedGenerationMethods"]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 5000])
def test_following_the_pages_shows_every_model_once(size):
    models, found, token = listed(7), [], ""
    for _ in range(8):
        names, token = page_of(models, pageSize=str(size), pageToken=token)
        assert 0 < len(names) <= size
        found += names
        if not token:
            break
    assert not token
    assert found == [f"models/{model.name}" for model in models]


def test_a_page_has_a_size_of_its_own_and_a_largest_one():
    for query in ({}, {"pageSize": ""}, {"pageSize": "0"}):
        names, token = page_of(listed(51), **query)
        assert (len(names), token) == (50, "50")
    assert len(page_of(listed(1500), pageSize="1400")[0]) == 1000
    assert page_of([]) == ([], None)
    assert page_of(listed(3), pageToken="900") == ([], None)


@pytest.mark.parametrize("name", ["pageSize", "pageToken"])
@pytest.mark.parametrize("text", ["-1", "x", " 1", "1.5", "1e3", "٣", "9" * 10, SECRET])
def test_a_page_that_is_none_is_refused_without_echo(name, text):
    with pytest.raises(GatewayError) as caught:
        page_of(listed(3), **{name: text})
    assert caught.value.kind is INVALID_FIELD
    assert text not in caught.value.message
