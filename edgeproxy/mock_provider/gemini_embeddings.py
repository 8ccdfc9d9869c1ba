"""The mock's Gemini endpoints that generate nothing: embeddings, and the count of a prompt's tokens.

Only newer embedding models report a usage (`no-usage` makes an older one), and they spell its details differently.
"""

from dataclasses import replace
from typing import Any

from edgeproxy.mock_provider import gemini
from edgeproxy.mock_provider.endpoint import Incoming
from edgeproxy.mock_provider.exchange import Exchange, Tokens

_VALUES = (0.25, -0.5, 0.125)


def read(incoming: Incoming) -> Exchange:
    """Read a request that has input tokens only. Raises ValueError."""
    exchange = gemini.read(incoming)
    return replace(exchange, tokens=Tokens(input_uncached=exchange.tokens.input_uncached))


def embedded(exchange: Exchange) -> bytes:
    """Body of the answer to `:embedContent`."""
    return gemini.pretty({"embedding": {"values": _VALUES}} | _usage(exchange)) + b"\n"


def embedded_batch(exchange: Exchange) -> bytes:
    """Body of the answer to `:batchEmbedContents`."""
    requests = exchange.fields.get("requests")
    number = len(requests) if isinstance(requests, list) else 0
    return gemini.pretty({"embeddings": [{"values": _VALUES}] * number} | _usage(exchange)) + b"\n"


def counted(exchange: Exchange) -> bytes:
    """Body of the answer to `:countTokens`."""
    total = exchange.tokens.input_total
    return gemini.pretty({"totalTokens": total, "promptTokensDetails": gemini.modalities(total)}) + b"\n"


def _usage(exchange: Exchange) -> dict[str, Any]:
    total = exchange.tokens.input_total
    usage = {"promptTokenCount": total, "totalTokenCount": total, "promptTokenDetails": gemini.modalities(total)}
    return {} if exchange.behaviour.no_usage else {"usageMetadata": usage}
