import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgeproxy.domain.features import Feature
from edgeproxy.domain.usage import Usage
from edgeproxy.errors import INVALID_FIELD, GatewayError
from edgeproxy.providers import openai_responses, sse
from edgeproxy.providers.base import Incoming
from edgeproxy.providers.fields import MAX_COUNT
from edgeproxy.providers.openai import OpenAI

ANSWERS = Path(__file__).parents[2] / "fixtures" / "answers"
RESPONSES = OpenAI().find("/v1/responses").endpoint
COMPACT = OpenAI().find("/v1/responses/compact").endpoint
INPUT_TOKENS = OpenAI().find("/v1/responses/input_tokens").endpoint
ESTIMATE = 77  # of the input, where the provider's figures are not known
FIGURES = st.integers(0, MAX_COUNT)
NAMES = st.sampled_from(
    [
        *("type", "action", "model", "image_gen", "web_search", "num_requests", "server_side_tool_usage_details"),
        *("input_tokens", "output_tokens", "input_tokens_details", "cached_tokens", "web_search_calls", "cost"),
    ]
)
WORDS = st.sampled_from(["web_search_call", "image_generation", "search", "gpt-mock", ""])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=5),
    max_leaves=8,
)


def request(endpoint=RESPONSES, /, **fields):
    body = json.dumps({"model": "gpt-mock", "input": "Hi", **fields}).encode()
    return endpoint.read_request(Incoming("POST", body, len(body)))


def usage_of(total, output, *, cached=0, written=0, reasoning=0, **more):
    details = {"cached_tokens": cached, "cache_write_tokens": written}
    return {
        "input_tokens": total,
        "input_tokens_details": details,
        "output_tokens": output,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": total + output,
        **more,
    }


def answer(usage, **more):
    return {"object": "response", "status": "completed", "model": "gpt-mock", "output": [], "usage": usage, **more}


def event(kind, /, *, named=True, **fields):
    data = b"data: " + orjson.dumps({"type": kind, **fields}) + b"\n\n"
    return b"event: " + kind.encode() + b"\n" + data if named else data


def delta(text, **more):
    return event("response.output_text.delta", item_id="msg_" + "0" * 50, delta=text, **{"logprobs": [], **more})


def stream_reader(max_bytes=2**20, facts=None):
    facts = facts or request(stream=True)
    return RESPONSES.reader(facts, "text/event-stream", ask_for_usage=True, max_bytes=max_bytes)


def read(*events, **bounds):
    """The usage of a stream that ends in order."""
    reader = stream_reader(**bounds)
    assert b"".join(map(reader.feed, events)) + reader.end() == b"".join(events)
    return reader.usage(ESTIMATE)


def read_object(value, **fields):
    return read_object_text(orjson.dumps(value), **fields)


def read_object_text(body, **fields):
    facts = replace(request(**fields), input_estimate=ESTIMATE)
    reader = RESPONSES.reader(facts, "application/json", ask_for_usage=False, max_bytes=2**20)
    reader.feed(body)
    reader.end()
    return reader.usage(ESTIMATE)


# --- requests


def test_a_plain_request_is_understood():
    facts = request()
    assert (facts.model, facts.stream, facts.output_max, facts.features) == ("gpt-mock", False, None, ())
    assert (facts.usage_requested, facts.is_free, facts.long_cache) == (True, False, False)
    assert 5 < facts.input_estimate < 30


def test_what_bounds_the_cost_is_read():
    facts = request(stream=True, max_output_tokens=500, prompt_cache_options={"ttl": "12h"}, tools=[{"type": "mcp"}])
    assert (facts.stream, facts.output_max, facts.long_cache) == (True, 500, True)
    assert not request(prompt_cache_options={"ttl": "30m"}).long_cache


@pytest.mark.parametrize(
    ("fields", "features"),
    [
        ({"background": True}, (Feature.BACKGROUND,)),
        ({"background": False, "previous_response_id": None, "conversation": None, "prompt": None}, ()),
        ({"previous_response_id": "resp_1"}, (Feature.STORED_CONTEXT,)),
        ({"conversation": {"id": "conv_1"}}, (Feature.STORED_CONTEXT,)),
        ({"prompt": {"id": "pmpt_1"}}, (Feature.STORED_CONTEXT,)),
        ({"background": True, "conversation": "conv_1"}, (Feature.BACKGROUND, Feature.STORED_CONTEXT)),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, (Feature.STORED_CONTEXT,)),
        ({"input": [{"role": "user", "content": "Hi"}, {"id": "msg_1"}]}, (Feature.STORED_CONTEXT,)),
        ({"input": [{"id": "msg_1", "type": None}]}, (Feature.STORED_CONTEXT,)),
        ({"input": [{"id": "msg_1", "role": "assistant", "content": "Hi"}, {"id": "rs_1", "type": "reasoning"}]}, ()),
    ],
)
def test_trap_4_and_15_what_hides_its_bill_is_named(fields, features):
    for endpoint in (RESPONSES, COMPACT):
        assert request(endpoint, **fields).features == features


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"model": None, "prompt": {"id": "pmpt_1"}}, "model"),
        ({"model": 3}, "model"),
        ({"stream": "yes"}, "stream"),
        ({"background": 1}, "background"),
        ({"max_output_tokens": -1}, "max_output_tokens"),
    ],
)
def test_a_field_of_the_wrong_kind_is_refused_by_name(fields, named):
    with pytest.raises(GatewayError) as raised:
        request(**fields)
    assert raised.value.kind is INVALID_FIELD
    assert f"'{named}'" in raised.value.message


@pytest.mark.parametrize("member", openai_responses._MEMBERS)
def test_a_field_that_decides_the_cost_may_not_stand_twice(member):
    body = b'{"model": "m", "input": "Hi", "%b": null, "%b": null}' % (member.encode(), member.encode())
    with pytest.raises(GatewayError, match="invalid_field"):
        RESPONSES.read_request(Incoming("POST", body, len(body)))


def test_counting_input_is_free_and_compaction_is_not():
    facts = request(INPUT_TOKENS)
    assert (facts.is_free, facts.input_estimate, facts.output_max, facts.model) == (True, 0, 0, "gpt-mock")
    assert not request(COMPACT).is_free
    reader = COMPACT.reader(request(COMPACT), "application/json", ask_for_usage=False, max_bytes=2**20)
    reader.feed((ANSWERS / "openai-responses-compact.json").read_bytes())
    assert reader.usage(ESTIMATE) == Usage(1952, 7168, 0, 402, 310)


def test_another_name_of_the_model_is_spliced_in():
    body = b'{"input": "model", "model":"gpt-mock"}'
    facts = RESPONSES.read_request(Incoming("POST", body, len(body)))
    sent = RESPONSES.outgoing_body(body, facts, "gpt-real", ask_for_usage=True)
    assert sent == b'{"input": "model", "model":"gpt-real"}'


# --- figures


def test_cached_and_written_tokens_are_a_part_of_the_input():
    usage = openai_responses.read_usage(usage_of(5000, 12, cached=1024, written=3072, reasoning=5))
    assert usage == Usage(904, 1024, 3072, 12, 5)


def test_what_is_kept_for_long_is_told_or_taken_from_the_request():
    value = usage_of(5000, 12, written=3072)
    assert openai_responses.read_usage(value, long_cache=True).cache_write_1h == 3072
    value["input_tokens_details"]["cache_write_tokens_details"] = {"ttl_30m_tokens": 1024, "ttl_12h_tokens": 2048}
    for long_cache in (True, False):
        assert openai_responses.read_usage(value, long_cache=long_cache).cache_write_1h == 2048
    value["input_tokens_details"]["cache_write_tokens_details"] = {"ttl_12h_tokens": 9999}
    assert openai_responses.read_usage(value).cache_write_1h == 3072
    facts = {"prompt_cache_options": {"ttl": "12h"}}
    assert read_object(answer(usage_of(100, 1, written=50)), **facts).cache_write_1h == 50


def test_trap_6_more_cached_tokens_than_there_are_give_no_credit():
    assert openai_responses.read_usage(usage_of(7, 1, cached=161, written=9)) == Usage(0, 7, 0, 1)


def test_trap_5_reasoning_that_was_left_out_of_the_output_is_in_the_total():
    value = usage_of(12, 2, reasoning=320) | {"total_tokens": 334}
    assert openai_responses.read_usage(value) == Usage(12, output=322, reasoning=320)
    assert openai_responses.read_usage(usage_of(12, 322, reasoning=320)) == Usage(12, output=322, reasoning=320)


@given(value=JSON, member=st.sampled_from(["usage", "tool_usage", "output", "tools", "model"]))
def test_no_answer_makes_a_reader_fail(value, member):
    whole = answer(usage_of(3, 1)) | {member: value}
    for usage in (read_object(whole), read(delta("a"), event("response.completed", response=whole))):
        assert usage.input_total + usage.output < 2**53


@given(figures=st.lists(FIGURES, min_size=8, max_size=8))
@example(figures=[MAX_COUNT] * 8)
def test_no_figures_add_up_to_more_than_can_be_counted(figures):
    total, output, cached, written, drawn, shown, kept, all_tokens = figures
    value = answer(
        usage_of(total, output, cached=cached, written=written) | {"total_tokens": all_tokens},
        tool_usage={"image_gen": usage_of(drawn, shown) | {"cached_tokens": kept}},
    )
    usage = read_object(value)
    assert usage.input_total + usage.output < 2**53
    assert min(usage.input_uncached, usage.cache_read, usage.cache_write, usage.output) >= 0
    assert usage.cache_write_1h <= usage.cache_write


def test_a_response_without_usage_is_estimated_by_its_output():
    failed = answer(None, status="failed", instructions="x" * 9000, tools=[{"type": "function"}] * 99)
    assert read_object(failed) == Usage(ESTIMATE, estimated=True)
    failed["output"] = [{"type": "message", "content": "x" * 400}, search({"type": "search"})]
    usage = read_object(failed)
    assert (usage.estimated, usage.tool_calls) == (True, (("web_search", 1),))
    assert 100 < usage.output < 150
    assert read_object(failed, max_output_tokens=50).output == 50
    failed["output"] = [{"type": "image_generation_call", "result": "A" * 9000}, "DEEP"]
    assert read_object_text(orjson.dumps(failed).replace(b'"DEEP"', b"[" * 900 + b"]" * 900)).output == 0


# --- tools of the provider


def search(action):
    return {"type": "web_search_call", "action": action}


def test_calls_of_tools_are_counted_in_the_output_where_nothing_tells_them():
    output = [
        search({"type": "search", "query": "x"}),
        search({"type": "open_page"}),
        search(None),
        {"type": "file_search_call"},
        {"type": "code_interpreter_call"},
        {"type": "code_interpreter_call"},
        {"type": "image_generation_call"},
        {"type": "function_call"},
        {"type": ["web_search_call"]},
        7,
    ]
    calls = {"web_search": 2, "file_search": 1, "code_interpreter": 2, "image_generation": 1}
    assert read_object(answer(usage_of(3, 1), output=output)).tool_calls == tuple(sorted(calls.items()))


def test_searches_that_are_told_are_those_that_are_billed():
    whole = answer(usage_of(3, 1), output=[search({"type": "search"})] * 3, tool_usage={"web_search": {}})
    assert read_object(whole).tool_calls == ()
    whole["tool_usage"] = {"web_search": {"num_requests": 2}, "image_gen": {"input_tokens": 0, "output_tokens": 0}}
    assert read_object(whole).tool_calls == (("web_search", 2),)


def test_xai_tells_all_calls_and_what_it_charged():
    details = {"web_search_calls": 1, "x_search_calls": 2, "mcp_calls": 5, "code_interpreter_calls": 0}
    usage = usage_of(10, 20, reasoning=15, server_side_tool_usage_details=details, cost_in_usd_ticks=11)
    read_back = read_object(answer(usage, output=[search({"type": "search"})] * 9))
    assert read_back.tool_calls == (("web_search", 1), ("x_search", 2))
    assert (read_back.cost_nanos, read_back.output) == (2, 20)


def test_a_generated_image_is_billed_once_at_the_model_that_drew_it():
    body = (ANSWERS / "openai-responses-unary-image-tool.json").read_bytes()
    usage = read_object(orjson.loads(body))
    text = Usage(2300, output=40, reasoning=20, model="gpt-mock")
    image = Usage(50, output=1056, model="gpt-image-mock")
    assert usage == replace(text, input_uncached=2350, output=1096, parts=(text, image))


def test_an_image_of_which_no_model_is_told_is_a_part_all_the_same():
    whole = answer(usage_of(3, 1), tool_usage={"image_gen": usage_of(20, 9) | {"cached_tokens": 5}}, tools=[None, {}])
    usage = read_object(whole)
    assert usage.parts[1] == Usage(15, 5, 0, 9)
    assert (usage.input_uncached, usage.cache_read, usage.output) == (18, 5, 10)


def test_trap_10_the_model_is_the_one_that_served():
    assert read_object(answer(usage_of(3, 1), model="deepseek-v4-flash")).model == "deepseek-v4-flash"
    assert read_object(answer(usage_of(3, 1), model="no name\n")).model == ""


# --- streams


@pytest.mark.parametrize("status", ["completed", "incomplete", "failed"])
@pytest.mark.parametrize("named", [True, False])
def test_trap_11_usage_is_read_however_a_response_ends(status, named):
    end = event(f"response.{status}", named=named, response=answer(usage_of(30, 64), status=status))
    assert read(delta("a"), end) == Usage(30, output=64, model="gpt-mock")


def test_the_end_of_the_response_is_the_last_word():
    reader = stream_reader()
    reader.feed(event("response.created", response=answer(None)) + delta("a"))
    assert not reader.is_finished
    reader.feed(event("response.completed", response=answer(usage_of(3, 1))))
    assert reader.is_finished
    assert not reader.usage(ESTIMATE).estimated


def test_what_a_response_repeats_at_its_start_is_no_output():
    echo = {"usage": {"input_tokens": 9, "output_tokens": 9}, "delta": "x" * 5000, "type": "response.completed"}
    begun = answer(None, status="in_progress", instructions=[echo], tools=[echo])
    usage = read(event("response.created", response=begun), event("response.in_progress", response=begun))
    assert usage == Usage(ESTIMATE, estimated=True)


@pytest.mark.parametrize(
    "error",
    [
        event("error", error={"type": "server_error", "message": "x"}),
        event("error", code="server_error", message="x", param=None),
        b'data: {"error": {"message": "x"}}\n\n',
        b'data: {"error":"x"}\n\n',
    ],
)
def test_trap_19_an_error_makes_the_figures_incomplete(error):
    failed = event("response.failed", response=answer(None, status="failed", error={"code": "x"}))
    for events in ([error], [error, failed], [failed]):
        assert read(delta("a"), delta("b"), *events) == Usage(ESTIMATE, output=2, estimated=True)
    assert read(error, event("response.completed", response=answer(usage_of(3, 1)))).estimated


def test_a_stream_that_breaks_off_gives_a_lower_bound():
    events = [delta("four"), delta(" times" * 100), event("response.audio.delta", delta="U" * 9000)]
    events.append(event("response.shell_call_output_content.delta", delta={"stdout": "x" * 9000}))
    usage = read(*events)
    assert usage.estimated
    assert usage.input_uncached == ESTIMATE
    assert 50 <= usage.output <= 151


def test_log_probabilities_are_no_output():
    likely = [{"token": "a", "logprob": -0.1, "top_logprobs": [{"token": "b" * 40, "logprob": -9.0}] * 20}]
    assert read(*[delta("a", logprobs=likely)] * 3).output == 3


def test_tools_that_were_called_before_a_stream_broke_off_are_billed():
    items = [search({"type": "search"}), search({"type": "open_page"}), {"type": "code_interpreter_call"}]
    events = [event("response.output_item.added", item=item) for item in items]
    events += [event("response.output_item.done", item=item) for item in [*items, {"type": "message"}, None]]
    assert read(*events).tool_calls == (("code_interpreter", 1), ("web_search", 1))
    whole = answer(usage_of(3, 1), tool_usage={"web_search": {"num_requests": 1}})
    end = event("response.completed", response=whole)
    for ending in ([end], [event("error", code="x"), end]):
        assert read(*events, *ending).tool_calls == (("web_search", 1),)


def test_a_large_end_is_read_and_one_that_is_too_large_ends_in_an_estimate():
    end = event("response.completed", response=answer(usage_of(3, 1), output=["x" * 150_000]))
    assert not read(*[end[at : at + 999] for at in range(0, len(end), 999)]).estimated
    assert read(*[end[at : at + 999] for at in range(0, len(end), 999)], max_bytes=100_000).estimated


def test_only_the_end_of_a_stream_is_parsed(monkeypatch):
    parsed = []
    monkeypatch.setattr("edgeproxy.providers.readers.load", lambda raw: parsed.append(raw) or orjson.loads(raw))
    for each in sse.events((ANSWERS / "openai-responses-stream-incomplete.sse").read_bytes()):
        stream_reader().feed(each)
    assert len(parsed) == 1


STREAMS = {
    "openai-responses-stream-completed.sse": Usage(266, 1024, 0, 211, 150, model="gpt-mock-2026-10-01"),
    "openai-responses-stream-incomplete.sse": Usage(31, 0, 0, 64, 40, model="gpt-mock"),
    "openai-responses-stream-failed.sse": Usage(ESTIMATE, output=3, estimated=True),
    "openai-responses-stream-web-search.sse": Usage(
        10058, 8192, 0, 96, 61, tool_calls=(("file_search", 1), ("web_search", 2)), model="gpt-mock"
    ),
    "xai-responses-stream-cost.sse": Usage(
        242,
        3968,
        0,
        188,
        170,
        tool_calls=(("web_search", 1), ("x_search", 2)),
        model="grok-mock",
        cost_nanos=16_566_101,
    ),
}


@pytest.mark.parametrize("name", STREAMS)
@given(cuts=st.lists(st.integers(0, 8000), max_size=8))
def test_a_stream_is_counted_wherever_it_is_cut(name, cuts):
    body = (ANSWERS / name).read_bytes()
    at = sorted({0, len(body), *(each % len(body) for each in cuts)})
    assert read(*[body[start:end] for start, end in pairwise(at)]) == STREAMS[name]


@given(garbage=st.binary(max_size=200), cuts=st.lists(st.integers(0, 500), max_size=5))
@example(garbage=b'data: {"type": "response.completed", "response": [1]}\n\n', cuts=[])
@example(garbage=b'data: {"type": "response.output_item.done", "item": {"type": "web_search_call"', cuts=[9])
def test_garbage_is_forwarded_and_counted_as_incomplete(garbage, cuts):
    body = delta("a") + garbage
    at = sorted({0, len(body), *(each % len(body) for each in cuts)})
    assert read(*[body[start:end] for start, end in pairwise(at)]).estimated


# --- a lower maximum


def test_a_lower_maximum_is_put_in_place_of_the_declared_one_or_of_none():
    for fields in ({}, {"max_output_tokens": 900}, {"max_output_tokens": None}):
        body = json.dumps({"model": "gpt-mock", "input": "Hi", **fields}).encode()
        sent = RESPONSES.with_output_max(body, request(**fields), 40)
        assert json.loads(sent) == {**json.loads(body), "max_output_tokens": 40}


def test_the_provider_takes_no_maximum_below_sixteen():
    assert request().least_output == 16


def test_what_has_no_maximum_to_lower_says_so():
    assert request(COMPACT).least_output is None
    assert request(INPUT_TOKENS).least_output is None
