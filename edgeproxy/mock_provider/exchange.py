"""What one answer is made of, before a dialect gives it a shape: tokens, texts, how it ends.

Pure, and a function of the request alone: the same request gets the same bytes, and a test can predict every
count.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

import orjson

from edgeproxy.mock_provider.directives import Behaviour, behaviour_of

# Several scripts and an emoji, so that a cut can fall inside a UTF-8 sequence.
WORDS = ("Hello", " from", " the", " mock", " provider", ".", " Grüße", " こんにちは", " \N{OWL}")


class Finish(Enum):
    """Why the answer ends where it ends."""

    STOP = auto()
    LENGTH = auto()  # the request's own maximum was reached
    TOOL = auto()


@dataclass(frozen=True, slots=True)
class Tokens:
    """AI tokens of one answer. The parts do not overlap: their sum is what a provider bills."""

    input_uncached: int = 0
    cache_read: int = 0
    cache_write: int = 0
    output: int = 0  # visible output
    reasoning: int = 0

    @property
    def input_total(self) -> int:
        """All input: uncached, read from cache, written to cache."""
        return self.input_uncached + self.cache_read + self.cache_write

    @property
    def output_total(self) -> int:
        """All output: visible and reasoning."""
        return self.output + self.reasoning


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request, understood, and the answer that it will get."""

    model: str  # as requested, directives included; answers carry `served_model`
    behaviour: Behaviour
    streamed: bool
    include_usage: bool  # stream_options.include_usage of the OpenAI dialect
    chunks: int
    tokens: Tokens
    finish: Finish
    tool_name: str

    @property
    def served_model(self) -> str:
        """The model's name without directives."""
        return self.model.partition(":")[0]

    def texts(self) -> Iterator[str]:
        """Give the text of each delta. For a tool call they join to a JSON object {"text": ...}."""
        filler = "x" * self.behaviour.big
        last = self.chunks - 1
        for index in range(self.chunks):
            text = filler or WORDS[index % len(WORDS)]
            if self.finish is Finish.TOOL:
                text = ('{"text":"' if index == 0 else "") + text + ('"}' if index == last else "")
            yield text


class Dialect(Protocol):
    """One provider's wire shape; the modules `openai` and `anthropic` are the two of them."""

    def answer_headers(self, exchange: Exchange) -> dict[str, str]:
        """Headers that the provider adds to every answer, the ones that a gateway must hide included."""

    def unary(self, exchange: Exchange) -> bytes:
        """Body of a unary answer."""

    def events(self, exchange: Exchange) -> Iterator[bytes]:
        """Whole events of a streamed answer, in order, each with its blank line."""

    def error_body(self, status: int, message: str) -> bytes:
        """Body of an error answer."""

    def error_event(self) -> bytes:
        """Event that reports an error in the middle of a stream."""


def exchange_of(raw: bytes) -> Exchange:
    """Understand a request body. Raises ValueError with a line that says what is wrong with it."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise ValueError("the body is not JSON") from None
    if not isinstance(body, dict) or not isinstance(body.get("model"), str):
        raise ValueError("you must provide a model parameter")  # noqa: TRY004  the data is wrong, not the call
    behaviour = behaviour_of(body["model"])
    bound = _declared_maximum(body)
    chunks = behaviour.chunks if bound is None else min(behaviour.chunks, bound)
    tool_name = _first_tool(body) if behaviour.tool and chunks else ""
    options = body.get("stream_options")
    return Exchange(
        model=body["model"],
        behaviour=behaviour,
        streamed=body.get("stream") is True,
        include_usage=isinstance(options, dict) and options.get("include_usage") is True,
        chunks=chunks,
        tokens=Tokens(
            input_uncached=count_words(body) if behaviour.input is None else behaviour.input,
            cache_read=behaviour.cached,
            cache_write=behaviour.cache_write,
            output=chunks if behaviour.output is None else behaviour.output,
            reasoning=behaviour.reasoning,
        ),
        finish=_finish(tool_name, cut_short=chunks < behaviour.chunks),
        tool_name=tool_name,
    )


def count_words(body: Mapping[str, object]) -> int:
    """Count the words of `system` and of all message texts: the input tokens of a made-up answer."""
    messages = body.get("messages")
    if not isinstance(messages, list):
        messages = []
    contents = [message.get("content") for message in messages if isinstance(message, dict)]
    return sum(_words_of(content) for content in [body.get("system"), *contents])


def _words_of(content: object) -> int:
    if isinstance(content, str):
        return len(content.split())
    if isinstance(content, list):
        return sum(_words_of(part.get("text")) for part in content if isinstance(part, dict))
    return 0


def _declared_maximum(body: Mapping[str, object]) -> int | None:
    for field in ("max_completion_tokens", "max_tokens"):
        bound = body.get(field)
        if isinstance(bound, int):
            return max(bound, 0)
    return None


def _first_tool(body: Mapping[str, object]) -> str:
    tools = body.get("tools")
    tool = tools[0] if isinstance(tools, list) and tools else None
    if not isinstance(tool, dict):
        return ""
    function = tool.get("function")
    name = function.get("name") if isinstance(function, dict) else tool.get("name")
    return name if isinstance(name, str) else ""


def _finish(tool_name: str, *, cut_short: bool) -> Finish:
    if tool_name:
        return Finish.TOOL
    return Finish.LENGTH if cut_short else Finish.STOP
