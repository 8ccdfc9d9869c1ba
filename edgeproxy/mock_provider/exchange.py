"""What one answer is made of, before a dialect gives it a shape: tokens, texts, how it ends.

Pure, and a function of the request alone: the same request gets the same bytes, and a test can predict every
count.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from enum import Enum, auto
from typing import Any

import orjson

from edgeproxy.mock_provider.directives import Behaviour, behaviour_of

CREATED_S = 1_790_000_000  # fixed: the same request gets the same bytes
# Several scripts and an emoji, so that a cut can fall inside a UTF-8 sequence.
WORDS = ("Hello", " from", " the", " mock", " provider", ".", " Grüße", " こんにちは", " \N{OWL}")

_MAX_CHOICES = 128
_NANOS_PER_TOKEN = 2_500  # 2.50 USD per million, whatever the token, where a provider reports its charge
_NANOS_PER_SEARCH = 5_000_000
_PROMPTS = ("system", "messages", "instructions", "input", "prompt")  # OpenAI's and Anthropic's
_GEMINI_PROMPTS = ("systemInstruction", "system_instruction", "contents", "content", "requests")
_TEXTS = ("text", "content", "parts")  # where a message, an item or a part has its text


class Finish(Enum):
    """Why the answer ends where it ends."""

    STOP = auto()
    LENGTH = auto()  # the request's own maximum was reached
    TOOL = auto()


@dataclass(frozen=True, slots=True)
class Tokens:
    """AI tokens of one answer. The first five do not overlap: their sum is what a provider bills."""

    input_uncached: int = 0
    cache_read: int = 0
    cache_write: int = 0
    output: int = 0  # visible output
    reasoning: int = 0
    cache_write_1h: int = 0  # those of `cache_write` that are kept for an hour
    web_searches: int = 0  # billed apart
    cost_nanos: int = 0  # what the answer says that it cost, in 1e-9 USD

    @property
    def input_total(self) -> int:
        """All input: uncached, read from cache, written to cache."""
        return self.input_uncached + self.cache_read + self.cache_write

    @property
    def output_total(self) -> int:
        """All output: visible and reasoning."""
        return self.output + self.reasoning

    def __add__(self, other: "Tokens") -> "Tokens":
        return Tokens(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request, understood, and the answer that it will get."""

    model: str  # as requested, directives included; answers carry `served_model`
    behaviour: Behaviour
    streamed: bool
    include_usage: bool  # stream_options.include_usage of the OpenAI dialect
    choices: int  # how often the whole text is answered
    chunks: int  # text deltas of each choice
    tokens: Tokens
    finish: Finish
    tool_name: str
    fields: Mapping[str, Any]  # the request's own
    array: bool = False  # Gemini: streamed as a JSON array

    @property
    def served_model(self) -> str:
        """The model's name without directives, or another one."""
        return self.model.partition(":")[0] + ("-2026-11-21" if self.behaviour.alias else "")

    @property
    def text(self) -> str:
        """The whole text of one choice."""
        return "".join(self.texts())

    def texts(self) -> Iterator[str]:
        """Give the text of each delta. For a tool call they join to a JSON object {"text": ...}."""
        filler = "x" * self.behaviour.big
        last = self.chunks - 1
        for index in range(self.chunks):
            text = filler or WORDS[index % len(WORDS)]
            if self.finish is Finish.TOOL:
                text = ('{"text":"' if index == 0 else "") + text + ('"}' if index == last else "")
            yield text


def exchange_of(raw: bytes) -> Exchange:
    """Understand a JSON body that names its model. Raises ValueError with a line that says what is wrong with it."""
    return exchange_from(fields_of(raw))


def fields_of(raw: bytes) -> dict[str, Any]:
    """Return the JSON object in a body. Raises ValueError."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise ValueError("the body is not JSON") from None
    if not isinstance(body, dict):
        raise ValueError("the body names no model: it is not an object")  # noqa: TRY004  the data is wrong, not the call
    return body


def exchange_from(body: Mapping[str, Any]) -> Exchange:
    """Understand the fields of a request. Raises ValueError with a line that says what is wrong with them."""
    model = body.get("model")
    if not isinstance(model, str):
        raise ValueError("you must provide a model parameter")  # noqa: TRY004  the data is wrong, not the call
    behaviour = behaviour_of(model)
    bound = _declared_maximum(body)
    chunks = behaviour.chunks if bound is None else min(behaviour.chunks, bound)
    choices = _choices(body)
    tool_name = _first_tool(body) if behaviour.tool and chunks else ""
    options = body.get("stream_options")
    return Exchange(
        model=model,
        behaviour=behaviour,
        streamed=body.get("stream") is True,
        include_usage=isinstance(options, dict) and options.get("include_usage") is True,
        choices=choices,
        chunks=chunks,
        tokens=_tokens(behaviour, words=count_words(body), output=chunks * choices),
        finish=_finish(tool_name, cut_short=chunks < behaviour.chunks),
        tool_name=tool_name,
        fields=body,
    )


def count_words(body: Mapping[str, object]) -> int:
    """Count the words of everything that prompts a model: the input tokens of a made-up answer."""
    return sum(_words_of(body.get(name)) for name in (*_PROMPTS, *_GEMINI_PROMPTS))


def _words_of(value: object) -> int:
    if isinstance(value, str):
        return len(value.split())
    if isinstance(value, list):
        return sum(_words_of(each) for each in value)
    if isinstance(value, dict):
        return sum(_words_of(value.get(name)) for name in _TEXTS)
    return int(isinstance(value, int))  # one token of a prompt that comes as tokens


def _tokens(behaviour: Behaviour, words: int, output: int) -> Tokens:
    tokens = Tokens(
        input_uncached=(words if behaviour.input is None else behaviour.input) + behaviour.tool_use_prompt,
        cache_read=behaviour.cached,
        cache_write=behaviour.cache_write + behaviour.cache_write_1h,
        output=output if behaviour.output is None else behaviour.output,
        reasoning=behaviour.reasoning,
        cache_write_1h=behaviour.cache_write_1h,
        web_searches=behaviour.web_search,
    )
    if not (behaviour.xai or behaviour.perplexity):
        return tokens
    total = tokens.input_total + tokens.output_total
    return tokens + Tokens(cost_nanos=total * _NANOS_PER_TOKEN + behaviour.web_search * _NANOS_PER_SEARCH)


def _settings(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Where Gemini has what the others have at the top."""
    settings = body.get("generationConfig")
    return settings if isinstance(settings, dict) else {}


def _declared_maximum(body: Mapping[str, Any]) -> int | None:
    for name in ("max_completion_tokens", "max_tokens", "max_output_tokens"):
        if isinstance(bound := body.get(name), int):
            return max(bound, 0)
    bound = _settings(body).get("maxOutputTokens")
    return max(bound, 0) if isinstance(bound, int) else None


def _choices(body: Mapping[str, Any]) -> int:
    prompt = body.get("prompt")
    prompts = len(prompt) if isinstance(prompt, list) and any(isinstance(each, str | list) for each in prompt) else 1
    number = body.get("n", _settings(body).get("candidateCount"))
    return min(_MAX_CHOICES, prompts * max(1, number if isinstance(number, int) else 1))


def _first_tool(body: Mapping[str, Any]) -> str:
    tools = body.get("tools")
    names = [_tool_name(tool) for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []
    return next(filter(None, names), "")


def _tool_name(tool: Mapping[str, Any]) -> str:
    declared = tool.get("functionDeclarations")
    function = declared[0] if isinstance(declared, list) and declared else tool.get("function", tool)
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else ""


def _finish(tool_name: str, *, cut_short: bool) -> Finish:
    if tool_name:
        return Finish.TOOL
    return Finish.LENGTH if cut_short else Finish.STOP
