from edgeproxy.mock_provider.endpoint import free
from edgeproxy.mock_provider.routes import routes

ROWS = {(method, path): endpoint for method, path, endpoint in routes()}


def test_no_path_stands_twice() -> None:
    assert len(ROWS) == len(list(routes()))


def test_openais_paths_work_with_and_without_their_version() -> None:
    for path in ("/chat/completions", "/responses", "/embeddings", "/audio/transcriptions"):
        assert ROWS["POST", path] is ROWS["POST", f"/v1{path}"]


def test_geminis_paths_work_in_both_versions() -> None:
    for method in ("generateContent", "streamGenerateContent", "countTokens", "embedContent", "batchEmbedContents"):
        path = f"/models/{{model:.+}}:{method}"
        assert ROWS["POST", f"/v1{path}"] is ROWS["POST", f"/v1beta{path}"]


def test_what_counts_stores_or_lists_is_free_and_what_generates_is_not() -> None:
    billed = {path for (_, path), endpoint in ROWS.items() if endpoint.bill is not free and path.startswith("/v1/")}
    assert billed == {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/responses/compact",
        "/v1/embeddings",
        "/v1/images/generations",
        "/v1/audio/speech",
        "/v1/audio/transcriptions",
        "/v1/messages",
        "/v1/models/{model:.+}:generateContent",
        "/v1/models/{model:.+}:streamGenerateContent",
        "/v1/models/{model:.+}:embedContent",
        "/v1/models/{model:.+}:batchEmbedContents",
    }
    assert all(endpoint.bill is free for (method, _), endpoint in ROWS.items() if method == "GET")
