from typing import Any

import orjson
import pytest

from edgeproxy.mock_provider import openai
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


@pytest.mark.parametrize(("status", "code"), [(401, "invalid_api_key"), (429, "rate_limit_exceeded"), (503, None)])
def test_errors_have_the_providers_shape(status: int, code: str | None) -> None:
    error = orjson.loads(openai.error_body(status, "why"))["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["message"], error["code"]) == ("why", code)
    assert orjson.loads(openai.error_event().removeprefix(b"data: "))["error"]["type"] == "server_error"


def test_answers_carry_what_a_gateway_must_hide() -> None:
    headers = openai.answer_headers(ask("m"))
    assert {"set-cookie", "openai-organization", "x-ratelimit-remaining-requests"} <= set(headers)
