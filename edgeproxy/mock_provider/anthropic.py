"""The mock's Anthropic dialect: Messages, unary and streamed, and the count of a message's tokens.

Framing: LF, `event:` and one `data:` line whose JSON is padded with spaces, no [DONE]; a ping right after the
first block starts and then now and again. `message_start` has a complete usage object with a provisional
output count, `message_delta` replaces the counts and has no breakdown of the cache writes. What a compaction or an
advisor (another model) used is in `iterations` only, not in the counts at the top.
"""

from collections.abc import Iterator
from typing import Any

import orjson

from edgeproxy.mock_provider.endpoint import JSON, Bill, Problem, Refusal
from edgeproxy.mock_provider.exchange import Exchange, Finish, Tokens

ADVISOR_MODEL = "claude-mock-advisor"

_PING_EVERY = 16  # deltas between pings: often enough to be in every longer test
_FINISH = {Finish.STOP: "end_turn", Finish.LENGTH: "max_tokens", Finish.TOOL: "tool_use"}
_REQUEST_ID = "req_mock_anthropic"
_FINAL = (400, 401, 403, 404, 413)  # the same request would fail again
_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def answer_headers(exchange: Exchange) -> dict[str, str]:
    """Headers that the provider adds to every answer, the ones that a gateway must hide included."""
    return {
        "request-id": _REQUEST_ID,
        "anthropic-organization-id": "organisation-of-the-operator",
        "anthropic-workspace-id": "workspace-of-the-operator",
        "anthropic-ratelimit-tokens-limit": "4000000",
        "anthropic-ratelimit-tokens-remaining": "3999000",
        "anthropic-ratelimit-tokens-reset": "2026-11-21T08:00:00Z",
        "retry-after": "31",  # the real one sends it on success, too
        "set-cookie": "__cf_bm=operators-cookie; path=/; HttpOnly; Secure",
        "cf-ray": "0000000000000000-MCK",
        "vary": "Accept-Encoding",
        "cache-control": "no-cache" if exchange.streamed else "no-store",
    }


def bill(exchange: Exchange) -> Bill:
    """All tokens at the models that used them, an advisor's at its own."""
    own = exchange.tokens + _apart(exchange.behaviour.compaction)
    return {exchange.served_model: own} | (
        {ADVISOR_MODEL: _apart(exchange.behaviour.advisor)} if exchange.behaviour.advisor else {}
    )


def counted(exchange: Exchange) -> bytes:
    """Body of the answer to a request for the number of input tokens."""
    return orjson.dumps({"input_tokens": exchange.tokens.input_total})


def unary(exchange: Exchange) -> bytes:
    """Body of a unary answer."""
    text = exchange.text
    block: dict[str, Any] = {"type": "text", "text": text}
    if exchange.finish is Finish.TOOL:
        block = _tool_block(exchange, orjson.loads(text))
    message = _message(exchange, [block] if text else [])
    message["stop_reason"] = _FINISH[exchange.finish]
    if not exchange.behaviour.no_usage:
        message["usage"] = _usage_at_start(exchange) | _usage_at_end(exchange)
    return orjson.dumps(message)


def events(exchange: Exchange) -> Iterator[bytes]:
    """Whole events of a streamed answer, in order, each with its blank line."""
    with_usage = not exchange.behaviour.no_usage
    is_tool = exchange.finish is Finish.TOOL
    start = _message(exchange, [])
    if with_usage:
        start["usage"] = _usage_at_start(exchange, provisional=exchange.behaviour.provisional)
    yield _event("message_start", {"message": start})
    block = _tool_block(exchange, {}) if is_tool else {"type": "text", "text": ""}
    yield _event("content_block_start", {"index": 0, "content_block": block})
    yield _event("ping", {})
    for index, text in enumerate(exchange.texts()):
        if index and index % _PING_EVERY == 0:
            yield _event("ping", {})
        delta = {"type": "text_delta", "text": text}
        if is_tool:
            delta = {"type": "input_json_delta", "partial_json": text}
        yield _event("content_block_delta", {"index": 0, "delta": delta})
    yield _event("content_block_stop", {"index": 0})
    stop = {"stop_reason": _FINISH[exchange.finish], "stop_sequence": None, "stop_details": None}
    yield _event("message_delta", {"delta": stop} | ({"usage": _usage_at_end(exchange)} if with_usage else {}))
    yield _event("message_stop", {})


def refusal(problem: Problem) -> Refusal:
    """Status, headers and body of an error answer."""
    headers = {"content-type": JSON, "set-cookie": "__cf_bm=operators-cookie; path=/", "request-id": _REQUEST_ID}
    if problem.behaviour.retry_after is not None:
        headers["retry-after"] = str(problem.behaviour.retry_after)
    if problem.status in _FINAL:
        headers["x-should-retry"] = "false"
    return Refusal(problem.status, headers, error_body(problem.status, problem.message))


def error_body(status: int, message: str) -> bytes:
    """Body of an error answer."""
    kind = _ERROR_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    error = {"type": kind, "message": message}
    return orjson.dumps({"type": "error", "error": error, "request_id": _REQUEST_ID})


def error_event(_exchange: Exchange | None = None) -> bytes:
    """Event that reports an error in the middle of a stream."""
    error = {"type": "overloaded_error", "message": "Overloaded"}
    return b"event: error\ndata: " + orjson.dumps({"type": "error", "error": error}) + b"\n\n"


def _message(exchange: Exchange, content: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "model": exchange.served_model,
        "id": "msg_Mock0123456789",
        "type": "message",
        "role": "assistant",
        "content": content,
        "stop_reason": None,
        "stop_sequence": None,
        "stop_details": None,
    }


def _tool_block(exchange: Exchange, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"type": "tool_use", "id": "toolu_Mock0123456789", "name": exchange.tool_name, "input": arguments}


def _usage_at_start(exchange: Exchange, *, provisional: bool = False) -> dict[str, Any]:
    usage = _input_counts(exchange.tokens)
    if provisional:  # what tools of the provider's own read is not counted yet, what came from the cache will change
        usage["input_tokens"] //= 2
        usage["cache_read_input_tokens"] += usage["input_tokens"]
    return {
        **usage,
        "output_tokens": min(1, exchange.tokens.output_total),  # provisional, replaced at the end
        "service_tier": "standard",
        "inference_geo": "not_available",
    }


def _usage_at_end(exchange: Exchange) -> dict[str, Any]:
    tokens = exchange.tokens
    usage = {
        "input_tokens": tokens.input_uncached,
        "cache_creation_input_tokens": tokens.cache_write,
        "cache_read_input_tokens": tokens.cache_read,
        "output_tokens": tokens.output_total,
        "output_tokens_details": {"thinking_tokens": tokens.reasoning},
    }
    if tokens.web_searches:
        usage["server_tool_use"] = {"web_search_requests": tokens.web_searches, "web_fetch_requests": 0}
    iterations = _iterations(exchange)
    return usage | ({"iterations": iterations} if len(iterations) > 1 else {})


def _iterations(exchange: Exchange) -> list[dict[str, Any]]:
    """What was billed, pass by pass; the message's own pass is also in the counts at the top."""
    behaviour = exchange.behaviour
    passes = [_pass("message", exchange.tokens)]
    if behaviour.compaction:
        passes.insert(0, _pass("compaction", _apart(behaviour.compaction)))
    if behaviour.advisor:
        passes.append(_pass("advisor_message", _apart(behaviour.advisor)) | {"model": ADVISOR_MODEL})
    return passes


def _pass(kind: str, tokens: Tokens) -> dict[str, Any]:
    return {"type": kind, **_input_counts(tokens), "output_tokens": tokens.output_total}


def _apart(tokens: int) -> Tokens:
    """Tokens of a pass of its own: so many as input, a tenth as output."""
    return Tokens(input_uncached=tokens, output=tokens // 10)


def _input_counts(tokens: Tokens) -> dict[str, Any]:
    return {
        "input_tokens": tokens.input_uncached,
        "cache_creation_input_tokens": tokens.cache_write,
        "cache_read_input_tokens": tokens.cache_read,
        "cache_creation": {
            "ephemeral_5m_input_tokens": tokens.cache_write - tokens.cache_write_1h,
            "ephemeral_1h_input_tokens": tokens.cache_write_1h,
        },
    }


def _event(name: str, fields: dict[str, Any]) -> bytes:
    data = orjson.dumps({"type": name} | fields)
    padding = b" " * (len(data) % 7)  # the real one pads by a changing amount
    return b"event: " + name.encode() + b"\ndata: " + data[:-1] + padding + b"}\n\n"
