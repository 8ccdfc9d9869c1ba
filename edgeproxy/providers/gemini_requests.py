"""Gemini's requests: what each operation asks for, and what bounds its cost.

Source: ai.google.dev/api and protobuf.dev/programming-guides/json. Google's servers read the JSON form of protocol
buffers: a member goes by its camelCase or its snake_case name, and a whole number may be a string. Both are read here;
a request that says one thing under two names is refused, because only the provider knows which of them counts.

The declared maximum holds for each candidate. Thoughts are taken from it in all recorded traffic; that they are for
every model, Google does not promise.
"""

import re
from collections.abc import Iterator

import orjson

from edgeproxy.domain.features import Feature
from edgeproxy.errors import INVALID_FIELD, GatewayError
from edgeproxy.providers import unbounded
from edgeproxy.providers.base import Endpoint, Incoming, RequestFacts, UsageReader
from edgeproxy.providers.body import replace_member, top_level_members, with_number_at_most
from edgeproxy.providers.fields import MAX_COUNT, estimate_input_tokens, list_member, read_object
from edgeproxy.providers.gemini_answers import ArrayReader, StreamReader, read_answer
from edgeproxy.providers.readers import ObjectReader
from edgeproxy.providers.unbounded import Members, examined, names

_SNAKE = {
    "generationConfig": "generation_config",
    "maxOutputTokens": "max_output_tokens",
    "candidateCount": "candidate_count",
    "cachedContent": "cached_content",
    "generateContentRequest": "generate_content_request",
}
_CONFIG = ("generationConfig", _SNAKE["generationConfig"])
_BOUNDS = ("maxOutputTokens", "candidateCount", _SNAKE["maxOutputTokens"], _SNAKE["candidateCount"])
# Members whose objects can name the model again: the path's counts, and Google asks for the same.
_NESTED = ("requests", "generateContentRequest", _SNAKE["generateContentRequest"])
_MEMBERS = ("model", "contents", "content", "cachedContent", _SNAKE["cachedContent"], *_CONFIG, *_NESTED)
_MAXIMUMS = ("maxOutputTokens", _SNAKE["maxOutputTokens"])
_REQUEST = Members(
    names(
        "model contents systemInstruction system_instruction tools toolConfig tool_config safetySettings",
        "safety_settings generationConfig generation_config labels serviceTier service_tier",
    ),
    dict.fromkeys(("cachedContent", _SNAKE["cachedContent"]), unbounded.STORED),
)
_CONFIGURATION = Members(
    names(
        "temperature topP top_p topK top_k candidateCount candidate_count maxOutputTokens max_output_tokens",
        "stopSequences stop_sequences responseMimeType response_mime_type responseSchema response_schema",
        "responseJsonSchema response_json_schema presencePenalty presence_penalty frequencyPenalty frequency_penalty",
        "seed responseLogprobs response_logprobs logprobs thinkingConfig thinking_config mediaResolution",
        "media_resolution responseModalities response_modalities",
    ),
    {
        **dict.fromkeys(("speechConfig", "speech_config"), unbounded.SOUND),
        **dict.fromkeys(("imageConfig", "image_config"), unbounded.IMAGE),
    },
)
_CONTENT = Members(names("role parts"))
_PART = Members(
    names(
        "text thought thoughtSignature thought_signature functionCall function_call functionResponse",
        "function_response executableCode executable_code codeExecutionResult code_execution_result",
    ),
    {
        **dict.fromkeys(("inlineData", "inline_data"), unbounded.MEDIA),
        **dict.fromkeys(("fileData", "file_data"), unbounded.DOCUMENT),
    },
)
_RESPONSE = Members(names("id name response willContinue will_continue scheduling"), otherwise=unbounded.MEDIA)
_TOOL = Members(names("functionDeclarations function_declarations"), otherwise=unbounded.TOOL)
_EMBEDDING = Members(
    names("model content requests taskType task_type title outputDimensionality output_dimensionality")
)
_DIGITS = re.compile(r"[0-9]{1,10}")
_MOST = 2**31 - 1  # these are 32-bit numbers at Google


class _Operation(Endpoint):
    """What all operations share: the model is in the path, and the answer's content type says how it is read."""

    def reader(self, facts: RequestFacts, content_type: str, *, ask_for_usage: bool, max_bytes: int) -> UsageReader:
        """Return a reader for events, for the array that a stream is without `alt=sse`, or for a single object."""
        if content_type == "text/event-stream":
            return StreamReader(max_bytes)
        if facts.stream and content_type == "application/json":
            return ArrayReader(max_bytes)
        return ObjectReader(max_bytes, read_answer, facts.output_max)

    def outgoing_body(self, body: bytes, facts: RequestFacts, model: str, *, ask_for_usage: bool) -> bytes:
        """Return the body; with another name of the model wherever it stands, if one is to be sent."""
        if model == facts.model:
            return body
        value = orjson.loads(body)
        for row in _naming(value):
            row["model"] = f"models/{model}"
        for name in ("model", *_NESTED):
            if name in value:
                body = replace_member(body, name, orjson.dumps(value[name]))
        return body


class GenerateContent(_Operation):
    """`:generateContent` and `:streamGenerateContent`: which of them it is decides whether the answer is streamed."""

    def __init__(self, name: str, *, stream: bool) -> None:
        self.name = name
        self._stream = stream

    def read_request(self, incoming: Incoming) -> RequestFacts:
        """Return the facts of a request."""
        value = _read(incoming)
        if not isinstance(value.get("contents"), list | dict):
            raise GatewayError(INVALID_FIELD, "The field 'contents' is missing or is not a list.")
        is_cached = _member(value, "cachedContent") is not None
        output_max, candidates = _bounds(value, incoming.body)
        return RequestFacts(
            model=incoming.model,
            stream=self._stream,
            input_estimate=estimate_input_tokens(incoming.body),
            output_max=output_max,
            features=(Feature.STORED_CONTEXT,) if is_cached else (),
            answers=candidates,
            least_output=candidates,
            unbounded=examined(incoming, _unbounded(value)),
        )

    def with_output_max(self, body: bytes, facts: RequestFacts, tokens: int) -> bytes:
        """Return the body with a lower maximum in its configuration, or with one that says nothing else."""
        each = tokens // facts.answers
        for member in top_level_members(body):
            span = body[member.start : member.end]
            if member.name in _CONFIG and span.startswith(b"{"):
                return body[: member.start] + with_number_at_most(span, _MAXIMUMS, each) + body[member.end :]
        return replace_member(body, "generationConfig", b'{"maxOutputTokens":%d}' % each)


class EmbedContent(_Operation):
    """`:embedContent`, of one `content`, and `:batchEmbedContents`, of a list of `requests`."""

    def __init__(self, name: str, *, batch: bool) -> None:
        self.name = name
        self._batch = batch

    def read_request(self, incoming: Incoming) -> RequestFacts:
        """Return the facts of a request: vectors are no tokens."""
        value = _read(incoming)
        if self._batch:
            list_member(value, "requests")
        elif not isinstance(value.get("content"), dict):
            raise GatewayError(INVALID_FIELD, "The field 'content' is missing or is not an object.")
        estimate = estimate_input_tokens(incoming.body)
        found = examined(incoming, _unbounded_embedding(value))
        return RequestFacts(incoming.model, stream=False, input_estimate=estimate, output_max=0, unbounded=found)


class CountTokens(_Operation):
    """`:countTokens`, which is free."""

    name = "count tokens"

    def read_request(self, incoming: Incoming) -> RequestFacts:
        """Return the facts of a request. What is to be counted is Google's to judge."""
        _read(incoming)
        return RequestFacts(model=incoming.model, stream=False, input_estimate=0, output_max=0, is_free=True)


def _read(incoming: Incoming) -> dict[str, object]:
    """Return a request, in which no other model may stand than in the path. Raises GatewayError."""
    value = read_object(incoming.body, _MEMBERS)
    for row in _naming(value):
        name = row["model"]
        if not isinstance(name, str) or name.removeprefix("models/") != incoming.model:
            raise GatewayError(INVALID_FIELD, "The field 'model' must name the same model as the path, or be left out.")
    return value


def _naming(value: dict[str, object]) -> Iterator[dict[str, object]]:
    """Yield the objects of a request that name a model: itself, and those inside that can."""
    rows: list[object] = [value]
    for name in _NESTED:
        member = value.get(name)
        rows += member if isinstance(member, list) else [member]
    return (row for row in rows if isinstance(row, dict) and row.get("model") is not None)


def _unbounded(value: dict[str, object]) -> Iterator[str]:
    """Yield what gives a request no bound, part by part."""
    yield _REQUEST.first(value)
    for name in _CONFIG:
        config = value.get(name)
        if isinstance(config, dict):
            yield _CONFIGURATION.first(config)
            for modalities in ("responseModalities", "response_modalities"):
                yield unbounded.only(config.get(modalities), "text", unbounded.MEDIA)
    for tool in unbounded.rows(value.get("tools")):
        yield unbounded.TOOL if tool is None else _TOOL.first(tool)
    for name in ("contents", "systemInstruction", "system_instruction"):
        for content in unbounded.rows(value.get(name)):
            yield from _of_content(content)


def _unbounded_embedding(value: dict[str, object]) -> Iterator[str]:
    """Yield what gives a request for vectors no bound, part by part."""
    for request in (value, *unbounded.rows(value.get("requests"))):
        if request is None:
            yield unbounded.PART
        else:
            yield _EMBEDDING.first(request)
            for content in unbounded.rows(request.get("content")):
                yield from _of_content(content)


def _of_content(content: dict[str, object] | None) -> Iterator[str]:
    yield unbounded.PART if content is None else _CONTENT.first(content)
    for part in unbounded.rows(None if content is None else content.get("parts")):
        yield unbounded.PART if part is None else _PART.first(part)
        for name in ("functionResponse", "function_response"):
            response = None if part is None else part.get(name)
            if isinstance(response, dict):
                yield _RESPONSE.first(response)


def _bounds(value: dict[str, object], body: bytes) -> tuple[int | None, int]:
    """Return the most that a request wants written, in all candidates (None: it does not say), and how many they are.

    Zero is the same as nothing here: a number that is not set is 0 in a protocol buffer.
    """
    config = _member(value, "generationConfig")
    if config is None:
        return None, 1
    if not isinstance(config, dict):
        raise GatewayError(INVALID_FIELD, "The field 'generationConfig' must be an object.")
    _refuse_bounds_that_stand_twice(body)
    declared, candidates = _whole_number(config, "maxOutputTokens"), _whole_number(config, "candidateCount") or 1
    return min(declared * candidates, MAX_COUNT) or None, candidates


def _refuse_bounds_that_stand_twice(body: bytes) -> None:
    """Raise GatewayError when a bound stands twice in the configuration. Most bodies leave no doubt about it."""
    if b"\\u00" not in body and all(body.count(b'"%b"' % name.encode()) < 2 for name in _BOUNDS):
        return
    spans = [body[member.start : member.end] for member in top_level_members(body) if member.name in _CONFIG]
    for span in spans:
        read_object(span, _BOUNDS)


def _member(value: dict[str, object], name: str) -> object:
    """Return a member under either of its names, None when it is absent. Raises GatewayError when it has both."""
    other = _SNAKE[name]
    if name in value and other in value:
        raise GatewayError(INVALID_FIELD, f"The field '{name}' stands twice in the request. Send it once.")
    return value.get(name, value.get(other))


def _whole_number(value: dict[str, object], name: str) -> int:
    """Return an optional whole number, also one that is written as a string or as 100.0; 0 for none."""
    member = _member(value, name)
    if member is None:
        return 0
    if (isinstance(member, str) and _DIGITS.fullmatch(member)) or (isinstance(member, float) and member.is_integer()):
        member = int(member)
    if not isinstance(member, int) or isinstance(member, bool) or not 0 <= member <= _MOST:
        raise GatewayError(INVALID_FIELD, f"The field '{name}' must be a whole number that is not negative.")
    return member
