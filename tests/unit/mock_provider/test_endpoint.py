import orjson
import pytest

from edgeproxy.mock_provider.endpoint import (
    EVENT_STREAM,
    JSON,
    Incoming,
    bill_of,
    content_type_of,
    free,
    read_form,
    read_json,
    read_loosely,
)
from edgeproxy.mock_provider.exchange import Tokens

FORM = (
    b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nm:chunks-2\r\n'
    b'--b\r\nContent-Disposition: form-data; name="stream"\r\n\r\ntrue\r\n--b--\r\n'
)
FORM_TYPE = "multipart/form-data; boundary=b"


def test_json_and_forms_name_their_model() -> None:
    assert read_json(Incoming(b'{"model":"m:chunks-2"}')).tokens.output == 2
    exchange = read_form(Incoming(FORM, FORM_TYPE))
    assert (exchange.model, exchange.tokens.output, exchange.streamed) == ("m:chunks-2", 2, True)


@pytest.mark.parametrize(
    "incoming", [Incoming(b"{}"), Incoming(b'{"model":"m"}', FORM_TYPE), Incoming(b"--b--\r\n", FORM_TYPE)]
)
def test_a_form_that_is_none_or_names_no_model_is_an_error(incoming: Incoming) -> None:
    with pytest.raises(ValueError, match=r"model|form"):
        read_form(incoming)


@pytest.mark.parametrize(
    ("incoming", "model"),
    [
        (Incoming(b""), ""),
        (Incoming(b"{}"), ""),
        (Incoming(b"{}", path_model="g"), "g"),
        (Incoming(b'{"model":"m"}'), "m"),
        (Incoming(FORM, FORM_TYPE), "m:chunks-2"),
        (Incoming(b"\x00\xff", "application/octet-stream"), ""),
    ],
)
def test_what_need_not_name_a_model_may(incoming: Incoming, model: str) -> None:
    assert read_loosely(incoming).model == model


def test_loose_reading_still_refuses_what_is_no_object() -> None:
    with pytest.raises(ValueError, match="not JSON"):
        read_loosely(Incoming(b"{"))


def test_the_bill_goes_to_the_model_that_served() -> None:
    exchange = read_json(Incoming(orjson.dumps({"model": "m:alias.chunks-2"})))
    assert bill_of(exchange) == {"m-2026-11-21": Tokens(output=2)}
    assert free(exchange) == {}


@pytest.mark.parametrize(("stream", "kind"), [(True, EVENT_STREAM), (False, JSON)])
def test_the_type_follows_the_stream(stream: bool, kind: str) -> None:  # noqa: FBT001  a case, not an argument
    assert content_type_of(read_json(Incoming(orjson.dumps({"model": "m", "stream": stream})))) == kind
