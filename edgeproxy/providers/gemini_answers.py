"""Gemini's answers: usage out of a single object, a stream of events, and a stream that is one JSON array.

Sources: ai.google.dev/api/generate-content and recorded traffic. Every object of a stream brings `usageMetadata`: the
whole so far, until the provider's own tools start another hop, where it counts from nothing again; only the last one is
the bill, and it may be lower than those before it. So the last that has a prompt counts, as a whole: sums charge
twice, and the largest of each figure belongs to no answer. Nothing says that a stream of events is over but its end.
"""

import re
from collections.abc import Iterator
from dataclasses import replace

from edgeproxy.domain.usage import Usage, is_model_name
from edgeproxy.providers import sse
from edgeproxy.providers.fields import MAX_COUNT, count, is_count
from edgeproxy.providers.readers import EventReader, load

# A line that is JSON instead of a field of an event: an error, as overloaded servers end a stream that has begun.
_BARE_JSON = re.compile(rb"(?:\A|[\r\n])[ \t]*+[\[{]")
_NO_REASON = ("", "FINISH_REASON_UNSPECIFIED")
_WRITTEN = ("functionCall", "executableCode", "inlineData")  # parts that a model writes, beside text
_CALLS = ("executableCode", "toolCall")  # parts that the provider itself answers, in another hop
_MAX_CANDIDATES = 64  # far more than can be asked for
_MAX_SEARCHES = 1000

# What a walk through an array has to look at between its objects and in them; within strings it is their end only.
_BETWEEN_OBJECTS = re.compile(rb"[{\]]")
_IN_OBJECT = re.compile(rb'[{}"]')
_INSIDE_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)


def read_usage(value: object) -> Usage | None:
    """Return `usageMetadata` in the normal form, None when it has no prompt: some only name a kind of traffic.

    What the provider's tools read is billed as input and stands beside the prompt; thoughts are output and stand beside
    the candidates. The total tells when one of these was left out.
    """
    if not isinstance(value, dict) or not is_count(value.get("promptTokenCount")):
        return None
    prompt, tools = count(value, "promptTokenCount"), count(value, "toolUsePromptTokenCount")
    thoughts = count(value, "thoughtsTokenCount")
    written = count(value, "candidatesTokenCount") + thoughts
    cache_read = min(count(value, "cachedContentTokenCount"), prompt)
    return Usage(
        input_uncached=min(prompt - cache_read + tools, MAX_COUNT),
        cache_read=cache_read,
        output=min(max(written, count(value, "totalTokenCount") - prompt - tools), MAX_COUNT),
        reasoning=thoughts,
    )


def read_answer(answer: dict[str, object]) -> Usage | None:
    """Return the usage of an answer that is a single object, with its model and its searches; None without figures."""
    usage = read_usage(answer.get("usageMetadata"))
    if usage is None:
        return None
    searches = {search for candidate in _rows(answer.get("candidates")) for search in _searches(candidate)}
    model = answer.get("modelVersion")
    return replace(usage, model=model if is_model_name(model) else "", tool_calls=_tool_calls(len(searches)))


class StreamReader(EventReader):
    """Reads usage from a stream of events.

    It is final when the stream ended in order, after a reason for that which no later content belied: with tools of the
    provider, each hop can have one. What is no event of this API makes it incomplete.
    """

    framing = 0  # characters of content are counted, and nothing else: a signature of a thought has kilobytes

    def __init__(self, max_bytes: int) -> None:
        super().__init__(max_bytes)
        self._model = ""
        self._searches: set[int] = set()  # hashes: what was searched for is content
        self._open: set[int] = set()  # candidates that go on
        self._has_stopped = False
        self._is_complete = False

    def end(self) -> bytes:
        """Return nothing: nothing was held back."""
        super().end()
        self.is_final = self._is_complete
        return b""

    def note(self, event: bytes) -> None:
        """Take note of one event: all are read, there are few and each has the usage."""
        payload = sse.data(event)
        value = load(payload)
        if value is not None:
            self.read(value)
        if (value is None and payload.strip()) or _BARE_JSON.search(event) is not None:
            self.failed = True

    def read(self, value: dict[str, object]) -> None:
        """Take note of one object of the stream."""
        if value.get("error") is not None:
            self.failed = True
        for candidate in _rows(value.get("candidates")):
            self._follow(candidate)
        feedback = value.get("promptFeedback")
        if isinstance(feedback, dict) and isinstance(feedback.get("blockReason"), str):
            self._has_stopped = True
        usage = read_usage(value.get("usageMetadata"))
        self._is_complete = self._has_stopped and not self._open and (usage is not None or self._is_complete)
        model = value.get("modelVersion")
        if is_model_name(model):
            self._model = model
        latest = usage or self.known
        if latest is not None:
            self.known = replace(latest, model=self._model, tool_calls=_tool_calls(len(self._searches)))

    def _follow(self, candidate: dict[str, object]) -> None:
        """Take note of how far a candidate is, and of how much it says: for the case that no more comes."""
        content = candidate.get("content")
        parts = _rows(content.get("parts")) if isinstance(content, dict) else []
        # An empty text carries a signature at most.
        parts = [part for part in parts if part.get("text") != ""]
        texts = [text for part in parts if isinstance(text := part.get("text"), str)]
        if texts or any(name in part for part in parts for name in _WRITTEN):
            self._deltas += 1
            # Characters, not bytes: in many scripts a character has three bytes, and a token more than one character.
            self._delta_bytes += sum(map(len, texts))
        index = candidate.get("index")
        index = index if is_count(index) and index < _MAX_CANDIDATES else 0
        reason = candidate.get("finishReason")
        is_called = any(name in part for part in parts[-1:] for name in _CALLS)
        if isinstance(reason, str) and reason not in _NO_REASON and not is_called:
            self._has_stopped = True
            self._open.discard(index)
        elif parts:
            self._open.add(index)
        for search in _searches(candidate):
            if len(self._searches) < _MAX_SEARCHES:
                self._searches.add(hash(search))


class ArrayReader(StreamReader):
    """Reads usage from a stream that is one JSON array, pretty-printed or not; its closing bracket is its last word.

    That is never seen once an object was too long to hold.
    """

    def __init__(self, max_bytes: int) -> None:
        super().__init__(max_bytes)
        self._objects = ObjectSplitter(max_bytes)

    def feed(self, chunk: bytes) -> bytes:
        """Return `chunk`."""
        for each in self._objects.feed(chunk):
            self.note(each)
        if self._objects.is_closed:
            self.is_finished = True
            self.is_final = self._is_complete
        return chunk

    def end(self) -> bytes:
        """Return nothing: nothing was held back. An object that was not ended says nothing."""
        return b""

    def note(self, event: bytes) -> None:
        """Take note of one object."""
        value = load(event)
        if value is None:
            self.failed = True
        else:
            self.read(value)


class ObjectSplitter:
    """Finds the objects in a JSON array while it passes, wherever the network cut it.

    Only the object that is not yet whole is held. Once it exceeds `max_bytes`, the splitter has `overflowed` and finds
    nothing more. It judges nothing: what lies between brackets that do not fit is found to be no JSON when it is read.
    """

    def __init__(self, max_bytes: int) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self._max_bytes = max_bytes
        self._depth = 0  # of braces; brackets of lists need not be counted
        self._in_string = False
        self._is_escaped = False
        self.overflowed = False
        self.is_closed = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the objects that end in `chunk`."""
        found: list[bytes] = []
        start = at = 0
        while at < len(chunk) and not self.overflowed and not self.is_closed:
            if self._in_string:
                at = self._skip_string(chunk, at)
                continue
            mark = (_IN_OBJECT if self._depth else _BETWEEN_OBJECTS).search(chunk, at)
            if mark is None:
                break
            at = mark.end()
            if mark[0] == b"{":
                start = start if self._depth else mark.start()
                self._depth += 1
            elif mark[0] == b"]":
                self.is_closed = True
            elif mark[0] == b'"':
                self._in_string = True
            else:
                self._depth -= 1
                if not self._depth:
                    found.append(b"".join([*self._parts, chunk[start:at]]))
                    self._let_go()
        if self._depth and not self.overflowed:
            self._hold(chunk[start:])
        return found

    def _skip_string(self, chunk: bytes, at: int) -> int:
        """Return where the string ends that goes on at `at`: behind its quotation mark, or at the end of the chunk."""
        inside = _INSIDE_STRING.match(chunk, at + 1 if self._is_escaped else at)
        self._is_escaped = False
        end = at if inside is None else inside.end()
        if chunk[end : end + 1] == b'"':
            self._in_string = False
        else:
            self._is_escaped = end < len(chunk)  # it is a backslash, and what it escapes is in the next chunk
        return end + 1

    def _hold(self, rest: bytes) -> None:
        self._parts.append(rest)
        self._size += len(rest)
        if self._size > self._max_bytes:
            self._let_go()
            self.overflowed = True

    def _let_go(self) -> None:
        self._parts.clear()
        self._size = 0


def _rows(value: object) -> list[dict[str, object]]:
    """Return the objects in a list; of anything else there are none."""
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def _searches(candidate: dict[str, object]) -> Iterator[str]:
    """Yield what was searched for to ground a candidate. Billed by the query; an empty one is none."""
    grounding = candidate.get("groundingMetadata")
    queries = grounding.get("webSearchQueries") if isinstance(grounding, dict) else None
    if isinstance(queries, list):
        yield from (query for query in queries if isinstance(query, str) and query)


def _tool_calls(searches: int) -> tuple[tuple[str, int], ...]:
    return (("web_search", searches),) if searches else ()
