"""Paths, methods and headers, and the dialects that they mean."""

import pytest

from edgeproxy.errors import METHOD_NOT_ALLOWED, PATH_NOT_FOUND, UPGRADE_REFUSED, ErrorKind, GatewayError
from edgeproxy.gateway import routes
from edgeproxy.gateway.routes import Query

NONE = Query("")


def refusal(method: str, path: str, query: Query = NONE, **headers: str) -> ErrorKind:
    with pytest.raises(GatewayError) as caught:
        routes.find(method, path, query, headers)
    return caught.value.kind


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("/v1/chat/completions", "openai"),
        ("/v1/completions", "openai"),
        ("/v1/responses", "openai"),
        ("/v1/responses/input_tokens", "openai"),
        ("/v1/embeddings", "openai"),
        ("/v1/images/generations", "openai"),
        ("/v1/audio/speech", "openai"),
        ("/v1/audio/transcriptions", "openai"),
        ("/v1/moderations", "openai"),
        ("/v1/messages", "anthropic"),
        ("/v1/messages/count_tokens", "anthropic"),
        ("/v1beta/models/gemini-x:generateContent", "gemini"),
        ("/v1/models/gemini-x:streamGenerateContent", "gemini"),
        ("/v1/models/gemini-x:countTokens", "gemini"),
        ("/v1beta/models/gemini-x:embedContent", "gemini"),
        ("/v1/models/gemini-x:batchEmbedContents", "gemini"),
    ],
)
def test_each_path_speaks_one_dialect_whatever_the_headers_say(path: str, dialect: str) -> None:
    for headers in ({}, {"anthropic-version": "2023-06-01"}, {"x-goog-api-key": "k"}):
        assert routes.find("POST", path, Query("key=x"), headers).dialect.name == dialect


@pytest.mark.parametrize(
    ("query", "headers", "dialect"),
    [
        ("", {}, "openai"),
        ("limit=5", {"authorization": "Bearer x"}, "openai"),
        ("", {"anthropic-version": "2026-10-21"}, "anthropic"),
        ("", {"anthropic-version": "2023-06-01", "x-goog-api-key": "k"}, "anthropic"),
        ("", {"x-goog-api-key": "k"}, "gemini"),
        ("pageSize=5&key=k", {}, "gemini"),
        ("%6bey=k", {}, "gemini"),
        ("key=", {}, "openai"),
        ("monkey=k", {}, "openai"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/some-model"])
def test_the_three_meanings_of_the_list_of_models(path: str, query: str, headers: dict[str, str], dialect: str) -> None:
    route = routes.find("GET", path, Query(query), headers)
    assert (route.dialect.name, route.endpoint.name) == (dialect, "models")
    assert route.model == path.removeprefix("/v1/models").removeprefix("/")


def test_googles_own_version_means_gemini() -> None:
    assert routes.find("GET", "/v1beta/models", NONE, {}).dialect.name == "gemini"


@pytest.mark.parametrize(
    "path",
    [
        *("/v1/messages/", "/V1/messages", "//v1/messages", "/v1/chat/completions%20", "/v1", ""),
        *("/v1/batches/../chat/completions", "/v1/files/%2e%2e", "/v1/realtime", "/v1beta/openai/chat/completions"),
        *("/v1/modelsx", "/v1beta/models/:generateContent", "/v1beta/models/x:predict"),
    ],
)
def test_nothing_but_the_exact_path_is_served(path: str) -> None:
    assert refusal("POST", path) is PATH_NOT_FOUND


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD", "OPTIONS", "post"])
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses", "/v1beta/models/x:generateContent"])
def test_only_the_methods_of_an_operation_are_served(path: str, method: str) -> None:
    assert refusal(method, path) is METHOD_NOT_ALLOWED


def test_the_list_of_models_is_not_written_to() -> None:
    assert refusal("POST", "/v1/models") is METHOD_NOT_ALLOWED
    assert refusal("DELETE", "/v1/models/x") is METHOD_NOT_ALLOWED


def test_a_websocket_is_refused_so_that_its_client_falls_back_and_other_upgrades_are_ignored() -> None:
    assert refusal("GET", "/v1/responses", upgrade="WebSocket") is UPGRADE_REFUSED
    assert refusal("GET", "/v1/realtime", upgrade="websocket") is UPGRADE_REFUSED
    assert routes.find("POST", "/v1/responses", NONE, {"upgrade": "h2c"}).dialect.name == "openai"


@pytest.mark.parametrize(
    ("path", "headers", "dialect"),
    [
        ("/v1/messages/unknown", {}, "anthropic"),
        ("/v1/unknown", {}, "openai"),
        ("/v1/unknown", {"anthropic-version": "2023-06-01"}, "anthropic"),
        ("/v1beta/unknown", {}, "gemini"),
        ("/v1/unknown", {"x-goog-api-key": "k"}, "gemini"),
        ("/v1/files", {"anthropic-version": "2023-06-01"}, "anthropic"),
        ("/v1/files", {}, "openai"),
    ],
)
def test_errors_are_told_as_the_client_reads_them(path: str, headers: dict[str, str], dialect: str) -> None:
    assert routes.dialect_of("POST", path, NONE, headers).name == dialect


def test_a_models_name_is_escaped_on_its_way_to_the_provider() -> None:
    route = routes.find("POST", "/v1beta/models/a%2Fb:c:generateContent", NONE, {})
    assert route.model == "a/b:c"
    assert route.upstream_path("/base/", "x/../y?z") == "/base/v1beta/models/x%2F..%2Fy%3Fz:generateContent"


# --- the query


def test_a_parameter_is_found_however_it_is_written() -> None:
    query = Query("a=1&b=%20x+y&a=2&empty=&%6b=v")
    assert [query.get(name) for name in ("a", "b", "empty", "k", "none")] == ["1", " x y", "", "v", ""]


@pytest.mark.parametrize(
    ("raw", "passed"),
    [
        ("", ""),
        ("alt=sse&key=SECRET", "alt=sse"),
        ("key=SECRET&alt=sse&%6Bey=SECRET&k%65y=SECRET", "alt=sse"),
        ("alt=sse&fields=x&alt=json", "alt=sse&alt=json"),
        ("al%74=s%73e", "al%74=s%73e"),
        ("alt=proto&alt=media&alt&alt=&alt=SSE", ""),
        ("page=a+b&page", "page=a+b&page"),
        ("page=a;key=SECRET&page=b#c&page=%3b", "page=%3b"),
        ("KEY=SECRET&;key=SECRET&&", ""),
    ],
)
def test_only_named_parameters_pass_with_the_values_they_may_have(raw: str, passed: str) -> None:
    assert Query(raw).only({"alt": frozenset({"json", "sse"}), "page": None}) == passed


def test_a_query_of_too_many_parameters_has_none() -> None:
    assert Query("&".join(["key=x"] * 1000)).get("key") == ""
