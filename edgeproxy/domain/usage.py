"""What one answer used, and the one record that remains of a request. Pure: no I/O, no clock.

A usage event holds counts, a time, a model name and a status: never content. Text that came from a client is content
until a provider has accepted it, so the model's name is stored as sent only then (`storable_model`).
"""

import re
from typing import TypeGuard

import orjson

from edgeproxy.domain.identifiers import uuid7_ms
from edgeproxy.domain.keys import KeyId
from edgeproxy.domain.limits import Amounts
from edgeproxy.domain.records import record

_MODEL_NAME = re.compile(r"[A-Za-z0-9._:/-]{1,64}")
# The providers' own tools that are billed by the call, under one name each.
TOOLS = (
    *("web_search", "web_fetch", "x_search", "file_search", "document_search"),
    *("code_execution", "code_interpreter", "image", "image_generation"),
)

_COUNTS = ("input_uncached", "cache_read", "cache_write", "output", "reasoning")


@record
class Usage:
    """Tokens of one answer in the normal form that all dialects are read into.

    The three input counts do not overlap. `output` includes `reasoning`; `cache_write` includes `cache_write_1h`, what
    is kept for an hour or longer and costs more (the rest is kept for minutes). `estimated` says that the count is not
    complete: the provider's own final figures were not seen, so these are a lower bound or an estimate of ours.

    `model` is who the answer says has served it, "" if it does not. Where one answer bills several models, `parts` has
    the usage of each, and they add up to the whole. `tool_calls` are calls of the provider's own tools, (name, number).
    `cost_nanos` is what the provider says it charged, in 1e-9 USD rounded up, None if it does not say.
    """

    input_uncached: int = 0
    cache_read: int = 0
    cache_write: int = 0
    output: int = 0
    reasoning: int = 0
    estimated: bool = False
    cache_write_1h: int = 0
    tool_calls: tuple[tuple[str, int], ...] = ()
    model: str = ""
    parts: tuple["Usage", ...] = ()
    cost_nanos: int | None = None

    @property
    def cache_write_5m(self) -> int:
        """Input tokens written to a cache that keeps them for minutes."""
        return self.cache_write - self.cache_write_1h

    @property
    def input_total(self) -> int:
        """All input tokens, cached or not."""
        return self.input_uncached + self.cache_read + self.cache_write

    @property
    def amounts(self) -> Amounts:
        """What limits count: one request, its input and its output."""
        return Amounts(requests=1, input_tokens=self.input_total, output_tokens=self.output)


@record
class UsageEvent:
    """What is kept of one admitted request.

    `id` is the request's id and holds its time; `status` is the HTTP status that the client got (of a stream that
    broke: the status that it began with); `latency_ms` is from sending the request upstream to the end of the answer.
    """

    id: str
    key_id: KeyId
    model: str
    status: int
    usage: Usage
    latency_ms: int

    @property
    def at_ms(self) -> int:
        """Unix time in ms of the admission."""
        return uuid7_ms(self.id)


def is_model_name(text: object) -> TypeGuard[str]:
    """Whether a text looks like the name of a model."""
    return isinstance(text, str) and _MODEL_NAME.fullmatch(text) is not None


def storable_model(requested: str, pattern: str, *, accepted: bool) -> str:
    """Return the model name to keep: as requested once a provider accepted it, else the pattern that matched."""
    return requested if accepted and is_model_name(requested) else pattern


def encode_event(event: UsageEvent) -> bytes:
    """Return the event as the JSON object that waits in Redis until it is flushed."""
    usage = event.usage
    raw = orjson.dumps(
        {
            "id": event.id,
            "key_id": event.key_id,
            "model": event.model,
            "status": event.status,
            "input_uncached": usage.input_uncached,
            "cache_read": usage.cache_read,
            "cache_write": usage.cache_write,
            "output": usage.output,
            "reasoning": usage.reasoning,
            "estimated": usage.estimated,
            "latency_ms": event.latency_ms,
        }
    )
    return bytes(memoryview(raw))  # what orjson made has kilobytes of room for more behind it, and events are kept


def decode_event(raw: bytes) -> UsageEvent:
    """Return the event that `encode_event` wrote. Raises ValueError, without any part of `raw`, for anything else."""
    try:
        row = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise ValueError("not JSON") from None
    if not isinstance(row, dict):
        raise ValueError("not an object")  # noqa: TRY004 - callers handle one error: this is not an event
    texts = [row.get(name) for name in ("id", "key_id", "model")]
    numbers = [row.get(name) for name in (*_COUNTS, "status", "latency_ms")]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("id, key_id or model is not a string")
    if not all(type(number) is int and 0 <= number < 2**53 for number in numbers):
        raise ValueError("a count is not a non-negative integer")
    uuid7_ms(row["id"])  # raises ValueError
    return UsageEvent(
        id=row["id"],
        key_id=KeyId(row["key_id"]),
        model=row["model"],
        status=row["status"],
        usage=Usage(**{name: row[name] for name in _COUNTS}, estimated=row.get("estimated") is True),
        latency_ms=row["latency_ms"],
    )
