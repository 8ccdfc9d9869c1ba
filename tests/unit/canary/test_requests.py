import base64
import json
import re

import pytest

from edgeproxy.canary.markers import TEXT_LENGTH, Markers
from edgeproxy.canary.requests import Sent, Writer, behaving

KEY = "ep-" + "k" * 49
MODELS = behaving("plain")


@pytest.fixture
def writer() -> Writer:
    return Writer(Markers(), KEY)


def names(writer: Writer, data: bytes) -> set[str]:
    """What the markers in a request stand for, those in base64 as well."""
    data += b"".join(
        base64.b64decode(each + b"=" * (-len(each) % 4)) for each in re.findall(rb"[A-Za-z0-9+/]{60,}", data)
    )
    found = (match.start() for match in re.finditer(writer.markers.tag.encode(), data))
    markers = (writer.markers.of(data[at : at + TEXT_LENGTH].decode()) for at in found)
    return {marker.name for marker in markers if marker is not None}


def body_of(sent: Sent) -> dict[str, object]:
    head, _, body = sent.data.partition(b"\r\n\r\n")
    assert f"content-length: {len(body)}".encode() in head
    return json.loads(body)


def test_every_field_of_content_of_every_dialect_has_a_marker(writer: Writer):
    planted = {name for sent in writer.everything(MODELS) for name in names(writer, sent.data)}
    for dialect in ("openai chat", "anthropic messages", "gemini generate"):
        for field in ("prompt", "system", "tool", "tool result", "image", "user agent", "query", "cookie", "header"):
            assert f"{dialect}: {field}" in planted
    assert {"openai chat: tool arguments", "anthropic messages: arguments", "openai responses: arguments"} <= planted
    assert {"openai chat: user", "openai chat: metadata", "anthropic messages: user", "openai chat: stop"} <= planted
    assert {"openai transcription: file name", "openai transcription: file", "anthropic messages: file name"} <= planted


def test_every_request_is_new(writer: Writer):
    first, second = (b"".join(sent.data for sent in writer.everything(MODELS)) for _ in range(2))
    tags = (set(re.findall(writer.markers.tag.encode() + rb"\w+", data)) for data in (first, second))
    assert not set.intersection(*tags)


def test_what_is_served_is_well_formed_and_no_model_is_a_marker(writer: Writer):
    for sent in writer.everything(MODELS):
        if sent.name != "openai transcription":
            assert writer.markers.tag not in str(body_of(sent).get("model", ""))
    for sent in writer.conversations(MODELS, stream=True):
        assert body_of(sent).get("stream") or b":streamGenerateContent?alt=sse" in sent.data


def test_everything_that_is_refused_or_malformed_holds_a_marker(writer: Writer):
    for sent in (*writer.refused(MODELS), *writer.malformed(), *writer.elsewhere()):
        is_about_the_key = sent.name == "altered key"
        found = re.search(writer.markers.tag.encode(), sent.data.lower().replace(b"\0", b""))
        assert found or is_about_the_key or sent.name == "encoded body", sent.name


def test_an_upload_that_halts_does_so_inside_its_body(writer: Writer):
    sent = writer.halted(MODELS)
    assert sent.data.index(b"\r\n\r\n") + 4 < sent.pauses_at < len(sent.data)
