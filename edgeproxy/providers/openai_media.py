"""OpenAI's embeddings, images, speech, transcriptions and moderations, as OpenAI, xAI and compatible servers have them.

Sources: platform.openai.com/docs (api-reference, pricing, guides on images and speech) and recorded traffic. Some
answers have usage in tokens; some only say how long the sound was, what it cost, or nothing at all. There an estimate
stands, made with the rates below and flagged: one answer's tokens are then not exact, while a limit still holds.
"""

import math
import re
from dataclasses import replace
from functools import partial
from itertools import chain

from edgeproxy.domain.usage import Usage, is_model_name
from edgeproxy.providers import unbounded
from edgeproxy.providers.base import Body, Endpoint, Incoming, RequestFacts, UsageReader
from edgeproxy.providers.fields import (
    count_member,
    estimate_input_tokens,
    flag_member,
    is_count,
    read_object,
    text_member,
)
from edgeproxy.providers.openai_chat import read_cost
from edgeproxy.providers.openai_responses import added, read_usage
from edgeproxy.providers.readers import EventReader, ObjectReader, ReadUsage, load
from edgeproxy.providers.unbounded import Members, examined, names

_EVENTS = "text/event-stream"
_TOKENS_PER_IMAGE = 6240  # OpenAI's dearest row for its first model of images: high quality, 1024 by 1536
_TOKENS_PER_PARTIAL_IMAGE = 100  # as OpenAI says; an image that breaks off costs those it has shown at least
_GIF_FRAMES = 9  # unless the request says another number
_HEARD_PER_SECOND = 10  # tokens of sound that a transcription model hears: 37 for 3.7 s in recorded traffic
_SENT_BYTES_PER_TOKEN = 1000  # 80 kbit/s at that rate: between a voice message and music
_MAX_SECONDS = 10**8  # what claims to be longer is no sound
# Speech: 0.015 USD a minute at 12 USD per million tokens (OpenAI's estimate and price) are 1250 tokens, 21 a second.
_SPOKEN_BYTES_PER_TOKEN = 960  # compressed, at 160 kbit/s
_SPOKEN_BYTES_PER_TOKEN_RAW = 2300  # 24 kHz, 16 bit
_RAW_SOUND = frozenset({"audio/wav", "audio/x-wav", "audio/wave", "audio/pcm", "audio/l16", "audio/flac"})
_TOKENS_PER_LETTER = 6  # 1.4 at the usual pace of 15 letters a second; speech can be slowed down to a quarter
_DEFAULT_MODERATION = "omni-moderation-latest"
_TAIL_BYTES = 4096
# Not what lets a server put words of its own before each text.
_EMBEDDINGS = Members(names("model input encoding_format dimensions user truncate"))
_LAST_USAGE = re.compile(rb'.*"usage"\s*:\s*(\{(?:[^{}]++|\{[^{}]*+\})*+\})', re.DOTALL)


class Embeddings(Endpoint):
    """`POST /v1/embeddings`: input only."""

    name = "embeddings"

    def read_request(self, incoming: Incoming) -> RequestFacts:
        """Return the facts of a request."""
        value = read_object(incoming.body, ("model", "input"))
        return RequestFacts(
            model=text_member(value, "model"),
            stream=False,
            input_estimate=estimate_input_tokens(incoming.body),
            output_max=0,
            unbounded=examined(incoming, chain((_EMBEDDINGS.first(value),), unbounded.texts(value.get("input")))),
        )

    def reader(self, facts: RequestFacts, content_type: str, *, ask_for_usage: bool, max_bytes: int) -> UsageReader:
        """Return a reader for a single object."""
        return LargeObjectReader(max_bytes, read_embeddings, 0)


class Images(Endpoint):
    """`POST /v1/images/generations`. The provider has a default model; here it has to be named: it is what is paid for.

    The maximum that stands in the facts is ours: so many tokens for each image.
    """

    name = "images"

    def read_request(self, incoming: Incoming) -> RequestFacts:
        """Return the facts of a request."""
        value = read_object(incoming.body, ("model", "stream", "n", "output_format", "frame_count"))
        images = count_member(value, "n") or 1
        frames = count_member(value, "frame_count") or _GIF_FRAMES
        return RequestFacts(
            model=text_member(value, "model"),
            stream=flag_member(value, "stream"),
            input_estimate=estimate_input_tokens(incoming.body),
            output_max=images * _TOKENS_PER_IMAGE * (frames if value.get("output_format") == "gif" else 1),
            unbounded=unbounded.IMAGE,
        )

    def reader(self, facts: RequestFacts, content_type: str, *, ask_for_usage: bool, max_bytes: int) -> UsageReader:
        """Return a reader for a stream or for a single object."""
        if content_type == _EVENTS:
            return ImageStreamReader(max_bytes, (facts.output_max or 0) // _TOKENS_PER_IMAGE)
        read = partial(read_images, input_estimate=facts.input_estimate)
        return LargeObjectReader(max_bytes, read, facts.output_max)


class Speech(Endpoint):
    """`POST /v1/audio/speech`: sound, or events that carry it."""

    name = "speech"

    def read_request(self, incoming: Incoming) -> RequestFacts:
        """Return the facts of a request: what is spoken is paid for, and how (`instructions`)."""
        value = read_object(incoming.body, ("model", "input", "instructions", "stream_format"))
        text = text_member(value, "input")
        manner = value.get("instructions")
        spoken = text + manner if isinstance(manner, str) else text
        return RequestFacts(
            model=text_member(value, "model"),
            stream=value.get("stream_format") == "sse",
            input_estimate=estimate_input_tokens(spoken.encode()),
            output_max=len(text) * _TOKENS_PER_LETTER,
            unbounded=unbounded.SOUND,
        )

    def reader(self, facts: RequestFacts, content_type: str, *, ask_for_usage: bool, max_bytes: int) -> UsageReader:
        """Return a reader for a stream of events or for sound."""
        if content_type == _EVENTS:
            return SpeechStreamReader(max_bytes, _usage_in)
        is_raw = content_type in _RAW_SOUND
        return SoundReader(_SPOKEN_BYTES_PER_TOKEN_RAW if is_raw else _SPOKEN_BYTES_PER_TOKEN)


class Transcriptions(Endpoint):
    """`POST /v1/audio/transcriptions`: a form, of which no more is read than the model's name."""

    name = "transcriptions"
    body = Body.FORM

    def read_request(self, incoming: Incoming) -> RequestFacts:
        """Return the facts of a request. Whether it asks for a stream stands anywhere in the form: the answer tells."""
        return RequestFacts(
            model=incoming.model,
            stream=False,
            input_estimate=incoming.size // _SENT_BYTES_PER_TOKEN + 1,
            output_max=None,
            model_span=incoming.model_span,
            unbounded=unbounded.SOUND,
        )

    def reader(self, facts: RequestFacts, content_type: str, *, ask_for_usage: bool, max_bytes: int) -> UsageReader:
        """Return a reader for a stream, for an object, or for plain text or subtitles, which tell no usage."""
        if content_type == _EVENTS:
            return TranscriptionStreamReader(max_bytes, read_transcription)
        return ObjectReader(max_bytes, read_transcription)


class Moderations(Endpoint):
    """`POST /v1/moderations`: free. The model need not be named; the name of the default is used to find a provider."""

    name = "moderations"

    def read_request(self, incoming: Incoming) -> RequestFacts:
        """Return the facts of a request."""
        value = read_object(incoming.body, ("model",))
        model = _DEFAULT_MODERATION if value.get("model") is None else text_member(value, "model")
        return RequestFacts(model, stream=False, input_estimate=0, output_max=0, is_free=True)


class LargeObjectReader(ObjectReader):
    """Reads usage from an object that can be larger than what is held: it is looked for in the end, where it stands.

    Only pictures and vectors make an answer so large, and no text in it can look like the member: quotes are escaped.
    """

    def __init__(self, max_bytes: int, read: ReadUsage, output_max: int | None) -> None:
        super().__init__(max_bytes, read, output_max)
        self._tail = b""

    def feed(self, chunk: bytes) -> bytes:
        """Return `chunk`."""
        self._tail = (self._tail + chunk[-_TAIL_BYTES:])[-_TAIL_BYTES:]
        return super().feed(chunk)

    def usage(self, input_estimate: int) -> Usage:
        """Return the provider's figures, or an estimate."""
        if self._size > self._max_bytes and (member := _LAST_USAGE.match(self._tail)) is not None:
            value = load(b'{"usage":%b}' % member[1])
            usage = self._read(value) if value is not None else None
            if usage is not None:
                return usage
        return super().usage(input_estimate)


class SoundReader:
    """Stands where an answer is sound: only its length says what it was."""

    is_finished = False

    def __init__(self, bytes_per_token: int) -> None:
        self._bytes_per_token = bytes_per_token
        self._size = 0

    def feed(self, chunk: bytes) -> bytes:
        """Return `chunk`."""
        self._size += len(chunk)
        return chunk

    def end(self) -> bytes:
        """Return nothing: nothing was held back."""
        return b""

    def output_so_far(self) -> int:
        """Return an estimate from what passed."""
        return self._size // self._bytes_per_token

    def usage(self, input_estimate: int) -> Usage:
        """Return an estimate from what passed."""
        return Usage(input_uncached=input_estimate, output=self.output_so_far(), estimated=True)


class MediaStreamReader(EventReader):
    """Reads usage from a stream that tells it in the event that ends the work."""

    def __init__(self, max_bytes: int, read: ReadUsage) -> None:
        super().__init__(max_bytes)
        self._read = read

    def matters(self, event: bytes) -> bool:
        """Whether an event has usage or an error."""
        return super().matters(event) or b'"error"' in event

    def read(self, value: dict[str, object]) -> None:
        """Take note of usage, or of an error."""
        if value.get("error") is not None or value.get("type") == "error":
            self.failed = True
        elif (usage := self._read(value)) is not None:
            self.take(usage)

    def take(self, usage: Usage) -> None:
        """Take note of the provider's figures: they are the last word."""
        self.known = usage
        self.is_final = self.is_finished = True


class TranscriptionStreamReader(MediaStreamReader):
    """Reads usage from the stream of a transcription. Its events are deltas, or whole sentences of a speaker."""

    output = re.compile(rb'"type"\s*:\s*"transcript\.text\.(?:delta|segment)"')
    framing = 130


class SpeechStreamReader(MediaStreamReader):
    """Reads usage from a stream of speech. What it carries is sound in base64, so its length is not that of text."""

    output = re.compile(rb'"type"\s*:\s*"speech\.audio\.delta"')
    framing = 60

    def output_so_far(self) -> int:
        """Return what is known, or a lower bound from the sound that passed."""
        sound = max(0, self._delta_bytes - self._deltas * self.framing) * 3 // 4
        return max(0 if self.known is None else self.known.output, sound // _SPOKEN_BYTES_PER_TOKEN_RAW)


class ImageStreamReader(MediaStreamReader):
    """Reads usage from a stream of images: each completed one brings its own, and the last of `images` is the end.

    What is shown before is no text: the number of pictures counts, not their length.
    """

    output = re.compile(rb'"type"\s*:\s*"image_generation\.partial_image"')

    def __init__(self, max_bytes: int, images: int) -> None:
        super().__init__(max_bytes, _usage_in)
        self._images = images
        self._completed = 0

    def take(self, usage: Usage) -> None:
        """Add the figures of one image."""
        self._completed += 1
        self.known = usage if self.known is None else added(self.known, usage)
        self.is_final = self.is_finished = self._completed >= self._images

    def output_so_far(self) -> int:
        """Return what is known, or a lower bound from the pictures that passed."""
        return max(0 if self.known is None else self.known.output, self._deltas * _TOKENS_PER_PARTIAL_IMAGE)


def read_embeddings(answer: dict[str, object]) -> Usage | None:
    """Return the usage in an answer of vectors, None when there is none. Some servers tell nothing but the total."""
    usage = answer.get("usage")
    if not isinstance(usage, dict):
        return None
    tokens = next((each for name in ("prompt_tokens", "total_tokens") if is_count(each := usage.get(name))), None)
    model = answer.get("model") if is_model_name(answer.get("model")) else ""
    return None if tokens is None else Usage(input_uncached=tokens, model=str(model), cost_nanos=read_cost(usage))


def read_images(answer: dict[str, object], *, input_estimate: int) -> Usage | None:
    """Return the usage in an answer of images, None when it is no such answer.

    xAI tells what it charged, and no tokens: that is complete. Where nothing is told, an image is what is billed, so
    their number is given (the one case where it is: nothing is to be billed twice), and an estimate in tokens. Vector
    graphics are written by another model, and told beside the usage: a part of their own.
    """
    usage = _usage_in(answer)
    images = answer.get("data")
    if usage is None:
        if not isinstance(images, list) or not images:
            return None
        output, calls = len(images) * _TOKENS_PER_IMAGE, (("image", len(images)),)
        return Usage(input_uncached=input_estimate, output=output, estimated=True, tool_calls=calls)
    beside = answer.get("svg_usage")
    drawn = read_usage(beside)
    if drawn is None or not isinstance(beside, dict):
        return usage
    drawn = replace(drawn, model=beside["model"] if is_model_name(beside.get("model")) else "")
    return replace(added(usage, drawn), parts=(usage, drawn))


def read_transcription(answer: dict[str, object]) -> Usage | None:
    """Return the usage in a transcription, None when there is none.

    Where the length of the sound is what is billed, it is told in place of tokens, by older servers beside the text: it
    counts as so many tokens of input, and the text as none.
    """
    value = answer.get("usage")
    usage = read_usage(value)
    seconds = value.get("seconds") if isinstance(value, dict) else answer.get("duration")
    if usage is not None or isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return usage
    if not 0 <= seconds <= _MAX_SECONDS:
        return None
    return Usage(input_uncached=math.ceil(seconds * _HEARD_PER_SECOND), estimated=True)


def _usage_in(answer: dict[str, object]) -> Usage | None:
    """Return usage in tokens, or the bare cost that stands in its place."""
    value = answer.get("usage")
    usage = read_usage(value)
    cost = read_cost(value) if isinstance(value, dict) else None
    return Usage(cost_nanos=cost) if usage is None and cost is not None else usage
