"""Reads what Anthropic billed, out of a message or while the stream of one passes. It never fails and changes nothing.

Sources: platform.claude.com/docs (streaming, prompt caching, compaction, advisor, refusals and fallback) and recorded
traffic. Two things are unlike other providers. In a stream, figures replace each other and may fall; nothing is added
up. And the top level is not the bill: what other models, or other passes of the same one, have used stands beside it.
"""

import re
from dataclasses import replace
from itertools import islice

from edgeproxy.domain.usage import Usage, is_model_name
from edgeproxy.providers.fields import MAX_COUNT, count, is_count
from edgeproxy.providers.readers import EventReader

_MATTERS = re.compile(rb'"type"\s*:\s*"(?:message_start|message_delta|message_stop|error)"')
_BILLED_BESIDE = ("compaction", "advisor_message")
_ATTEMPTS = ("message", "fallback_message")
_FIGURES = frozenset(
    {
        *("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens"),
        *("cache_creation", "output_tokens_details", "server_tool_use", "iterations"),
    }
)
_TOOL_COUNT = re.compile(r"([a-z0-9_]{1,40})_requests")
_MAX_TOOLS = 16  # of which one answer's calls are told apart: there are two
_MAX_TURNS = 1000  # of one answer that are told apart, and what each says of itself
_MAX_MEMBERS = 32
_MAX_MODELS = 8  # among which one answer is split: there are five at most, with three fallbacks and an advisor


class StreamReader(EventReader):
    """Reads usage from a stream: `message_start` brings provisional figures, every `message_delta` is laid over them.

    They are final with the delta that stops the message, or with `message_stop` after any delta that told the output.
    An end of the connection says nothing: broken streams can end in order. The events that bear output are deltas
    that have some (a signature is none); each has 115 to 129 bytes of its own, up to 16 spaces that hide its length,
    and for thoughts perhaps an estimate of another 25.
    """

    output = re.compile(rb'"delta"\s*:\s*\{[^{}]*?"(?:text|thinking|partial_json)"\s*:\s*"(?!")')
    framing = 175

    def __init__(self, max_bytes: int, *, long_cache: bool) -> None:
        super().__init__(max_bytes)
        self._long_cache = long_cache
        self._figures: dict[str, object] = {}
        self._model = ""
        self._has_output = False  # more than the provisional count that a message starts with

    def matters(self, event: bytes) -> bool:
        """Whether an event starts, changes or ends a message, or says that it failed."""
        return _MATTERS.search(event) is not None

    def read(self, value: dict[str, object]) -> None:
        """Take note of what one of these events says."""
        kind = value.get("type")
        if kind == "message_start" and isinstance(message := value.get("message"), dict):
            self._model = _name(message, "")
            self._overlay(message.get("usage"))
        elif kind == "message_delta" and self._overlay(value.get("usage")):
            delta = value.get("delta")
            self._has_output = True
            self.is_final = isinstance(delta, dict) and delta.get("stop_reason") is not None
        elif kind == "message_stop":
            self.is_finished = True
            self.is_final = self._has_output
        elif kind == "error":
            self.failed = True

    def _overlay(self, usage: object) -> bool:
        """Lay reported figures over those known so far. Whether the output is among them."""
        if not isinstance(usage, dict):
            return False
        told = {name: value for name, value in usage.items() if value is not None and name in _FIGURES}
        self._figures |= {name: _kept(value) for name, value in told.items()}
        self.known = read_usage(self._figures, self._model, long_cache=self._long_cache)
        return is_count(usage.get("output_tokens"))


def _kept(value: object, depth: int = 2) -> object:
    """Return what is held of a figure until another replaces it: numbers and names, in so many turns at most."""
    if isinstance(value, dict) and depth:
        named = ((name, each) for name, each in value.items() if is_model_name(name))
        return {name: _kept(each, depth - 1) for name, each in islice(named, _MAX_MEMBERS)}
    if isinstance(value, list) and depth == 2:
        return [_kept(turn) for turn in islice((turn for turn in value if isinstance(turn, dict)), _MAX_TURNS)]
    return value if is_count(value) or is_model_name(value) else None


def read_answer(answer: dict[str, object], *, long_cache: bool) -> Usage | None:
    """Return the usage in a single message, None when there is none."""
    return read_usage(answer.get("usage"), _name(answer, ""), long_cache=long_cache)


def read_usage(value: object, model: str = "", *, long_cache: bool = False) -> Usage | None:
    """Return Messages usage in the normal form, None when `value` is no usage.

    `model` is the one that the message names: who was asked first. Billed are the top level, at the model that served
    in the end; each compaction; each turn of an advisor, at its own model; and attempts that were declined too late.
    """
    if not isinstance(value, dict) or not is_count(value.get("output_tokens")):
        return None
    iterations = value.get("iterations")
    turns = [turn for turn in iterations if isinstance(turn, dict)] if isinstance(iterations, list) else []
    served_by = (_name(turn, model) for turn in reversed(turns) if turn.get("type") == "fallback_message")
    serving = next(served_by, model)
    beside = [turn for turn in turns if turn.get("type") in _BILLED_BESIDE] + _declined(value, turns, serving)

    whole = Usage(model=serving, tool_calls=_tool_calls(value))
    parts = {serving: whole}
    for named, row in [(serving, value), *((_name(turn, model), turn) for turn in beside)]:
        name = named if named in parts or len(parts) < _MAX_MODELS else serving
        share = _share(row, whole, long_cache=long_cache)
        whole = _sum(whole, share)
        parts[name] = _sum(parts.get(name, Usage(model=name)), share)
    billed = tuple(part for part in parts.values() if part.input_total + part.output or part.tool_calls)
    return replace(whole, parts=billed) if any(part.model != serving for part in billed) else whole


def _declined(usage: dict[str, object], turns: list[dict[str, object]], serving: str) -> list[dict[str, object]]:
    """Return the attempts that other models than the serving one declined, after they had put out something.

    The top level tells of the serving attempt alone. What was declined before any output is not billed; what came
    before a later refusal is, at the model that refused. Where the top level covers all turns, none was declined:
    there another name is an alias.
    """
    attempts = [turn for turn in turns if turn.get("type") in _ATTEMPTS]
    if sum(count(turn, "output_tokens") for turn in attempts) <= count(usage, "output_tokens"):
        return []
    return [turn for turn in attempts if _name(turn, serving) != serving and count(turn, "output_tokens")]


def _name(value: dict[str, object], default: str) -> str:
    model = value.get("model")
    return model if is_model_name(model) else default


def _tool_calls(usage: dict[str, object]) -> tuple[tuple[str, int], ...]:
    """Return the calls of the provider's own tools: `web_search_requests` counts those of "web_search"."""
    used = usage.get("server_tool_use")
    names = {name: _TOOL_COUNT.fullmatch(name) for name in used} if isinstance(used, dict) else {}
    calls = [(found[1], count(used, name)) for name, found in names.items() if found is not None]
    return tuple(sorted(call for call in calls if call[1])[:_MAX_TOOLS])


def _share(row: dict[str, object], known: Usage, *, long_cache: bool) -> Usage:
    """Return what a row adds to what is `known`: never so much that a figure would exceed MAX_COUNT."""
    output = min(count(row, "output_tokens"), MAX_COUNT - known.output)
    written = min(count(row, "cache_creation_input_tokens"), MAX_COUNT - known.cache_write)
    return Usage(
        input_uncached=min(count(row, "input_tokens"), MAX_COUNT - known.input_uncached),
        cache_read=min(count(row, "cache_read_input_tokens"), MAX_COUNT - known.cache_read),
        cache_write=written,
        output=output,
        reasoning=min(count(row.get("output_tokens_details"), "thinking_tokens"), output),
        cache_write_1h=_kept_for_an_hour(row, written, long_cache=long_cache),
    )


def _sum(part: Usage, share: Usage) -> Usage:
    return replace(
        part,
        input_uncached=part.input_uncached + share.input_uncached,
        cache_read=part.cache_read + share.cache_read,
        cache_write=part.cache_write + share.cache_write,
        output=part.output + share.output,
        reasoning=part.reasoning + share.reasoning,
        cache_write_1h=part.cache_write_1h + share.cache_write_1h,
    )


def _kept_for_an_hour(row: dict[str, object], written: int, *, long_cache: bool) -> int:
    """Return how many of the `written` tokens are kept for an hour.

    A `message_delta` may revise the total, but never tells the split again. Then the last one that was told is scaled.
    Where no hour was in it, what it does not cover is taken for what the request asked for: an hour is the dearer.
    """
    split = row.get("cache_creation")
    minutes, hour = count(split, "ephemeral_5m_input_tokens"), count(split, "ephemeral_1h_input_tokens")
    if hour:
        return -(-written * hour // (minutes + hour))
    return max(written - minutes, 0) if long_cache else 0
