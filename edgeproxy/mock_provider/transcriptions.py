"""The mock's transcriptions: JSON or plain text, or an event stream; usage in tokens or in seconds.

Framing of the stream: data-only events, CRLF, [DONE]. `whisper*` (and `duration-N`) is billed by the second; as text
there is nothing but the text.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import orjson

from edgeproxy.mock_provider.endpoint import EVENT_STREAM, JSON, Bill, Incoming, bill_of, read_form
from edgeproxy.mock_provider.exchange import Exchange

_WHISPER_S = 7  # what every recording lasts unless `duration-N` says otherwise
_PLAIN = ("text", "srt", "vtt")


def read(incoming: Incoming) -> Exchange:
    """Read a form; each begun kilobyte of the file is one token of input. Raises ValueError."""
    exchange = read_form(incoming)
    if exchange.behaviour.input is not None:
        return exchange
    heard = -(-int(exchange.fields.get("file.bytes", 0)) // 1000)
    return replace(exchange, tokens=replace(exchange.tokens, input_uncached=heard))


def bill(exchange: Exchange) -> Bill:
    """All tokens, or none where seconds are what is billed."""
    return {} if _seconds(exchange) else bill_of(exchange)


def content_type(exchange: Exchange) -> str:
    """Say what was asked for: events, plain text or JSON."""
    if exchange.streamed:
        return EVENT_STREAM
    return "text/plain; charset=utf-8" if exchange.fields.get("response_format") in _PLAIN else JSON


def unary(exchange: Exchange) -> bytes:
    """Body of a unary answer."""
    match exchange.fields.get("response_format"):
        case str(kind) if kind in _PLAIN:
            return exchange.text.encode() + b"\n"
        case "verbose_json":
            more = {"task": "transcribe", "language": "english", "duration": float(_WHISPER_S), "segments": []}
        case _:
            more = {}
    return orjson.dumps({"text": exchange.text} | more | _usage(exchange))


def events(exchange: Exchange) -> Iterator[bytes]:
    """Whole events of a streamed answer, in order, each with its blank line."""
    for text in exchange.texts():
        yield _event({"type": "transcript.text.delta", "delta": text})
    yield _event({"type": "transcript.text.done", "text": exchange.text} | _usage(exchange))
    yield b"data: [DONE]\r\n\r\n"


def error_event(_exchange: Exchange) -> bytes:
    """Event that reports an error in the middle of a stream."""
    error = {"type": "server_error", "code": None, "message": "The server had an error", "param": None}
    return _event({"error": error})


def _seconds(exchange: Exchange) -> int:
    return exchange.behaviour.duration or (_WHISPER_S if exchange.model.startswith("whisper") else 0)


def _usage(exchange: Exchange) -> dict[str, Any]:
    tokens = exchange.tokens
    usage: dict[str, Any] = {
        "type": "tokens",
        "total_tokens": tokens.input_total + tokens.output_total,
        "input_tokens": tokens.input_total,
        "input_token_details": {"text_tokens": 0, "audio_tokens": tokens.input_total},
        "output_tokens": tokens.output_total,
    }
    if seconds := _seconds(exchange):
        usage = {"type": "duration", "seconds": seconds}
    return {} if exchange.behaviour.no_usage else {"usage": usage}


def _event(fields: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(fields) + b"\r\n\r\n"
