import orjson
import pytest

from edgeproxy.mock_provider import transcriptions
from edgeproxy.mock_provider.endpoint import Incoming
from edgeproxy.mock_provider.exchange import Exchange, Tokens


def ask(model: str, file_bytes: int = 1500, **fields: str) -> Exchange:
    body = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.mp3"\r\n\r\n' + bytes(file_bytes) + b"\r\n"
    for name, value in {"model": model, **fields}.items():
        body += f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
    return transcriptions.read(Incoming(body + b"--b--\r\n", "multipart/form-data; boundary=b"))


@pytest.mark.parametrize(("file_bytes", "tokens"), [(0, 0), (1, 1), (1000, 1), (1001, 2)])
def test_the_file_is_the_input(file_bytes: int, tokens: int) -> None:
    assert ask("m", file_bytes).tokens.input_uncached == tokens
    assert ask("m:input-7", file_bytes).tokens.input_uncached == 7


def test_json_has_usage_in_tokens() -> None:
    exchange = ask("m:chunks-2")
    body = orjson.loads(transcriptions.unary(exchange))
    assert body == {
        "text": "Hello from",
        "usage": {
            "type": "tokens",
            "total_tokens": 4,
            "input_tokens": 2,
            "input_token_details": {"text_tokens": 0, "audio_tokens": 2},
            "output_tokens": 2,
        },
    }
    assert transcriptions.bill(exchange) == {"m": Tokens(2, output=2)}


@pytest.mark.parametrize(("model", "seconds"), [("whisper-1", 7), ("m:duration-9", 9), ("whisper-1:duration-9", 9)])
def test_seconds_are_no_tokens(model: str, seconds: int) -> None:
    exchange = ask(model)
    assert orjson.loads(transcriptions.unary(exchange))["usage"] == {"type": "duration", "seconds": seconds}
    assert transcriptions.bill(exchange) == {}


@pytest.mark.parametrize("kind", ["text", "srt", "vtt"])
def test_plain_text_has_nothing_else(kind: str) -> None:
    exchange = ask("m:chunks-2", response_format=kind)
    assert transcriptions.unary(exchange) == b"Hello from\n"
    assert transcriptions.content_type(exchange) == "text/plain; charset=utf-8"
    assert transcriptions.bill(exchange) == {"m": Tokens(2, output=2)}


def test_verbose_json_has_more() -> None:
    body = orjson.loads(transcriptions.unary(ask("m", response_format="verbose_json")))
    assert (body["duration"], body["usage"]["type"]) == (7.0, "tokens")


def test_a_stream_is_crlf_and_ends_with_done() -> None:
    exchange = ask("m:chunks-2", stream="true")
    assert transcriptions.content_type(exchange) == "text/event-stream; charset=utf-8"
    *events, end = transcriptions.events(exchange)
    assert end == b"data: [DONE]\r\n\r\n"
    assert all(event.endswith(b"}\r\n\r\n") for event in events)
    *deltas, done = [orjson.loads(event.removeprefix(b"data: ")) for event in events]
    assert [each["delta"] for each in deltas] == ["Hello", " from"]
    assert (done["type"], done["text"], done["usage"]["total_tokens"]) == ("transcript.text.done", "Hello from", 4)
    assert transcriptions.error_event(exchange).endswith(b"}}\r\n\r\n")


def test_no_usage_leaves_it_out() -> None:
    assert "usage" not in orjson.loads(transcriptions.unary(ask("m:no-usage")))
    assert all(b"usage" not in event for event in transcriptions.events(ask("m:no-usage")))
