"""The mock's completions without a chat: a prompt, or several, each answered `n` times.

Framed as chat completions are; the usage has no details.
"""

from collections.abc import Iterator
from typing import Any

import orjson

from edgeproxy.mock_provider.exchange import CREATED_S, Exchange
from edgeproxy.mock_provider.openai import DONE, KEEP_ALIVE, waited_for


def unary(exchange: Exchange) -> bytes:
    """Body of a unary answer."""
    choices = [_choice(index, exchange.text, "stop") for index in range(exchange.choices)]
    body = _envelope(exchange) | {"choices": choices}
    if not exchange.behaviour.no_usage:
        body["usage"] = _usage(exchange)
    return waited_for(exchange, orjson.dumps(body))


def events(exchange: Exchange) -> Iterator[bytes]:
    """Whole events of a streamed answer, in order, each with its blank line."""
    deepseek = exchange.behaviour.deepseek
    usage = None if exchange.behaviour.no_usage else _usage(exchange)
    null_usage = {"usage": None} if exchange.include_usage or deepseek else {}
    if deepseek:
        yield KEEP_ALIVE
    for index in range(exchange.choices):
        for text in exchange.texts():
            yield _chunk(exchange, [_choice(index, text, None)], null_usage)
        is_last = deepseek and index == exchange.choices - 1
        yield _chunk(exchange, [_choice(index, "", "stop")], {"usage": usage} if is_last else null_usage)
    if usage is not None and exchange.include_usage and not deepseek:
        yield _chunk(exchange, [], {"usage": usage})
    yield DONE


def _envelope(exchange: Exchange) -> dict[str, Any]:
    return {
        "id": "cmpl-Mock0123456789",
        "object": "text_completion",
        "created": CREATED_S,
        "model": exchange.served_model,
    }


def _choice(index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
    return {"text": text, "index": index, "logprobs": None, "finish_reason": finish_reason}


def _chunk(exchange: Exchange, choices: list[dict[str, Any]], usage: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(_envelope(exchange) | {"choices": choices} | usage) + b"\n\n"


def _usage(exchange: Exchange) -> dict[str, Any]:
    tokens = exchange.tokens
    usage = {
        "prompt_tokens": tokens.input_total,
        "completion_tokens": tokens.output_total,
        "total_tokens": tokens.input_total + tokens.output_total,
    }
    if exchange.behaviour.deepseek:
        usage["prompt_cache_hit_tokens"] = tokens.cache_read
        usage["prompt_cache_miss_tokens"] = tokens.input_total - tokens.cache_read
    return usage
