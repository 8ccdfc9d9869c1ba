from typing import Any

import orjson
import pytest

from edgeproxy.mock_provider import images
from edgeproxy.mock_provider.endpoint import Incoming
from edgeproxy.mock_provider.exchange import Exchange, Tokens


def ask(model: str, **fields: object) -> Exchange:
    return images.read(Incoming(orjson.dumps({"model": model, "prompt": "a cat", **fields})))


def events_of(exchange: Exchange) -> list[dict[str, Any]]:
    events = [event.split(b"\n") for event in images.events(exchange)]
    assert all(rest == [b"", b""] for _, _, *rest in events)
    parsed = [orjson.loads(data.removeprefix(b"data: ")) for _, data, *_ in events]
    assert [name for name, *_ in events] == [b"event: " + each["type"].encode() for each in parsed]
    return parsed


def test_images_are_billed_in_tokens() -> None:
    exchange = ask("gpt-image:chunks-100", n=2)
    body = orjson.loads(images.unary(exchange))
    assert len(body["data"]) == 2
    assert body["usage"]["input_tokens_details"] == {"text_tokens": 2, "image_tokens": 0}
    assert body["usage"]["output_tokens_details"] == {"text_tokens": 0, "image_tokens": 200}
    assert images.bill(exchange) == {"gpt-image": Tokens(2, output=200)}


def test_dall_e_says_nothing_and_is_billed_no_tokens() -> None:
    exchange = ask("dall-e-3", response_format="url")
    body = orjson.loads(images.unary(exchange))
    assert "usage" not in body
    assert body["data"][0]["url"].startswith("https://")
    assert images.bill(exchange) == {"dall-e-3": Tokens()}


def test_xai_names_its_charge_only() -> None:
    exchange = ask("grok:xai", n=3)
    assert orjson.loads(images.unary(exchange))["usage"] == {"cost_in_usd_ticks": 600_000_000}
    assert images.bill(exchange) == {"grok": Tokens(cost_nanos=60_000_000)}


@pytest.mark.parametrize(("asked", "partial"), [(2, 2), (None, 0), ("2", 0)])
def test_a_stream_has_usage_in_its_last_event(asked: object, partial: int) -> None:
    *others, last = events_of(ask("gpt-image:chunks-7", partial_images=asked))
    assert [each["partial_image_index"] for each in others] == list(range(partial))
    assert all(each["type"] == "image_generation.partial_image" and "usage" not in each for each in others)
    assert (last["type"], last["usage"]["total_tokens"]) == ("image_generation.completed", 9)
    assert "usage" not in events_of(ask("gpt-image:no-usage"))[-1]


def test_images_can_be_large() -> None:
    assert len(images.unary(ask("gpt-image:big-100000"))) > 90_000


def test_an_error_in_the_middle_is_an_event() -> None:
    assert images.error_event(ask("m")).startswith(b'event: error\ndata: {"type":"error","error":{')
