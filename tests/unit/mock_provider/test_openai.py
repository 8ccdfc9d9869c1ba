from typing import Any

import orjson
import pytest

from edgeproxy.mock_provider import openai
from edgeproxy.mock_provider.directives import behaviour_of
from edgeproxy.mock_provider.endpoint import Problem
from edgeproxy.mock_provider.exchange import Exchange, exchange_of

TOOLS = [{"type": "function", "function": {"name": "look_up"}}]


def ask(model: str, **fields: object) -> Exchange:
    return exchange_of(orjson.dumps({"model": model, "messages": [{"role": "user", "content": "a b c"}], **fields}))


def chunks_of(exchange: Exchange) -> list[dict[str, Any]]:
    *events, done = openai.events(exchange)
    assert done == b"data: [DONE]\n\n"
    chunks = []
    for event in events:
        assert event.endswith(b"\n\n")
        assert event.count(b"\n") == 2
        if not event.startswith(b":"):
            assert event.startswith(b"data: ")
            chunks.append(orjson.loads(event[6:]))
    return chunks


def test_without_include_usage_there_is_no_usage_at_all() -> None:
    chunks = chunks_of(ask("gpt-mock:chunks-2", stream=True))
    assert all("usage" not in chunk for chunk in chunks)
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""},
        {"content": "Hello"},
        {"content": " from"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, "stop"]
    assert {chunk["model"] for chunk in chunks} == {"gpt-mock"}


def test_with_include_usage_a_chunk_without_choices_has_it() -> None:
    *others, last = chunks_of(ask("m:cached-10.cache-write-4.reasoning-6", stream_options={"include_usage": True}))
    assert all(chunk["usage"] is None for chunk in others)
    assert last["choices"] == []
    usage = last["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (17, 11, 28)
    assert usage["prompt_tokens_details"]["cached_tokens"] == 10
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 6


def test_no_usage_leaves_it_out() -> None:
    chunks = chunks_of(ask("m:no-usage", stream_options={"include_usage": True}))
    assert all(chunk["choices"] for chunk in chunks)
    assert "usage" not in orjson.loads(openai.unary(ask("m:no-usage")))


def test_deepseek_puts_usage_on_the_last_chunk_with_a_choice() -> None:
    exchange = ask("m:deepseek.cached-2")
    assert next(openai.events(exchange)) == b": keep-alive\n\n"
    *others, last = chunks_of(exchange)
    assert all(chunk["usage"] is None for chunk in others)
    assert last["choices"][0]["finish_reason"] == "stop"
    assert last["usage"]["prompt_cache_hit_tokens"] == 2
    assert last["usage"]["prompt_cache_miss_tokens"] == 3
    assert openai.unary(exchange).startswith(b"\n\n{")


def test_xai_leaves_reasoning_out_of_the_completion_and_names_its_charge() -> None:
    usage = chunks_of(ask("m:xai.reasoning-6"))[-1]["usage"]
    assert (usage["completion_tokens"], usage["total_tokens"]) == (5, 14)
    assert usage["cost_in_usd_ticks"] > 0


def test_a_tool_call_streams_its_arguments() -> None:
    chunks = chunks_of(ask("m:tool.chunks-3", tools=TOOLS))
    calls = [chunk["choices"][0]["delta"]["tool_calls"][0] for chunk in chunks[:-1]]
    assert calls[0]["function"]["name"] == "look_up"
    arguments = "".join(call["function"]["arguments"] for call in calls)
    assert orjson.loads(arguments) == {"text": "Hello from the"}
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_unary_says_the_same_as_the_stream() -> None:
    body = orjson.loads(openai.unary(ask("m:chunks-3")))
    assert body["choices"][0]["message"]["content"] == "Hello from the"
    assert body["usage"]["total_tokens"] == 6
    call = orjson.loads(openai.unary(ask("m:tool.chunks-3", tools=TOOLS)))["choices"][0]
    assert call["finish_reason"] == "tool_calls"
    assert orjson.loads(call["message"]["tool_calls"][0]["function"]["arguments"]) == {"text": "Hello from the"}


def test_each_choice_has_its_index_and_usage_comes_once() -> None:
    *others, last = chunks_of(ask("m:chunks-2", n=2, stream_options={"include_usage": True}))
    assert [chunk["choices"][0]["index"] for chunk in others] == [0] * 4 + [1] * 4
    assert last["usage"]["completion_tokens"] == 4
    choices = orjson.loads(openai.unary(ask("m", n=2)))["choices"]
    assert [choice["index"] for choice in choices] == [0, 1]


def test_a_chunk_without_choices_can_follow_the_usage() -> None:
    *_, usage, last = chunks_of(ask("m:moderation", stream_options={"include_usage": True}))
    assert (usage["choices"], usage["usage"]["total_tokens"]) == ([], 8)
    assert (last["choices"], last["usage"], "moderation" in last) == ([], None, True)


def test_perplexity_says_in_every_chunk_what_was_used_so_far() -> None:
    exchange = ask("m:perplexity.chunks-3.reasoning-1")
    events = list(openai.events(exchange))
    assert all(event.endswith(b"\r\n\r\n") and event.startswith(b"data: {") for event in events)
    chunks = [orjson.loads(event[6:]) for event in events]
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [2, 3, 4]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "stop"]
    assert chunks[-1]["usage"]["cost"]["total_cost"] == exchange.tokens.cost_nanos / 1e9
    assert all("usage" not in orjson.loads(event[6:]) for event in openai.events(ask("m:perplexity.no-usage")))


@pytest.mark.parametrize(
    ("problem", "status", "kind"),
    [
        (Problem(400, "why", behaviour_of("m:deepseek")), 400, "application/octet-stream"),
        (Problem(422, "why", behaviour_of("m:deepseek")), 422, "application/json"),
        (Problem(401, "why", behaviour_of("m:xai"), wrong_key=True), 400, "application/json"),
        (Problem(401, "why", wrong_key=True), 401, "application/json"),
    ],
)
def test_compatible_servers_refuse_in_their_own_way(problem: Problem, status: int, kind: str) -> None:
    refusal = openai.refusal(problem)
    assert (refusal.status, refusal.headers["content-type"]) == (status, kind)
    assert ("www-authenticate" in refusal.headers) == (status == 401)


def test_xai_says_its_errors_as_texts() -> None:
    refusal = openai.refusal(Problem(401, "Incorrect API key provided", behaviour_of("m:xai"), wrong_key=True))
    assert orjson.loads(refusal.body) == {"code": "invalid-argument", "error": "Incorrect API key provided"}


def test_a_refusal_says_when_to_come_back() -> None:
    assert openai.refusal(Problem(429, "why", behaviour_of("m:retry-after-7"))).headers["retry-after"] == "7"


@pytest.mark.parametrize(("status", "code"), [(401, "invalid_api_key"), (429, "rate_limit_exceeded"), (503, None)])
def test_errors_have_the_providers_shape(status: int, code: str | None) -> None:
    error = orjson.loads(openai.error_body(status, "why"))["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["message"], error["code"]) == ("why", code)
    assert orjson.loads(openai.error_event().removeprefix(b"data: "))["error"]["type"] == "server_error"


def test_answers_carry_what_a_gateway_must_hide() -> None:
    headers = openai.answer_headers(ask("m"))
    assert {"set-cookie", "openai-organization", "x-ratelimit-remaining-requests"} <= set(headers)
