"""OpenAI's Responses, as OpenAI, DeepSeek and xAI speak them.

Sources: platform.openai.com/docs/api-reference/responses, docs.x.ai (tool usage details) and recorded traffic. Three
things to know. Usage comes once, in the event that ends a stream, which repeats the whole output; whatever the response
has become, completed or not, that is what is billed. Output includes reasoning, xAI's too, unlike in its chat. And
beside the usage stands what tools of the provider's own have cost: a search is billed by the call, a generated image in
tokens of another model.

The declared maximum includes reasoning. It holds for one turn of the model, and with tools of the provider's own there
are several.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from edgeproxy.domain.features import Feature
from edgeproxy.domain.usage import Usage, is_model_name
from edgeproxy.providers import unbounded
from edgeproxy.providers.base import Endpoint, Incoming, RequestFacts, UsageReader
from edgeproxy.providers.body import with_number_at_most
from edgeproxy.providers.fields import (
    MAX_COUNT,
    count,
    count_member,
    estimate_input_tokens,
    estimate_output_tokens,
    flag_member,
    has_count,
    is_count,
    names_in,
    read_object,
    text_member,
)
from edgeproxy.providers.openai_chat import read_cost
from edgeproxy.providers.readers import EventReader, ObjectReader
from edgeproxy.providers.unbounded import Kinds, Members, examined, names

_STORED = ("previous_response_id", "conversation", "prompt")
_MEMBERS = ("model", "stream", "max_output_tokens", "background", "input", "prompt_cache_options", *_STORED)
_TERMINAL = ("response.completed", "response.incomplete", "response.failed")
# Output items that are calls of the provider's own tools, and what its `tool_usage` or xAI's details call them.
_TOOLS = {
    "web_search_call": "web_search",
    "file_search_call": "file_search",
    "code_interpreter_call": "code_interpreter",
    "image_generation_call": "image_generation",
}
_XAI_TOOLS = (*_TOOLS.values(), "x_search", "document_search")
_LEAST_OUTPUT = 16  # OpenAI takes no maximum below it
_REQUEST = Members(
    names(
        "model input instructions stream stream_options max_output_tokens tools tool_choice parallel_tool_calls",
        "temperature top_p top_logprobs truncation store metadata user safety_identifier prompt_cache_key",
        "prompt_cache_retention prompt_cache_options reasoning text include service_tier max_tool_calls",
        "client_metadata",
    ),
    {
        **dict.fromkeys(_STORED, unbounded.STORED),
        "background": unbounded.BACKGROUND,
        "models": unbounded.OTHER_MODELS,
        "context_management": unbounded.COMPACTION,
    },
)
_ITEMS = Kinds(
    {
        "message": Members(names("type role content id status phase name"), needs="content"),
        "function_call": Members(names("type id call_id name namespace arguments status"), needs="arguments"),
        "function_call_output": Members(names("type id call_id output status"), needs="output"),
        "custom_tool_call": Members(names("type id call_id name namespace input status"), needs="input"),
        "custom_tool_call_output": Members(names("type id call_id output status"), needs="output"),
        # Without it, the reasoning is looked up by its id.
        "reasoning": Members(names("type id summary content encrypted_content status"), needs="encrypted_content"),
    },
    {
        "item_reference": unbounded.STORED,
        "compaction": unbounded.COMPACTION,
        **dict.fromkeys(_TOOLS, unbounded.TOOL),
    },
    default="message",
)
_CONTENT = Kinds(
    {
        "text": Members(names("type text")),
        "input_text": Members(names("type text")),
        "output_text": Members(names("type text annotations logprobs")),
        "refusal": Members(names("type refusal")),
    },
    {
        "input_image": unbounded.IMAGE,
        "input_audio": unbounded.SOUND,
        "input_file": unbounded.DOCUMENT,
    },
)
_OFFERED = Kinds(
    {
        "function": Members(names("type name description parameters strict")),
        "custom": Members(names("type name description format")),
    },
    otherwise=unbounded.TOOL,
)
# What has to be parsed: the end, an error, and (for a stream that breaks off) each finished call of a tool.
_MATTERS = re.compile(
    rb'"type"\s*:\s*"(?:response\.(?:completed|incomplete|failed)'
    rb'|(?:web_search|file_search|code_interpreter|image_generation)_call|error)"|"error"\s*:\s*["{]'
)


class Responses(Endpoint):
    """`POST /v1/responses`."""

    name = "responses"

    def read_request(self, incoming: Incoming) -> RequestFacts:
        """Return the facts of a request. One that only names a stored prompt has no model, and is refused for that."""
        value = read_object(incoming.body, _MEMBERS)
        options = value.get("prompt_cache_options")
        is_stored = any(value.get(name) is not None for name in _STORED) or _refers(value.get("input"))
        features = [Feature.BACKGROUND] if flag_member(value, "background") else []
        return RequestFacts(
            model=text_member(value, "model"),
            stream=flag_member(value, "stream"),
            input_estimate=estimate_input_tokens(incoming.body),
            output_max=count_member(value, "max_output_tokens") or None,
            features=(*features, Feature.STORED_CONTEXT) if is_stored else tuple(features),
            long_cache=isinstance(options, dict) and options.get("ttl") == "12h",
            other_models=(*names_in(value.get("models")), *names_in(value.get("tools"), "model")),
            least_output=_LEAST_OUTPUT,
            unbounded=examined(incoming, _unbounded(value)),
        )

    def with_output_max(self, body: bytes, facts: RequestFacts, tokens: int) -> bytes:
        """Return the body with a lower maximum."""
        return with_number_at_most(body, ("max_output_tokens",), tokens)

    def reader(self, facts: RequestFacts, content_type: str, *, ask_for_usage: bool, max_bytes: int) -> UsageReader:
        """Return a reader for a stream or for a single response. Usage always comes unasked."""
        if content_type == "text/event-stream":
            return StreamReader(max_bytes, long_cache=facts.long_cache)
        return ObjectReader(max_bytes, partial(_read_whole, facts=facts), facts.output_max)


class Compact(Responses):
    """`POST /v1/responses/compact`: billed like a response, a single object, as long as the provider likes."""

    name = "compact"

    def read_request(self, incoming: Incoming) -> RequestFacts:
        """Return the facts of a request."""
        return replace(super().read_request(incoming), least_output=None, unbounded=unbounded.COMPACTION)


class InputTokens(Responses):
    """`POST /v1/responses/input_tokens`: free."""

    name = "input tokens"

    def read_request(self, incoming: Incoming) -> RequestFacts:
        """Return the facts of a request."""
        facts = super().read_request(incoming)
        return replace(facts, input_estimate=0, output_max=0, least_output=None, is_free=True)


def _unbounded(value: dict[str, object]) -> Iterator[str]:
    """Yield what gives a response no bound, part by part."""
    yield _REQUEST.first(value)
    yield from _OFFERED.each(value.get("tools"))
    for item in unbounded.rows(value.get("input")):
        if item is not None:
            yield _ITEMS.first(item)
            yield from _CONTENT.each(item.get("content"))
            yield from _CONTENT.each(item.get("output"))


def _refers(items: object) -> bool:
    """Whether the input names items that are stored at the provider: by type, or by an id without type and role."""
    return isinstance(items, list) and any(
        isinstance(item, dict)
        and (item.get("type") == "item_reference" or ("id" in item and not item.get("type") and not item.get("role")))
        for item in items
    )


class StreamReader(EventReader):
    """Reads usage from a stream: only its end has any. A failed response may have none.

    Deltas have 210 to 265 bytes of their own, the padding that hides their length included. Those of sound are no
    text, and those of a shell's output are not the model's.
    """

    output = re.compile(rb'"type"\s*:\s*"response\.(?!audio\.delta|shell_call_output)[a-z_.]+\.delta"')
    framing = 280

    def __init__(self, max_bytes: int, *, long_cache: bool = False) -> None:
        super().__init__(max_bytes)
        self._long_cache = long_cache
        self._tools: Counter[str] = Counter()

    def usage(self, input_estimate: int) -> Usage:
        """Return the provider's figures, or a lower bound from what passed: the calls of tools belong to it."""
        usage = super().usage(input_estimate)
        return replace(usage, tool_calls=_sorted(self._tools)) if usage.estimated and self.known is None else usage

    def matters(self, event: bytes) -> bool:
        """Whether an event ends the response, reports an error or may finish the call of a tool."""
        return _MATTERS.search(event) is not None

    def read(self, value: dict[str, object]) -> None:
        """Take note of what one of these events says. An error may come nested, flat or without a type."""
        kind, item, response = value.get("type"), value.get("item"), value.get("response")
        if kind in _TERMINAL:
            self.is_finished = True
            self.known = read_answer(response, long_cache=self._long_cache) if isinstance(response, dict) else None
            self.is_final = self.known is not None
        elif kind == "response.output_item.done":
            self._tools.update(_tools([item]))
        elif kind == "error" or value.get("error") is not None:
            self.failed = True


def _read_whole(answer: dict[str, object], *, facts: RequestFacts) -> Usage | None:
    """Return the usage in a single response; where there is none, an estimate from its output.

    A response that failed, or goes on in the background, repeats its instructions and tools all the same.
    """
    usage = read_answer(answer, long_cache=facts.long_cache)
    output = answer.get("output")
    if usage is not None or not isinstance(output, list):
        return usage
    texts = sum(_text_size(item) for item in output if not _tools([item]))
    tokens = estimate_output_tokens(0, texts, 0)
    if facts.output_max is not None:
        tokens = min(tokens, facts.output_max)
    calls = _sorted(_tool_calls(answer))
    return Usage(input_uncached=facts.input_estimate, output=tokens, estimated=True, tool_calls=calls)


def _text_size(value: object, depth: int = 6) -> int:
    """Return how many characters of text are in a value; what is nested deeper than any output is left out."""
    if isinstance(value, str) or not depth:
        return len(value) if isinstance(value, str) else 0
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sum(_text_size(each, depth - 1) for each in inner)


def read_answer(answer: dict[str, object], *, long_cache: bool = False) -> Usage | None:
    """Return the usage in a response, None when there is none; with the model and the calls of tools it names.

    The tokens of generated images are billed beside `usage`, at the model that drew them. They are added to the whole,
    and make it two parts. The images are not counted as calls then: they are billed once.
    """
    usage = read_usage(answer.get("usage"), long_cache=long_cache)
    if usage is None:
        return None
    calls = _tool_calls(answer)
    beside = answer.get("tool_usage")
    image = read_usage(beside.get("image_gen")) if isinstance(beside, dict) else None
    if image is not None and image.input_total + image.output:
        calls.pop("image_generation", None)
        image = replace(image, model=_image_model(answer.get("tools")))
    else:
        image = None
    model = answer.get("model")
    text = replace(usage, tool_calls=_sorted(calls), model=model if is_model_name(model) else "")
    return text if image is None else replace(added(text, image), parts=(text, image))


def read_usage(value: object, *, long_cache: bool = False) -> Usage | None:
    """Return usage that counts `input_tokens` and `output_tokens` in the normal form, None when `value` is none.

    Cached tokens are a part of the input, cut to it should there be more. What was written is told by how long it is
    kept, or was asked to be kept. The total tells when reasoning was left out of the output.
    """
    if not isinstance(value, dict) or not is_count(value.get("input_tokens")):
        return None
    if not any(has_count(value, name) for name in ("output_tokens", "total_tokens")):
        return None
    total = count(value, "input_tokens")
    output = max(count(value, "output_tokens"), count(value, "total_tokens") - total)
    details = value.get("input_tokens_details")
    # Images tell what was cached beside the details.
    cache_read = min(max(count(details, "cached_tokens"), count(value, "cached_tokens")), total)
    cache_write = min(count(details, "cache_write_tokens"), total - cache_read)
    kept = details.get("cache_write_tokens_details") if isinstance(details, dict) else None
    long = count(kept, "ttl_12h_tokens") if isinstance(kept, dict) else cache_write * long_cache
    return Usage(
        input_uncached=total - cache_read - cache_write,
        cache_read=cache_read,
        cache_write=cache_write,
        output=output,
        reasoning=min(count(value.get("output_tokens_details"), "reasoning_tokens"), output),
        cache_write_1h=min(long, cache_write),
        cost_nanos=read_cost(value),
    )


def added(one: Usage, other: Usage) -> Usage:
    """Return the usage of both; whatever is no count stays as it is in `one`."""
    return replace(
        one,
        input_uncached=min(one.input_uncached + other.input_uncached, MAX_COUNT),
        cache_read=min(one.cache_read + other.cache_read, MAX_COUNT),
        cache_write=min(one.cache_write + other.cache_write, MAX_COUNT),
        output=min(one.output + other.output, MAX_COUNT),
        reasoning=min(one.reasoning + other.reasoning, MAX_COUNT),
        cache_write_1h=min(one.cache_write_1h + other.cache_write_1h, MAX_COUNT),
    )


def _tool_calls(answer: dict[str, object]) -> Counter[str]:
    """Count the calls of the provider's own tools: as it tells them, else the calls in the output."""
    usage, beside = answer.get("usage"), answer.get("tool_usage")
    details = usage.get("server_side_tool_usage_details") if isinstance(usage, dict) else None
    if isinstance(details, dict):
        return Counter({tool: count(details, f"{tool}_calls") for tool in _XAI_TOOLS})
    found = Counter(_tools(answer.get("output")))
    if isinstance(beside, dict) and isinstance(beside.get("web_search"), dict):
        found["web_search"] = count(beside["web_search"], "num_requests")
    return found


def _tools(items: object) -> list[str]:
    """Return the tool of each item that is a call of one. Opening a page, or looking in it, is no search."""
    found = []
    for item in items if isinstance(items, list) else []:
        kind = item.get("type") if isinstance(item, dict) else None
        if isinstance(kind, str) and kind in _TOOLS:
            action = item.get("action") if kind == "web_search_call" else None
            if not isinstance(action, dict) or action.get("type", "search") == "search":
                found.append(_TOOLS[kind])
    return found


def _image_model(tools: object) -> str:
    """Return the model that draws, as the response repeats its tools; "" when it does not tell."""
    drawing = [tool for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []
    names = (tool.get("model") for tool in drawing if tool.get("type") == "image_generation")
    return next((name for name in names if is_model_name(name)), "")


def _sorted(calls: Counter[str]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted((tool, number) for tool, number in calls.items() if number))
