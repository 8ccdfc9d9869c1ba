"""The mock's embeddings and moderations: OpenAI's endpoints that read and generate nothing."""

import base64
import struct
from dataclasses import replace

import orjson

from edgeproxy.mock_provider.endpoint import Incoming, read_json
from edgeproxy.mock_provider.exchange import Exchange, Tokens

_VECTOR = (0.25, -0.5, 0.125)  # exact as 32-bit floats
_PACKED = base64.b64encode(struct.pack(f"<{len(_VECTOR)}f", *_VECTOR)).decode()
_CATEGORIES = ("harassment", "hate", "illicit", "self-harm", "sexual", "violence")


def read(incoming: Incoming) -> Exchange:
    """Read a request that has input tokens only, one per word or as many as are in its lists. Raises ValueError."""
    exchange = read_json(incoming)
    return replace(exchange, tokens=Tokens(input_uncached=exchange.tokens.input_uncached))


def unary(exchange: Exchange) -> bytes:
    """Body of the answer: one vector for each input."""
    vector = _PACKED if exchange.fields.get("encoding_format") == "base64" else _VECTOR
    data = [{"object": "embedding", "index": index, "embedding": vector} for index in range(_inputs(exchange))]
    body = {"object": "list", "data": data, "model": exchange.served_model}
    total = exchange.tokens.input_total
    usage = {"usage": {"prompt_tokens": total, "total_tokens": total}}
    return orjson.dumps(body if exchange.behaviour.no_usage else body | usage)


def moderated(exchange: Exchange) -> bytes:
    """Body of the answer to a request for moderation: nothing is ever wrong."""
    result = {
        "flagged": False,
        "categories": dict.fromkeys(_CATEGORIES, False),
        "category_scores": dict.fromkeys(_CATEGORIES, 0.001),
        "category_applied_input_types": {name: ["text"] for name in _CATEGORIES},
    }
    results = [result] * _inputs(exchange)
    return orjson.dumps({"id": "modr-Mock0123456789", "model": exchange.served_model, "results": results})


def _inputs(exchange: Exchange) -> int:
    """Say how many inputs there are: a list of texts or of token lists is several, a list of tokens is one."""
    inputs = exchange.fields.get("input")
    several = isinstance(inputs, list) and any(not isinstance(each, int) for each in inputs)
    return len(inputs) if isinstance(inputs, list) and several else 1
