"""The mock's OpenAI dialect: what all its answers share, and chat completions in all their variants.

Framing: data-only events, LF, `data: [DONE]`. With include_usage every chunk has `"usage":null` and one chunk
with no choices has the usage; without it there is no usage at all. DeepSeek puts the usage on the last chunk that has
a choice, Perplexity on every chunk (as CRLF, without [DONE]); xAI leaves reasoning out of the completion tokens.
"""

from collections.abc import Iterator
from typing import Any

import orjson

from edgeproxy.mock_provider.endpoint import JSON, Problem, Refusal
from edgeproxy.mock_provider.exchange import CREATED_S, Exchange, Finish

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"

_FINISH = {Finish.STOP: "stop", Finish.LENGTH: "length", Finish.TOOL: "tool_calls"}
_ERROR_TYPES = {
    401: ("invalid_request_error", "invalid_api_key"),
    404: ("invalid_request_error", "model_not_found"),
    429: ("requests", "rate_limit_exceeded"),
}
_COOKIE = "__cf_bm=operators-cookie; path=/; HttpOnly; Secure"


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
        "set-cookie": _COOKIE,
        "cf-ray": "0000000000000000-MCK",
        "cache-control": "no-cache" if exchange.streamed else "no-store",
    }


def unary(exchange: Exchange) -> bytes:
    """Body of a unary answer."""
    body = _envelope(exchange, "chat.completion")
    body["choices"] = [_whole_choice(exchange, index) for index in range(exchange.choices)]
    if not exchange.behaviour.no_usage:
        body["usage"] = usage_of(exchange)
    return waited_for(exchange, orjson.dumps(body))


def waited_for(exchange: Exchange, body: bytes) -> bytes:
    """Put the blank lines before a unary body that DeepSeek sends while one waits."""
    return (b"\n\n" if exchange.behaviour.deepseek else b"") + body


def events(exchange: Exchange) -> Iterator[bytes]:
    """Whole events of a streamed answer, in order, each with its blank line."""
    if exchange.behaviour.perplexity:
        return (chunk.replace(b"\n", b"\r\n") for chunk in _perplexity_chunks(exchange))
    return _chunks(exchange)


def usage_of(exchange: Exchange, *, texts: int | None = None) -> dict[str, Any]:
    """Build the usage object, as it is after the first `texts` deltas of each choice.

    Prompt tokens include the cached ones, completion tokens the reasoning ones (xAI's do not).
    """
    tokens, behaviour = exchange.tokens, exchange.behaviour
    output = tokens.output if texts is None else tokens.output * texts // max(1, exchange.chunks)
    usage: dict[str, Any] = {
        "prompt_tokens": tokens.input_total,
        "completion_tokens": output if behaviour.xai else output + tokens.reasoning,
        "total_tokens": tokens.input_total + output + tokens.reasoning,
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
    if behaviour.deepseek:
        usage["prompt_cache_hit_tokens"] = tokens.cache_read
        usage["prompt_cache_miss_tokens"] = tokens.input_total - tokens.cache_read
    if behaviour.xai:
        usage["num_sources_used"] = tokens.web_searches
        usage["cost_in_usd_ticks"] = cost_in_usd_ticks(exchange)
    if behaviour.perplexity:
        usage["cost"] = {"total_cost": tokens.cost_nanos / 1e9}
    return usage


def cost_in_usd_ticks(exchange: Exchange) -> int:
    """What xAI says that an answer cost, in 1e-10 USD."""
    return exchange.tokens.cost_nanos * 10


def refusal(problem: Problem) -> Refusal:
    """Status, headers and body of an error answer. xAI refuses a wrong key with 400 and says errors as texts."""
    status, behaviour = problem.status, problem.behaviour
    # DeepSeek's 400 is JSON that says it is none.
    kind = "application/octet-stream" if behaviour.deepseek and status == 400 else JSON
    headers = {"content-type": kind, "set-cookie": _COOKIE}
    if behaviour.retry_after is not None:
        headers["retry-after"] = str(behaviour.retry_after)
    if behaviour.xai:
        code = "invalid-argument" if problem.wrong_key or status == 400 else "mock-error"
        body = orjson.dumps({"code": code, "error": problem.message})
        return Refusal(400 if problem.wrong_key else status, headers, body)
    if status == 401:
        headers["www-authenticate"] = 'Bearer realm="mock"'
    return Refusal(status, headers, error_body(status, problem.message))


def error_body(status: int, message: str) -> bytes:
    """Body of an error answer."""
    fallback = ("server_error", None) if status >= 500 else ("invalid_request_error", None)
    kind, code = _ERROR_TYPES.get(status, fallback)
    error = {"message": message, "type": kind, "param": None, "code": code}
    return orjson.dumps({"error": error}, option=orjson.OPT_INDENT_2)


def error_event(_exchange: Exchange | None = None) -> bytes:
    """Event that reports an error in the middle of a stream."""
    error = {"message": "The server had an error", "type": "server_error", "param": None, "code": None}
    return b"data: " + orjson.dumps({"error": error}) + b"\n\n"


def _chunks(exchange: Exchange) -> Iterator[bytes]:
    behaviour = exchange.behaviour
    usage = None if behaviour.no_usage else usage_of(exchange)
    null_usage = {"usage": None} if exchange.include_usage or behaviour.deepseek else {}
    if behaviour.deepseek:
        yield KEEP_ALIVE
    for index in range(exchange.choices):
        yield _chunk(exchange, _choice(index, _opening(exchange)), null_usage)
        for text in exchange.texts():
            yield _chunk(exchange, _choice(index, _delta(exchange, text)), null_usage)
        is_last = behaviour.deepseek and index == exchange.choices - 1
        last = _choice(index, {}, _FINISH[exchange.finish])
        yield _chunk(exchange, last, {"usage": usage} if is_last else null_usage)
    if usage is not None and not behaviour.deepseek and (exchange.include_usage or behaviour.xai):
        yield _chunk(exchange, [], {"usage": usage})
    if behaviour.moderation:
        yield _chunk(exchange, [], null_usage | {"moderation": {"flagged": False, "categories": []}})
    yield DONE


def _perplexity_chunks(exchange: Exchange) -> Iterator[bytes]:
    """Give each chunk with the usage so far, and an end that is the connection's only."""
    with_usage = not exchange.behaviour.no_usage
    for number, text in enumerate(exchange.texts(), 1):
        is_last = number == exchange.chunks
        delta = {"role": "assistant"} | _delta(exchange, text)
        usage = {"usage": usage_of(exchange, texts=None if is_last else number)} if with_usage else {}
        yield _chunk(exchange, _choice(0, delta, _FINISH[exchange.finish] if is_last else None), usage)


def _envelope(exchange: Exchange, kind: str) -> dict[str, Any]:
    return {
        "id": "chatcmpl-Mock0123456789",
        "object": kind,
        "created": CREATED_S,
        "model": exchange.served_model,
        "service_tier": "default",
        "system_fingerprint": "fp_mock",
    }


def _whole_choice(exchange: Exchange, index: int) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None, "annotations": []}
    if exchange.finish is Finish.TOOL:
        message["tool_calls"] = [_tool_call(exchange, exchange.text)]
    else:
        message["content"] = exchange.text
    return {"index": index, "message": message, "logprobs": None, "finish_reason": _FINISH[exchange.finish]}


def _opening(exchange: Exchange) -> dict[str, Any]:
    if exchange.finish is Finish.TOOL:
        calls = [{"index": 0, **_tool_call(exchange, "")}]
        return {"role": "assistant", "content": None, "tool_calls": calls}
    return {"role": "assistant", "content": ""}


def _delta(exchange: Exchange, text: str) -> dict[str, Any]:
    if exchange.finish is Finish.TOOL:
        return {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}
    return {"content": text}


def _tool_call(exchange: Exchange, arguments: str) -> dict[str, Any]:
    function = {"name": exchange.tool_name, "arguments": arguments}
    return {"id": "call_Mock0123456789", "type": "function", "function": function}


def _choice(index: int, delta: dict[str, Any], finish_reason: str | None = None) -> list[dict[str, Any]]:
    return [{"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}]


def _chunk(exchange: Exchange, choices: list[dict[str, Any]], usage: dict[str, Any]) -> bytes:
    chunk = _envelope(exchange, "chat.completion.chunk") | {"choices": choices} | usage
    return b"data: " + orjson.dumps(chunk) + b"\n\n"
