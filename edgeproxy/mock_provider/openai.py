"""The mock's OpenAI dialect: chat completions, unary and streamed, as OpenAI, DeepSeek and xAI send them.

Framing: data-only events, LF, `data: [DONE]`. With include_usage every chunk has `"usage":null` and one chunk
with no choices has the usage; without it there is no usage at all.
"""

from collections.abc import Iterator
from typing import Any

import orjson

from edgeproxy.mock_provider.exchange import Exchange, Finish

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"

_CREATED_S = 1_790_000_000  # fixed: the same request gets the same bytes
_FINISH = {Finish.STOP: "stop", Finish.LENGTH: "length", Finish.TOOL: "tool_calls"}
_TICKS_PER_TOKEN = 25_000  # xAI reports its charge in 1e-10 USD: 2.50 USD per million
_ERROR_TYPES = {
    401: ("invalid_request_error", "invalid_api_key"),
    404: ("invalid_request_error", "model_not_found"),
    429: ("requests", "rate_limit_exceeded"),
}


def answer_headers(exchange: Exchange) -> dict[str, str]:
    """Headers that the provider adds to every answer, the ones that a gateway must hide included."""
    return {
        "x-request-id": "req_mock_openai",
        "openai-processing-ms": "12",
        "openai-version": "2020-10-01",
        "openai-organization": "org-of-the-operator",
        "openai-project": "proj-of-the-operator",
        "x-ratelimit-limit-requests": "10000",
        "x-ratelimit-remaining-requests": "9999",
        "x-ratelimit-reset-requests": "6ms",
        "set-cookie": "__cf_bm=operators-cookie; path=/; HttpOnly; Secure",
        "cf-ray": "0000000000000000-MCK",
        "cache-control": "no-cache" if exchange.streamed else "no-store",
    }


def unary(exchange: Exchange) -> bytes:
    """Body of a unary answer. DeepSeek's begins with the blank lines that it sends while one waits."""
    message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None, "annotations": []}
    if exchange.finish is Finish.TOOL:
        message["tool_calls"] = [_tool_call(exchange, "".join(exchange.texts()))]
    else:
        message["content"] = "".join(exchange.texts())
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _FINISH[exchange.finish]}
    body = _envelope(exchange, "chat.completion") | {"choices": [choice]}
    if not exchange.behaviour.no_usage:
        body["usage"] = usage_of(exchange)
    return (b"\n\n" if exchange.behaviour.deepseek else b"") + orjson.dumps(body)


def events(exchange: Exchange) -> Iterator[bytes]:
    """Whole events of a streamed answer, in order, each with its blank line."""
    behaviour = exchange.behaviour
    usage = None if behaviour.no_usage else usage_of(exchange)
    null_usage = {"usage": None} if exchange.include_usage or behaviour.deepseek else {}
    if behaviour.deepseek:
        yield KEEP_ALIVE
    opening: dict[str, Any] = {"role": "assistant", "content": ""}
    if exchange.finish is Finish.TOOL:
        opening = {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"index": 0, **_tool_call(exchange, "")}],
        }
    yield _chunk(exchange, _choice(opening), null_usage)
    for text in exchange.texts():
        delta: dict[str, Any] = {"content": text}
        if exchange.finish is Finish.TOOL:
            delta = {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}
        yield _chunk(exchange, _choice(delta), null_usage)
    last = _choice({}, _FINISH[exchange.finish])
    if behaviour.deepseek:
        yield _chunk(exchange, last, {"usage": usage})
    else:
        yield _chunk(exchange, last, null_usage)
        if usage is not None and (exchange.include_usage or behaviour.xai):
            yield _chunk(exchange, [], {"usage": usage})
    yield DONE


def usage_of(exchange: Exchange) -> dict[str, Any]:
    """Build the usage object.

    Prompt tokens include the cached ones, completion tokens the reasoning ones (xAI's do not).
    """
    tokens = exchange.tokens
    completion = tokens.output if exchange.behaviour.xai else tokens.output_total
    usage: dict[str, Any] = {
        "prompt_tokens": tokens.input_total,
        "completion_tokens": completion,
        "total_tokens": tokens.input_total + tokens.output_total,
        "prompt_tokens_details": {
            "cached_tokens": tokens.cache_read,
            "cache_write_tokens": tokens.cache_write,
            "audio_tokens": 0,
        },
        "completion_tokens_details": {
            "reasoning_tokens": tokens.reasoning,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }
    if exchange.behaviour.deepseek:
        usage["prompt_cache_hit_tokens"] = tokens.cache_read
        usage["prompt_cache_miss_tokens"] = tokens.input_total - tokens.cache_read
    if exchange.behaviour.xai:
        usage["num_sources_used"] = 0
        usage["cost_in_usd_ticks"] = usage["total_tokens"] * _TICKS_PER_TOKEN
    return usage


def error_body(status: int, message: str) -> bytes:
    """Body of an error answer."""
    fallback = ("server_error", None) if status >= 500 else ("invalid_request_error", None)
    kind, code = _ERROR_TYPES.get(status, fallback)
    error = {"message": message, "type": kind, "param": None, "code": code}
    return orjson.dumps({"error": error}, option=orjson.OPT_INDENT_2)


def error_event() -> bytes:
    """Event that reports an error in the middle of a stream."""
    error = {"message": "The server had an error", "type": "server_error", "param": None, "code": None}
    return b"data: " + orjson.dumps({"error": error}) + b"\n\n"


def _envelope(exchange: Exchange, kind: str) -> dict[str, Any]:
    return {
        "id": "chatcmpl-Mock0123456789",
        "object": kind,
        "created": _CREATED_S,
        "model": exchange.served_model,
        "service_tier": "default",
        "system_fingerprint": "fp_mock",
    }


def _tool_call(exchange: Exchange, arguments: str) -> dict[str, Any]:
    function = {"name": exchange.tool_name, "arguments": arguments}
    return {"id": "call_Mock0123456789", "type": "function", "function": function}


def _choice(delta: dict[str, Any], finish_reason: str | None = None) -> list[dict[str, Any]]:
    return [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}]


def _chunk(exchange: Exchange, choices: list[dict[str, Any]], usage: dict[str, Any]) -> bytes:
    chunk = _envelope(exchange, "chat.completion.chunk") | {"choices": choices} | usage
    return b"data: " + orjson.dumps(chunk) + b"\n\n"
