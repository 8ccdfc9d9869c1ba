import json
from itertools import pairwise

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeproxy.domain.usage import Usage
from edgeproxy.errors import GatewayError
from edgeproxy.providers import sse
from edgeproxy.providers.base import Incoming
from edgeproxy.providers.fields import MAX_COUNT
from edgeproxy.providers.openai_chat import (
    ChatCompletions,
    Completions,
    StreamReader,
    read_answer,
    read_cost,
    read_usage,
)
from edgeproxy.providers.readers import ObjectReader

CHAT, COMPLETIONS = ChatCompletions(), Completions()
SECRET = "Zq7-content-of-a-client"
WIDE = 1 << 20
ESTIMATE = 77  # of the input, where the provider's figures are not known

# Content that looks like what the reader is after.
CONTENTS = st.lists(
    st.one_of(
        st.sampled_from(['"usage": {"prompt_tokens": 9}', "data: [DONE]\n\n", '"error"', "[DONE]", "", "😀\u2028\r\n"]),
        st.text(max_size=20),
    ),
    min_size=1,
    max_size=6,
)
FIGURES = st.integers(0, 1_000_000)
USAGES = st.builds(
    lambda uncached, cached, written, output, reasoning: Usage(
        uncached, cached, written, output, min(reasoning, output)
    ),
    FIGURES,
    FIGURES,
    FIGURES,
    st.integers(10, 1_000_000),  # no less than the pieces that carry it
    FIGURES,
)
PLACES = st.sampled_from(["own chunk", "last choice", "every chunk"])
FRAMINGS = st.sampled_from([("data: ", "\n"), ("data:", "\n"), ("data: ", "\r\n"), ("id: 1\ndata: ", "\n")])
CUTS = st.lists(st.integers(0, 10_000), max_size=12)


def body_of(**fields):
    return json.dumps({"model": "gpt-mock", "messages": [], **fields}).encode()


def facts_of(endpoint, body):
    return endpoint.read_request(Incoming("POST", body, len(body)))


def chat_facts(body):
    return facts_of(CHAT, body)


def figures(usage):
    """The provider's words for a usage."""
    prompt = usage.input_total
    return {
        "prompt_tokens": prompt,
        "completion_tokens": usage.output,
        "total_tokens": prompt + usage.output,
        "prompt_tokens_details": {"cached_tokens": usage.cache_read, "cache_write_tokens": usage.cache_write},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }


def chunks_of(contents, usage, place):
    """The objects of a stream; `usage` None: it brings none."""
    reported = None if usage is None else figures(usage)
    for number, content in enumerate(contents, 1):
        is_last = number == len(contents)
        choice = {"index": 0, "delta": {"content": content}, "finish_reason": "stop" if is_last else None}
        now = reported if place == "every chunk" or (is_last and place == "last choice") else None
        yield {"id": "c", "choices": [choice], "usage": now}
    if place == "own chunk" and reported:
        yield {"id": "c", "choices": [], "usage": reported}


def stream_of(contents, usage, place="own chunk", framing=("data: ", "\n")):
    """The events of a stream, each as its bytes."""
    prefix, newline = framing
    texts = [json.dumps(chunk, ensure_ascii=False) for chunk in chunks_of(contents, usage, place)]
    return [f"{prefix}{text}{newline}{newline}".encode() for text in (*texts, "[DONE]")]


def cut(stream, cuts):
    at = sorted({0, len(stream), *(each % (len(stream) + 1) for each in cuts)})
    return [stream[start:end] for start, end in pairwise(at)]


def read(pieces, *, drop=False, max_bytes=WIDE):
    """What is forwarded of a stream that ends in order, and its usage."""
    reader = StreamReader(max_bytes, drop_usage_chunk=drop)
    forwarded = b"".join(reader.feed(piece) for piece in pieces) + reader.end()
    return forwarded, reader.usage(ESTIMATE)


# --- requests


def test_a_plain_request_is_understood():
    body = body_of()
    facts = chat_facts(body)
    assert (facts.model, facts.stream, facts.output_max, facts.usage_requested) == ("gpt-mock", False, None, False)
    assert facts.input_estimate == len(body) // 4 + 1


@pytest.mark.parametrize(
    ("fields", "most"),
    [
        ({}, None),
        ({"max_tokens": 10}, 10),
        ({"max_completion_tokens": 20, "max_tokens": 10}, 20),
        ({"max_completion_tokens": 0, "max_tokens": 10}, None),  # to some servers that is no maximum
        ({"max_tokens": 0}, None),
        ({"max_completion_tokens": None, "max_tokens": 10}, 10),
        ({"max_tokens": 10, "n": 3}, 30),
        ({"max_tokens": 10, "n": None}, 10),
        ({"max_tokens": 10, "n": 0}, 10),
        ({"n": 3}, None),
    ],
)
def test_the_declared_maximum_is_that_of_all_choices(fields, most):
    assert chat_facts(body_of(**fields)).output_max == most


@pytest.mark.parametrize(
    ("options", "requested"),
    [
        (None, False),
        ({}, False),
        ({"include_usage": True}, True),
        ({"include_usage": False}, False),
        ({"include_usage": 1}, False),
        ({"include_usage": "true"}, False),
    ],
)
def test_usage_is_requested_only_by_a_plain_true(options, requested):
    assert chat_facts(body_of(stream=True, stream_options=options)).usage_requested is requested


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json " + SECRET.encode(),
        b"[]",
        json.dumps({"messages": [SECRET]}).encode(),
        body_of(model=None),
        body_of(model=""),
        body_of(model=[SECRET]),
        body_of(messages=SECRET),
        body_of(messages=None),
        body_of(messages={}),
        body_of(stream=SECRET),
        body_of(stream=1),
        body_of(max_tokens=-1),
        body_of(max_tokens=1.5),
        body_of(max_completion_tokens=SECRET),
        body_of(n="2"),
        body_of(n=2**60),
        body_of(stream=True, stream_options=SECRET),
        body_of(stream_options=[SECRET]),
        b'{"model":"a","messages":[],"model":"b"}',
        rb'{"model":"a","messages":[],"\u006dodel":"b"}',
        b'{"model":"a","messages":[],"stream":true,"stream":false}',
        b'{"model":"a","messages":[],"stream_options":{},"stream_options":{"include_usage":true}}',
        b'{"model":"a","messages":[],"max_tokens":1,"max_tokens":100000}',
    ],
)
def test_a_request_that_cannot_be_counted_is_refused_without_echo(body):
    with pytest.raises(GatewayError) as caught:
        chat_facts(body)
    assert caught.value.kind.status == 400
    assert SECRET not in caught.value.message


# --- requests to complete a text


def text_body(**fields):
    return json.dumps({"model": "gpt-mock", "max_tokens": 10, **fields}).encode()


@pytest.mark.parametrize(
    ("fields", "most"),
    [
        ({}, 10),
        ({"prompt": "x"}, 10),
        ({"prompt": None}, 10),
        ({"prompt": "x", "max_tokens": None}, None),
        ({"prompt": "x", "max_tokens": 0}, None),  # to some servers that is no maximum
        ({"prompt": ["x", "y", "z"]}, 30),
        ({"prompt": ["x"]}, 10),
        ({"prompt": []}, 10),
        # Tokens: a list of numbers is one prompt.
        ({"prompt": [1, 2, 3]}, 10),
        ({"prompt": [[1, 2, 3], [4]]}, 20),
        ({"prompt": [1, "x"]}, 20),
        ({"prompt": "x", "n": 2}, 20),
        ({"prompt": "x", "best_of": 3}, 30),
        ({"prompt": "x", "n": 2, "best_of": 5}, 50),
        ({"prompt": "x", "n": 4, "best_of": 0}, 40),
        ({"prompt": ["x", "y"], "n": 2, "best_of": 3}, 60),
        ({"prompt": "x", "max_completion_tokens": 99}, 10),  # there is no such field here
    ],
)
def test_the_declared_maximum_is_that_of_all_prompts_and_all_tries(fields, most):
    assert facts_of(COMPLETIONS, text_body(**fields)).output_max == most


def test_a_text_to_complete_is_understood():
    body = text_body(prompt="x", stream=True, stream_options={"include_usage": True})
    facts = facts_of(COMPLETIONS, body)
    assert (facts.model, facts.stream, facts.usage_requested) == ("gpt-mock", True, True)
    assert facts.input_estimate == len(body) // 4 + 1
    assert not facts_of(COMPLETIONS, text_body(stream=True)).usage_requested


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        text_body(model=None),
        text_body(n=SECRET),
        text_body(best_of=-1),
        text_body(best_of=1.5),
        text_body(best_of=2**60),
        text_body(max_tokens=SECRET),
        text_body(stream=SECRET),
        text_body(stream_options=[SECRET]),
        b'{"model":"a","best_of":1,"best_of":20}',
        b'{"model":"a","prompt":"x","prompt":["x","y"]}',
        b'{"model":"a","n":1,"n":20}',
    ],
)
def test_a_text_that_cannot_be_counted_is_refused_without_echo(body):
    with pytest.raises(GatewayError) as caught:
        facts_of(COMPLETIONS, body)
    assert caught.value.kind.status == 400
    assert SECRET not in caught.value.message


def test_usage_is_asked_for_in_completions_as_well():
    body = text_body(prompt="x", stream=True)
    sent = COMPLETIONS.outgoing_body(body, facts_of(COMPLETIONS, body), "other", ask_for_usage=True)
    assert orjson.loads(sent) == orjson.loads(body) | {"stream_options": {"include_usage": True}, "model": "other"}


# --- the body that is sent


def test_nothing_is_changed_when_nothing_has_to_be():
    body = b' { "model" : "gpt-mock" , "messages":[ ] , "unknown" : 1.50 } '
    facts = chat_facts(body)
    assert CHAT.outgoing_body(body, facts, "gpt-mock", ask_for_usage=False) is body


def test_another_model_name_changes_that_name_only():
    body = b' { "messages":[ {"model":"gpt-mock"} ], "model" : "gpt-mock" , "x" : 1.50 } '
    facts = chat_facts(body)
    sent = CHAT.outgoing_body(body, facts, 'o"ther', ask_for_usage=False)
    assert sent == body.replace(b': "gpt-mock" ,', b': "o\\"ther" ,')


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        ({}, {"include_usage": True}),
        ({"stream_options": None}, {"include_usage": True}),
        ({"stream_options": {}}, {"include_usage": True}),
        (
            {"stream_options": {"include_usage": False, "include_obfuscation": False}},
            {"include_usage": True, "include_obfuscation": False},
        ),
    ],
)
def test_usage_is_asked_for_beside_what_the_client_asked(options, sent):
    body = body_of(stream=True, **options, temperature=1)
    facts = chat_facts(body)
    changed = CHAT.outgoing_body(body, facts, "other", ask_for_usage=True)
    assert orjson.loads(changed) == orjson.loads(body) | {"stream_options": sent, "model": "other"}
    assert chat_facts(changed).usage_requested


# --- usage


@pytest.mark.parametrize(
    ("reported", "usage"),
    [
        ({"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}, Usage(5, output=7)),
        ({"prompt_tokens": 5, "completion_tokens": 0}, Usage(5)),
        ({"prompt_tokens": 5, "completion_tokens": 7.0}, Usage(5, output=7)),
        ({"prompt_tokens": 5, "completion_tokens": "7", "total_tokens": 12}, Usage(5, output=7)),
        # Reasoning left out of the completion: the total tells.
        (
            {
                "prompt_tokens": 12,
                "completion_tokens": 2,
                "total_tokens": 334,
                "prompt_tokens_details": {"cached_tokens": 2},
                "completion_tokens_details": {"reasoning_tokens": 320},
            },
            Usage(10, cache_read=2, output=322, reasoning=320),
        ),
        # More cached tokens than there are.
        (
            {"prompt_tokens": 7, "total_tokens": 7, "prompt_tokens_details": {"cached_tokens": 161}},
            Usage(0, cache_read=7),
        ),
        (
            {
                "prompt_tokens": 10,
                "total_tokens": 10,
                "prompt_tokens_details": {"cached_tokens": 6, "cache_write_tokens": 9},
            },
            Usage(0, cache_read=6, cache_write=4),
        ),
        *(
            (
                {
                    "prompt_tokens": 10,
                    "completion_tokens": 0,
                    "prompt_tokens_details": {"cache_write_tokens": 9, "cache_write_tokens_details": kept},
                },
                Usage(1, cache_write=9, cache_write_1h=hours),
            )
            for kept, hours in (({"ttl_30m_tokens": 2, "ttl_12h_tokens": 7}, 7), ({"ttl_12h_tokens": 99}, 9), ([], 0))
        ),
        ({"prompt_tokens": 9, "total_tokens": 9, "prompt_cache_hit_tokens": 4}, Usage(5, cache_read=4)),
        (
            {"prompt_tokens": 1, "completion_tokens": 3, "completion_tokens_details": {"reasoning_tokens": 8}},
            Usage(1, output=3, reasoning=3),
        ),
        ({"prompt_tokens": 4, "completion_tokens": 0, "prompt_tokens_details": None}, Usage(4)),
        (
            {"prompt_tokens": 4, "completion_tokens": -3, "total_tokens": 6, "prompt_tokens_details": []},
            Usage(4, output=2),
        ),
    ],
)
def test_usage_is_read_into_the_normal_form(reported, usage):
    assert read_usage(reported) == usage


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        "x",
        1,
        {},
        {"completion_tokens": 1},
        *({"prompt_tokens": bad, "completion_tokens": 1} for bad in (None, -1, 1.5, "1", True, 2**60)),
        {"prompt_tokens": 1},
        *({"prompt_tokens": 1, "completion_tokens": bad} for bad in (None, -1, 1.5, "1", True, 2**60)),
    ],
)
def test_what_has_no_count_of_the_prompt_or_of_the_output_is_no_usage(value):
    assert read_usage(value) is None


@pytest.mark.parametrize(
    ("reported", "nanos"),
    [
        ({}, None),
        # xAI tells 1e-10 USD.
        ({"cost_in_usd_ticks": 1}, 1),
        ({"cost_in_usd_ticks": 10}, 1),
        ({"cost_in_usd_ticks": 11}, 2),
        ({"cost_in_usd_ticks": 5_143_500}, 514_350),
        ({"cost_in_usd_ticks": 5_143_500, "cost": 7}, 514_350),
        ({"cost_in_usd_ticks": 0}, None),  # another cloud hosts the model, and says nothing of the price
        *(({"cost_in_usd_ticks": bad}, None) for bad in (-1, 1.5, "1", True, None, 2**60, [1], {})),
        # OpenRouter tells USD.
        ({"cost": 0.00006}, 60_000),
        ({"cost": 0}, 0),
        ({"cost": -0.0}, 0),
        ({"cost": 2}, 2 * 10**9),
        ({"cost": 1e-9}, 1),
        ({"cost": 1.0000000001e-9}, 2),
        ({"cost": 5e-324}, 1),
        ({"cost": 0.1}, 100_000_000),
        ({"cost": 1_000_000}, 10**15),
        ({"cost": 0.00006, "is_byok": False}, 60_000),
        ({"cost": 0.000003, "is_byok": True}, None),  # the fee only
        *(({"cost": bad}, None) for bad in (-0.1, 1_000_000.1, 1e300, 2**70, True, "0.5", None, [0.5])),
        *(({"cost": bad}, None) for bad in (float("inf"), float("-inf"), float("nan"))),
        # Perplexity tells parts and a total.
        ({"cost": {"input_tokens_cost": 0.1, "total_cost": 0.006}}, 6_000_000),
        *(({"cost": {"total_cost": bad}}, None) for bad in (-1, True, "1", None, {"total_cost": 1}, 10**7)),
        ({"cost": {}}, None),
    ],
)
def test_what_the_provider_says_it_charged_is_read_exactly_or_not_at_all(reported, nanos):
    assert read_cost(reported) == nanos
    assert read_usage({"prompt_tokens": 1, "completion_tokens": 0, **reported}) == Usage(1, cost_nanos=nanos)


@given(st.dictionaries(st.sampled_from(["cost", "cost_in_usd_ticks", "is_byok"]), st.floats() | st.integers()))
def test_any_number_is_a_sane_cost_or_none(reported):
    nanos = read_cost(reported)
    assert nanos is None or (type(nanos) is int and 0 <= nanos <= 10**15)


@pytest.mark.parametrize(
    ("named", "model"),
    [("served-1", "served-1"), *((bad, "") for bad in ("", None, 1, ["m"], "a b", "m" * 65, SECRET + "?"))],
)
def test_an_answer_says_who_served_it(named, model):
    assert read_answer({"model": named, "usage": {"prompt_tokens": 2, "total_tokens": 2}}) == Usage(2, model=model)


@pytest.mark.parametrize("answer", [{}, {"model": "m"}, {"usage": None}, {"usage": {}}, {"usage": [1]}, {"usage": "x"}])
def test_an_answer_without_figures_has_no_usage(answer):
    assert read_answer(answer) is None


# --- streams


@given(CONTENTS, USAGES, PLACES, FRAMINGS, CUTS)
def test_any_cut_of_a_stream_gives_the_same_usage_and_the_same_bytes(contents, usage, place, framing, cuts):
    events = stream_of(contents, usage, place, framing)
    stream = b"".join(events)
    pieces = cut(stream, cuts)
    assert read(pieces) == (stream, usage)
    without = b"".join(events[:-2] + events[-1:]) if place == "own chunk" else stream
    assert read(pieces, drop=True) == (without, usage)


@pytest.mark.parametrize("first", [0, 5])
def test_figures_that_come_before_the_text_are_not_taken_for_the_whole(first):
    early = {"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": first}}
    delta = {"choices": [{"delta": {"content": "x"}, "finish_reason": None}]}
    events = [b"data: " + json.dumps(each).encode() + b"\n\n" for each in (early, *[delta] * 100)]
    _, usage = read([*events, b"data: [DONE]\n\n"])
    assert (usage.input_total, usage.output, usage.estimated) == (10, 100, True)


@given(CONTENTS, CUTS, st.booleans())
def test_a_stream_without_usage_is_estimated(contents, cuts, drop):
    stream = b"".join(stream_of(contents, None))
    forwarded, usage = read(cut(stream, cuts), drop=drop)
    assert forwarded == stream
    assert usage.estimated
    assert (usage.input_total, usage.cache_read) == (ESTIMATE, 0)
    assert usage.output >= sum(map(bool, contents))


@given(CONTENTS, USAGES, PLACES)
def test_a_stream_that_broke_off_is_a_lower_bound_and_says_so(contents, usage, place):
    events = stream_of(contents, usage, place)
    final = len(contents) + (place == "own chunk")  # how many events have to pass before the figures are final
    for passed in range(len(events) + 1):
        reader = StreamReader(WIDE, drop_usage_chunk=False)
        for event in events[:passed]:
            reader.feed(event)
        seen = reader.usage(0)
        assert seen.estimated is (passed < final)
        assert seen.input_total <= usage.input_total
        assert reader.is_finished is (passed == len(events))
        if passed >= final:
            assert seen == usage


@given(st.lists(st.binary(max_size=30), max_size=8), st.booleans(), st.integers(0, 50))
def test_garbage_passes_unharmed_and_is_estimated(pieces, drop, max_bytes):
    forwarded, usage = read(pieces, drop=drop, max_bytes=max_bytes)
    assert forwarded == b"".join(pieces)
    assert usage.estimated
    assert usage.input_total == ESTIMATE


WILD = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**65), 2**65), st.floats(), st.text(max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["prompt_tokens", "completion_tokens", "total_tokens", "finish_reason", "cached_tokens"]),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=8,
)


@given(st.lists(st.fixed_dictionaries({"usage": WILD, "choices": WILD, "error": WILD}), max_size=4), st.booleans())
def test_nonsense_in_the_right_places_never_raises_and_stays_countable(chunks, drop):
    events = [b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks]
    forwarded, usage = read(events, drop=drop)
    kept = sse.events(forwarded)
    assert all(event in events for event in kept)
    assert drop or kept == events
    assert 0 <= usage.input_total + usage.output <= 2**53
    assert min(usage.input_uncached, usage.cache_read, usage.cache_write, usage.output, usage.reasoning) >= 0


def test_an_event_beyond_the_bound_passes_and_leaves_an_estimate():
    events = stream_of(["a", "b" * 500, "c"], Usage(10, output=20))
    stream = b"".join(events)
    for drop in (False, True):
        forwarded, usage = read([stream[at : at + 7] for at in range(0, len(stream), 7)], drop=drop, max_bytes=200)
        assert forwarded == stream
        assert usage.estimated
        assert usage.input_total == ESTIMATE


def test_beyond_the_bound_nothing_is_taken_out_any_more():
    usage_chunk, _ = stream_of(["x"], Usage(10, output=20))[-2:]
    reader = StreamReader(100, drop_usage_chunk=True)
    assert reader.feed(b"data: " + b"x" * 200) == b"data: " + b"x" * 200
    assert reader.feed(b"\n\n" + usage_chunk) == b"\n\n" + usage_chunk
    assert reader.feed(usage_chunk) == usage_chunk
    assert reader.end() == b""
    assert reader.usage(ESTIMATE).estimated


@pytest.mark.parametrize(("letters", "tokens"), [(1, 50), (10_000, (50 * 10_046 - 50 * 330) // 4)])
def test_an_estimate_counts_events_and_what_they_hold(letters, tokens):
    event = b'data: {"choices":[{"delta":{"content":"' + b"x" * letters + b'"}}]}\n\n'
    reader = StreamReader(WIDE, drop_usage_chunk=False)
    for _ in range(50):
        reader.feed(event)
    assert len(event) == letters + 46
    assert reader.usage(ESTIMATE) == Usage(ESTIMATE, output=tokens, estimated=True)


def test_other_chunks_without_choices_stay():
    first = b'data: {"choices":[],"prompt_filter_results":[{}],"usage":null}\n\n'
    moderation = b'data: {"choices":[],"moderation":{}}\n\n'
    events = stream_of(["x"], Usage(3, output=4))
    stream = b"".join([b": PROCESSING\n\n", first, *events[:-1], moderation, events[-1]])
    forwarded, usage = read([stream], drop=True)
    assert forwarded == stream.replace(events[-2], b"")
    assert usage == Usage(3, output=4)


@pytest.mark.parametrize("choices", [{}, {"choices": None}, {"choices": [{"delta": {}}]}])
def test_usage_is_taken_out_only_with_a_chunk_that_says_nothing_else(choices):
    event = b"data: " + json.dumps({**choices, "usage": figures(Usage(3, output=4))}).encode() + b"\n\n"
    assert read([event, b"data: [DONE]\n\n"], drop=True) == (event + b"data: [DONE]\n\n", Usage(3, output=4))


def test_the_last_event_counts_although_nothing_ends_it():
    events = stream_of(["x"], Usage(3, output=4))[:-1]
    stream = b"".join(events).removesuffix(b"\n\n")
    assert read([stream]) == (stream, Usage(3, output=4))
    assert read([stream], drop=True) == (events[0], Usage(3, output=4))


def test_growing_figures_are_final_only_where_the_answer_said_that_it_ended():
    events = stream_of(["a", "b", "c"], Usage(9, output=5), "every chunk")
    unfinished = [event.replace(b'"stop"', b"null") for event in events[:-1]]
    assert read(unfinished) == (b"".join(unfinished), Usage(9, output=5, estimated=True))
    assert read([*unfinished, events[-1]])[1] == Usage(9, output=5)
    assert read(events[:-1])[1] == Usage(9, output=5)


@pytest.mark.parametrize(
    "done",
    [b"data: [DONE]\n\n", b"data:[DONE]\r\n\r\n", b"data: [DONE] \n\n", b"id: 1\ndata: [DONE]\n\n", b"data: [DONE]"],
)
@pytest.mark.parametrize("drop", [False, True])
def test_the_last_word_ends_a_stream_however_it_is_written(done, drop):
    events = [each.replace(b'"stop"', b"null") for each in stream_of(["a"], Usage(9, output=5), "every chunk")]
    reader = StreamReader(WIDE, drop_usage_chunk=drop)
    forwarded = b"".join(map(reader.feed, [events[0], done])) + reader.end()
    assert forwarded == events[0] + done
    assert reader.is_finished
    assert reader.usage(ESTIMATE) == Usage(9, output=5)


@pytest.mark.parametrize(
    "other", [b"event: [DONE]\n\n", b": [DONE]\n\n", b"data: [DONE]x\n\n", b'data: {"choices":[],"x":"[DONE]"}\n\n']
)
def test_what_only_looks_like_the_last_word_is_none(other):
    reader = StreamReader(WIDE, drop_usage_chunk=False)
    reader.feed(stream_of(["a"], Usage(9, output=5), "every chunk")[0].replace(b'"stop"', b"null") + other)
    assert not reader.is_finished
    assert reader.usage(ESTIMATE).estimated


def test_the_last_word_alone_makes_no_figures():
    reader = StreamReader(WIDE, drop_usage_chunk=False)
    reader.feed(b"data: [DONE]\n\n")
    assert reader.is_finished
    assert reader.usage(ESTIMATE) == Usage(ESTIMATE, estimated=True)


HONEST = st.lists(st.tuples(st.integers(1, 200), st.booleans()), min_size=1, max_size=12)


def honest_stream(deltas, *, is_growing):
    """A stream that tells the truth, four letters to a token; some of its chunks carry far more than output."""
    for number, (tokens, with_logprobs) in enumerate(deltas, 1):
        choice = {"index": 0, "delta": {"content": "word" * tokens}, "finish_reason": None}
        if with_logprobs:
            choice["logprobs"] = {"content": [{"token": "word", "top_logprobs": [{"token": "x" * 40}] * 20}] * tokens}
        chunk = {"id": "chatcmpl-" + "x" * 24, "object": "chat.completion.chunk", "created": 1, "choices": [choice]}
        if is_growing:
            chunk["usage"] = figures(Usage(9, output=sum(each for each, _ in deltas[:number])))
            chunk["sources"] = ["https://example.com/"] * 200
        yield b"data: " + json.dumps(chunk).encode() + b"\n\n"


@given(HONEST, st.booleans())
def test_an_estimate_of_output_never_exceeds_what_the_provider_would_have_billed(deltas, is_growing):
    reader = StreamReader(WIDE, drop_usage_chunk=False)
    for number, event in enumerate(honest_stream(deltas, is_growing=is_growing), 1):
        reader.feed(event)
        seen = reader.usage(ESTIMATE)
        so_far = sum(tokens for tokens, _ in deltas[:number])
        assert seen.estimated
        assert seen.input_total == (9 if is_growing else ESTIMATE)
        assert (so_far if is_growing else number) <= seen.output <= so_far


@pytest.mark.parametrize("member", ["content", "reasoning_content", "reasoning"])
def test_thinking_is_output_as_well(member):
    event = b"data: " + json.dumps({"choices": [{"delta": {"role": "assistant", member: "hm"}}]}).encode() + b"\n\n"
    empty = event.replace(b'"hm"', b'""')
    null = event.replace(b'"hm"', b"null")
    assert read([event, empty, null, event])[1] == Usage(ESTIMATE, output=2, estimated=True)


@pytest.mark.parametrize(
    "choice", [{"text": "x"}, {"delta": {"tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}}]
)
def test_older_completions_and_calls_of_tools_are_output_as_well(choice):
    event = b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"
    assert read([event] * 3)[1] == Usage(ESTIMATE, output=3, estimated=True)


@pytest.mark.parametrize("error", [{"message": "overloaded"}, "overloaded"])
def test_figures_beside_an_error_in_the_stream_are_flagged(error):
    events = stream_of(["a"], Usage(9, output=5))
    broken = b"data: " + json.dumps({"error": error}).encode() + b"\n\n"
    forwarded, usage = read([*events[:-1], broken])
    assert forwarded == b"".join([*events[:-1], broken])
    assert usage.estimated
    assert (usage.input_total, usage.output >= 5) == (9, True)


def test_a_piece_is_not_copied_where_nothing_is_taken_out():
    piece = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n'
    assert StreamReader(WIDE, drop_usage_chunk=False).feed(piece) is piece
    assert StreamReader(WIDE, drop_usage_chunk=True).feed(piece) is piece


def test_a_stream_says_who_served_it_and_what_that_cost():
    chunk = b'data: {"model":"served-1","choices":[],"usage":{"prompt_tokens":3,"total_tokens":3,"cost":0.5}}\n\n'
    assert read([chunk])[1] == Usage(3, model="served-1", cost_nanos=500_000_000)


# --- readers


@given(USAGES, CUTS, st.text("\n\r \t", max_size=5))
def test_a_single_answer_is_read_wherever_it_was_cut(usage, cuts, lead):
    answer = lead.encode() + json.dumps({"choices": [{"message": {"content": "x"}}], "usage": figures(usage)}).encode()
    reader = CHAT.reader(chat_facts(body_of()), "application/json", ask_for_usage=False, max_bytes=WIDE)
    assert b"".join(reader.feed(piece) for piece in cut(answer, cuts)) + reader.end() == answer
    assert reader.usage(ESTIMATE) == usage
    assert not reader.is_finished


def test_a_single_answer_without_usage_is_estimated_up_to_the_declared_maximum():
    for fields, output in (({}, 100), ({"max_tokens": 30}, 30)):
        reader = CHAT.reader(chat_facts(body_of(**fields)), "application/json", ask_for_usage=False, max_bytes=WIDE)
        reader.feed(b'"' + b"x" * 398 + b'"')
        assert reader.usage(ESTIMATE) == Usage(ESTIMATE, output=output, estimated=True)


@pytest.mark.parametrize("endpoint", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("content_type", "kind"),
    [("text/event-stream", StreamReader), ("application/json", ObjectReader), ("", ObjectReader)],
)
def test_the_reader_fits_what_came_and_not_what_was_asked_for(endpoint, stream, content_type, kind):
    facts = facts_of(endpoint, body_of(stream=stream))
    assert isinstance(endpoint.reader(facts, content_type, ask_for_usage=False, max_bytes=1), kind)


def test_the_usage_chunk_is_taken_out_only_where_we_asked_for_it():
    events = stream_of(["x"], Usage(3, output=4))
    for ask, kept in ((True, [events[0], events[2]]), (False, events)):
        reader = CHAT.reader(chat_facts(body_of()), "text/event-stream", ask_for_usage=ask, max_bytes=WIDE)
        assert reader.feed(b"".join(events)) == b"".join(kept)
        assert reader.usage(ESTIMATE) == Usage(3, output=4)


# --- a lower maximum


@pytest.mark.parametrize(
    ("fields", "tokens", "changed"),
    [
        ({}, 40, {"max_completion_tokens": 40}),
        ({"max_tokens": None}, 40, {"max_completion_tokens": 40}),
        ({"max_tokens": 100}, 40, {"max_tokens": 40}),
        ({"max_tokens": 0}, 40, {"max_tokens": 40}),
        ({"max_completion_tokens": 100}, 40, {"max_completion_tokens": 40}),
        ({"max_completion_tokens": 100, "max_tokens": 90}, 40, {"max_completion_tokens": 40, "max_tokens": 40}),
        ({"max_completion_tokens": 100, "max_tokens": 30}, 40, {"max_completion_tokens": 40}),
        ({"max_tokens": 100, "n": 3}, 50, {"max_tokens": 16}),
        ({"n": 3}, 48, {"max_completion_tokens": 16}),
    ],
)
def test_a_lower_maximum_is_put_where_the_request_has_one(fields, tokens, changed):
    body = body_of(**fields)
    sent = CHAT.with_output_max(body, chat_facts(body), tokens)
    assert json.loads(sent) == {**json.loads(body), **changed}
    assert (chat_facts(sent).output_max or 0) <= tokens


def test_a_text_to_complete_has_one_name_for_it_and_all_its_tries_share():
    body = text_body(prompt=["x", "y"], best_of=3)
    sent = COMPLETIONS.with_output_max(body, facts_of(COMPLETIONS, body), 47)
    assert json.loads(sent) == {**json.loads(body), "max_tokens": 7}
    assert facts_of(COMPLETIONS, sent).output_max == 42


def test_where_both_names_are_declared_the_larger_is_the_bound():
    assert chat_facts(body_of(max_completion_tokens=10, max_tokens=30)).output_max == 30


def test_no_maximum_is_lowered_to_the_budget_of_reasoning():
    assert chat_facts(body_of(max_tokens=900, reasoning={"max_tokens": 512})).least_output == 513
    assert chat_facts(body_of(max_tokens=900, n=2)).least_output == 2


def test_numbers_beyond_measure_are_no_more_than_can_be_counted():
    assert chat_facts(body_of(max_tokens=2**53, n=2**53)).output_max == MAX_COUNT
