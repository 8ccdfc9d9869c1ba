import asyncio
import gzip
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from yarl import URL

from edgeproxy.errors import OperatorError
from edgeproxy.mock_provider.exchange import exchange_of
from edgeproxy.mock_provider.server import Options, RunningMock, running

PATHS = ["/v1/chat/completions", "/chat/completions", "/v1/messages"]
GEMINI = "/v1beta/models/{}:streamGenerateContent?alt=sse"
FREE = [
    ("POST", "/v1/responses/input_tokens"),
    ("POST", "/v1/moderations"),
    ("POST", "/v1/messages/count_tokens"),
    ("POST", "/v1/messages/batches"),
    ("GET", "/v1/messages/batches"),
    ("GET", "/v1/responses/resp_1"),
    ("POST", "/v1/responses/resp_1/cancel"),
    ("POST", "/v1/batches"),
    ("GET", "/batches"),
    ("GET", "/v1/files"),
    ("POST", "/v1beta/models/gemini-mock:countTokens"),
    ("POST", "/v1/models/gemini-mock:batchGenerateContent"),
    ("POST", "/v1beta/cachedContents"),
    ("GET", "/v1beta/cachedContents"),
    ("POST", "/upload/v1beta/files"),
    ("GET", "/v1beta/files"),
]


@pytest.fixture
async def mock() -> AsyncIterator[RunningMock]:
    async with running() as started:
        yield started


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def body(model: str = "m", **fields: object) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "one two"}], **fields}


async def post(
    client: aiohttp.ClientSession, mock: RunningMock, path: str = PATHS[0], **options: Any
) -> tuple[int, bytes]:
    options = {"json": body(), "headers": {"authorization": "Bearer secret"}} | options
    async with client.post(mock.url + path, **options) as response:
        return response.status, await response.read()


@pytest.mark.parametrize("path", PATHS)
async def test_every_path_answers_and_counts(client: aiohttp.ClientSession, mock: RunningMock, path: str) -> None:
    status, _ = await post(client, mock, f"{path}?beta=true", json=body("m:chunks-3"))
    assert status == 200
    async with client.get(f"{mock.url}/__count") as response:
        counted = await response.json()
    assert (counted["requests"], counted["started"], counted["completed"]) == (1, 1, 1)
    assert (counted["input_tokens"], counted["output_tokens"]) == (2, 3)
    assert counted["by_status"] == {"200": 1}
    assert counted["by_model"]["m:chunks-3"]["output_tokens"] == 3
    assert counted["last_path"] == path


async def test_counts_can_be_set_back(client: aiohttp.ClientSession, mock: RunningMock) -> None:
    await post(client, mock)
    async with client.post(f"{mock.url}/__reset") as response:
        assert response.status == 204
    assert mock.counts.total.requests == 0


@pytest.mark.parametrize(("method", "path"), FREE)
async def test_what_is_free_is_counted_without_tokens(
    client: aiohttp.ClientSession, mock: RunningMock, method: str, path: str
) -> None:
    asked = body("m") if method == "POST" else None
    headers = {"authorization": "Bearer secret"}
    async with client.request(method, mock.url + path, json=asked, headers=headers) as response:
        assert response.status == 200
        assert isinstance(await response.json(), dict)
    total = mock.counts.total
    assert (total.requests, total.completed, total.input_tokens, total.output_tokens) == (1, 1, 0, 0)


@pytest.mark.parametrize("version", ["v1", "v1beta"])
@pytest.mark.parametrize(
    ("model", "served"),
    [
        ("gemini-mock", "gemini-mock"),
        ("gemini-mock:chunks-5.split", "gemini-mock"),
        ("gemini-mock%3Achunks-5", "gemini-mock"),
        ("models%2Fgemini-mock", "gemini-mock"),
        ("meta/llama:chunks-5", "meta/llama"),
    ],
)
async def test_geminis_model_is_what_stands_before_the_last_colon(
    client: aiohttp.ClientSession, mock: RunningMock, version: str, model: str, served: str
) -> None:
    url = URL(f"{mock.url}/{version}/models/{model}:generateContent", encoded=True)
    asked = {"contents": [{"parts": [{"text": "one two"}]}]}
    async with client.post(url, json=asked, headers={"x-goog-api-key": "secret"}) as response:
        answer = await response.json()
    assert (answer["modelVersion"], answer["usageMetadata"]["totalTokenCount"]) == (served, 7)
    assert mock.counts.by_billed_model[served].output_tokens == 5


async def test_gemini_streams_as_its_query_says(client: aiohttp.ClientSession, mock: RunningMock) -> None:
    for query, start in (("?alt=sse", b"data: {"), ("", b"[{\n"), ("?alt=json", b"[{\n")):
        status, answer = await post(client, mock, f"/v1/models/g:streamGenerateContent{query}")
        assert (status, answer[: len(start)]) == (200, start)


@pytest.mark.parametrize("path", ["/v1/models/g:predict", "/v1/realtime", "/v1beta/interactions", "/v1/models/g"])
async def test_what_is_not_there_is_not_found(client: aiohttp.ClientSession, mock: RunningMock, path: str) -> None:
    assert (await post(client, mock, path))[0] == 404
    assert mock.counts.total.requests == 0


async def test_an_advisors_tokens_are_counted_at_its_own_model(
    client: aiohttp.ClientSession, mock: RunningMock
) -> None:
    await post(client, mock, "/v1/messages", json=body("claude:chunks-3.advisor-50"))
    assert mock.counts.total.input_tokens == mock.counts.by_model["claude:chunks-3.advisor-50"].input_tokens == 52
    billed = {name: row.output_tokens for name, row in mock.counts.by_billed_model.items()}
    assert billed == {"claude": 3, "claude-mock-advisor": 5}


STREAMS = {
    "/v1/chat/completions": {},
    "/v1/completions": {"prompt": "one two"},
    "/v1/responses": {"input": "one two"},
    "/v1/images/generations": {"prompt": "one two", "partial_images": 5},
    "/v1/audio/speech": {"input": "one two", "stream_format": "sse"},
    "/v1/messages": {},
    GEMINI: {},
    GEMINI.removesuffix("?alt=sse"): {},
}


@pytest.mark.parametrize("path", STREAMS)
async def test_every_stream_breaks_off_where_it_is_told_to(
    client: aiohttp.ClientSession, mock: RunningMock, path: str
) -> None:
    async def ask(directives: str) -> bytes:
        model = f"m:chunks-6.{directives}"
        status, answer = await post(client, mock, path.format(model), json=body(model, stream=True) | STREAMS[path])
        assert status == 200
        return answer

    whole = await ask("output-6")
    assert await ask("split") == await ask("burst") == await ask("gzip") == whole
    part = await ask("end-after-3")
    assert whole.startswith(part)
    assert 0 < len(part) < len(whole)
    wrong = await ask("error-after-3")
    assert wrong.startswith(part)
    assert b"error" in wrong.removeprefix(part)
    for fault in ("cut-after-3", "close-after-3", "close-after-3.half"):
        with pytest.raises((aiohttp.ClientError, ConnectionError)):
            await ask(fault)
    assert (mock.counts.total.completed, mock.counts.total.broken) == (4, 5)


def form(model: str) -> aiohttp.FormData:
    data = aiohttp.FormData()
    data.add_field("file", b"x" * 2500, filename="a.mp3", content_type="audio/mpeg")
    data.add_field("model", model)
    return data


async def test_a_form_names_its_model_behind_the_file(client: aiohttp.ClientSession, mock: RunningMock) -> None:
    path = "/v1/audio/transcriptions"
    status, answer = await post(client, mock, path, json=None, data=form("m:chunks-3"))
    assert (status, orjson.loads(answer)["usage"]["total_tokens"]) == (200, 6)
    assert mock.counts.by_model["m:chunks-3"].input_tokens == 3
    assert (await post(client, mock, path, json=None, data=form("m:status-503")))[0] == 503
    with pytest.raises(aiohttp.ClientPayloadError):
        await post(client, mock, path, json=None, data=form("m:close-after-1"))
    _, answer = await post(client, mock, "/v1/files", json=None, data=form("m"))
    assert orjson.loads(answer)["bytes"] == 2500


async def test_a_body_can_be_seen_to_arrive(mock: RunningMock) -> None:
    head = b"POST /v1/audio/transcriptions HTTP/1.1\r\nhost: x\r\ncontent-length: 5000\r\n\r\n"
    for leaves_early in (True, False):
        reader, writer = await asyncio.open_connection(mock.host, mock.port)
        writer.write(head + b"x" * 1000)
        async with asyncio.timeout(5):
            while mock.counts.receiving_bytes < 1000:
                await asyncio.sleep(0.005)
        assert (mock.counts.receiving_bytes, mock.counts.open) == (1000, 1)
        if not leaves_early:
            writer.write(b"x" * 4000)
            assert (await reader.readline()).startswith(b"HTTP/1.1 401")
        writer.close()
        async with asyncio.timeout(5):
            while mock.counts.open:
                await asyncio.sleep(0.005)
        assert mock.counts.receiving_bytes == 0


@pytest.mark.parametrize(
    ("headers", "where", "status"),
    [
        ({"authorization": "Bearer any"}, "authorization", 200),
        ({"x-api-key": "any"}, "x-api-key", 200),
        ({"authorization": "Bearer wrong"}, "authorization", 401),
        ({"x-api-key": "wrong"}, "x-api-key", 401),
        ({"x-goog-api-key": "any"}, "x-goog-api-key", 200),
        ({"x-goog-api-key": "wrong"}, "x-goog-api-key", 401),
        ({"x-api-key": ""}, "", 401),
        ({}, "", 401),
    ],
)
async def test_a_secret_is_required(
    client: aiohttp.ClientSession, mock: RunningMock, headers: dict[str, str], where: str, status: int
) -> None:
    assert (await post(client, mock, headers=headers))[0] == status
    assert (mock.counts.last.secret_in, mock.counts.last.secret_accepted) == (where, status == 200)
    assert mock.counts.by_status == {str(status): 1}


@pytest.mark.parametrize(
    ("path", "model", "status"),
    [(GEMINI.format("g"), "g", 400), ("/v1/responses", "m:xai", 400), ("/v1/responses", "m:deepseek", 401)],
)
async def test_a_wrong_key_is_refused_in_the_providers_own_way(
    client: aiohttp.ClientSession, mock: RunningMock, path: str, model: str, status: int
) -> None:
    headers = {"authorization": "Bearer wrong"}
    assert (await post(client, mock, path, json=body(model), headers=headers))[0] == status
    assert mock.counts.by_model == {}


async def test_a_key_in_the_query_is_noted_whatever_else_came(client: aiohttp.ClientSession, mock: RunningMock) -> None:
    path = "/v1beta/models/g:generateContent?key=any&alt=json"
    assert (await post(client, mock, path, headers={}))[0] == 200
    assert (await post(client, mock, path, headers={"x-goog-api-key": "wrong"}))[0] == 400
    assert (mock.counts.last.secret_in, mock.counts.keys_in_query) == ("query", 2)
    assert mock.counts.last.query == ("alt", "key")
    assert "any" not in orjson.dumps(mock.counts.snapshot()).decode()


async def test_the_operators_secret_is_told_from_any_other(client: aiohttp.ClientSession) -> None:
    async with running(options=Options(expected_secret="sk-operator")) as mock:
        for secret, status in (("sk-operator", 200), ("ep-clients-own-key", 401), ("sk-öperator", 401)):
            headers = {"authorization": f"Bearer {secret}"}
            assert (await post(client, mock, headers=headers))[0] == status
            assert mock.counts.last.secret_accepted == (status == 200)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'{"model":1}', b'{"model":"m:nonsense"}'])
async def test_bad_input_gets_400_in_the_dialects_shape(
    client: aiohttp.ClientSession, mock: RunningMock, path: str, raw: bytes
) -> None:
    status, answer = await post(client, mock, path, json=None, data=raw)
    assert status == 400
    assert orjson.loads(answer)["error"]["type"] == "invalid_request_error"


async def test_an_error_can_be_asked_for(client: aiohttp.ClientSession, mock: RunningMock) -> None:
    headers = {"x-api-key": "secret"}
    asked = body("m:status-529.retry-after-7")
    async with client.post(f"{mock.url}/v1/messages", json=asked, headers=headers) as response:
        assert (response.status, response.headers["retry-after"]) == (529, "7")
        assert (await response.json())["error"]["type"] == "overloaded_error"
    assert (mock.counts.total.completed, mock.counts.total.broken) == (0, 0)


async def test_only_the_first_requests_fail(client: aiohttp.ClientSession, mock: RunningMock) -> None:
    asked = body("m:status-503.first-2")
    assert [(await post(client, mock, json=asked))[0] for _ in range(4)] == [503, 503, 200, 200]
    assert (await post(client, mock, json=body("other:status-503.first-2")))[0] == 503


async def test_the_connection_can_close_before_the_answer(client: aiohttp.ClientSession, mock: RunningMock) -> None:
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await post(client, mock, json=body("m:no-head"))
    with pytest.raises(aiohttp.ClientResponseError):
        await post(client, mock, json=body("m:garbage-head"))
    assert (mock.counts.total.requests, mock.counts.total.started, mock.counts.total.broken) == (2, 0, 2)


async def test_garbage_is_served_with_a_straight_face(client: aiohttp.ClientSession, mock: RunningMock) -> None:
    status, answer = await post(client, mock, json=body("m:garbage"))
    assert status == 200
    with pytest.raises(orjson.JSONDecodeError):
        orjson.loads(answer)
    assert mock.counts.total.output_tokens == 0


async def test_recordings_are_served_by_name(client: aiohttp.ClientSession, tmp_path: Path) -> None:
    (tmp_path / "acme").mkdir()
    (tmp_path / "acme" / "a.sse").write_bytes(b"data: 1\n\ndata: 2\n\n")
    async with running(options=Options(recordings=tmp_path)) as mock:
        assert await post(client, mock, json=body("recording:acme/a.sse")) == (200, b"data: 1\n\ndata: 2\n\n")
        assert (await post(client, mock, json=body("recording:acme/b.sse")))[0] == 404
        _, answer = await post(client, mock, json=body("recording:acme/a.sse:end-after-1"))
        assert answer == b"data: 1\n\n"
        for path in (
            "/v1/responses",
            "/v1/messages",
            "/v1/embeddings",
            "/v1beta/models/recording:acme%2Fa.sse:embedContent",
        ):
            url = URL(mock.url + path, encoded=True)
            async with client.post(url, json=body("recording:acme/a.sse"), headers={"x-api-key": "k"}) as response:
                assert await response.read() == b"data: 1\n\ndata: 2\n\n"


async def test_a_recording_travels_with_its_headers_and_counts_what_it_bills(
    client: aiohttp.ClientSession, tmp_path: Path
) -> None:
    (tmp_path / "acme").mkdir()
    packed = gzip.compress(b'[{"a": 1}]')
    (tmp_path / "acme" / "a.json.gz").write_bytes(packed)
    expected = {"input_uncached": 7, "output": 9, "reasoning": 4}
    entry = {
        "file": "a.json.gz",
        "http_status": 200,
        "response_headers": {"x-seen": "1"},
        "expected_model": "acme-1",
        "expected": expected,
    }
    (tmp_path / "acme" / "index.json").write_bytes(orjson.dumps({"fixtures": [entry]}))
    async with running(options=Options(recordings=tmp_path)) as mock:
        headers = {"authorization": "Bearer k", "accept-encoding": "identity"}
        for path in ("/v1/messages", "/v1/messages/count_tokens"):
            asked = body("recording:acme/a.json.gz:gzip.interval-1")
            async with client.post(mock.url + path, json=asked, headers=headers) as response:
                assert (response.headers["content-encoding"], response.headers["x-seen"]) == ("gzip", "1")
                assert await response.json() == [{"a": 1}]
        assert (mock.counts.total.completed, mock.counts.total.output_tokens) == (2, 9)
        assert mock.counts.by_billed_model["acme-1"].reasoning_tokens == 4


async def test_without_recordings_they_are_not_found(client: aiohttp.ClientSession, mock: RunningMock) -> None:
    assert (await post(client, mock, json=body("recording:acme/a.sse")))[0] == 404


async def test_two_hundred_streams_at_once_are_counted_exactly(mock: RunningMock) -> None:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as client:

        async def one(number: int) -> None:
            path = PATHS[number % len(PATHS)]
            status, _ = await post(client, mock, path, json=body(f"m:chunks-{number % 7}.interval-1", stream=True))
            assert status == 200

        await asyncio.gather(*(one(number) for number in range(200)))
    total = mock.counts.total
    assert (total.requests, total.completed, total.broken, mock.counts.open) == (200, 200, 0, 0)
    assert mock.counts.open_peak == 200
    assert total.input_tokens == 400
    assert total.output_tokens == sum(number % 7 for number in range(200))


async def test_the_same_request_gets_the_same_bytes(client: aiohttp.ClientSession, mock: RunningMock) -> None:
    first = await post(client, mock, json=body("m:chunks-20", stream=True))
    assert first == await post(client, mock, json=body("m:chunks-20", stream=True))
    raw = orjson.dumps(body("m:chunks-20", stream=True))
    assert mock.counts.total.output_tokens == 2 * exchange_of(raw).tokens.output_total


async def test_a_bound_socket_can_be_handed_over(client: aiohttp.ClientSession) -> None:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        async with running(bound) as mock:
            assert mock.port == bound.getsockname()[1]
            assert (await post(client, mock))[0] == 200


async def test_an_address_that_cannot_be_used_is_one_line(mock: RunningMock, tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="cannot listen on"):
        async with running(f"{mock.host}:{mock.port}"):
            pass
    with pytest.raises(OperatorError, match="HOST:PORT"):
        async with running("nonsense"):
            pass
    with pytest.raises(OperatorError, match="not a folder"):
        async with running(options=Options(recordings=tmp_path / "none")):
            pass
