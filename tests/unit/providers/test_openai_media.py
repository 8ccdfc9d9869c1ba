import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgeproxy.domain.usage import Usage
from edgeproxy.errors import INVALID_FIELD, INVALID_JSON, GatewayError
from edgeproxy.providers.base import Body, Incoming
from edgeproxy.providers.fields import MAX_COUNT
from edgeproxy.providers.openai import OpenAI

ANSWERS = Path(__file__).parents[2] / "fixtures" / "answers"
EMBEDDINGS = "/v1/embeddings"
IMAGES = "/v1/images/generations"
SPEECH = "/v1/audio/speech"
TRANSCRIPTIONS = "/v1/audio/transcriptions"
MODERATIONS = "/v1/moderations"
STREAM = "text/event-stream"
ESTIMATE = 77  # of the input, where the provider's figures are not known
WORDS = st.sampled_from(["tokens", "duration", "gpt-mock", "", "4.5"])
NAMES = st.sampled_from(
    ["usage", "input_tokens", "output_tokens", "prompt_tokens", "total_tokens", "seconds", "cost", "cost_in_usd_ticks"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=5),
    max_leaves=8,
)


def endpoint(path):
    return OpenAI().find(path).endpoint


def request(path, **fields):
    body = json.dumps({"model": "m", "input": "Hi", "prompt": "a cat"} | fields).encode()
    return endpoint(path).read_request(Incoming("POST", body, len(body)))


def form_request(size=0):
    return endpoint(TRANSCRIPTIONS).read_request(Incoming("POST", b"", size, "whisper-1", (9, 18)))


def read(path, content_type, *chunks, facts=None, max_bytes=2**20):
    """The usage of an answer that ends in order."""
    facts = facts or (form_request() if path == TRANSCRIPTIONS else request(path))
    facts = replace(facts, input_estimate=ESTIMATE)
    reader = endpoint(path).reader(facts, content_type, ask_for_usage=False, max_bytes=max_bytes)
    assert b"".join(map(reader.feed, chunks)) + reader.end() == b"".join(chunks)
    return reader.usage(ESTIMATE)


def read_value(path, value, **options):
    return read(path, "application/json", orjson.dumps(value), **options)


def event(kind, **fields):
    return b"data: " + orjson.dumps({"type": kind, **fields}) + b"\n\n"


def figures(tokens_in, tokens_out):
    return {"input_tokens": tokens_in, "output_tokens": tokens_out, "total_tokens": tokens_in + tokens_out}


# --- all


@pytest.mark.parametrize("path", [EMBEDDINGS, IMAGES, SPEECH, MODERATIONS])
def test_a_body_that_cannot_be_read_is_refused(path):
    for body, kind in ((b"[1]", INVALID_JSON), (b'{"model":3,"input":"x"}', INVALID_FIELD)):
        with pytest.raises(GatewayError) as raised:
            endpoint(path).read_request(Incoming("POST", body, len(body)))
        assert raised.value.kind is kind


@pytest.mark.parametrize("path", [EMBEDDINGS, IMAGES, SPEECH, MODERATIONS])
def test_a_model_may_not_stand_twice(path):
    body = b'{"model": "a", "input": "Hi", "model": "b"}'
    with pytest.raises(GatewayError, match="invalid_field"):
        endpoint(path).read_request(Incoming("POST", body, len(body)))


@pytest.mark.parametrize("path", [EMBEDDINGS, IMAGES, SPEECH])
def test_the_model_has_to_be_named(path):
    with pytest.raises(GatewayError) as raised:
        request(path, model=None)
    assert "'model'" in raised.value.message


def test_moderation_is_free_and_needs_no_model():
    facts = request(MODERATIONS, model=None)
    assert (facts.is_free, facts.model) == (True, "omni-moderation-latest")
    assert request(MODERATIONS, model="m").model == "m"
    sent = endpoint(MODERATIONS).outgoing_body(b'{"input":"Hi"}', facts, facts.model, ask_for_usage=False)
    assert sent == b'{"input":"Hi"}'


WHOLE = {
    "openai-images-usage.json": (IMAGES, Usage(58, output=8320)),
    "openai-images-stream.sse": (IMAGES, Usage(58, output=472)),
    "openai-images-no-usage.json": (
        IMAGES,
        Usage(ESTIMATE, output=6240, estimated=True, tool_calls=(("image", 1),)),
    ),
    "openai-embeddings.json": (EMBEDDINGS, Usage(19, model="text-embedding-mock")),
    "openai-speech-stream.sse": (SPEECH, Usage(14, output=101)),
    "openai-transcription-tokens.json": (TRANSCRIPTIONS, Usage(47, output=14)),
    "openai-transcription-duration.json": (TRANSCRIPTIONS, Usage(43, estimated=True)),
    "openai-transcription-stream.sse": (TRANSCRIPTIONS, Usage(47, output=9)),
}


@pytest.mark.parametrize("name", WHOLE)
@given(cuts=st.lists(st.integers(0, 8000), max_size=6))
def test_an_answer_is_counted_wherever_it_is_cut(name, cuts):
    path, expected = WHOLE[name]
    body = (ANSWERS / name).read_bytes()
    at = sorted({0, len(body), *(each % len(body) for each in cuts)})
    pieces = [body[start:end] for start, end in pairwise(at)]
    assert read(path, STREAM if name.endswith(".sse") else "application/json", *pieces) == expected


@pytest.mark.parametrize("path", [EMBEDDINGS, IMAGES, SPEECH, TRANSCRIPTIONS])
@given(value=JSON, garbage=st.binary(max_size=60))
@example(value={"duration": 1e300}, garbage=b"")
@example(value={"seconds": -1}, garbage=b"")
def test_no_answer_makes_a_reader_fail(path, value, garbage):
    for whole in (value, {"usage": value}, {"usage": {"input_tokens": 1}, "svg_usage": value, "data": value}):
        body = orjson.dumps(whole)
        for usage in (read_value(path, whole), read(path, STREAM, garbage + b"\n\ndata: " + body + b"\n\n" + garbage)):
            assert 0 <= usage.input_total + usage.output < 2**53


@pytest.mark.parametrize("path", [IMAGES, SPEECH, TRANSCRIPTIONS])
@pytest.mark.parametrize("error", [b'data: {"error":{"message":"x"}}\n\n', event("error", code="x")])
def test_an_error_in_a_stream_makes_the_figures_incomplete(path, error):
    end = event("the end", usage=figures(3, 5))
    assert not read(path, STREAM, end).estimated
    usage = read(path, STREAM, error, end)
    assert (usage.estimated, usage.output) == (True, 5)


# --- embeddings


def test_embeddings_have_no_output():
    facts = request(EMBEDDINGS, input=["one", "two"] * 50)
    assert (facts.output_max, facts.stream) == (0, False)
    assert facts.input_estimate > 100
    assert read_value(EMBEDDINGS, {"usage": {"prompt_tokens": 5, "total_tokens": 9}}) == Usage(5)


def test_servers_that_tell_the_total_only_are_understood():
    assert read_value(EMBEDDINGS, {"usage": {"total_tokens": 9}}) == Usage(9)
    usage = {"prompt_tokens": 4, "cost": 0.0000002}
    assert read_value(EMBEDDINGS, {"usage": usage}) == Usage(4, cost_nanos=200)


@pytest.mark.parametrize("value", [{}, {"usage": None}, {"usage": {"prompt_tokens": -1}}, {"usage": {}}])
def test_vectors_without_usage_are_estimated(value):
    assert read_value(EMBEDDINGS, value | {"data": [0.5] * 500}) == Usage(ESTIMATE, estimated=True)


@pytest.mark.parametrize("path", [EMBEDDINGS, IMAGES])
@pytest.mark.parametrize("size", [700, 1_000_000])
def test_usage_at_the_end_of_an_answer_too_large_to_be_held_is_read(path, size):
    usage = {"input_tokens": 8, "prompt_tokens": 8, "output_tokens": 0, "input_tokens_details": {"cached_tokens": 0}}
    value = {"data": [{"b64_json": "A" * 5000}] * 40, "model": "m", "usage": usage, "size": "1x1"}
    body = orjson.dumps(value)
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    assert read(path, "application/json", *pieces, max_bytes=10_000) == Usage(8)


def test_an_answer_too_large_to_be_held_that_breaks_off_is_estimated():
    body = orjson.dumps({"usage": {"prompt_tokens": 8}, "data": ["A" * 5000] * 40})
    assert read(EMBEDDINGS, "application/json", body, max_bytes=10_000) == Usage(ESTIMATE, estimated=True)
    body = orjson.dumps({"data": ["A" * 50_000], "usage": figures(3, 5)})
    usage = read(IMAGES, "application/json", body[:-20], max_bytes=10_000)
    assert usage == Usage(ESTIMATE, output=6240, estimated=True)


# --- images


@pytest.mark.parametrize(
    ("fields", "images"),
    [
        ({}, 1),
        ({"n": 4}, 4),
        ({"n": None}, 1),
        ({"output_format": "gif"}, 9),
        ({"n": 2, "output_format": "gif", "frame_count": 16}, 32),
        ({"frame_count": 16}, 1),
    ],
)
def test_images_are_bounded_by_their_number(fields, images):
    assert request(IMAGES, **fields).output_max == images * 6240


def test_the_number_of_images_is_checked():
    for fields in ({"n": "2"}, {"n": -1}, {"frame_count": 1.5}, {"stream": 1}):
        with pytest.raises(GatewayError, match="invalid_field"):
            request(IMAGES, **fields)


def test_xai_tells_what_images_cost_and_nothing_else():
    assert read_value(IMAGES, {"data": [{}], "usage": {"cost_in_usd_ticks": 200_000_000}}) == Usage(
        cost_nanos=20_000_000
    )


def test_images_without_usage_are_billed_by_their_number():
    usage = read_value(IMAGES, {"data": [{"url": "x"}] * 3})
    assert usage == Usage(ESTIMATE, output=3 * 6240, estimated=True, tool_calls=(("image", 3),))


def test_an_answer_that_is_none_is_bounded_by_what_was_asked_for():
    usage = read(IMAGES, "application/json", b"A" * 100_000, facts=request(IMAGES, n=2))
    assert usage == Usage(ESTIMATE, output=2 * 6240, estimated=True)


def test_vector_graphics_are_a_part_of_another_model():
    svg = figures(700, 300) | {"model": "gpt-svg", "reasoning_tokens": 100}
    usage = read_value(IMAGES, {"data": [{}], "usage": figures(50, 400), "svg_usage": svg})
    parts = (Usage(50, output=400), Usage(700, output=300, model="gpt-svg"))
    assert usage == Usage(750, output=700, parts=parts)


def test_each_image_of_a_stream_has_usage_of_its_own():
    done = event("image_generation.completed", b64_json="A" * 999, usage=figures(20, 400))
    facts = request(IMAGES, n=2, stream=True)
    assert read(IMAGES, STREAM, done, done, facts=facts) == Usage(40, output=800)
    assert read(IMAGES, STREAM, done, facts=facts) == Usage(20, output=400, estimated=True)
    huge = event("image_generation.completed", usage=figures(MAX_COUNT, MAX_COUNT))
    usage = read(IMAGES, STREAM, *[huge] * 20)
    assert usage.input_total + usage.output < 2**53


def test_images_that_were_shown_before_a_stream_broke_off_are_counted_by_their_number():
    partial = event("image_generation.partial_image", b64_json="A" * 90_000, partial_image_index=0)
    assert read(IMAGES, STREAM, partial, partial) == Usage(ESTIMATE, output=200, estimated=True)


# --- speech


def test_speech_is_bounded_by_its_text():
    facts = request(SPEECH, input="word " * 100, instructions="slowly " * 100, stream_format="sse")
    assert (facts.stream, facts.output_max) == (True, 3000)
    assert 250 < facts.input_estimate < 350
    assert not request(SPEECH, stream_format="audio").stream
    with pytest.raises(GatewayError, match="invalid_field"):
        request(SPEECH, input=["Hi"])


@pytest.mark.parametrize(
    ("content_type", "size", "tokens"),
    [("audio/mpeg", 1_200_000, 1250), ("audio/pcm", 2_880_000, 1252), ("application/octet-stream", 959, 0)],
)
def test_sound_is_estimated_by_its_length(content_type, size, tokens):
    chunk = bytes(size // 10)
    usage = read(SPEECH, content_type, *[chunk] * 10)
    assert usage == Usage(ESTIMATE, output=tokens, estimated=True)


def test_a_stream_of_speech_that_breaks_off_gives_a_lower_bound():
    sound = event("speech.audio.delta", audio="A" * 64_000)  # a second of uncompressed sound
    assert read(SPEECH, STREAM, *[sound] * 60) == Usage(ESTIMATE, output=1251, estimated=True)
    done = event("speech.audio.done", usage=figures(3, 5))
    assert read(SPEECH, STREAM, *[sound] * 60, done) == Usage(3, output=5)


# --- transcriptions


def test_a_form_is_not_read_but_for_its_model():
    facts = form_request(1_200_000)
    assert endpoint(TRANSCRIPTIONS).body is Body.FORM
    assert (facts.model, facts.model_span, facts.output_max) == ("whisper-1", (9, 18), None)
    assert facts.input_estimate == 1201
    sent = endpoint(TRANSCRIPTIONS).outgoing_body(b"--x\r\n\r\n..whisper-1\r\n--x", facts, "w", ask_for_usage=True)
    assert sent == b"--x\r\n\r\n..w\r\n--x"


@pytest.mark.parametrize(
    ("value", "tokens"),
    [
        ({"usage": {"type": "duration", "seconds": 60}}, 600),
        ({"usage": {"type": "duration", "seconds": 0.31}}, 4),
        ({"duration": 12.5}, 125),
    ],
)
def test_the_length_of_sound_counts_as_tokens_and_is_flagged(value, tokens):
    assert read_value(TRANSCRIPTIONS, {"text": "x" * 400} | value) == Usage(tokens, estimated=True)


@pytest.mark.parametrize("seconds", [True, -1, 1e9, "9", None])
def test_a_length_that_is_none_is_not_counted(seconds):
    usage = read_value(TRANSCRIPTIONS, {"text": "x" * 400, "usage": {"type": "duration", "seconds": seconds}})
    assert (usage.input_uncached, usage.estimated) == (ESTIMATE, True)


@pytest.mark.parametrize("content_type", ["text/plain", "text/vtt", "application/x-subrip"])
def test_text_and_subtitles_are_estimated(content_type):
    body = b"1\n00:00:00,000 --> 00:00:04,000\nThe ferry leaves at eight.\n"
    assert read(TRANSCRIPTIONS, content_type, body) == Usage(ESTIMATE, output=len(body) // 4, estimated=True)


def test_a_transcription_that_breaks_off_gives_a_lower_bound():
    events = (ANSWERS / "openai-transcription-stream.sse").read_bytes().split(b"\r\n\r\n")
    usage = read(TRANSCRIPTIONS, STREAM, *[each + b"\r\n\r\n" for each in events[:6]])
    assert usage == Usage(ESTIMATE, output=6, estimated=True)
    likely = [{"token": " a", "logprob": -0.1, "bytes": [32, 97]}] * 40
    assert read(TRANSCRIPTIONS, STREAM, event("transcript.text.delta", delta=" a", logprobs=likely)).output == 1
    segment = event("transcript.text.segment", text="word " * 100, speaker="A", start=0.0, end=30.0, id="seg_0")
    assert 90 <= read(TRANSCRIPTIONS, STREAM, segment).output <= 125
    done = event("transcript.text.done", text="word") + b"data: [DONE]\n\n"
    assert read(TRANSCRIPTIONS, STREAM, segment, done).estimated
