import base64
import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeproxy.domain.features import Feature
from edgeproxy.errors import GatewayError
from edgeproxy.providers.base import Incoming
from edgeproxy.providers.fields import MAX_COUNT
from edgeproxy.providers.gemini_answers import ArrayReader, StreamReader
from edgeproxy.providers.gemini_requests import CountTokens, EmbedContent, GenerateContent
from edgeproxy.providers.readers import ObjectReader

SECRET = "Zq7-content-of-a-client"
MODEL = "gemini-mock"
GENERATE = GenerateContent("generate content", stream=False)
STREAM = GenerateContent("stream generate content", stream=True)
EMBED = EmbedContent("embed content", batch=False)
BATCH_EMBED = EmbedContent("batch embed contents", batch=True)
COUNT = CountTokens()
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**40), 2**40), st.floats(allow_nan=False), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)


def body_of(**fields):
    return json.dumps({"contents": [{"parts": [{"text": "hi"}]}], **fields}).encode()


def facts_of(body, endpoint=GENERATE, model=MODEL):
    return endpoint.read_request(Incoming("POST", body, len(body), model))


def refusal(body, endpoint=GENERATE):
    with pytest.raises(GatewayError) as caught:
        facts_of(body, endpoint)
    assert caught.value.kind.status == 400
    assert SECRET not in caught.value.message
    return caught.value


def output_max(config):
    return facts_of(body_of(generationConfig=config)).output_max


# --- generate


def test_the_path_names_the_model_and_says_whether_the_answer_is_streamed():
    body = body_of(stream=True)  # no field of this API
    facts = facts_of(body)
    assert (facts.model, facts.stream, facts.output_max, facts.is_free, facts.features) == (
        MODEL,
        False,
        None,
        False,
        (),
    )
    assert facts.input_estimate == len(body) // 4 + 1
    assert facts_of(body_of(stream=False), STREAM).stream


def test_one_content_needs_no_list_around_it():
    assert facts_of(b'{"contents":{"parts":[{"text":"hi"}]}}').model == MODEL


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json " + SECRET.encode(),
        json.dumps([SECRET]).encode(),
        b"{}",
        b'{"contents":null}',
        json.dumps({"contents": SECRET}).encode(),
        body_of(generationConfig=SECRET),
        body_of(generationConfig=[SECRET]),
        body_of(generation_config=1),
        body_of(model=SECRET),
        body_of(model=[SECRET]),
        body_of(model="models/other"),
    ],
)
@pytest.mark.parametrize("endpoint", [GENERATE, STREAM])
def test_a_request_that_cannot_be_counted_is_refused_without_echo(endpoint, body):
    refusal(body, endpoint)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, None),
        (None, None),
        ({"maxOutputTokens": None}, None),
        ({"maxOutputTokens": 100}, 100),
        ({"max_output_tokens": 100}, 100),
        ({"maxOutputTokens": "100"}, 100),
        ({"maxOutputTokens": 100.0}, 100),
        ({"maxOutputTokens": 100, "candidateCount": 3}, 300),
        ({"max_output_tokens": "100", "candidate_count": "3"}, 300),
        ({"maxOutputTokens": 100, "candidate_count": 3}, 300),
        ({"maxOutputTokens": 100, "candidateCount": 0}, 100),
        ({"maxOutputTokens": 0}, None),
        ({"maxOutputTokens": "0"}, None),
        ({"candidateCount": 3}, None),
        ({"maxOutputTokens": 2**31 - 1, "candidateCount": 2**31 - 1}, MAX_COUNT),
    ],
)
def test_the_most_that_is_asked_for_is_read_as_google_reads_it(config, expected):
    assert output_max(config) == expected
    assert facts_of(body_of(generation_config=config)).output_max == expected


@pytest.mark.parametrize("name", ["maxOutputTokens", "max_output_tokens", "candidateCount", "candidate_count"])
@pytest.mark.parametrize(
    "bad",
    [-1, "-1", 2**31, str(2**31), "1" * 400, 1.5, 1e300, True, False, "", " 1", "1e2", "٣", SECRET, [1], {"a": 1}],
)
def test_a_bound_that_is_no_whole_number_is_refused(name, bad):
    error = refusal(body_of(generationConfig={"maxOutputTokens": 5, name: bad} if "andidate" in name else {name: bad}))
    assert error.kind.code == "invalid_field"


@pytest.mark.parametrize(
    "body",
    [
        b'{"contents":[],"contents":[]}',
        b'{"contents":[],"generationConfig":{},"generationConfig":{"maxOutputTokens":9}}',
        b'{"contents":[],"generationConfig":{},"generation_config":{"maxOutputTokens":9}}',
        b'{"contents":[],"generationConfig":null,"generation_config":{}}',
        b'{"contents":[],"cachedContent":null,"cached_content":"cachedContents/x"}',
        b'{"contents":[],"cachedContent":null,"cachedContent":"cachedContents/x"}',
        b'{"contents":[],"generationConfig":{"maxOutputTokens":1,"maxOutputTokens":9}}',
        b'{"contents":[],"generationConfig":{"maxOutputTokens":1,"max_output_tokens":9}}',
        b'{"contents":[],"generation_config":{"candidateCount":1,"candidateCount":8}}',
        b'{"contents":[],"generationConfig":{"candidateCount":1,"candidate_count":8}}',
        rb'{"contents":[],"generationConfig":{"maxOutputTokens":1,"maxOutputT\u006fkens":9}}',
        rb'{"contents":[],"generationConfig":{"maxOutputTokens":1},"generation\u0043onfig":{}}',
        rb'{"contents":[],"generationConfig":{},"generation_\u0063onfig":{"maxOutputTokens":9}}',
    ],
)
def test_what_decides_the_cost_and_stands_twice_is_refused(body):
    assert "stands twice" in refusal(body).message


def test_the_same_names_elsewhere_are_no_doubles():
    schema = {"properties": {"maxOutputTokens": {}, "candidateCount": {}, "generationConfig": {"maxOutputTokens": 5}}}
    body = body_of(tools=[schema, schema], text="é", generationConfig={"maxOutputTokens": 7, "responseSchema": schema})
    assert facts_of(body).output_max == 7


@pytest.mark.timeout(60)  # what is not linear here takes minutes
def test_a_request_of_more_parts_than_can_be_checked_is_refused():
    config = b'"generationConfig":{"maxOutputTokens":1,"x":"\\u0041"}'
    body = b'{"contents":[' + b"[[[]]]," * 60_000 + b"[]]," + config + b"}"
    assert "more parts" in refusal(body).message


@pytest.mark.parametrize("name", ["cachedContent", "cached_content"])
def test_context_that_is_kept_at_the_provider_is_a_feature(name):
    assert facts_of(body_of(**{name: "cachedContents/x"})).features == (Feature.STORED_CONTEXT,)
    assert facts_of(body_of(**{name: ["?"]}), STREAM).features == (Feature.STORED_CONTEXT,)
    assert facts_of(body_of(**{name: None})).features == ()


@pytest.mark.parametrize("name", ["inlineData", "inline_data"])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_a_picture_counts_as_a_picture_in_either_alphabet(name, encode):
    data = encode(bytes(range(256)) * 4000).decode()
    part = {name: {"mimeType": "image/png", "data": data}}
    estimate = facts_of(json.dumps({"contents": [{"parts": [part]}]}).encode()).input_estimate
    assert 1600 <= estimate <= 1700


@given(st.dictionaries(st.sampled_from(["contents", "generationConfig", "cachedContent", "model", "requests"]), VALUES))
def test_any_request_is_read_or_refused_and_nothing_else(value):
    for endpoint in (GENERATE, STREAM, EMBED, BATCH_EMBED, COUNT):
        with suppress(GatewayError):
            facts_of(json.dumps(value).encode(), endpoint)


@given(st.binary(max_size=60))
def test_garbage_is_refused_and_nothing_else(body):
    for endpoint in (GENERATE, EMBED, COUNT):
        with suppress(GatewayError):
            facts_of(body, endpoint)


# --- embeddings, counting


def test_vectors_are_no_output():
    one = facts_of(b'{"content":{"parts":[{"text":"hi"}]},"outputDimensionality":3}', EMBED)
    many = facts_of(b'{"requests":[{"model":"models/gemini-mock","content":{"parts":[]}},{}]}', BATCH_EMBED)
    for facts in (one, many):
        assert (facts.model, facts.stream, facts.output_max, facts.is_free) == (MODEL, False, 0, False)
        assert facts.input_estimate > 10


@pytest.mark.parametrize(
    "body", [b"{}", b'{"content":null}', b'{"content":"Zq7-content-of-a-client"}', b'{"content":[]}']
)
def test_an_embedding_of_nothing_is_refused(body):
    refusal(body, EMBED)


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"requests":{}}',
        b'{"requests":[],"requests":[{}]}',
        b'{"requests":[{"model":"models/gemini-mock"},{"model":"models/Zq7-content-of-a-client"}]}',
        b'{"requests":[{"model":1}]}',
    ],
)
def test_embeddings_of_no_list_or_of_another_model_are_refused(body):
    refusal(body, BATCH_EMBED)


def test_counting_is_free():
    for body in (b'{"contents":[]}', b'{"generateContentRequest":{"model":"models/gemini-mock","contents":[]}}'):
        facts = facts_of(body, COUNT)
        assert (facts.model, facts.is_free, facts.input_estimate, facts.output_max) == (MODEL, True, 0, 0)
    refusal(b"[]", COUNT)
    refusal(b'{"generate_content_request":{"model":"models/other"}}', COUNT)


# --- what is sent


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        (GENERATE, b' { "contents" : [ {"model":"gemini-mock"} ], "x":1.50 }'),
        (BATCH_EMBED, b'{ "requests":[ {"model":"models/gemini-mock"} ] }'),
    ],
)
def test_the_body_goes_as_it_came(endpoint, body):
    assert endpoint.outgoing_body(body, facts_of(body, endpoint), MODEL, ask_for_usage=True) is body


@pytest.mark.parametrize(
    ("endpoint", "body", "sent"),
    [
        (GENERATE, b' { "contents" : [], "x":1.50 }', b' { "contents" : [], "x":1.50 }'),
        (
            STREAM,
            b'{"contents" : [], "model" : "models/gemini-mock", "x":1.50 }',
            b'{"contents" : [], "model" : "models/other", "x":1.50 }',
        ),
        (
            BATCH_EMBED,
            b'{ "requests" : [{"model":"gemini-mock","x":1},{"x":2}] }',
            b'{ "requests" : [{"model":"models/other","x":1},{"x":2}] }',
        ),
        (
            COUNT,
            b'{"generateContentRequest": {"model": "models/gemini-mock", "contents": []}}',
            b'{"generateContentRequest": {"model":"models/other","contents":[]}}',
        ),
        (COUNT, b'{"contents":[]}', b'{"contents":[]}'),
    ],
)
def test_another_name_of_the_model_is_put_wherever_it_stood(endpoint, body, sent):
    assert endpoint.outgoing_body(body, facts_of(body, endpoint), "other", ask_for_usage=False) == sent


# --- who reads the answer


@pytest.mark.parametrize(
    ("endpoint", "content_type", "kind"),
    [
        (STREAM, "text/event-stream", StreamReader),
        (STREAM, "application/json", ArrayReader),
        (STREAM, "", ObjectReader),
        (STREAM, "application/x-protobuf", ObjectReader),
        (GENERATE, "text/event-stream", StreamReader),
        (GENERATE, "application/json", ObjectReader),
        (BATCH_EMBED, "application/json", ObjectReader),
    ],
)
def test_what_has_come_decides_how_it_is_read(endpoint, content_type, kind):
    body = b'{"contents":[],"content":{},"requests":[]}'
    reader = endpoint.reader(facts_of(body, endpoint), content_type, ask_for_usage=False, max_bytes=1000)
    assert type(reader) is kind


def test_vectors_without_usage_are_charged_the_estimate_and_no_output():
    facts = facts_of(b'{"content":{}}', EMBED)
    reader = EMBED.reader(facts, "application/json", ask_for_usage=False, max_bytes=1000)
    reader.feed(b'{"embedding":{"values":[0.1,0.2]}}')
    reader.end()
    usage = reader.usage(facts.input_estimate)
    assert (usage.input_total, usage.output, usage.estimated) == (facts.input_estimate, 0, True)


# --- a lower maximum


@pytest.mark.parametrize(
    ("fields", "changed"),
    [
        ({}, {"generationConfig": {"maxOutputTokens": 40}}),
        ({"generationConfig": None}, {"generationConfig": {"maxOutputTokens": 40}}),
        ({"generationConfig": {}}, {"generationConfig": {"maxOutputTokens": 40}}),
        ({"generationConfig": {"topK": 1}}, {"generationConfig": {"maxOutputTokens": 40, "topK": 1}}),
        ({"generationConfig": {"maxOutputTokens": "900"}}, {"generationConfig": {"maxOutputTokens": 40}}),
        ({"generation_config": {"max_output_tokens": 900.0}}, {"generation_config": {"max_output_tokens": 40}}),
        (
            {"generationConfig": {"candidateCount": 2, "maxOutputTokens": 900}},
            {"generationConfig": {"candidateCount": 2, "maxOutputTokens": 20}},
        ),
        ({"generationConfig": {"maxOutputTokens": 0}}, {"generationConfig": {"maxOutputTokens": 40}}),
    ],
)
def test_a_lower_maximum_is_put_into_the_configuration(fields, changed):
    body = body_of(**fields)
    sent = GENERATE.with_output_max(body, facts_of(body), 40)
    assert json.loads(sent) == {**json.loads(body), **changed}
    assert facts_of(sent).output_max == 40


def test_what_lies_around_the_maximum_stays_as_it_is():
    said = b'{"parts":[{"text":"\\"maxOutputTokens\\":1"}]}'
    body = b'{ "contents" :[%b],\n "generationConfig": {"topP":0.50 ,"maxOutputTokens" : 900}}' % said
    assert GENERATE.with_output_max(body, facts_of(body), 40) == body.replace(b": 900", b": 40")


def test_all_candidates_are_counted_and_none_is_lowered_to_nothing():
    facts = facts_of(body_of(generationConfig={"candidateCount": 3}))
    assert (facts.answers, facts.least_output, facts.output_max) == (3, 3, None)
    assert facts_of(body_of(content={}), EMBED).least_output is None
