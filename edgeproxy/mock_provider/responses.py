"""The mock's Responses API, as OpenAI, xAI and DeepSeek have it: unary, streamed, compacted, counted.

Framing: `event:` and `data:`, LF, no [DONE]; every event has its number. Usage comes with the terminal event only,
which repeats the whole output. It does not hold background responses: one that is asked for is answered as queued.
"""

from collections.abc import Iterator
from typing import Any

import orjson

from edgeproxy.mock_provider.exchange import CREATED_S, Exchange, Finish
from edgeproxy.mock_provider.openai import KEEP_ALIVE, cost_in_usd_ticks, waited_for

RESPONSE_ID = "resp_Mock0123456789"

_ERROR = {"code": "server_error", "message": "The server had an error"}
_PART = {"type": "output_text", "annotations": [], "logprobs": []}


def unary(exchange: Exchange) -> bytes:
    """Body of a unary answer."""
    if exchange.fields.get("background") is True:
        return orjson.dumps(_response(exchange, "queued", []))
    return waited_for(exchange, orjson.dumps(_ended(exchange)))


def compacted(exchange: Exchange) -> bytes:
    """Body of the answer to a request for compaction."""
    item = {"id": "cmp_Mock0123456789", "type": "compaction", "encrypted_content": "bW9jaw=="}
    body = {"id": RESPONSE_ID, "object": "response.compaction", "created_at": CREATED_S, "output": [item]}
    return orjson.dumps(body if exchange.behaviour.no_usage else body | {"usage": _usage(exchange)})


def counted(exchange: Exchange) -> bytes:
    """Body of the answer to a request for the number of input tokens."""
    return orjson.dumps({"object": "response.input_tokens", "input_tokens": exchange.tokens.input_total})


def events(exchange: Exchange) -> Iterator[bytes]:
    """Whole events of a streamed answer, in order, each with its blank line."""
    if exchange.behaviour.deepseek:
        yield KEEP_ALIVE
    for number, (kind, fields) in enumerate(_numbered(exchange)):
        data = orjson.dumps({"type": kind, "sequence_number": number} | fields)
        yield b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"


def error_event(exchange: Exchange) -> bytes:
    """Events that report an error in the middle of a stream: what went wrong, and a failed response without usage."""
    error = {"type": "server_error", **_ERROR, "param": None}
    failed = _response(exchange, "failed", []) | {"error": _ERROR}
    first = orjson.dumps({"type": "error", "sequence_number": 1000, "error": error})
    last = orjson.dumps({"type": "response.failed", "sequence_number": 1001, "response": failed})
    return b"event: error\ndata: " + first + b"\n\nevent: response.failed\ndata: " + last + b"\n\n"


def _numbered(exchange: Exchange) -> Iterator[tuple[str, dict[str, Any]]]:
    """Kind and fields of each event, in the order of their numbers."""
    begun = _response(exchange, "in_progress", [])
    yield "response.created", {"response": begun}
    yield "response.in_progress", {"response": begun}
    for index, item in enumerate(_output(exchange)):
        place = {"output_index": index}
        yield "response.output_item.added", place | {"item": _opened(item)}
        place["item_id"] = item["id"]
        if item["type"] == "function_call":
            for text in exchange.texts():
                yield "response.function_call_arguments.delta", place | {"delta": text}
            done = {"name": item["name"], "arguments": item["arguments"]}
            yield "response.function_call_arguments.done", place | done
        elif item["type"] == "message":
            yield from _message_events(exchange, place | {"content_index": 0})
        yield "response.output_item.done", {"output_index": index, "item": item}
    ended = _ended(exchange)
    yield f"response.{ended['status']}", {"response": ended}


def _message_events(exchange: Exchange, place: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "response.content_part.added", place | {"part": _PART | {"text": ""}}
    for text in exchange.texts():
        yield "response.output_text.delta", place | {"delta": text, "logprobs": []}
    yield "response.output_text.done", place | {"text": exchange.text, "logprobs": []}
    yield "response.content_part.done", place | {"part": _PART | {"text": exchange.text}}


def _output(exchange: Exchange) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    if exchange.tokens.reasoning:
        items.append({"id": "rs_Mock0123456789", "type": "reasoning", "summary": []})
    for number in range(exchange.tokens.web_searches):
        action = {"type": "search", "query": f"mock query {number}"}
        items.append({"id": f"ws_Mock{number}", "type": "web_search_call", "status": "completed", "action": action})
    if exchange.finish is Finish.TOOL:
        call = {"call_id": "call_Mock0123456789", "name": exchange.tool_name, "arguments": exchange.text}
        items.append({"id": "fc_Mock0123456789", "type": "function_call", "status": "completed", **call})
    else:
        content = [_PART | {"text": exchange.text}]
        message = {"role": "assistant", "status": "completed", "content": content}
        items.append({"id": "msg_Mock0123456789", "type": "message", **message})
    return items


def _opened(item: dict[str, Any]) -> dict[str, Any]:
    """Return an item as it is before anything has been written to it."""
    empty: dict[str, Any] = {"content": [], "arguments": "", "status": "in_progress"}
    return item | {name: value for name, value in empty.items() if name in item}


def _ended(exchange: Exchange) -> dict[str, Any]:
    behaviour = exchange.behaviour
    more: dict[str, Any] = {} if behaviour.no_usage else {"usage": _usage(exchange)}
    status = "completed"
    if behaviour.failed:
        status, more["error"] = "failed", _ERROR
    elif behaviour.incomplete or exchange.finish is Finish.LENGTH:
        status, more["incomplete_details"] = "incomplete", {"reason": "max_output_tokens"}
    if not (behaviour.xai or behaviour.deepseek):
        more["tool_usage"] = {"web_search": {"num_requests": exchange.tokens.web_searches}}
    return _response(exchange, status, _output(exchange)) | more


def _response(exchange: Exchange, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": RESPONSE_ID,
        "object": "response",
        "created_at": CREATED_S,
        "status": status,
        "background": exchange.fields.get("background") is True,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "max_output_tokens": exchange.fields.get("max_output_tokens"),
        "model": exchange.served_model,
        "output": output,
        "parallel_tool_calls": True,
        "previous_response_id": exchange.fields.get("previous_response_id"),
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "store": True,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": exchange.fields.get("tools") or [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": None,
        "metadata": {},
    }


def _usage(exchange: Exchange) -> dict[str, Any]:
    """Input includes what was cached, output the reasoning: xAI's, too, which is not so in its chat completions."""
    tokens, behaviour = exchange.tokens, exchange.behaviour
    usage: dict[str, Any] = {
        "input_tokens": tokens.input_total,
        "input_tokens_details": {"cached_tokens": tokens.cache_read},
        "output_tokens": tokens.output_total,
        "output_tokens_details": {"reasoning_tokens": tokens.reasoning},
        "total_tokens": tokens.input_total + tokens.output_total,
    }
    if behaviour.xai:
        usage |= {
            "num_sources_used": 0,
            "num_server_side_tools_used": tokens.web_searches,
            "server_side_tool_usage_details": {"web_search_calls": tokens.web_searches},
            "cost_in_usd_ticks": cost_in_usd_ticks(exchange),
        }
    elif not behaviour.deepseek:
        long, short = tokens.cache_write_1h, tokens.cache_write - tokens.cache_write_1h
        usage["input_tokens_details"] |= {
            "cache_write_tokens": tokens.cache_write,
            "cache_write_tokens_details": {"ttl_30m_tokens": short, "ttl_12h_tokens": long},
        }
    return usage
