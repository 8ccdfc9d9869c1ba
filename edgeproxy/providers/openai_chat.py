"""OpenAI's chat completions and the older completions, as OpenAI, DeepSeek, xAI and every compatible server speak them.

Sources: platform.openai.com/docs/api-reference/chat and recorded traffic. Three things differ between those that speak
it: where usage stands in a stream (a chunk of its own, the last one with a choice, every one), whether
`completion_tokens` includes reasoning (xAI's does not), and whether cached tokens are a part of the prompt (they can
exceed it).

What is declared as the maximum holds for each choice, and includes reasoning, sound and rejected predictions, as OpenAI
and DeepSeek say. Where both of its names stand, the larger is taken: which of them counts, only the server knows. And
0 is taken for no maximum, because some servers do so.
"""

import re
from collections.abc import Iterator
from decimal import ROUND_CEILING, Decimal
from itertools import chain

import orjson

from edgeproxy.domain.features import Feature
from edgeproxy.domain.usage import Usage, is_model_name
from edgeproxy.errors import INVALID_FIELD, GatewayError
from edgeproxy.providers import sse, unbounded
from edgeproxy.providers.base import Endpoint, Incoming, RequestFacts, UsageReader
from edgeproxy.providers.body import replace_member, with_number_at_most
from edgeproxy.providers.fields import (
    MAX_COUNT,
    count,
    count_member,
    estimate_input_tokens,
    flag_member,
    has_count,
    is_count,
    list_member,
    names_in,
    read_object,
    text_member,
)
from edgeproxy.providers.readers import EventReader, ObjectReader
from edgeproxy.providers.unbounded import Kinds, Members, examined, names

_MEMBERS = ("model", "models", "stream", "stream_options", "max_tokens", "n", "deferred")
_CHAT_MEMBERS = (*_MEMBERS, "max_completion_tokens")
_TEXT = b'"content":"'
_NANOS_PER_USD = 10**9
_MAX_USD = 1_000_000  # what claims to cost more is no price of one answer
_TICKS_PER_NANO = 10  # xAI reports its charge in 1e-10 USD

_SAMPLING = (
    "model stream stream_options max_tokens n temperature top_p top_k min_p stop seed user logit_bias logprobs"
    " frequency_penalty presence_penalty repetition_penalty service_tier metadata store safety_identifier"
    " prompt_cache_key prompt_cache_options prompt_cache_retention"
)
_ELSEWHERE = {
    "deferred": unbounded.BACKGROUND,
    "models": unbounded.OTHER_MODELS,  # OpenRouter
    "plugins": unbounded.TOOL,  # OpenRouter
    "web_search_options": unbounded.TOOL,
    "search_parameters": unbounded.TOOL,  # xAI
    "prediction": unbounded.PREDICTION,
    "audio": unbounded.SOUND,
}
_CHAT = Members(
    names(
        _SAMPLING,
        "messages max_completion_tokens top_logprobs response_format tools tool_choice parallel_tool_calls functions",
        "function_call reasoning_effort reasoning thinking verbosity modalities provider transforms",
    ),
    _ELSEWHERE,
)
_COMPLETION = Members(names(_SAMPLING, "prompt suffix echo best_of"), _ELSEWHERE)
_MESSAGE = Members(
    names(
        "role content name tool_calls tool_call_id function_call refusal reasoning reasoning_content",
        "reasoning_details annotations prefix cache_control",
    ),
    {"audio": unbounded.STORED},  # an earlier answer's, by its id
)
_PARTS = Kinds(
    {
        "text": Members(names("type text cache_control")),
        "refusal": Members(names("type refusal")),
        "thinking": Members(names("type thinking closed signature")),
    },
    {
        "image_url": unbounded.IMAGE,
        "image": unbounded.IMAGE,
        "input_audio": unbounded.SOUND,
        "video_url": unbounded.VIDEO,
        "file": unbounded.DOCUMENT,
    },
)
_TOOLS = Kinds(
    {
        "function": Members(names("type function strict cache_control")),
        "custom": Members(names("type custom")),
    },
    otherwise=unbounded.TOOL,
)


class _Chat(Endpoint):
    """What both operations share: where usage is asked for, and how answers are read.

    `maximums` are the names of the declared maximum. The first is the one to put in where none is: OpenAI takes it for
    every model, while its reasoning models refuse the older one.
    """

    maximums: tuple[str, ...] = ("max_tokens",)

    def outgoing_body(self, body: bytes, facts: RequestFacts, model: str, *, ask_for_usage: bool) -> bytes:
        """Return the body with another name of the model, and with the question for usage, where either is wanted."""
        body = super().outgoing_body(body, facts, model, ask_for_usage=ask_for_usage)
        if ask_for_usage:
            options = {**(facts.stream_options or {}), "include_usage": True}
            body = replace_member(body, "stream_options", orjson.dumps(options))
        return body

    def with_output_max(self, body: bytes, facts: RequestFacts, tokens: int) -> bytes:
        """Return the body with a lower maximum under the names that it has."""
        return with_number_at_most(body, self.maximums, tokens // facts.answers)

    def reader(self, facts: RequestFacts, content_type: str, *, ask_for_usage: bool, max_bytes: int) -> UsageReader:
        """Return a reader for a stream or for a single object."""
        if content_type == "text/event-stream":
            return StreamReader(max_bytes, drop_usage_chunk=ask_for_usage)
        return ObjectReader(max_bytes, read_answer, facts.output_max)


class ChatCompletions(_Chat):
    """`POST /v1/chat/completions`."""

    name = "chat completions"
    maximums = ("max_completion_tokens", "max_tokens")

    def read_request(self, incoming: Incoming) -> RequestFacts:
        """Return the facts of a request."""
        value = read_object(incoming.body, _CHAT_MEMBERS)
        list_member(value, "messages")
        declared = 0
        if "max_tokens" in value or "max_completion_tokens" in value:
            told = [most for name in self.maximums if (most := count_member(value, name)) is not None]
            declared = 0 if 0 in told else max(told, default=0)
        reasoning = value.get("reasoning")  # OpenRouter's: a part of the maximum, and less than it
        least = (count(reasoning, "max_tokens") + 1) if isinstance(reasoning, dict) else 1
        answers = (count_member(value, "n") or 1) if "n" in value else 1
        return _facts(value, incoming, declared, answers, least, examined(incoming, _unbounded(value)))


class Completions(_Chat):
    """`POST /v1/completions`: a prompt, or a list of them, each answered `n` times out of `best_of`."""

    name = "completions"

    def read_request(self, incoming: Incoming) -> RequestFacts:
        """Return the facts of a request."""
        value = read_object(incoming.body, (*_MEMBERS, "best_of", "prompt"))
        prompt = value.get("prompt")
        # A list of numbers is one prompt, in tokens.
        several = isinstance(prompt, list) and not all(isinstance(each, int) for each in prompt)
        prompts = len(prompt) if isinstance(prompt, list) and several else 1
        answers = prompts * max(count_member(value, "n") or 1, count_member(value, "best_of") or 1)
        found = chain((_COMPLETION.first(value),), unbounded.texts(prompt))
        return _facts(value, incoming, count_member(value, "max_tokens") or 0, answers, 1, examined(incoming, found))


def _unbounded(value: dict[str, object]) -> Iterator[str]:
    """Yield what gives a chat no bound, part by part."""
    yield _CHAT.first(value)
    yield unbounded.only(value.get("modalities"), "text", unbounded.SOUND)
    yield from _TOOLS.each(value.get("tools"))
    for message in unbounded.rows(value["messages"]):
        if message is None:
            yield unbounded.PART
        else:
            yield _MESSAGE.first(message)
            yield from _PARTS.each(message.get("content"))


def _facts(
    value: dict[str, object], incoming: Incoming, declared: int, answers: int, least: int, found: str
) -> RequestFacts:
    options = value.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise GatewayError(INVALID_FIELD, "The field 'stream_options' must be an object.")
    return RequestFacts(
        model=text_member(value, "model"),
        stream="stream" in value and flag_member(value, "stream"),
        input_estimate=estimate_input_tokens(incoming.body),
        output_max=min(declared * answers, MAX_COUNT) or None,
        usage_requested=options is not None and options.get("include_usage") is True,
        stream_options=options,
        # xAI answers such a request at once, and is asked for its outcome afterwards.
        features=(Feature.BACKGROUND,) if "deferred" in value and flag_member(value, "deferred") else (),
        other_models=names_in(value["models"]) if "models" in value else (),  # OpenRouter tries them in turn
        answers=answers,
        least_output=least * answers,
        unbounded=found,
    )


class StreamReader(EventReader):
    """Reads usage from a chat stream; takes the usage chunk out again when only we had asked for it.

    Usage may stand in any chunk and in several, each the whole so far: the last one counts. It is final when its chunk
    finishes a choice or has none, and when the stream said that it is over.
    """

    output = re.compile(rb'"(?:content|reasoning_content|reasoning|text|arguments)"\s*:\s*"(?!")')
    framing = 330

    def __init__(self, max_bytes: int, *, drop_usage_chunk: bool) -> None:
        super().__init__(max_bytes)
        self._drop = drop_usage_chunk
        self._is_usage_chunk = False

    def feed(self, chunk: bytes) -> bytes:
        """Return `chunk`; when a usage chunk has to be taken out, whole events without it."""
        if not self._drop:
            return super().feed(chunk)
        whole = self._splitter.feed(chunk)
        return whole if not whole or self._splitter.overflowed else self._without_usage_chunk(whole)

    def end(self) -> bytes:
        """Return the event that was held back, if any: some servers do not end their last one."""
        return self._without_usage_chunk(self._splitter.tail) if self._drop else super().end()

    def usage(self, input_estimate: int) -> Usage:
        """Return the provider's figures, or a lower bound: also when more text came after the figures than they say."""
        if self.known is not None and self._deltas > self.known.output:
            self.is_final = False
        return super().usage(input_estimate)

    def carries_output(self, event: bytes) -> bool:
        """Whether an event carries text, in the form that nearly all have, or in another."""
        at = event.find(_TEXT)
        return (at >= 0 and not event.startswith(b'"', at + len(_TEXT))) or super().carries_output(event)

    def matters(self, event: bytes) -> bool:
        """Whether an event has usage, an error, or ends the stream."""
        if b"[DONE]" in event and sse.data(event).strip() == b"[DONE]":
            self.is_finished = self.is_final = True
        return b'"error"' in event or (b'"usage"' in event and super().matters(event))

    def read(self, value: dict[str, object]) -> None:
        """Take note of usage, or of an error."""
        if value.get("error") is not None:
            self.failed = True
        usage = read_answer(value)
        if usage is not None:
            choices = value.get("choices")
            self.known = usage
            if usage.output:  # it counts all that has passed; chunks that repeat their sources would seem to hold more
                self._deltas = self._delta_bytes = 0
            self.is_final = not isinstance(choices, list) or not choices or any(map(_is_finished, choices))
            self._is_usage_chunk = choices == []

    def _without_usage_chunk(self, whole: bytes) -> bytes:
        kept = []
        for event in sse.events(whole):
            self._is_usage_chunk = False
            self.note(event)
            if not self._is_usage_chunk:
                kept.append(event)
        return whole if sum(map(len, kept)) == len(whole) else b"".join(kept)


def _is_finished(choice: object) -> bool:
    return isinstance(choice, dict) and choice.get("finish_reason") is not None


def read_answer(answer: dict[str, object]) -> Usage | None:
    """Return the usage in an answer, or in one event of a stream, None when there is none; with the model it names."""
    usage = answer.get("usage")
    if usage is None:
        return None
    model = answer.get("model")
    return read_usage(usage, model if is_model_name(model) else "")


def read_usage(value: object, model: str = "") -> Usage | None:
    """Return chat-shaped usage in the normal form, None when `value` is no usage: the input and the output are needed.

    Cached tokens are a part of the prompt, but some servers report more of them than there are: they are cut to it.
    The total tells when reasoning was left out of the completion.
    """
    if not isinstance(value, dict) or not is_count(value.get("prompt_tokens")):
        return None
    prompt, completion, total = value["prompt_tokens"], count(value, "completion_tokens"), count(value, "total_tokens")
    if (
        not completion
        and not total
        and not has_count(value, "completion_tokens")
        and not has_count(value, "total_tokens")
    ):
        return None
    output = max(completion, total - prompt)
    details = value.get("prompt_tokens_details")
    cache_read = count(value, "prompt_cache_hit_tokens") if "prompt_cache_hit_tokens" in value else 0
    cache_write, kept = 0, None
    if isinstance(details, dict):
        cache_read = max(count(details, "cached_tokens"), cache_read)
        kept = details.get("cache_write_tokens_details")
    cache_read = min(cache_read, prompt)
    if isinstance(details, dict):
        cache_write = min(count(details, "cache_write_tokens"), prompt - cache_read)
    thought = value.get("completion_tokens_details")
    return Usage(
        input_uncached=prompt - cache_read - cache_write,
        cache_read=cache_read,
        cache_write=cache_write,
        output=output,
        reasoning=0 if thought is None else min(count(thought, "reasoning_tokens"), output),
        cache_write_1h=0 if kept is None else min(count(kept, "ttl_12h_tokens"), cache_write),
        model=model,
        cost_nanos=read_cost(value),
    )


def read_cost(usage: dict[str, object]) -> int | None:
    """Return what the provider says it charged, in nano-USD rounded up; None when it does not say.

    xAI tells ticks of 1e-10 USD, and none at all where another cloud hosts it; OpenRouter USD, but only its fee where
    the operator has another key there (`is_byok`); Perplexity an object with a total in USD.
    """
    ticks = usage.get("cost_in_usd_ticks")
    if is_count(ticks) and ticks:
        return -(-ticks // _TICKS_PER_NANO)
    if usage.get("is_byok") is True:
        return None
    cost = usage.get("cost")
    if cost is None:
        return None
    usd = cost.get("total_cost") if isinstance(cost, dict) else cost
    if isinstance(usd, bool) or not isinstance(usd, int | float) or not 0 <= usd <= _MAX_USD:
        return None
    return int((Decimal(repr(usd)) * _NANOS_PER_USD).to_integral_value(ROUND_CEILING))
