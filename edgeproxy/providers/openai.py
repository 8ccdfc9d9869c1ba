"""OpenAI's chat completions, as spoken by OpenAI, DeepSeek, xAI and every compatible server.

Sources: platform.openai.com/docs/api-reference/chat and recorded traffic. Three things differ between those that speak
it: where usage stands in a stream (a chunk of its own, or the last one with a choice), whether `completion_tokens`
includes reasoning (xAI's does not), and whether cached tokens are a part of the prompt (they can exceed it).
"""

import re
from collections.abc import Mapping, Sequence

import orjson

from edgeproxy.domain.limits import Dimension
from edgeproxy.domain.usage import Usage
from edgeproxy.errors import BUDGET_EXHAUSTED, INVALID_FIELD, INVALID_KEY, REQUEST_EXCEEDS_LIMIT, GatewayError, Source
from edgeproxy.providers import sse
from edgeproxy.providers.base import (
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

_USAGE = re.compile(rb'"usage"\s*:\s*\{')
_MEMBERS = ("model", "stream", "stream_options", "max_tokens", "max_completion_tokens", "n")
_CLIENT_HEADERS = frozenset({"accept", "openai-beta"})
_ANSWER_HEADERS = frozenset({"openai-processing-ms", "openai-version", "x-should-retry"})
_BUDGET_KINDS = (BUDGET_EXHAUSTED, REQUEST_EXCEEDS_LIMIT)
_TOKEN_DIMENSIONS = (Dimension.TOKENS, Dimension.INPUT_TOKENS, Dimension.OUTPUT_TOKENS)


class OpenAI:
    """The dialect: see `base.Dialect`."""

    name = "openai"
    paths = {"/v1/chat/completions": "/v1/chat/completions"}  # noqa: RUF012 - shared and never written

    def read_request(self, body: bytes) -> RequestFacts:
        """Return the facts of a chat completion request."""
        value = read_object(body, _MEMBERS)
        model = text_member(value, "model")
        stream = flag_member(value, "stream")
        list_member(value, "messages")
        declared = count_member(value, "max_completion_tokens")
        if declared is None:
            declared = count_member(value, "max_tokens")
        choices = count_member(value, "n") or 1
        options = value.get("stream_options")
        if options is not None and not isinstance(options, dict):
            raise GatewayError(INVALID_FIELD, "The field 'stream_options' must be an object.")
        return RequestFacts(
            model=model,
            stream=stream,
            input_estimate=estimate_input_tokens(body),
            output_max=None if declared is None else declared * choices,
            usage_requested=options is not None and options.get("include_usage") is True,
            stream_options=options,
        )

    def outgoing_body(self, body: bytes, facts: RequestFacts, model: str, *, ask_for_usage: bool) -> bytes:
        """Return the body with another model name, and with the question for usage, where either is wanted."""
        if model != facts.model:
            body = replace_member(body, "model", orjson.dumps(model))
        if ask_for_usage:
            options = {**(facts.stream_options or {}), "include_usage": True}
            body = replace_member(body, "stream_options", orjson.dumps(options))
        return body

    def outgoing_headers(self, secret: str, client_headers: Mapping[str, str]) -> Headers:
        """Return the headers for the provider."""
        passed = pick(client_headers.items(), _CLIENT_HEADERS)
        return [("authorization", f"Bearer {secret}"), ("content-type", "application/json"), *passed]

    def incoming_headers(self, status: int, provider_headers: Headers, request_id: str) -> Headers:
        """Return what of the provider's headers may be handed on, and our request id."""
        return [*answer_headers(status, provider_headers, _ANSWER_HEADERS), ("x-request-id", request_id)]

    def reader(self, facts: RequestFacts, *, ask_for_usage: bool, max_bytes: int) -> UsageReader:
        """Return a reader for a stream or for a single object."""
        if facts.stream:
            return StreamReader(max_bytes, drop_usage_chunk=ask_for_usage)
        return ObjectReader(max_bytes)

    def error(self, error: GatewayError, request_id: str) -> tuple[Headers, bytes]:
        """Return an error as `{"error": {message, type, param, code}}`."""
        kind, code = error.kind, error.kind.code
        if kind in _BUDGET_KINDS:
            category = code = "insufficient_quota"  # Codex and the SDKs stop at this one
        elif kind.status == 429:
            category = code = "rate_limit_exceeded"
        elif kind.source is Source.CLIENT:
            category = "invalid_request_error"
        else:
            category = "server_error"
        headers: Headers = [
            ("content-type", "application/json"),
            ("x-request-id", request_id),
            *retry_headers(error),
        ]
        if kind is INVALID_KEY:
            headers.append(("www-authenticate", "Bearer"))
        row = {"message": error.message, "type": category, "param": None, "code": code}
        return headers, orjson.dumps({"error": row})

    def limit_headers(self, levels: Sequence[LimitLevel], now_ms: int) -> Headers:
        """Return `x-ratelimit-*`: the request window and the token window that have least left."""
        headers: Headers = []
        for noun, dimensions in (("requests", (Dimension.REQUESTS,)), ("tokens", _TOKEN_DIMENSIONS)):
            if (level := tightest(levels, dimensions)) is not None:
                headers += [
                    (f"x-ratelimit-limit-{noun}", str(level.limit.amount)),
                    (f"x-ratelimit-remaining-{noun}", str(level.remaining)),
                    (f"x-ratelimit-reset-{noun}", f"{level.reset_ms}ms"),
                ]
        return headers


class StreamReader:
    """Reads usage from a chat stream; takes the usage chunk out again when only we had asked for it.

    Usage may stand in any chunk and in several, each the whole so far: the last one counts. It is final when its chunk
    finishes a choice or has none, or when the answer ended in order.
    """

    def __init__(self, max_bytes: int, *, drop_usage_chunk: bool) -> None:
        self._splitter = sse.EventSplitter(max_bytes)
        self._drop = drop_usage_chunk
        self._usage: Usage | None = None
        self._is_final = False
        self._events = 0
        self._size = 0
        self._failed = False
        self.is_finished = False

    def feed(self, chunk: bytes) -> bytes:
        """Return `chunk`; when a usage chunk has to be taken out, whole events without it."""
        whole = self._splitter.feed(chunk)
        self._size += len(chunk)
        if whole and not self._splitter.overflowed:
            whole = self._read(whole)
        return whole if self._drop else chunk

    def end(self) -> bytes:
        """Return the event that was held back, if any: some servers do not end their last one."""
        tail = self._read(self._splitter.tail)
        self._is_final = True
        return tail if self._drop else b""

    def usage(self, input_estimate: int) -> Usage:
        """Return the provider's figures, or an estimate from what passed."""
        is_final = self._is_final or self.is_finished
        if self._usage is not None and is_final and not self._splitter.overflowed and not self._failed:
            return self._usage
        known = self._usage or Usage(input_uncached=input_estimate)
        output = max(known.output, estimate_output_tokens(self._events, self._size))
        return Usage(known.input_uncached, known.cache_read, known.cache_write, output, known.reasoning, estimated=True)

    def _read(self, whole: bytes) -> bytes:
        """Take note of whole events; return them without the usage chunk that the client did not ask for."""
        self._events += whole.count(b"data:")
        if b"[DONE]" in whole and any(sse.data(event).strip() == b"[DONE]" for event in sse.events(whole)):
            self.is_finished = True
        if _USAGE.search(whole) is None and b'"error"' not in whole:
            return whole
        kept = [event for event in sse.events(whole) if not (self._is_usage_chunk(event) and self._drop)]
        return b"".join(kept)

    def _is_usage_chunk(self, event: bytes) -> bool:
        """Note the usage in one event. Whether it is a chunk that holds nothing else."""
        try:
            value = orjson.loads(sse.data(event))
        except orjson.JSONDecodeError:
            return False
        if not isinstance(value, dict):
            return False
        if value.get("error") is not None:
            self._failed = True
        usage = read_usage(value.get("usage"))
        if usage is None:
            return False
        choices = value.get("choices")
        self._usage = usage
        self._is_final = not isinstance(choices, list) or not choices or any(map(_is_finished, choices))
        return choices == []


def _is_finished(choice: object) -> bool:
    return isinstance(choice, dict) and choice.get("finish_reason") is not None


class ObjectReader:
    """Reads usage from a single JSON object, which may follow blank lines that keep the connection alive.

    The chunks are handed on at once; they are held by reference, up to a bound, until the object can be read.
    """

    def __init__(self, max_bytes: int) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self._max_bytes = max_bytes
        self.is_finished = False

    def feed(self, chunk: bytes) -> bytes:
        """Return `chunk`."""
        self._size += len(chunk)
        if self._size <= self._max_bytes:
            self._parts.append(chunk)
        else:
            self._parts.clear()
        return chunk

    def end(self) -> bytes:
        """Return nothing: nothing was held back."""
        return b""

    def usage(self, input_estimate: int) -> Usage:
        """Return the provider's figures, or an estimate from the size of the answer."""
        try:
            value = orjson.loads(b"".join(self._parts))
        except orjson.JSONDecodeError:
            value = None
        usage = self.read(value) if isinstance(value, dict) else None
        if usage is not None:
            return usage
        return Usage(input_uncached=input_estimate, output=estimate_output_tokens(0, self._size), estimated=True)

    def read(self, value: dict[str, object]) -> Usage | None:
        """Return the usage in the answer's object, None when there is none."""
        return read_usage(value.get("usage"))


def read_usage(value: object) -> Usage | None:
    """Return chat-shaped usage in the normal form, None when `value` is no usage.

    Cached tokens are a part of the prompt, but some servers report more of them than there are: they are cut to it.
    The total tells when reasoning was left out of the completion.
    """
    if not isinstance(value, dict) or not is_count(value.get("prompt_tokens")):
        return None
    prompt = count(value, "prompt_tokens")
    output = max(count(value, "completion_tokens"), count(value, "total_tokens") - prompt)
    details = value.get("prompt_tokens_details")
    cache_read = min(max(count(details, "cached_tokens"), count(value, "prompt_cache_hit_tokens")), prompt)
    cache_write = min(count(details, "cache_write_tokens"), prompt - cache_read)
    return Usage(
        input_uncached=prompt - cache_read - cache_write,
        cache_read=cache_read,
        cache_write=cache_write,
        output=output,
        reasoning=min(count(value.get("completion_tokens_details"), "reasoning_tokens"), output),
    )
