"""The mock's generated images: unary with usage in tokens, streamed with partial images before the whole one.

`dall-e*` is billed per image and reports nothing; xAI reports its charge only.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import orjson

from edgeproxy.mock_provider.endpoint import Bill, Incoming, read_json
from edgeproxy.mock_provider.exchange import CREATED_S, Exchange, Tokens
from edgeproxy.mock_provider.openai import cost_in_usd_ticks

_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
_NANOS_PER_IMAGE = 20_000_000  # xAI's


def read(incoming: Incoming) -> Exchange:
    """Read a request; `n` images, each of as many output tokens as chunks. Raises ValueError."""
    exchange = read_json(incoming)
    if exchange.behaviour.xai:
        exchange = replace(exchange, tokens=Tokens(cost_nanos=exchange.choices * _NANOS_PER_IMAGE))
    return exchange


def bill(exchange: Exchange) -> Bill:
    """All tokens, or none where images are what is billed."""
    return {exchange.served_model: Tokens() if _per_image(exchange) else exchange.tokens}


def unary(exchange: Exchange) -> bytes:
    """Body of a unary answer."""
    image: dict[str, Any] = {"b64_json": _PIXEL * max(1, exchange.behaviour.big // len(_PIXEL))}
    if exchange.fields.get("response_format") == "url":
        image = {"url": "https://images.invalid/mock.png"}
    body = {"created": CREATED_S, "data": [image] * exchange.choices}
    if exchange.behaviour.xai:
        return orjson.dumps({"data": body["data"], "usage": {"cost_in_usd_ticks": cost_in_usd_ticks(exchange)}})
    return orjson.dumps(body if _per_image(exchange) else body | _SHAPE | _usage(exchange))


def events(exchange: Exchange) -> Iterator[bytes]:
    """Whole events of a streamed answer, in order, each with its blank line."""
    partial = exchange.fields.get("partial_images")
    image = {"b64_json": _PIXEL, "created_at": CREATED_S, **_SHAPE}
    for index in range(partial if isinstance(partial, int) else 0):
        yield _event("image_generation.partial_image", image | {"partial_image_index": index})
    yield _event("image_generation.completed", image | _usage(exchange))


def error_event(_exchange: Exchange) -> bytes:
    """Event that reports an error in the middle of a stream."""
    error = {"type": "server_error", "code": "server_error", "message": "The server had an error", "param": None}
    return _event("error", {"error": error})


_SHAPE = {"background": "opaque", "output_format": "png", "quality": "low", "size": "1024x1024"}


def _per_image(exchange: Exchange) -> bool:
    return exchange.model.startswith("dall-e")


def _usage(exchange: Exchange) -> dict[str, Any]:
    tokens = exchange.tokens
    usage = {
        "input_tokens": tokens.input_total,
        "input_tokens_details": {"text_tokens": tokens.input_total, "image_tokens": 0},
        "output_tokens": tokens.output_total,
        "output_tokens_details": {"text_tokens": tokens.reasoning, "image_tokens": tokens.output},
        "total_tokens": tokens.input_total + tokens.output_total,
    }
    return {} if exchange.behaviour.no_usage else {"usage": usage}


def _event(kind: str, fields: dict[str, Any]) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + orjson.dumps({"type": kind} | fields) + b"\n\n"
