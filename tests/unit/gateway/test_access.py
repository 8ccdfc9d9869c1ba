"""Access lines tell what the usage event tells, and not a word of the request."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from edgeproxy import logs
from edgeproxy.config import Logs
from edgeproxy.domain.keys import KeyId
from edgeproxy.domain.usage import Usage, UsageEvent
from edgeproxy.errors import RATE_LIMITED
from edgeproxy.gateway.access import AccessLog
from tests.support.gateway import Gateway, chat, generate, message
from tests.support.raw import Client

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
CANARY = "Zq7canary"


@pytest.fixture
async def telling(gateway: Gateway) -> Gateway:
    """A gateway with access lines."""
    await gateway.role.reload(replace(gateway.settings, logs=Logs(access=True)))
    return gateway


async def settled(gateway: Gateway, secret: str, count: int = 1) -> list[UsageEvent]:
    async with asyncio.timeout(10):
        while len(events := await gateway.events(secret)) < count:
            await asyncio.sleep(0.02)
    return events


def told(capfd: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """The access lines so far, each of which has declared fields only, and no canary."""
    written = capfd.readouterr().err
    assert CANARY not in written
    rows = [json.loads(line) for line in written.splitlines()]
    assert all(row.keys() <= {"event", "timestamp", *logs.FIELDS} for row in rows)
    return [row for row in rows if row["event"].startswith("request_")]


async def test_a_finished_request_is_one_line_with_the_fields_of_its_usage_event(
    telling: Gateway, capfd: pytest.CaptureFixture[str]
):
    secret = await telling.issue()
    for path, body, dialect, operation in (
        (CHAT, chat(stream=True), "openai", "chat completions"),
        (MESSAGES, message(), "anthropic", "messages"),
        ("/v1beta/models/gemini-mock:generateContent", generate(), "gemini", "generate content"),
    ):
        before = len(await telling.events(secret))
        async with telling.post(path, secret, body) as answer:
            assert answer.status == 200
            request_id = answer.headers["x-request-id"]
            await answer.read()
        event = next(each for each in await settled(telling, secret, before + 1) if each.id == request_id)
        (row,) = told(capfd)
        assert row.pop("timestamp").endswith("Z")
        assert row == {
            "event": "request_finished",
            "request_id": request_id,
            "key_id": telling.records[secret].id,
            "dialect": dialect,
            "operation": operation,
            "model": event.model,
            "status": 200,
            **{name: getattr(event.usage, name) for name in ("input_uncached", "cache_read", "cache_write", "output")},
            "reasoning": event.usage.reasoning,
            "estimated": False,
            "latency_ms": event.latency_ms,
        }
        assert event.usage.output > 0


async def test_a_request_that_fails_upstream_is_told_with_its_status(
    telling: Gateway, capfd: pytest.CaptureFixture[str]
):
    secret = await telling.issue()
    async with telling.post(CHAT, secret, chat("gpt-mock:status-500")) as answer:
        assert answer.status == 500
        await answer.read()
    await settled(telling, secret)
    (row,) = told(capfd)
    assert (row["event"], row["status"], row["model"], row["output"]) == ("request_finished", 500, "gpt-*", 0)


@pytest.mark.parametrize(
    ("limits", "body", "status", "code"),
    [
        (["requests=1/1h"], chat(), 429, "budget_exhausted"),
        ([], chat("no-such-model"), 404, "model_not_found"),
        ([], b"{", 400, "invalid_json"),
    ],
)
async def test_a_refusal_of_a_known_key_is_told_with_our_code(
    telling: Gateway, capfd: pytest.CaptureFixture[str], limits: list[str], body: Any, status: int, code: str
):
    secret = await telling.issue(*limits)
    if limits:  # use it up
        async with telling.post(CHAT, secret, body) as answer:
            await answer.read()
        await settled(telling, secret)
    told(capfd)
    async with telling.post(CHAT, secret, body) as answer:
        assert answer.status == status
        request_id = answer.headers["x-request-id"]
    (row,) = told(capfd)
    del row["timestamp"]
    assert row == {
        "event": "request_refused",
        "request_id": request_id,
        "key_id": telling.records[secret].id,
        "status": status,
        "error": code,
    }


async def test_nothing_of_a_request_gets_into_a_line(telling: Gateway, capfd: pytest.CaptureFixture[str]):
    """Canaries everywhere: content, model, path, query, headers, and a key that is not known."""
    secret = await telling.issue()
    headers = {f"x-{CANARY}": CANARY, "user-agent": CANARY, "anthropic-beta": CANARY, "x-forwarded-for": CANARY}
    content = [{"role": "user", "content": CANARY}]
    for path, model in (
        (f"{CHAT}?{CANARY}={CANARY}", "gpt-mock"),
        (f"{CHAT}?key={CANARY}", f"gpt-{CANARY}:status-404"),
        (f"{CHAT}?key={CANARY}", f"{CANARY}"),
        (f"/v1/{CANARY}", "gpt-mock"),
        (f"/v1beta/models/{CANARY}:generateContent?key={secret}", "gpt-mock"),
    ):
        body = {**chat(model), "messages": content, CANARY: CANARY, "contents": content}
        async with telling.post(path, secret, body, headers=headers) as answer:
            await answer.read()
    rows = told(capfd)
    assert [row["event"] for row in rows] == [
        "request_finished",
        "request_finished",
        "request_refused",
        "request_refused",
    ]
    assert secret not in str(rows)


async def test_what_comes_without_a_known_key_leaves_no_line(telling: Gateway, capfd: pytest.CaptureFixture[str]):
    for secret in ("", CANARY, f"ep-{CANARY}"):
        async with telling.post(CHAT, secret, chat()) as answer:
            assert answer.status == 401
    for raw in (f"GET /{CANARY} HTTP/1.1\r\nhost: {CANARY}\r\n\r\n", f"{CANARY}\r\n\r\n"):
        async with Client(telling.url) as client:
            client.send(raw)
            assert b" 40" in (await client.answer())[0]
    assert told(capfd) == []


async def test_a_client_that_leaves_is_told_once_it_is_settled(telling: Gateway, capfd: pytest.CaptureFixture[str]):
    secret = await telling.issue()
    async with telling.post(CHAT, secret, chat("gpt-mock:chunks-5.interval-ms-50", stream=True)) as answer:
        await answer.content.readany()
        answer.close()
    await settled(telling, secret)
    assert [row["event"] for row in told(capfd)] == ["request_finished"]


async def test_without_the_setting_there_are_no_lines(gateway: Gateway, capfd: pytest.CaptureFixture[str]):
    secret = await gateway.issue()
    for model in ("gpt-mock", "no-such-model"):
        async with gateway.post(CHAT, secret, chat(model)) as answer:
            await answer.read()
    await settled(gateway, secret)
    assert capfd.readouterr().err == ""


def test_a_line_has_every_count_of_the_event(capsys: pytest.CaptureFixture[str]):
    usage = Usage(input_uncached=1, cache_read=2, cache_write=3, output=4, reasoning=5, estimated=True)
    event = UsageEvent("id", KeyId("key-id"), "gpt-*", 200, usage, latency_ms=6)
    AccessLog(Logs(access=True)).finished(event, "openai", "responses")
    row = json.loads(capsys.readouterr().err)
    counts = ("input_uncached", "cache_read", "cache_write", "output", "reasoning", "latency_ms", "estimated")
    assert [row[name] for name in counts] == [1, 2, 3, 4, 5, 6, True]
    AccessLog(Logs()).finished(event, "openai", "responses")
    AccessLog(Logs()).refused("id", KeyId("key-id"), RATE_LIMITED)
    assert capsys.readouterr().err == ""
