"""The way of a request from its first byte to its count, with everything real but the provider."""

import asyncio
import dataclasses
import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from edgeproxy.domain.keys import KeyStatus, issue_secret
from edgeproxy.mock_provider import anthropic as mock_anthropic
from edgeproxy.mock_provider import openai as mock_openai
from edgeproxy.mock_provider.exchange import exchange_of
from tests.support.gateway import OPERATOR_SECRET, Gateway, StartGateway, chat, generate, message
from tests.support.raw import Client, read_request, scripted_provider

CHAT = "/v1/chat/completions"
MESSAGES = "/v1/messages"
RESPONSES = "/v1/responses"


def response(model: str = "gpt-mock", **fields: Any) -> dict[str, Any]:
    return {"model": model, "input": "one two", **fields}


def encoded(body: dict[str, Any]) -> bytes:
    return json.dumps(body).encode()


@pytest.mark.parametrize(
    ("path", "body", "dialect"),
    [
        (CHAT, chat("gpt-mock:chunks-7.cached-5"), mock_openai),
        (CHAT, chat("gpt-mock:length"), mock_openai),
        (CHAT, chat("gpt-mock:deepseek.reasoning-3"), mock_openai),
        (CHAT, chat("gpt-mock:xai.reasoning-3"), mock_openai),
        (CHAT, chat("gpt-mock:split"), mock_openai),
        (MESSAGES, message("claude-mock:cached-9.cache-write-4"), mock_anthropic),
        (MESSAGES, message("claude-mock:split.length"), mock_anthropic),
    ],
)
async def test_a_single_answer_passes_unchanged_and_is_counted_to_the_token(
    gateway: Gateway, path: str, body: dict[str, Any], dialect: Any
) -> None:
    secret = await gateway.issue("tokens=1000000/1h")
    raw = encoded(body)
    async with gateway.post(path, secret, raw) as answer:
        assert answer.status == 200
        assert await answer.read() == dialect.unary(exchange_of(raw))
        request_id = answer.headers["x-request-id"]
    tokens = exchange_of(raw).tokens
    (event,) = await gateway.events(secret)
    usage = await gateway.usage(secret)
    assert event.id == request_id
    assert (event.model, event.status, event.usage.estimated) == (body["model"], 200, False)
    assert (event.usage.input_total, event.usage.output) == (tokens.input_total, tokens.output_total)
    assert (usage.totals.requests, usage.totals.input_tokens, usage.totals.output_tokens, usage.open) == (
        1,
        tokens.input_total,
        tokens.output_total,
        0,
    )
    assert usage.windows[0].used == tokens.input_total + tokens.output_total


@pytest.mark.parametrize(
    ("path", "body", "dialect"),
    [
        (CHAT, chat("gpt-mock:chunks-30", stream=True, stream_options={"include_usage": True}), mock_openai),
        (CHAT, chat("gpt-mock:split", stream=True, stream_options={"include_usage": True}), mock_openai),
        (CHAT, chat("gpt-mock:burst", stream=True, stream_options={"include_usage": True}), mock_openai),
        (CHAT, chat("gpt-mock:big-20000.chunks-9", stream=True, stream_options={"include_usage": True}), mock_openai),
        (MESSAGES, message("claude-mock:chunks-40", stream=True), mock_anthropic),
        (MESSAGES, message("claude-mock:split.cached-11.cache-write-6", stream=True), mock_anthropic),
        (MESSAGES, message("claude-mock:burst", stream=True), mock_anthropic),
    ],
)
async def test_a_stream_passes_unchanged_and_is_counted_to_the_token(
    gateway: Gateway, path: str, body: dict[str, Any], dialect: Any
) -> None:
    secret = await gateway.issue()
    raw = encoded(body)
    async with gateway.post(path, secret, raw) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert await answer.read() == b"".join(dialect.events(exchange_of(raw)))
    tokens = exchange_of(raw).tokens
    (event,) = await gateway.events(secret)
    assert (event.usage.input_total, event.usage.output) == (tokens.input_total, tokens.output_total)
    assert not event.usage.estimated
    assert gateway.mock.counts.last.body_sha256 == hashlib.sha256(raw).hexdigest()


@pytest.mark.parametrize("options", [{}, {"stream_options": None}, {"stream_options": {"include_usage": False}}])
@pytest.mark.parametrize("manner", ["chunks-12", "chunks-12.split", "chunks-12.burst"])
async def test_usage_is_asked_for_and_taken_out_again_when_the_client_did_not_ask(
    gateway: Gateway, options: dict[str, Any], manner: str
) -> None:
    secret = await gateway.issue()
    raw = encoded(chat(f"gpt-mock:{manner}", stream=True, **options))
    asked = encoded(chat(f"gpt-mock:{manner}", stream=True, stream_options={"include_usage": True}))
    async with gateway.post(CHAT, secret, raw) as answer:
        received = await answer.read()
    events = list(mock_openai.events(exchange_of(asked)))
    assert received == b"".join(event for event in events if b'"choices":[]' not in event)
    assert len(received) < sum(map(len, events))
    (event,) = await gateway.events(secret)
    assert (event.usage.output, event.usage.estimated) == (12, False)


async def test_usage_is_not_asked_for_where_the_provider_refuses_it(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(include_usage=False)
    secret = await gateway.issue()
    raw = encoded(chat(stream=True))
    async with gateway.post(CHAT, secret, raw) as answer:
        await answer.read()
    assert gateway.mock.counts.last.body_sha256 == hashlib.sha256(raw).hexdigest()
    (event,) = await gateway.events(secret)
    assert event.usage.estimated
    assert event.usage.output > 0


@pytest.mark.parametrize("header", ["authorization", "x-api-key"])
@pytest.mark.parametrize(("path", "body"), [(CHAT, chat()), (MESSAGES, message())])
async def test_the_clients_key_never_goes_up_and_the_operators_never_comes_down(
    gateway: Gateway, header: str, path: str, body: dict[str, Any]
) -> None:
    secret = await gateway.issue()
    value = f"Bearer {secret}" if header == "authorization" else secret
    sent = {
        header: value,
        "anthropic-version": "2023-06-01",
        "anthropic-beta": "a,b",
        "x-stainless-os": "Linux",
        "cookie": "a=b",
        "x-forwarded-for": "203.0.113.77",
        "x-forwarded-proto": "https",
        "x-real-ip": "203.0.113.77",
        "forwarded": "for=203.0.113.77;proto=https",
        "user-agent": "sdk",
        "openai-organization": "org-1",
        "accept-encoding": "gzip, br",
    }
    async with gateway.session.post(gateway.url + path + "?beta=true", json=body, headers=sent) as answer:
        assert answer.status == 200
        received = {name.lower(): text for name, text in answer.headers.items()}
        assert OPERATOR_SECRET not in str(received) + await answer.text()
    last = gateway.mock.counts.last
    assert last.secret_accepted
    assert last.path == path + "?beta=true" or last.path == path
    expected = {"host", "user-agent", "accept", "accept-encoding", "content-type", "content-length"}
    expected |= {"authorization"} if path == CHAT else {"x-api-key", "anthropic-version", "anthropic-beta"}
    assert set(last.headers) == expected
    assert last.accept_encoding == "identity"
    hidden = ("set-cookie", "openai-organization", "anthropic-organization-id", "cf-ray", "retry-after", "server")
    assert not received.keys() & set(hidden)
    assert not any("ratelimit" in name for name in received)


@pytest.mark.claims("OL-4a")
@pytest.mark.parametrize(("path", "body"), [(CHAT, chat()), (MESSAGES, message())])
@pytest.mark.parametrize("protocol", ["http", "https, http", ""])
async def test_what_a_proxy_took_in_clear_is_refused_before_its_key_is_looked_at(
    start_gateway: StartGateway, path: str, body: dict[str, Any], protocol: str
) -> None:
    gateway = await start_gateway(listen={"trusted_proxies": ["127.0.0.1"]})
    for secret in (await gateway.issue(), "nonsense"):
        async with gateway.post(path, secret, body, headers={"x-forwarded-proto": protocol}) as answer:
            assert answer.status == 403
            assert "Use https" in (await answer.json())["error"]["message"]
    assert gateway.mock.counts.total.requests == 0
    assert b'edgeproxy_refusals_total{reason="https_required"} 2.0' in gateway.metrics.render()


@pytest.mark.parametrize("headers", [{}, {"x-forwarded-proto": "https"}])
async def test_what_a_proxy_took_over_tls_is_served(start_gateway: StartGateway, headers: dict[str, str]) -> None:
    gateway = await start_gateway(listen={"trusted_proxies": ["127.0.0.1"]})
    async with gateway.post(CHAT, await gateway.issue(), chat(), headers=headers) as answer:
        assert answer.status == 200


async def test_whoever_is_not_trusted_is_not_believed(gateway: Gateway) -> None:
    async with gateway.post(CHAT, await gateway.issue(), chat(), headers={"x-forwarded-proto": "http"}) as answer:
        assert answer.status == 200


async def test_a_proxy_may_ask_in_clear_whether_anybody_is_there(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(listen={"trusted_proxies": ["127.0.0.1"]})
    async with gateway.session.get(gateway.url + "/readyz", headers={"x-forwarded-proto": "http"}) as answer:
        assert answer.status == 200


async def test_a_proxy_may_say_for_whom_it_speaks(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(listen={"proxy_protocol": True})
    secret, raw = await gateway.issue(), json.dumps(chat("gpt-mock:length")).encode()
    async with Client(gateway.url) as client:
        client.send("PROXY TCP4 203.0.113.77 192.0.2.1 51234 443\r\n")
        for _ in range(2):
            client.send(f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nx-api-key: {secret}\r\ncontent-length: {len(raw)}\r\n\r\n")
            client.send(raw)
            assert (await client.answer())[0].startswith(b"HTTP/1.1 200")


async def test_a_model_can_have_another_name_at_the_provider(gateway: Gateway) -> None:
    secret = await gateway.issue()
    async with gateway.post(CHAT, secret, chat("renamed")) as answer:
        assert (await answer.json())["model"] == "gpt-real"
    assert list(gateway.mock.counts.by_model) == ["gpt-real"]
    (event,) = await gateway.events(secret)
    assert event.model == "renamed"


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "invalid_json"),
        (b"canary-7c1", "invalid_json"),
        (b'["canary-7c1"]', "invalid_json"),
        (b'{"model": "gpt-mock", "messages": [], "canary-7c1"', "invalid_json"),
        (b'{"messages": [], "canary": "canary-7c1"}', "invalid_field"),
        (b'{"model": 7, "messages": ["canary-7c1"]}', "invalid_field"),
        (b'{"model": "", "messages": ["canary-7c1"]}', "invalid_field"),
        (b'{"model": "gpt-mock", "messages": "canary-7c1"}', "invalid_field"),
        (b'{"model": "gpt-mock", "messages": [], "stream": "canary-7c1"}', "invalid_field"),
        (b'{"model": "gpt-mock", "messages": [], "max_tokens": "canary-7c1"}', "invalid_field"),
        (b'{"model": "gpt-mock", "messages": [], "max_tokens": -1}', "invalid_field"),
        (b'{"model": "gpt-mock", "messages": [], "max_tokens": true}', "invalid_field"),
        (b'{"model": "gpt-mock", "model": "gpt-canary-7c1", "messages": []}', "invalid_field"),
        (b'{"model": "gpt-mock", "mod\\u0065l": "gpt-canary-7c1", "messages": []}', "invalid_field"),
        (b'{"model": "canary-7c1", "messages": []}', "model_not_found"),
        (b'\xff\xfe{"model": "canary-7c1"}', "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
    ],
)
@pytest.mark.parametrize("path", [CHAT, MESSAGES])
async def test_a_body_that_cannot_be_understood_is_refused_without_being_echoed_logged_or_forwarded(
    gateway: Gateway, path: str, raw: bytes, code: str, capfd: pytest.CaptureFixture[str]
) -> None:
    secret = await gateway.issue()
    raw = raw.replace(b"gpt-mock", b"claude-mock") if path == MESSAGES else raw
    async with gateway.post(path, secret, raw) as answer:
        text = await answer.text()
        assert answer.status == (404 if code == "model_not_found" else 400)
        assert answer.headers["x-should-retry"] == "false"
    value = json.loads(text)
    if path == CHAT:
        assert value["error"]["code"] == code
        assert set(value["error"]) == {"message", "type", "param", "code"}
    else:
        assert value["error"]["details"]["error_code"] == code
        assert (value["type"], value["request_id"]) == ("error", answer.headers["request-id"])
    assert "canary-7c1" not in text + str(answer.headers)
    out, err = capfd.readouterr()
    assert "canary-7c1" not in out + err
    assert secret not in out + err
    assert gateway.mock.counts.total.requests == 0
    assert await gateway.events(secret) == []


async def test_an_unknown_path_and_a_wrong_method_are_told_apart(gateway: Gateway) -> None:
    async with gateway.session.post(gateway.url + "/v1/unknown") as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (404, "path_not_found")
    async with gateway.session.get(gateway.url + CHAT) as answer:
        assert answer.status == 405
    async with gateway.session.get(gateway.url + "/healthz") as answer:
        assert (answer.status, await answer.text()) == (200, "ok\n")
    async with gateway.session.get(gateway.url + "/readyz") as answer:
        assert answer.status == 200


async def test_a_gateway_that_drains_serves_and_says_that_nothing_new_should_come(gateway: Gateway) -> None:
    secret = await gateway.issue()
    gateway.role.drain()
    async with gateway.session.get(gateway.url + "/readyz") as answer:
        assert (answer.status, await answer.text()) == (503, "draining\n")
    async with gateway.session.get(gateway.url + "/healthz") as answer:
        assert answer.status == 200
    async with gateway.post(CHAT, secret, chat()) as answer:
        assert answer.status == 200


@pytest.mark.parametrize(("path", "model", "right"), [(CHAT, "claude-mock", MESSAGES), (MESSAGES, "gpt-mock", CHAT)])
async def test_a_model_of_another_dialect_is_refused_with_the_right_path(
    gateway: Gateway, path: str, model: str, right: str
) -> None:
    secret = await gateway.issue()
    async with gateway.post(path, secret, message(model)) as answer:
        assert answer.status == 400
        assert right in (await answer.json())["error"]["message"]


async def test_a_key_may_be_limited_to_some_models(gateway: Gateway) -> None:
    secret = await gateway.issue(models=("claude-*", "gpt-small"))
    async with gateway.post(CHAT, secret, chat("gpt-mock")) as answer:
        assert answer.status == 403
    async with gateway.post(MESSAGES, secret, message("claude-mock")) as answer:
        assert answer.status == 200
    assert gateway.mock.counts.total.requests == 1


@pytest.mark.claims("OL-3c")
async def test_refusals_of_a_known_key_are_counted_by_status(gateway: Gateway) -> None:
    secret = await gateway.issue("requests=1/1h")
    for body in (chat(), chat(), chat(), {"model": 7}):
        async with gateway.post(CHAT, secret, body) as answer:
            await answer.read()
    record = gateway.records[secret]
    rows = await gateway.redis.hgetall(f"{{p{record.partition:02d}}}:refusals")
    counted = {name.decode().rpartition(":")[2]: int(number) for name, number in rows.items()}
    assert counted == {"429": 2, "400": 1}


async def test_a_key_that_is_revoked_or_changed_is_so_at_the_next_request(gateway: Gateway) -> None:
    secret = await gateway.issue("requests=100/1h")
    async with gateway.post(CHAT, secret, chat()) as answer:
        assert answer.status == 200
    changed = dataclasses.replace(gateway.records[secret], version=2, models=("claude-*",))
    await gateway.publish(secret, changed)
    async with gateway.post(CHAT, secret, chat()) as answer:
        assert answer.status == 403
    await gateway.publish(secret, dataclasses.replace(changed, version=3, status=KeyStatus.REVOKED))
    async with gateway.post(MESSAGES, secret, message()) as answer:
        assert answer.status == 401


async def test_metrics_tell_what_happened_and_name_no_key_and_no_model(gateway: Gateway) -> None:
    secret = await gateway.issue("requests=2/1h")
    for body in (chat("gpt-canary"), chat("gpt-canary:status-500"), chat("gpt-canary")):
        async with gateway.post(CHAT, secret, body) as answer:
            await answer.read()
    text = gateway.metrics.render().decode()
    assert 'edgeproxy_requests_total{dialect="openai",status="200"} 1.0' in text
    assert 'edgeproxy_requests_total{dialect="openai",status="429"} 1.0' in text
    assert 'edgeproxy_refusals_total{reason="budget_exhausted"} 1.0' in text
    assert 'edgeproxy_tokens_total{kind="input",provider="openai"} 3.0' in text
    assert 'edgeproxy_tokens_total{kind="output",provider="openai"} 5.0' in text
    assert 'edgeproxy_upstream_errors_total{error="500",provider="openai"} 1.0' in text
    assert "edgeproxy_open_streams 0.0" in text
    assert 'edgeproxy_first_byte_seconds_count{provider="openai"} 2.0' in text
    assert 'edgeproxy_total_seconds_count{provider="openai"} 2.0' in text
    assert "edgeproxy_overhead_seconds_count 2.0" in text
    assert "edgeproxy_redis_round_trip_seconds_count 4.0" in text  # one look-up, three reserves
    for hidden in ("canary", secret, gateway.records[secret].id):
        assert hidden not in text


@pytest.mark.parametrize(("path", "body"), [(CHAT, chat()), (MESSAGES, message())])
async def test_without_redis_nothing_is_admitted_and_it_is_said_so(
    start_gateway: StartGateway, path: str, body: dict[str, Any]
) -> None:
    gateway = await start_gateway(redis="unix:///nonexistent/redis.sock")
    secret = issue_secret("ep-", bytes(32))
    async with gateway.post(path, secret, body) as answer:
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert "counters_unavailable" in await answer.text() or path == CHAT
    async with gateway.session.get(gateway.url + "/readyz") as answer:
        assert (answer.status, await answer.text()) == (503, "redis is away\n")
    async with gateway.session.get(gateway.url + "/healthz") as answer:
        assert answer.status == 200
    assert gateway.mock.counts.total.requests == 0


@pytest.mark.claims("OL-1")
async def test_nothing_that_a_provider_says_reaches_a_log(
    start_gateway: StartGateway, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    answers = [
        b"HTTP/1.1 500 canary-41\r\nx-canary-41: canary-41\r\ncontent-length: 9\r\n\r\ncanary-41",
        b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\ncanary-41",
        b"canary-41 canary-41 canary-41\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\ncanary-41\r\n",
        b"HTTP/1.1 401 canary-41\r\ncontent-length: 9\r\n\r\ncanary-41",
    ]

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(answers.pop(0))
        await writer.drain()

    async with scripted_provider(script) as url:
        gateway = await start_gateway(base_url=url)
        secret = await gateway.issue()
        while answers:
            try:
                async with gateway.post(CHAT, secret, chat("gpt-canary-41")) as answer:
                    await answer.read()
            except aiohttp.ClientError:
                pass
    out, err = capfd.readouterr()
    assert "canary-41" not in out + err + caplog.text
    assert secret not in out + err + caplog.text


async def test_a_mistake_of_ours_ends_one_request_with_a_500_and_no_text(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    secret = await gateway.issue(concurrency=1)

    def broken(*_: object) -> None:
        raise RuntimeError("canary-53")

    monkeypatch.setattr("edgeproxy.gateway.handler.Relay", broken)
    async with gateway.post(CHAT, secret, chat()) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (500, "internal_error")
    monkeypatch.undo()
    err = capfd.readouterr().err
    assert '"request_failed"' in err
    assert "RuntimeError" in err
    assert "canary-53" not in err
    async with gateway.post(CHAT, secret, chat()) as answer:  # the reservation was given back
        assert answer.status == 200


# --- every operation

GENERATE = "/v1beta/models/gemini-mock:cached-4.reasoning-3:"
SPOKEN = {"model": "gpt-mock:input-9", "input": "Hello"}
OPERATIONS: list[tuple[str, dict[str, Any]]] = [
    (CHAT, chat("gpt-mock:reasoning-5.cached-3", stream=True)),
    ("/v1/completions", {"model": "gpt-mock", "prompt": "one two"}),
    ("/v1/completions", {"model": "gpt-mock", "prompt": "one two", "stream": True}),
    (RESPONSES, response("gpt-mock:cached-3.reasoning-2")),
    (RESPONSES, response("gpt-mock:cached-3.reasoning-2", stream=True)),
    (RESPONSES, response("gpt-mock:xai.reasoning-2", stream=True)),
    ("/v1/responses/compact", {"model": "gpt-mock", "input": "one two"}),
    ("/v1/embeddings", {"model": "gpt-mock", "input": ["one two", "three"]}),
    ("/v1/images/generations", {"model": "gpt-mock", "prompt": "an owl"}),
    ("/v1/images/generations", {"model": "gpt-mock", "prompt": "an owl", "stream": True}),
    ("/v1/audio/speech", {**SPOKEN, "voice": "x", "stream_format": "sse"}),
    (MESSAGES, message("claude-mock:cache-write-8.reasoning-2", stream=True)),
    (GENERATE + "generateContent", generate()),
    (GENERATE + "streamGenerateContent", generate()),
    (GENERATE + "streamGenerateContent?alt=sse", generate()),
    (GENERATE.replace("v1beta", "v1") + "streamGenerateContent?alt=sse", generate()),
]


@pytest.mark.parametrize(("path", "body"), OPERATIONS)
async def test_every_operation_is_counted_as_the_provider_counts_it(
    gateway: Gateway, path: str, body: dict[str, Any]
) -> None:
    secret = await gateway.issue("tokens=1000000/1h")
    async with gateway.post(path, secret, body) as answer:
        assert answer.status == 200, await answer.text()
        assert await answer.read()
        request_id = answer.headers["x-request-id"]
    (event,) = await gateway.events(secret)
    counted = gateway.mock.counts.total
    usage = event.usage
    assert (event.id, event.status, usage.estimated) == (request_id, 200, False)
    assert (usage.input_total, usage.output) == (counted.input_tokens, counted.output_tokens)
    assert (usage.cache_read, usage.cache_write) == (counted.cache_read_tokens, counted.cache_write_tokens)
    assert usage.reasoning == counted.reasoning_tokens
    assert usage.input_total + usage.output > 0
    assert (await gateway.usage(secret)).windows[0].used == usage.input_total + usage.output


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/audio/speech", {**SPOKEN, "voice": "x"}),
        ("/v1/images/generations", {"model": "gpt-mock:no-usage", "prompt": "an owl"}),
        (GENERATE + "batchEmbedContents", {"requests": [{"content": {"parts": [{"text": "one two"}]}}]}),
    ],
)
async def test_what_tells_no_usage_is_estimated_and_never_free(
    gateway: Gateway, path: str, body: dict[str, Any]
) -> None:
    secret = await gateway.issue()
    path = path.replace("cached-4.reasoning-3", "no-usage")
    async with gateway.post(path, secret, body) as answer:
        assert answer.status == 200, await answer.text()
        await answer.read()
    (event,) = await gateway.events(secret)
    assert event.usage.estimated
    assert event.usage.input_total > 0


FREE: list[tuple[str, dict[str, Any]]] = [
    ("/v1/moderations", {"model": "gpt-mock", "input": "one two"}),
    ("/v1/responses/input_tokens", {"model": "gpt-mock", "input": "one two"}),
    ("/v1/messages/count_tokens", message()),
    (GENERATE + "countTokens", generate()),
]


@pytest.mark.parametrize(("path", "body"), FREE)
async def test_what_the_provider_does_not_bill_is_a_request_without_tokens(
    gateway: Gateway, path: str, body: dict[str, Any]
) -> None:
    secret = await gateway.issue("tokens=1/1h", "requests=1/1h")
    async with gateway.post(path, secret, body) as answer:
        assert answer.status == 200, await answer.text()
        assert await answer.json()
    (event,) = await gateway.events(secret)
    assert (event.status, event.usage.input_total, event.usage.output, event.usage.estimated) == (200, 0, 0, False)
    assert [window.used for window in (await gateway.usage(secret)).windows] == [0, 1]
    async with gateway.post(path, secret, body) as answer:
        assert answer.status == 429


# --- keys, upgrades, presence


@pytest.mark.parametrize("where", ["x-goog-api-key", "query", "encoded query", "authorization", "x-api-key"])
async def test_geminis_clients_may_send_their_key_as_they_do(
    gateway: Gateway, where: str, capfd: pytest.CaptureFixture[str]
) -> None:
    secret = await gateway.issue()
    query = {"query": f"&key={secret}", "encoded query": f"&k%65y={secret}"}.get(where, "")
    value = f"Bearer {secret}" if where == "authorization" else secret
    headers = {} if query else {where: value}
    url = URL(f"{gateway.url}{GENERATE}streamGenerateContent?alt=sse{query}", encoded=True)
    async with gateway.session.post(url, data=encoded(generate()), headers=headers) as answer:
        assert answer.status == 200
        assert (await answer.read()).startswith(b"data: {")
    assert gateway.mock.counts.keys_in_query == 0
    assert gateway.mock.counts.last.query == ("alt",)
    assert gateway.mock.counts.last.secret_in == "x-goog-api-key"
    assert secret not in "".join(capfd.readouterr())


async def test_a_key_in_the_query_is_taken_only_where_clients_put_it(gateway: Gateway) -> None:
    secret = await gateway.issue()
    async with gateway.session.post(f"{gateway.url}{CHAT}?key={secret}", data=encoded(chat())) as answer:
        assert answer.status == 401
    async with gateway.session.get(f"{gateway.url}/v1/unknown?key={secret}") as answer:
        assert secret not in await answer.text()


async def test_a_websocket_is_told_to_use_plain_http(gateway: Gateway) -> None:
    secret = await gateway.issue()
    async with Client(gateway.url) as client:
        client.send(
            f"GET /v1/responses HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {secret}\r\nconnection: Upgrade\r\n"
            "upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        head, body = await client.answer()
    assert head.startswith(b"HTTP/1.1 426 ")
    assert b"\r\nupgrade: HTTP/1.1\r\n" in head
    assert json.loads(body)["error"]["code"] == "upgrade_refused"
    assert gateway.mock.counts.total.requests == 0


async def test_a_client_may_look_whether_anybody_is_there(gateway: Gateway) -> None:
    async with gateway.session.head(gateway.url + "/") as answer:
        assert (answer.status, await answer.read()) == (200, b"")
    assert b"edgeproxy_refusals_total{" not in gateway.metrics.render()


# --- what hides its bill


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "name"),
    [
        ("POST", "/v1/batches", {}, {"input_file_id": "f"}, "batches"),
        ("GET", "/v1/batches/batch_1", {}, None, "batches"),
        ("POST", "/v1/messages/batches", {}, {"requests": []}, "batches"),
        ("POST", "/v1beta/models/gemini-mock:batchGenerateContent", {}, {}, "batches"),
        ("POST", "/v1/files", {}, {}, "files"),
        ("GET", "/v1/files", {"anthropic-version": "2023-06-01"}, None, "files"),
        ("POST", "/upload/v1beta/files", {}, {}, "files"),
        ("POST", RESPONSES, {}, response(background=True), "background"),
        ("POST", CHAT, {}, chat(deferred=True), "background"),
        ("GET", "/v1/responses/resp_1", {}, None, "background"),
        (
            "POST",
            "/v1/responses",
            {},
            {"model": "gpt-mock", "input": "x", "previous_response_id": "r"},
            "stored_context",
        ),
        ("POST", "/v1/responses", {}, {"model": "gpt-mock", "input": "x", "conversation": "c"}, "stored_context"),
        ("POST", MESSAGES, {}, message(thread={"id": "t"}), "stored_context"),
        ("POST", GENERATE + "generateContent", {}, generate(cachedContent="cachedContents/x"), "stored_context"),
        ("POST", GENERATE + "generateContent", {}, generate(cached_content="cachedContents/x"), "stored_context"),
        ("GET", "/v1beta/cachedContents", {}, None, "stored_context"),
    ],
)
async def test_what_hides_its_bill_is_refused_by_name_and_not_sent(
    gateway: Gateway, method: str, path: str, headers: dict[str, str], body: dict[str, Any] | None, name: str
) -> None:
    secret = await gateway.issue()
    headers = {"authorization": f"Bearer {secret}", **headers}
    async with gateway.session.request(method, gateway.url + path, json=body, headers=headers) as answer:
        assert answer.status == 400
        error = (await answer.json())["error"]
    assert f"'{name}'" in error["message"]
    assert "administrator" in error["message"]
    assert gateway.mock.counts.total.requests == 0
    assert await gateway.events(secret) == []


async def test_an_operator_may_allow_it_and_say_what_it_is_taken_to_cost(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(unmetered=["batches=700", "files=0", "background=300", "stored_context=5000"])
    secret = await gateway.issue("tokens=1000000/1h")
    async with gateway.post("/v1/batches", secret, {"input_file_id": "file-1", "endpoint": CHAT}) as answer:
        assert (await answer.json())["object"] == "batch"
    assert (await gateway.usage(secret)).windows[0].used == 700
    headers = {"authorization": f"Bearer {secret}"}
    async with gateway.session.get(f"{gateway.url}/v1/batches?limit=2&unknown=x", headers=headers) as answer:
        assert (await answer.json())["object"] == "list"
    assert gateway.mock.counts.last.query == ("limit",)
    form = aiohttp.FormData({"purpose": "batch"})
    form.add_field("file", b"{}" * 50_000, filename="requests.jsonl")
    async with gateway.session.post(f"{gateway.url}/v1/files", data=form, headers=headers) as answer:
        assert (await answer.json())["bytes"] == 100_000
    async with gateway.session.get(f"{gateway.url}/v1/responses/resp_1", headers=headers) as answer:
        assert (await answer.json())["object"] == "response"
    events = await gateway.events(secret)
    assert [(event.model, event.usage.input_total, event.usage.estimated) for event in events] == [
        ("batches", 700, True),
        ("batches", 0, False),
        ("files", 0, True),
        ("background", 0, False),
    ]
    # Where the answer tells, its figures count; the operator's number is only reserved.
    async with gateway.post(
        RESPONSES, secret, response("gpt-mock:input-20000", previous_response_id="resp_1")
    ) as answer:
        assert answer.status == 200
    assert (await gateway.events(secret))[-1].usage.input_total == 20_000


async def test_a_key_that_is_limited_to_models_needs_the_name_of_what_it_may_use_beside_them(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(unmetered=["batches=1"])
    for models, status in ((("gpt-*",), 403), (("gpt-*", "batches"), 200)):
        secret = await gateway.issue(models=models)
        async with gateway.post("/v1/batches", secret, {"input_file_id": "f", "endpoint": CHAT}) as answer:
            assert answer.status == status


# --- the operator's credentials


@pytest.mark.parametrize(
    ("path", "body"), [(CHAT, chat("gpt-mock:xai")), (GENERATE + "generateContent", generate()), (MESSAGES, message())]
)
async def test_a_provider_that_does_not_accept_our_secret_is_the_operators_affair(
    start_gateway: StartGateway, tmp_path: Path, path: str, body: dict[str, Any]
) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("sk-not-the-right-one")
    gateway = await start_gateway(secret_file=str(wrong))
    secret = await gateway.issue("tokens=100000/1h")
    async with gateway.post(path, secret, body) as answer:
        text = await answer.text()
    assert answer.status == 502
    assert "upstream_credentials" in text.lower()
    assert "sk-" not in text
    assert (await gateway.usage(secret)).windows[0].used == 0


async def test_another_400_passes_as_it_came(gateway: Gateway) -> None:
    secret = await gateway.issue()
    async with gateway.post(CHAT, secret, chat("gpt-mock:status-400")) as answer:
        assert answer.status == 400
        assert await answer.read() == mock_openai.error_body(400, "Asked for by the model name.")


@pytest.mark.parametrize("size", [10, 65_000, 300_000])
async def test_a_400_of_any_size_passes(start_gateway: StartGateway, size: int) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 400 Bad\r\ncontent-length: %d\r\n\r\n" % size + b"x" * size)
        await writer.drain()

    async with scripted_provider(script) as url:
        gateway = await start_gateway(base_url=url)
        async with gateway.post(CHAT, await gateway.issue(), chat()) as answer:
            assert (answer.status, len(await answer.read())) == (400, size)


async def test_a_400_that_breaks_off_is_told_as_what_it_is(start_gateway: StartGateway) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 400 Bad\r\ncontent-length: 100\r\n\r\nhalf")
        await writer.drain()

    async with scripted_provider(script) as url:
        gateway = await start_gateway(base_url=url)
        async with gateway.post(CHAT, await gateway.issue(), chat()) as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (502, "upstream_failed")


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("packed", [True, False])
async def test_a_wrong_secret_is_told_from_a_wrong_request_however_it_is_packed(
    start_gateway: StartGateway, mark: bytes, *, packed: bool
) -> None:
    body = mark + b'{"code":"invalid-argument","error":"Incorrect API key provided: sk***et."}'
    body = gzip.compress(body) if packed else body

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        encoding = b"content-encoding: gzip\r\n" if packed else b""
        writer.write(b"HTTP/1.1 400 Bad\r\n%bcontent-length: %d\r\n\r\n" % (encoding, len(body)) + body)
        await writer.drain()

    async with scripted_provider(script) as url:
        gateway = await start_gateway(base_url=url)
        async with gateway.post(CHAT, await gateway.issue(), chat()) as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (502, "upstream_credentials")


# --- models beside the model


OTHERS = [
    (CHAT, chat(models=["gpt-mock", "gpt-other"])),
    (RESPONSES, response(tools=[{"type": "image_generation", "model": "gpt-other"}])),
    (MESSAGES, message(fallbacks=[{"model": "claude-other"}])),
    (MESSAGES, message(fallbacks="default")),
    (MESSAGES, message(tools=[{"type": "advisor", "name": "advisor", "model": "claude-other"}])),
]


@pytest.mark.parametrize(("path", "body"), OTHERS)
async def test_a_key_that_is_limited_to_models_cannot_use_others_beside_them(
    gateway: Gateway, path: str, body: dict[str, Any]
) -> None:
    limited = await gateway.issue(models=("gpt-mock", "claude-mock"))
    async with gateway.post(path, limited, body) as answer:
        assert answer.status == 403
    for models in ((), ("gpt-*", "claude-*", "default")):
        async with gateway.post(path, await gateway.issue(models=models), body) as answer:
            assert answer.status == 200


async def test_a_request_may_not_bring_in_models_that_the_operator_did_not_configure(gateway: Gateway) -> None:
    secret = await gateway.issue()
    async with gateway.post(CHAT, secret, chat(models=["gpt-mock", "llama-9"])) as answer:
        assert answer.status == 404
    assert gateway.mock.counts.total.requests == 0
