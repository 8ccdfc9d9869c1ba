r"""The mock's Gemini dialect: what all its answers share, and generated content: unary, as SSE and as a JSON array.

Framing: SSE is CRLF, `data: {json}` only; the array comes pretty-printed, `[{...}`, `,\r\n{...}` and `]`. Every
object has the usage so far: the prompt includes what was cached, thoughts and what tools read stand beside it, and a
count that is zero is absent. The request's own model is in the path, where directives keep their colon.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from edgeproxy.mock_provider.endpoint import EVENT_STREAM, Incoming, Problem, Refusal
from edgeproxy.mock_provider.exchange import Exchange, Finish, exchange_from, fields_of

JSON = "application/json; charset=UTF-8"

_RESPONSE_ID = "Mock0123456789abcdefgh"
_FINISH = {Finish.STOP: "STOP", Finish.LENGTH: "MAX_TOKENS", Finish.TOOL: "STOP"}
_STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ABORTED",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_TYPES = "type.googleapis.com/google.rpc."
_OVERLOADED = {
    "error": {
        "code": 503,
        "message": "The model is overloaded. Please try again later.",
        "status": "UNAVAILABLE",
    }
}


def read(incoming: Incoming) -> Exchange:
    """Read a request whose model is in the path, perhaps as `models/...`. Raises ValueError."""
    model = incoming.path_model.removeprefix("models/")
    # A body that names a stream or a model of its own does not count.
    return exchange_from(fields_of(incoming.body) | {"model": model, "stream": False})


def read_streamed(incoming: Incoming) -> Exchange:
    """Read a request for a stream: SSE with `alt=sse`, otherwise a JSON array. Raises ValueError."""
    return replace(read(incoming), streamed=True, array=incoming.query.get("alt") != "sse")


def answer_headers(exchange: Exchange) -> dict[str, str]:
    """Headers that the provider adds to every answer. There is no request id and nothing about rate limits."""
    return {
        "x-gemini-service-tier": "standard",
        "vary": "Origin, X-Origin, Referer",
        "server": "scaffolding on HTTPServer2",
        "server-timing": "gfet4t7; dur=512",
        "x-content-type-options": "nosniff",
        "alt-svc": 'h3=":443"; ma=2592000',
    } | ({"content-disposition": "attachment"} if exchange.streamed else {})


def content_type(exchange: Exchange) -> str:
    """Say what the answer is; an array is JSON although it is streamed."""
    return EVENT_STREAM.partition(";")[0] if exchange.streamed and not exchange.array else JSON


def unary(exchange: Exchange) -> bytes:
    """Body of a unary answer."""
    parts = _parts(exchange, exchange.text)
    return pretty(_object(exchange, parts, exchange.tokens.output, is_last=True)) + b"\n"


def events(exchange: Exchange) -> Iterator[bytes]:
    """Whole events of a streamed answer, or elements of the array with what separates them."""
    objects = _objects(exchange)
    if not exchange.array:
        yield from (_event(each) for each in objects)
        return
    yield b"[" + pretty(next(objects))
    yield from (b"\n,\r\n" + pretty(each) for each in objects)
    yield b"\n]"


def error_event(exchange: Exchange) -> bytes:
    """Report an error in the middle: as an object of the stream, or (`raw-error`) as a tail that is none."""
    if exchange.array:
        fault = exchange.behaviour.fault
        return (b"\n,\r\n" if fault and fault.after else b"[") + pretty(_OVERLOADED) + b"\n]"
    return pretty(_OVERLOADED) + b"\n" if exchange.behaviour.raw_error else _event(_OVERLOADED)


def refusal(problem: Problem) -> Refusal:
    """Status, headers and body of an error answer. A wrong key is an invalid argument."""
    status = 400 if problem.wrong_key else problem.status
    body = pretty(_error(status, problem)) + b"\n"
    return Refusal(status, {"content-type": JSON}, b"[" + body + b"]\n" if problem.array else body)


def usage_metadata(exchange: Exchange, candidates: int, *, prompt: int | None = None) -> dict[str, Any]:
    """Build the usage of one object, `candidates` visible tokens into the answer."""
    tokens, behaviour = exchange.tokens, exchange.behaviour
    prompt = tokens.input_total - behaviour.tool_use_prompt if prompt is None else prompt
    counts = {
        "promptTokenCount": prompt,
        "cachedContentTokenCount": tokens.cache_read,
        "candidatesTokenCount": candidates,
        "toolUsePromptTokenCount": behaviour.tool_use_prompt,
        "thoughtsTokenCount": tokens.reasoning,
        "totalTokenCount": prompt + candidates + behaviour.tool_use_prompt + tokens.reasoning,
    }
    usage: dict[str, Any] = {name: number for name, number in counts.items() if number or name == "promptTokenCount"}
    usage["promptTokensDetails"] = modalities(prompt)
    if tokens.cache_read:
        usage["cacheTokensDetails"] = modalities(tokens.cache_read)
    if behaviour.tool_use_prompt:
        usage["toolUsePromptTokensDetails"] = modalities(behaviour.tool_use_prompt)
    return usage | ({"trafficType": "ON_DEMAND"} if behaviour.traffic else {"serviceTier": "standard"})


def modalities(tokens: int) -> list[dict[str, Any]]:
    """Say what kind of tokens they are: all of them text."""
    return [{"modality": "TEXT", "tokenCount": tokens}]


def pretty(value: object) -> bytes:
    """Print JSON as everything is printed that is no SSE."""
    return json.dumps(value, indent=2, ensure_ascii=False).encode()


def _event(value: object) -> bytes:
    return b"data: " + json.dumps(value, separators=(",", ": "), ensure_ascii=False).encode() + b"\r\n\r\n"


def _objects(exchange: Exchange) -> Iterator[dict[str, Any]]:
    """The objects of a stream: one for each text, one in all where there is none or it calls a function."""
    if exchange.finish is Finish.TOOL or not exchange.chunks:
        yield _object(exchange, _parts(exchange, exchange.text), exchange.tokens.output, is_last=True)
        return
    hop = exchange.chunks // 2 if exchange.behaviour.hops else 0
    for number, text in enumerate(exchange.texts(), 1):
        is_last = number == exchange.chunks
        # The second hop counts from nothing, and its prompt is another one; the last object has the whole.
        begun, prompt = (hop, 1) if hop < number and hop and not is_last else (0, None)
        candidates = exchange.tokens.output * (number - begun) // exchange.chunks
        yield _object(exchange, _parts(exchange, text), candidates, is_last=is_last, prompt=prompt)
        if exchange.behaviour.traffic and not is_last:
            yield {"usageMetadata": {"trafficType": "ON_DEMAND"}} | _origin(exchange)


def _object(
    exchange: Exchange, parts: list[dict[str, Any]], tokens: int, *, is_last: bool, prompt: int | None = None
) -> dict[str, Any]:
    content = ({"parts": parts} if parts else {}) | {"role": "model"}
    more: dict[str, Any] = {"finishReason": _FINISH[exchange.finish]} if is_last else {}
    if is_last and exchange.tokens.web_searches:
        more["groundingMetadata"] = {
            "webSearchQueries": [f"mock query {number}" for number in range(exchange.tokens.web_searches)]
        }
    candidates = [{"content": content, **more, "index": index} for index in range(exchange.choices)]
    usage = {} if exchange.behaviour.no_usage else {"usageMetadata": usage_metadata(exchange, tokens, prompt=prompt)}
    return {"candidates": candidates} | usage | _origin(exchange)


def _parts(exchange: Exchange, text: str) -> list[dict[str, Any]]:
    if exchange.finish is Finish.TOOL:
        call = {"name": exchange.tool_name, "args": json.loads(text)}
        return [{"functionCall": call, "thoughtSignature": "bW9jaw=="}]
    return [{"text": text}] if text else []


def _origin(exchange: Exchange) -> dict[str, Any]:
    return {"modelVersion": exchange.served_model, "responseId": _RESPONSE_ID}


def _error(status: int, problem: Problem) -> dict[str, Any]:
    fallback = "INTERNAL" if status >= 500 else "FAILED_PRECONDITION"
    error: dict[str, Any] = {
        "code": status,
        "message": problem.message,
        "status": _STATUSES.get(status, fallback),
    }
    if problem.wrong_key:
        error["message"] = "API key not valid. Please pass a valid API key."
        metadata = {"service": "generativelanguage.googleapis.com"}
        why = {"reason": "API_KEY_INVALID", "domain": "googleapis.com", "metadata": metadata}
        error["details"] = [{"@type": f"{_TYPES}ErrorInfo", **why}]
    elif problem.behaviour.retry_after is not None:  # in the body: there is no such header
        error["details"] = [{"@type": f"{_TYPES}RetryInfo", "retryDelay": f"{problem.behaviour.retry_after}s"}]
    return {"error": error}
