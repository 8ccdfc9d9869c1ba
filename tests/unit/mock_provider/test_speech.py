import base64

import orjson
import pytest

from edgeproxy.mock_provider import speech
from edgeproxy.mock_provider.endpoint import Incoming
from edgeproxy.mock_provider.exchange import Exchange, Tokens


def ask(model: str, **fields: object) -> Exchange:
    return speech.read(Incoming(orjson.dumps({"model": model, "input": "a b c", **fields})))


def test_sound_comes_without_any_usage_and_bills_no_tokens() -> None:
    exchange = ask("tts:chunks-3")
    assert speech.unary(exchange) == speech.unary(ask("tts:chunks-1")) * 3
    assert speech.bill(exchange) == {}
    assert len(speech.unary(ask("tts:big-100000.chunks-1"))) > 90_000


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({}, "audio/mpeg"),
        ({"response_format": "wav"}, "audio/wav"),
        ({"response_format": "what"}, "audio/mpeg"),
        ({"response_format": []}, "audio/mpeg"),
        ({"stream_format": "audio"}, "audio/mpeg"),
        ({"stream_format": "sse"}, "text/event-stream; charset=utf-8"),
        ({"stream": True}, "audio/mpeg"),
    ],
)
def test_the_request_names_the_kind_of_sound(fields: dict[str, object], kind: str) -> None:
    assert speech.content_type(ask("tts", **fields)) == kind


def test_events_carry_the_sound_and_the_last_one_the_usage() -> None:
    exchange = ask("tts:chunks-3", stream_format="sse")
    *deltas, done = [orjson.loads(event.removeprefix(b"data: ")) for event in speech.events(exchange)]
    assert b"".join(base64.b64decode(each["audio"]) for each in deltas) == speech.unary(exchange)
    usage = {"input_tokens": 3, "output_tokens": 3, "total_tokens": 6}
    assert done == {"type": "speech.audio.done", "usage": usage}
    assert speech.bill(exchange) == {"tts": Tokens(3, output=3)}
    *_, done = speech.events(ask("tts:no-usage", stream_format="sse"))
    assert b"usage" not in done
