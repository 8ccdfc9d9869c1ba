"""The models that a gateway names: from its configuration, as each dialect's clients read them, and as each key may."""

from dataclasses import replace
from typing import Any

import aiohttp
import pytest

from edgeproxy.domain.keys import KeyStatus
from tests.support.gateway import Gateway


async def ask(gateway: Gateway, path: str, **headers: str) -> tuple[int, Any]:
    async with gateway.session.get(gateway.url + path, headers=headers) as answer:
        assert "x-request-id" in answer.headers
        return answer.status, await answer.json()


async def test_one_path_names_each_clients_own_models(gateway: Gateway) -> None:
    secret = await gateway.issue()
    _, openai = await ask(gateway, "/v1/models", authorization=f"Bearer {secret}")
    assert [row["id"] for row in openai["data"]] == ["gpt-mock", "gpt-other"]
    assert openai["object"] == "list"
    version = {"anthropic-version": "2023-06-01"}
    _, anthropic = await ask(gateway, "/v1/models?limit=1000", **version, **{"x-api-key": secret})
    assert [row["id"] for row in anthropic["data"]] == ["claude-mock", "claude-other"]
    assert (anthropic["has_more"], anthropic["first_id"]) == (False, "claude-mock")
    for path, headers in (
        ("/v1/models", {"x-goog-api-key": secret}),
        ("/v1beta/models", {"x-goog-api-key": secret}),
        (f"/v1beta/models?pageSize=10&key={secret}", {}),
        (f"/v1/models?key={secret}", {}),
    ):
        _, gemini = await ask(gateway, path, **headers)
        assert [row["name"] for row in gemini["models"]] == ["models/gemini-mock", "models/gemini-other"]
    assert gateway.mock.counts.total.requests == 0


@pytest.mark.parametrize(
    ("path", "headers", "field", "value"),
    [
        ("/v1/models/gpt-other", {}, "id", "gpt-other"),
        ("/v1/models/claude-other", {"anthropic-version": "2023-06-01"}, "id", "claude-other"),
        ("/v1beta/models/gemini-other", {}, "name", "models/gemini-other"),
    ],
)
async def test_one_model_is_told_of_by_name(
    gateway: Gateway, path: str, headers: dict[str, str], field: str, value: str
) -> None:
    secret = await gateway.issue()
    status, card = await ask(gateway, path, authorization=f"Bearer {secret}", **headers)
    assert (status, card[field]) == (200, value)
    for unknown in (path + "x", path.replace("-other", "-unlisted")):
        status, error = await ask(gateway, unknown, authorization=f"Bearer {secret}", **headers)
        assert (status, "error" in error) == (404, True)


async def test_a_key_sees_the_models_that_it_may_use(gateway: Gateway) -> None:
    secret = await gateway.issue(models=("gpt-mock", "claude-*"))
    _, listed = await ask(gateway, "/v1/models", authorization=f"Bearer {secret}")
    assert [row["id"] for row in listed["data"]] == ["gpt-mock"]
    assert (await ask(gateway, "/v1/models/gpt-other", authorization=f"Bearer {secret}"))[0] == 404


async def test_nobody_sees_a_model_without_a_key_or_with_one_that_was_revoked(gateway: Gateway) -> None:
    assert (await ask(gateway, "/v1/models"))[0] == 401
    secret = await gateway.issue()
    assert (await ask(gateway, "/v1/models", authorization=f"Bearer {secret}"))[0] == 200
    record = gateway.records[secret]
    await gateway.publish(secret, replace(record, version=2, status=KeyStatus.REVOKED))
    assert (await ask(gateway, "/v1/models", authorization=f"Bearer {secret}"))[0] == 401


async def test_asking_for_models_is_neither_recorded_nor_limited(gateway: Gateway) -> None:
    secret = await gateway.issue("requests=1/1d")
    for _ in range(3):
        assert (await ask(gateway, "/v1/models", authorization=f"Bearer {secret}"))[0] == 200
    assert await gateway.events(secret) == []


async def test_head_asks_for_the_head_only(gateway: Gateway) -> None:
    secret = await gateway.issue()
    headers = {"authorization": f"Bearer {secret}"}
    async with gateway.session.head(f"{gateway.url}/v1/models", headers=headers) as answer:
        assert (answer.status, await answer.read()) == (200, b"")
        assert int(answer.headers["content-length"]) > 0
    async with aiohttp.ClientSession() as other, other.head(f"{gateway.url}/") as answer:
        assert answer.status == 200
