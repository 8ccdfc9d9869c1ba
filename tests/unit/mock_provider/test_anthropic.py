from typing import Any

import orjson
import pytest

from edgeproxy.mock_provider import anthropic
from edgeproxy.mock_provider.directives import behaviour_of
from edgeproxy.mock_provider.endpoint import Problem
from edgeproxy.mock_provider.exchange import Exchange, Tokens, exchange_of

TOOLS = [{"name": "look_up", "input_schema": {"type": "object"}}]


def ask(model: str, **fields: object) -> Exchange:
    return exchange_of(orjson.dumps({"model": model, "messages": [{"role": "user", "content": "a b c"}], **fields}))


def events_of(exchange: Exchange) -> list[dict[str, Any]]:
    events = []
    for event in anthropic.events(exchange):
        name, data, *rest = event.split(b"\n")
        assert rest == [b"", b""]
        parsed = orjson.loads(data.removeprefix(b"data: "))
        assert name == b"event: " + parsed["type"].encode()
        events.append(parsed)
    return events


def test_the_events_come_in_the_providers_order() -> None:
    kinds = [event["type"] for event in events_of(ask("claude-mock:chunks-2"))]
    assert kinds == [
        "message_start",
        "content_block_start",
        "ping",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


def test_pings_come_now_and_again_in_a_long_answer() -> None:
    kinds = [event["type"] for event in events_of(ask("m:chunks-40"))]
    assert kinds.count("ping") == 3


def test_data_lines_are_padded() -> None:
    assert any(b"  }\n\n" in event for event in anthropic.events(ask("m:chunks-9")))


def test_the_first_count_is_provisional_and_the_last_one_replaces_it() -> None:
    events = events_of(ask("m:chunks-7.cached-10.cache-write-4.reasoning-6"))
    start, end = events[0]["message"]["usage"], events[-2]["usage"]
    assert start["output_tokens"] == 1
    assert start["cache_creation"] == {"ephemeral_5m_input_tokens": 4, "ephemeral_1h_input_tokens": 0}
    assert "cache_creation" not in end
    assert end["output_tokens"] == 13
    assert end["output_tokens_details"] == {"thinking_tokens": 6}
    for usage in (start, end):
        assert usage["input_tokens"] == 3
        assert usage["cache_read_input_tokens"] == 10
        assert usage["cache_creation_input_tokens"] == 4


def test_the_beginning_can_say_something_else_than_the_end() -> None:
    events = events_of(ask("m:provisional.input-9.cached-10"))
    start, end = events[0]["message"]["usage"], events[-2]["usage"]
    assert (start["input_tokens"], start["cache_read_input_tokens"]) == (4, 14)
    assert (end["input_tokens"], end["cache_read_input_tokens"]) == (9, 10)


def test_what_is_kept_for_an_hour_is_told_apart() -> None:
    usage = orjson.loads(anthropic.unary(ask("m:cache-write-4.cache-write-1h-3")))["usage"]
    assert usage["cache_creation_input_tokens"] == 7
    assert usage["cache_creation"] == {"ephemeral_5m_input_tokens": 4, "ephemeral_1h_input_tokens": 3}


def test_searches_are_counted() -> None:
    exchange = ask("m:web-search-2")
    for usage in (events_of(exchange)[-2]["usage"], orjson.loads(anthropic.unary(exchange))["usage"]):
        assert usage["server_tool_use"] == {"web_search_requests": 2, "web_fetch_requests": 0}


def test_compaction_and_advisor_are_in_the_iterations_only() -> None:
    exchange = ask("claude:chunks-4.compaction-100.advisor-50")
    for usage in (events_of(exchange)[-2]["usage"], orjson.loads(anthropic.unary(exchange))["usage"]):
        assert (usage["input_tokens"], usage["output_tokens"]) == (3, 4)
        passes = [(each["type"], each["input_tokens"], each["output_tokens"]) for each in usage["iterations"]]
        assert passes == [("compaction", 100, 10), ("message", 3, 4), ("advisor_message", 50, 5)]
        assert usage["iterations"][-1]["model"] == "claude-mock-advisor"
    bill = anthropic.bill(exchange)
    assert bill == {"claude": Tokens(103, output=14), "claude-mock-advisor": Tokens(50, output=5)}


def test_an_ordinary_answer_has_no_iterations_and_one_bill() -> None:
    exchange = ask("claude")
    assert "iterations" not in events_of(exchange)[-2]["usage"]
    assert anthropic.bill(exchange) == {"claude": exchange.tokens}


def test_tokens_can_be_counted_beforehand() -> None:
    assert orjson.loads(anthropic.counted(ask("m:cached-4"))) == {"input_tokens": 7}


def test_a_refusal_says_whether_and_when_to_come_back() -> None:
    headers = anthropic.refusal(Problem(429, "why", behaviour_of("m:retry-after-7"))).headers
    assert (headers["retry-after"], "x-should-retry" in headers) == ("7", False)
    assert anthropic.refusal(Problem(401, "why")).headers["x-should-retry"] == "false"


def test_no_usage_leaves_it_out() -> None:
    assert all("usage" not in event for event in events_of(ask("m:no-usage")))
    assert "usage" not in orjson.loads(anthropic.unary(ask("m:no-usage")))


def test_a_tool_call_streams_its_input() -> None:
    events = events_of(ask("m:tool.chunks-3", tools=TOOLS))
    assert events[1]["content_block"]["name"] == "look_up"
    parts = [event["delta"]["partial_json"] for event in events if event["type"] == "content_block_delta"]
    assert orjson.loads("".join(parts)) == {"text": "Hello from the"}
    assert events[-2]["delta"]["stop_reason"] == "tool_use"


def test_unary_says_the_same_as_the_stream() -> None:
    body = orjson.loads(anthropic.unary(ask("m:chunks-3.reasoning-2")))
    assert body["content"] == [{"type": "text", "text": "Hello from the"}]
    assert body["usage"]["output_tokens"] == 5
    body = orjson.loads(anthropic.unary(ask("m:tool.chunks-3", tools=TOOLS)))
    assert body["content"][0]["input"] == {"text": "Hello from the"}
    assert body["stop_reason"] == "tool_use"


def test_an_answer_may_be_empty() -> None:
    exchange = ask("m", max_tokens=0)
    assert orjson.loads(anthropic.unary(exchange))["content"] == []
    assert events_of(exchange)[-2]["delta"]["stop_reason"] == "max_tokens"


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "invalid_request_error"), (401, "authentication_error"), (529, "overloaded_error"), (500, "api_error")],
)
def test_errors_have_the_providers_shape(status: int, kind: str) -> None:
    body = orjson.loads(anthropic.error_body(status, "why"))
    assert body["type"] == "error"
    assert body["error"] == {"type": kind, "message": "why"}
    assert anthropic.error_event().startswith(b"event: error\ndata: {")


def test_answers_carry_what_a_gateway_must_hide() -> None:
    headers = anthropic.answer_headers(ask("m"))
    assert {"set-cookie", "anthropic-organization-id", "anthropic-ratelimit-tokens-limit"} <= set(headers)
