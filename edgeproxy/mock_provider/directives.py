"""How a model name steers the mock provider: `gpt-mock:chunks-20.interval-50.cut-after-3`.

What stands before the colon is the name that the answer carries. After it come directives, joined by dots: a
whole scenario fits in the one field that every client can set and every gateway passes on. An unknown directive
is an error: a scenario with a typing mistake must not pass as an ordinary answer. A directive that an endpoint has no
use for changes nothing.

`recording:<provider>/<file>` serves a recorded answer instead of a made-up one; a second colon adds
directives.
"""

import re
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

RECORDING_PREFIX = "recording:"


class FaultKind(StrEnum):
    """How an answer breaks off."""

    CUT = "cut-after"  # the connection is reset
    CLOSE = "close-after"  # the connection is closed in order, the terminating chunk is missing
    STALL = "stall-after"  # nothing more comes until the client leaves
    END = "end-after"  # HTTP ends as it should, the provider's last events are missing
    FRAMING = "framing-after"  # a chunk header that is no number, then a close
    ERROR = "error-after"  # an error event of the dialect on status 200, then a proper end


@dataclass(frozen=True, slots=True)
class Fault:
    """Where an answer breaks off: after `after` whole events (or slices of a unary body)."""

    kind: FaultKind
    after: int


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What one request asked for. The defaults are an ordinary, quick, healthy answer."""

    chunks: int = 5  # text deltas; also the output tokens unless `output` says otherwise
    big: int = 0  # bytes per delta; 0 = one word
    interval_ms: int | None = None  # pause between events; None = the pace given at start
    first_byte_ms: int = 0  # wait before the head of the answer
    input: int | None = None  # uncached input tokens; None = words of the request
    output: int | None = None  # output tokens without reasoning; None = number of chunks
    cached: int = 0  # input tokens read from the provider's cache, beside the uncached ones
    cache_write: int = 0  # input tokens written to it, beside the uncached ones
    reasoning: int = 0  # reasoning tokens, beside the visible output
    status: int = 200
    retry_after: int | None = None  # seconds; sent with an error status
    first: int | None = None  # status and faults apply to so many requests of this exact model name
    fault: Fault | None = None
    half: bool = False  # half of the next event is sent before the fault
    tool: bool = False  # a tool call, where the request offers tools
    no_usage: bool = False
    no_head: bool = False  # the connection closes before any answer
    garbage: bool = False  # the body is neither JSON nor an event stream
    garbage_head: bool = False  # what comes back is not HTTP
    split: bool = False  # events are cut at odd places, UTF-8 sequences and line ends included
    burst: bool = False  # the whole answer in one write
    gzip: bool = False  # compressed, where the request accepts it
    length: bool = False  # unary: content-length instead of chunks
    deepseek: bool = False  # keep-alives, usage on the last chunk that has a choice
    xai: bool = False  # chat completions without the reasoning tokens, cost in the usage, errors as texts
    perplexity: bool = False  # chat: usage in every chunk so far, cost in it, CRLF, no [DONE]
    moderation: bool = False  # chat: one more chunk without choices after the one with the usage
    incomplete: bool = False  # responses: the terminal event says that the answer is incomplete
    failed: bool = False  # responses: the terminal event says that the answer failed
    alias: bool = False  # the answer names another model than the request
    provisional: bool = False  # Anthropic: the stream begins with other counts than it ends with
    hops: bool = False  # Gemini: the counters start again in the middle, only the last object has the whole
    traffic: bool = False  # Gemini: objects in between whose usage is a trafficType only
    raw_error: bool = False  # Gemini: `error-after` leaves a pretty-printed object without `data:`
    cache_write_1h: int = 0  # input tokens written to the cache for an hour, beside all others
    tool_use_prompt: int = 0  # input tokens that the provider's own tools read; Gemini keeps them apart
    web_search: int = 0  # searches that the provider made
    advisor: int = 0  # Anthropic: input tokens of another model, named in the iterations only
    compaction: int = 0  # Anthropic: input tokens of a compaction pass, in the iterations only
    duration: int = 0  # transcription: usage is so many seconds, not tokens
    recording: str = ""  # file below the recordings folder

    def healthy(self) -> "Behaviour":
        """Return the same answer without its error status and faults: what follows the `first-N` requests."""
        return replace(self, status=200, fault=None, no_head=False, garbage=False, garbage_head=False)


FLAGS: dict[str, str] = {
    "half": "send half of the next event before the fault",
    "tool": "answer with a tool call when the request offers tools",
    "no-usage": "leave the usage out",
    "no-head": "close the connection before answering",
    "garbage": "a body that is neither JSON nor an event stream",
    "garbage-head": "bytes that are not HTTP",
    "split": "cut the events at odd places",
    "burst": "the whole answer in one write",
    "gzip": "compress when the request accepts it",
    "length": "content-length instead of chunked for a unary answer",
    "deepseek": "keep-alives, usage on the last chunk with a choice",
    "xai": "completion tokens without reasoning, cost in the usage, xAI's errors",
    "perplexity": "usage in every chunk, CRLF, no [DONE]",
    "moderation": "one more chunk without choices after the usage",
    "incomplete": "end a response as incomplete",
    "failed": "end a response as failed",
    "alias": "the answer names another model",
    "provisional": "an Anthropic stream begins with counts that its end replaces",
    "hops": "Gemini's counters start again in the middle",
    "traffic": "Gemini objects in between that have a trafficType only",
    "raw-error": "Gemini's error in the middle comes without data:",
}

# name: (lowest, highest, meaning). The upper bounds keep one request from occupying the process for ever.
NUMBERS: dict[str, tuple[int, int, str]] = {
    "chunks": (0, 100_000, "text deltas, which are also the output tokens"),
    "big": (1, 1_048_576, "bytes per delta"),
    "interval-ms": (0, 60_000, "pause between events"),
    "first-byte-ms": (0, 600_000, "wait before the head"),
    "input": (0, 2**31, "uncached input tokens"),
    "output": (0, 2**31, "output tokens without reasoning"),
    "cached": (0, 2**31, "input tokens read from cache, beside the uncached ones"),
    "cache-write": (0, 2**31, "input tokens written to cache, beside the uncached ones"),
    "cache-write-1h": (0, 2**31, "input tokens written to cache for an hour, beside all others"),
    "reasoning": (0, 2**31, "reasoning tokens, beside the visible output"),
    "tool-use-prompt": (0, 2**31, "input tokens of the provider's own tools, beside all others"),
    "web-search": (0, 100, "searches that the provider makes"),
    "advisor": (0, 2**31, "input tokens of another model in Anthropic's iterations; a tenth as output"),
    "compaction": (0, 2**31, "input tokens of a compaction in Anthropic's iterations; a tenth as output"),
    "duration": (0, 86_400, "a transcription's usage in seconds"),
    "status": (400, 599, "answer with this error"),
    "retry-after": (0, 86_400, "seconds, with an error status"),
    "first": (1, 1_000_000, "status and faults apply to the first N requests of this model name only"),
}

_MAX_AFTER = 1_000_000
_NUMBERED = re.compile(r"(?P<name>[a-z][a-z0-9-]*)-(?P<number>[0-9]{1,10})")
_FAULTS = {kind.value: kind for kind in FaultKind}
_SHORT = {"interval": "interval-ms", "first-byte": "first-byte-ms"}  # the unit may be left out


def behaviour_of(model: str) -> Behaviour:
    """Read the directives of a model name. Raises ValueError with a line that names the mistake."""
    if model.startswith(RECORDING_PREFIX):
        file, _, directives = model.removeprefix(RECORDING_PREFIX).partition(":")
        behaviour = Behaviour(recording=file)
    else:
        _, _, directives = model.partition(":")
        behaviour = Behaviour()
    for directive in filter(None, directives.split(".")):
        behaviour = _with(behaviour, directive)
    return behaviour


def _with(behaviour: Behaviour, directive: str) -> Behaviour:
    change: dict[str, Any]
    if directive in FLAGS:
        change = {directive.replace("-", "_"): True}
        return replace(behaviour, **change)
    match = _NUMBERED.fullmatch(directive)
    name = match["name"] if match else ""
    name = _SHORT.get(name, name)
    number = int(match["number"]) if match else 0
    if name in NUMBERS:
        lowest, highest, _ = NUMBERS[name]
        if not lowest <= number <= highest:
            raise ValueError(f"{name} takes a number from {lowest} to {highest}")
        change = {name.replace("-", "_"): number}
        return replace(behaviour, **change)
    if name in _FAULTS and number <= _MAX_AFTER:
        return replace(behaviour, fault=Fault(_FAULTS[name], number))
    known = sorted([*FLAGS, *(f"{name}-N" for name in NUMBERS), *(f"{name}-N" for name in _FAULTS)])
    raise ValueError(f"unknown directive in the model name; known are: {' '.join(known)}")
