"""The mock's speech: sound without any usage, or (`stream_format: sse`) events of which the last one has it."""

import base64
from collections.abc import Iterator
from dataclasses import replace

import orjson

from edgeproxy.mock_provider.endpoint import EVENT_STREAM, Bill, Incoming, bill_of, read_json
from edgeproxy.mock_provider.exchange import Exchange

_FRAME = b"\xff\xfb\x90\x64" + bytes(100)  # the head of an MP3 frame, and silence
_TYPES = {"mp3": "audio/mpeg", "opus": "audio/opus", "wav": "audio/wav", "pcm": "audio/pcm", "aac": "audio/aac"}


def read(incoming: Incoming) -> Exchange:
    """Read a request; `stream_format` says whether it streams. Raises ValueError."""
    exchange = read_json(incoming)
    return replace(exchange, streamed=exchange.fields.get("stream_format") == "sse")


def bill(exchange: Exchange) -> Bill:
    """All tokens, or none where nothing tells them: then characters are what is billed."""
    return bill_of(exchange) if exchange.streamed else {}


def content_type(exchange: Exchange) -> str:
    """Say which kind of sound it is, or an event stream."""
    return EVENT_STREAM if exchange.streamed else _TYPES.get(str(exchange.fields.get("response_format")), _TYPES["mp3"])


def unary(exchange: Exchange) -> bytes:
    """Body of a unary answer: a frame for each chunk."""
    return _sound(exchange) * exchange.chunks


def events(exchange: Exchange) -> Iterator[bytes]:
    """Whole events of a streamed answer, in order, each with its blank line."""
    sound = base64.b64encode(_sound(exchange)).decode()
    for _ in range(exchange.chunks):
        yield _event({"type": "speech.audio.delta", "audio": sound})
    done: dict[str, object] = {"type": "speech.audio.done"}
    tokens = exchange.tokens
    if not exchange.behaviour.no_usage:
        done["usage"] = {
            "input_tokens": tokens.input_total,
            "output_tokens": tokens.output_total,
            "total_tokens": tokens.input_total + tokens.output_total,
        }
    yield _event(done)


def _sound(exchange: Exchange) -> bytes:
    return _FRAME * max(1, exchange.behaviour.big // len(_FRAME))


def _event(fields: dict[str, object]) -> bytes:
    return b"data: " + orjson.dumps(fields) + b"\n\n"
