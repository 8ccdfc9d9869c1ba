from typing import Any

import orjson
import pytest

from edgeproxy.mock_provider import responses
from edgeproxy.mock_provider.exchange import Exchange, exchange_of

TOOLS = [{"type": "function", "name": "look_up", "parameters": {}}]


def ask(model: str, **fields: object) -> Exchange:
    return exchange_of(orjson.dumps({"model": model, "input": "a b c", **fields}))


def parsed(event: bytes) -> dict[str, Any]:
    name, data, *rest = event.split(b"\n")
    assert rest == [b"", b""]
    found: dict[str, Any] = orjson.loads(data.removeprefix(b"data: "))
    assert name == b"event: " + found["type"].encode()
    return found


def events_of(exchange: Exchange) -> list[dict[str, Any]]:
    return [parsed(event) for event in responses.events(exchange)]


def test_the_events_come_in_the_providers_order_and_are_numbered() -> None:
    events = events_of(ask("m:chunks-2"))
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [event["sequence_number"] for event in events] == list(range(10))


def test_only_the_last_event_has_usage_and_it_repeats_the_output() -> None:
    *others, last = events_of(ask("m:chunks-2.cached-10.cache-write-4.cache-write-1h-1.reasoning-6"))
    assert [event["response"]["usage"] for event in others if "response" in event] == [None, None]
    assert last["response"]["usage"] == {
        "input_tokens": 18,
        "input_tokens_details": {
            "cached_tokens": 10,
            "cache_write_tokens": 5,
            "cache_write_tokens_details": {"ttl_30m_tokens": 4, "ttl_12h_tokens": 1},
        },
        "output_tokens": 8,
        "output_tokens_details": {"reasoning_tokens": 6},
        "total_tokens": 26,
    }
    reasoning, message = last["response"]["output"]
    assert reasoning["type"] == "reasoning"
    assert message["content"][0]["text"] == "Hello from"


@pytest.mark.parametrize(
    ("exchange", "status"),
    [
        (ask("m:incomplete"), "incomplete"),
        (ask("m", max_output_tokens=2), "incomplete"),
        (ask("m:failed"), "failed"),
        (ask("m"), "completed"),
    ],
)
def test_every_end_has_usage(exchange: Exchange, status: str) -> None:
    last = events_of(exchange)[-1]
    assert last["type"] == f"response.{status}"
    assert last["response"]["status"] == status
    assert (last["response"]["incomplete_details"] is not None) == (status == "incomplete")
    assert (last["response"]["error"] is not None) == (status == "failed")
    assert last["response"]["usage"]["input_tokens"] == 3
    assert orjson.loads(responses.unary(exchange)) == last["response"]


def test_no_usage_is_null() -> None:
    assert events_of(ask("m:failed.no-usage"))[-1]["response"]["usage"] is None
    assert orjson.loads(responses.unary(ask("m:no-usage")))["usage"] is None
    assert "usage" not in orjson.loads(responses.compacted(ask("m:no-usage")))


def test_a_tool_call_streams_its_arguments() -> None:
    events = events_of(ask("m:tool.chunks-3", tools=TOOLS))
    deltas = [event["delta"] for event in events if event["type"] == "response.function_call_arguments.delta"]
    assert orjson.loads("".join(deltas)) == {"text": "Hello from the"}
    opened = next(event["item"] for event in events if event["type"] == "response.output_item.added")
    assert (opened["name"], opened["arguments"], opened["status"]) == ("look_up", "", "in_progress")
    (call,) = events[-1]["response"]["output"]
    assert (call["type"], call["arguments"]) == ("function_call", "".join(deltas))


def test_searches_are_items_and_are_counted_beside_the_usage() -> None:
    body = orjson.loads(responses.unary(ask("m:web-search-2")))
    assert [item["type"] for item in body["output"]] == ["web_search_call", "web_search_call", "message"]
    assert body["tool_usage"]["web_search"]["num_requests"] == 2


def test_xai_includes_reasoning_here_and_names_its_charge() -> None:
    exchange = ask("m:xai.reasoning-6.web-search-2")
    body = orjson.loads(responses.unary(exchange))
    assert (body["usage"]["output_tokens"], body["usage"]["num_server_side_tools_used"]) == (11, 2)
    assert body["usage"]["cost_in_usd_ticks"] == exchange.tokens.cost_nanos * 10 > 0
    assert "tool_usage" not in body


def test_deepseek_keeps_the_connection_alive() -> None:
    exchange = ask("m:deepseek")
    assert next(responses.events(exchange)) == b": keep-alive\n\n"
    assert responses.unary(exchange).startswith(b"\n\n{")


def test_a_background_response_is_answered_before_there_is_usage() -> None:
    body = orjson.loads(responses.unary(ask("m", background=True)))
    assert (body["status"], body["usage"], body["output"]) == ("queued", None, [])


def test_compaction_is_billed_and_counting_says_the_input() -> None:
    body = orjson.loads(responses.compacted(ask("m:chunks-2")))
    assert (body["object"], body["usage"]["total_tokens"]) == ("response.compaction", 5)
    assert orjson.loads(responses.counted(ask("m:cached-4")))["input_tokens"] == 7


def test_an_error_in_the_middle_is_two_events_without_usage() -> None:
    error, failed = (parsed(event + b"\n\n") for event in responses.error_event(ask("m")).split(b"\n\n")[:-1])
    assert error["error"]["code"] == "server_error"
    assert (failed["type"], failed["response"]["usage"]) == ("response.failed", None)
