import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from edgeproxy.errors import OperatorError
from edgeproxy.mock_provider.exchange import exchange_of
from edgeproxy.mock_provider.server import Options, RunningMock, running

PATHS = ["/v1/chat/completions", "/chat/completions", "/v1/messages"]


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


@pytest.mark.parametrize(
    ("headers", "where", "status"),
    [
        ({"authorization": "Bearer any"}, "authorization", 200),
        ({"x-api-key": "any"}, "x-api-key", 200),
        ({"authorization": "Bearer wrong"}, "authorization", 401),
        ({"x-api-key": "wrong"}, "x-api-key", 401),
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
