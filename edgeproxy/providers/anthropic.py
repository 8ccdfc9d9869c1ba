"""Anthropic's Messages.

Sources: platform.claude.com/docs and recorded traffic. `message_start` brings provisional usage; each `message_delta`
replaces what it names and may lower it; nothing is ever added up, except passes of the server itself: compaction and
advisor turns are billed beside the top level and stand only in `iterations`.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import orjson

from edgeproxy.domain.limits import Dimension
from edgeproxy.domain.usage import Usage
from edgeproxy.errors import GatewayError
from edgeproxy.providers import sse
from edgeproxy.providers.base import (
    MAX_COUNT,
    Headers,
    LimitLevel,
    RequestFacts,
    UsageReader,
    answer_headers,
    count,
    count_member,
    estimate_input_tokens,
    estimate_output_tokens,
    flag_member,
    is_count,
    list_member,
    pick,
    read_object,
    retry_headers,
    text_member,
    tightest,
)
from edgeproxy.providers.body import replace_member
from edgeproxy.providers.openai import ObjectReader

_USAGE = re.compile(rb'"usage"\s*:\s*\{')
_MEMBERS = ("model", "stream", "max_tokens")
_CLIENT_HEADERS = frozenset({"accept", "anthropic-version", "anthropic-beta"})
_ANSWER_HEADERS = frozenset({"x-should-retry"})
_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_BILLED_BESIDE = ("compaction", "advisor_message")
_COUNTS = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens")
_HEADER_DIMENSIONS = {
    "requests": Dimension.REQUESTS,
    "tokens": Dimension.TOKENS,
    "input-tokens": Dimension.INPUT_TOKENS,
    "output-tokens": Dimension.OUTPUT_TOKENS,
}


class Anthropic:
    """The dialect: see `base.Dialect`."""

    name = "anthropic"
    paths = {"/v1/messages": "/v1/messages"}  # noqa: RUF012 - shared and never written

    def read_request(self, body: bytes) -> RequestFacts:
        """Return the facts of a Messages request."""
        value = read_object(body, _MEMBERS)
        model = text_member(value, "model")
        list_member(value, "messages")
        return RequestFacts(
            model=model,
            stream=flag_member(value, "stream"),
            input_estimate=estimate_input_tokens(body),
            output_max=count_member(value, "max_tokens"),
        )

    def outgoing_body(self, body: bytes, facts: RequestFacts, model: str, *, ask_for_usage: bool) -> bytes:
        """Return the body, with another model name where one is wanted. Usage always comes unasked."""
        return body if model == facts.model else replace_member(body, "model", orjson.dumps(model))

    def outgoing_headers(self, secret: str, client_headers: Mapping[str, str]) -> Headers:
        """Return the headers for the provider; version and beta flags as the client sent them."""
        passed = pick(client_headers.items(), _CLIENT_HEADERS)
        return [("x-api-key", secret), ("content-type", "application/json"), *passed]

    def incoming_headers(self, status: int, provider_headers: Headers, request_id: str) -> Headers:
        """Return what of the provider's headers may be handed on, and our request id."""
        return [*answer_headers(status, provider_headers, _ANSWER_HEADERS), *_ids(request_id)]

    def reader(self, facts: RequestFacts, *, ask_for_usage: bool, max_bytes: int) -> UsageReader:
        """Return a reader for a stream or for a single object."""
        return StreamReader(max_bytes) if facts.stream else MessageReader(max_bytes)

    def error(self, error: GatewayError, request_id: str) -> tuple[Headers, bytes]:
        """Return an error as `{"type": "error", "error": {type, message, details}, "request_id"}`."""
        fallback = "invalid_request_error" if error.kind.status < 500 else "api_error"
        row = {
            "type": _ERROR_TYPES.get(error.kind.status, fallback),
            "message": error.message,
            "details": {"error_code": error.kind.code},
        }
        headers: Headers = [("content-type", "application/json"), *_ids(request_id), *retry_headers(error)]
        if error.kind.status == 401:
            headers.append(("www-authenticate", "Bearer"))
        return headers, orjson.dumps({"type": "error", "error": row, "request_id": request_id})

    def limit_headers(self, levels: Sequence[LimitLevel], now_ms: int) -> Headers:
        """Return `anthropic-ratelimit-*`: for each dimension the window that has least left."""
        headers: Headers = []
        for noun, dimension in _HEADER_DIMENSIONS.items():
            if (level := tightest(levels, (dimension,))) is not None:
                reset = datetime.fromtimestamp(-(-(now_ms + level.reset_ms) // 1000), UTC)
                headers += [
                    (f"anthropic-ratelimit-{noun}-limit", str(level.limit.amount)),
                    (f"anthropic-ratelimit-{noun}-remaining", str(level.remaining)),
                    (f"anthropic-ratelimit-{noun}-reset", reset.strftime("%Y-%m-%dT%H:%M:%SZ")),
                ]
        return headers


def _ids(request_id: str) -> Headers:
    """Return our request id under our name, and under the one that Anthropic's SDKs read."""
    return [("x-request-id", request_id), ("request-id", request_id)]


class StreamReader:
    """Reads usage from a Messages stream: starts from `message_start`, overlays every `message_delta`.

    It is final with the delta that stops the message, or when the answer ended in order.
    """

    def __init__(self, max_bytes: int) -> None:
        self._splitter = sse.EventSplitter(max_bytes)
        self._figures: dict[str, object] = {}
        self._has_output = False  # more than the provisional count that a message starts with
        self._is_final = False
        self._events = 0
        self._size = 0
        self.is_finished = False

    def feed(self, chunk: bytes) -> bytes:
        """Return `chunk`."""
        whole = self._splitter.feed(chunk)
        self._size += len(chunk)
        if whole and not self._splitter.overflowed:
            self._read(whole)
        return chunk

    def end(self) -> bytes:
        """Return nothing: nothing was held back. A last event that was not ended is read all the same."""
        self._read(self._splitter.tail)
        self._is_final = True
        return b""

    def usage(self, input_estimate: int) -> Usage:
        """Return the provider's figures, or a lower bound and an estimate from what passed."""
        known = read_usage(self._figures)
        if known is not None and self._has_output and self._is_final and not self._splitter.overflowed:
            return known
        if known is None:
            known = Usage(input_uncached=input_estimate)
        output = max(known.output, estimate_output_tokens(self._events, self._size) if self._events else 0)
        return Usage(known.input_uncached, known.cache_read, known.cache_write, output, known.reasoning, estimated=True)

    def _read(self, whole: bytes) -> None:
        """Take note of whole events; few of them have to be parsed."""
        self._events += whole.count(b"event: content_block_delta") + whole.count(b"event:content_block_delta")
        if _USAGE.search(whole) is not None or b"message_stop" in whole:
            for event in sse.events(whole):
                self._read_event(event)

    def _read_event(self, event: bytes) -> None:
        try:
            value = orjson.loads(sse.data(event))
        except orjson.JSONDecodeError:
            return
        kind = value.get("type") if isinstance(value, dict) else None
        if kind == "message_start":
            message = value.get("message")
            self._overlay(message.get("usage") if isinstance(message, dict) else None)
        elif kind == "message_delta" and self._overlay(value.get("usage")):
            delta = value.get("delta")
            self._has_output = True
            self._is_final = isinstance(delta, dict) and delta.get("stop_reason") is not None
        elif kind == "message_stop":
            self.is_finished = self._is_final = True

    def _overlay(self, usage: object) -> bool:
        """Lay reported figures over those known so far. Whether the output is among them."""
        if not isinstance(usage, dict):
            return False
        self._figures.update({name: value for name, value in usage.items() if value is not None})
        return is_count(usage.get("output_tokens"))


class MessageReader(ObjectReader):
    """Reads usage from a single message."""

    def read(self, value: dict[str, object]) -> Usage | None:
        """Return the usage in the answer's object, None when there is none."""
        return read_usage(value.get("usage"))


def read_usage(value: object) -> Usage | None:
    """Return Messages usage in the normal form, None when `value` is no usage."""
    if not isinstance(value, dict) or not is_count(value.get("output_tokens")):
        return None
    iterations = value.get("iterations")
    rows: list[object] = [value]
    if isinstance(iterations, list):
        rows += [row for row in iterations if isinstance(row, dict) and row.get("type") in _BILLED_BESIDE]
    sums = (sum(count(row, name) for row in rows) for name in _COUNTS)
    uncached, cache_read, cache_write, output = (min(each, MAX_COUNT) for each in sums)
    reasoning = sum(count(row.get("output_tokens_details"), "thinking_tokens") for row in rows if isinstance(row, dict))
    return Usage(uncached, cache_read, cache_write, output, min(reasoning, output))
