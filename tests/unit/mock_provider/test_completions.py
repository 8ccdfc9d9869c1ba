from typing import Any

import orjson

from edgeproxy.mock_provider import completions
from edgeproxy.mock_provider.exchange import Exchange, exchange_of


def ask(model: str, **fields: object) -> Exchange:
    return exchange_of(orjson.dumps({"model": model, "prompt": "a b c", **fields}))


def chunks_of(exchange: Exchange) -> list[dict[str, Any]]:
    *events, done = completions.events(exchange)
    assert done == b"data: [DONE]\n\n"
    return [orjson.loads(event[6:]) for event in events if not event.startswith(b":")]


def test_every_prompt_is_answered_as_often_as_asked() -> None:
    body = orjson.loads(completions.unary(ask("m:chunks-2", prompt=["a b", "c"], n=2)))
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert {choice["text"] for choice in body["choices"]} == {"Hello from"}
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 8, "total_tokens": 11}


def test_usage_comes_as_in_a_chat() -> None:
    assert all("usage" not in chunk for chunk in chunks_of(ask("m")))
    *others, last = chunks_of(ask("m:chunks-2", stream_options={"include_usage": True}))
    assert [chunk["choices"][0]["text"] for chunk in others] == ["Hello", " from", ""]
    assert all(chunk["usage"] is None for chunk in others)
    assert (last["choices"], last["usage"]["total_tokens"]) == ([], 5)


def test_no_usage_leaves_it_out() -> None:
    assert all(chunk["choices"] for chunk in chunks_of(ask("m:no-usage", stream_options={"include_usage": True})))
    assert "usage" not in orjson.loads(completions.unary(ask("m:no-usage")))


def test_deepseek_keeps_the_connection_alive_and_counts_its_cache() -> None:
    exchange = ask("m:deepseek.cached-2")
    assert next(completions.events(exchange)) == b": keep-alive\n\n"
    last = chunks_of(exchange)[-1]
    assert last["choices"][0]["finish_reason"] == "stop"
    assert (last["usage"]["prompt_cache_hit_tokens"], last["usage"]["prompt_cache_miss_tokens"]) == (2, 3)
    assert completions.unary(exchange).startswith(b"\n\n{")
