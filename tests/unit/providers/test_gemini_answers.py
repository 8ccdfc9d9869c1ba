import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeproxy.domain.usage import Usage
from edgeproxy.providers.fields import MAX_COUNT
from edgeproxy.providers.gemini_answers import ArrayReader, ObjectSplitter, StreamReader, read_answer, read_usage

WIDE = 1 << 20
ESTIMATE = 77  # of the input, where the provider's figures are not known
MODEL = "gemini-mock"

# Content that looks like what the readers are after.
CONTENTS = st.lists(
    st.one_of(
        st.sampled_from(
            ['"usageMetadata": {"promptTokenCount": 9}', "]", "}\n,\r\n{", "\\", '\\"', "data: {\r\n\r\n", "😀\u2028"]
        ),
        st.text(max_size=20),
    ),
    min_size=1,
    max_size=6,
)
FIGURES = st.integers(0, 1_000_000)
CUTS = st.lists(st.integers(0, 10_000), max_size=12)
LAYOUTS = st.sampled_from([(2, "\n,\r\n"), (None, ","), (None, "\r\n,\r\n"), (4, " ,\n")])
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)
NAMES = st.sampled_from(
    (
        *("candidates", "content", "parts", "text", "index", "finishReason", "usageMetadata", "promptTokenCount"),
        *("groundingMetadata", "webSearchQueries", "modelVersion", "promptFeedback", "blockReason", "error"),
        *("candidatesTokenCount", "thoughtsTokenCount", "totalTokenCount"),
    )
)
ALMOST = st.recursive(
    JSON,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=4)),
    max_leaves=12,
)


def figures(prompt, candidates=0, thoughts=0, tools=0, cached=0):
    """Google's words for a usage: what is zero is not there."""
    counts = {
        "promptTokenCount": prompt,
        "candidatesTokenCount": candidates,
        "thoughtsTokenCount": thoughts,
        "toolUsePromptTokenCount": tools,
        "cachedContentTokenCount": cached,
        "totalTokenCount": prompt + candidates + thoughts + tools,
    }
    return {name: number for name, number in counts.items() if number or name == "promptTokenCount"}


def candidate(*parts, stop=None, index=0, **more):
    rows = [{"text": part} if isinstance(part, str) else part for part in parts]
    reason = {"finishReason": stop} if stop else {}
    return {"content": {"parts": rows, "role": "model"}, **reason, "index": index, **more}


def answer(*candidates, usage=None, **more):
    metadata = {} if usage is None else {"usageMetadata": usage}
    return {"candidates": list(candidates), **metadata, "modelVersion": MODEL, **more}


def events_of(rows, newline="\r\n"):
    texts = (json.dumps(row, ensure_ascii=False, separators=(",", ": ")) for row in rows)
    return [f"data: {text}{newline}{newline}".encode() for text in texts]


def array_of(rows, layout=(2, "\n,\r\n")):
    indent, comma = layout
    return f"[{comma.join(json.dumps(row, ensure_ascii=False, indent=indent) for row in rows)}\n]".encode()


def cut(stream, cuts):
    at = sorted({0, len(stream), *(each % (len(stream) + 1) for each in cuts)})
    return [stream[start:end] for start, end in pairwise(at)]


def read(pieces, kind=StreamReader, *, max_bytes=WIDE):
    """The usage of a stream that ends in order, after all of it was forwarded."""
    reader = kind(max_bytes)
    assert b"".join(reader.feed(piece) for piece in pieces) + reader.end() == b"".join(pieces)
    return reader.usage(ESTIMATE)


def usage_of(rows):
    """The usage of a stream in either form, which is the same."""
    usage = read(events_of(rows))
    assert read([array_of(rows)], ArrayReader) == usage
    return usage


# --- the figures of one object


def test_thoughts_are_output_and_what_tools_read_is_input_beside_the_prompt():
    usage = read_usage(figures(147, candidates=108, thoughts=168, tools=360, cached=40))
    assert usage == Usage(input_uncached=467, cache_read=40, output=276, reasoning=168)
    assert usage.input_total + usage.output == 147 + 108 + 168 + 360


def test_an_answer_of_nothing_but_thoughts_has_no_candidates_and_is_no_less_output():
    metadata = {"promptTokenCount": 15, "thoughtsTokenCount": 2, "totalTokenCount": 17}
    assert read_usage(metadata) == Usage(input_uncached=15, output=2, reasoning=2)


def test_more_cached_tokens_than_there_are_credit_nothing():
    assert read_usage(figures(7, candidates=3, cached=161)) == Usage(cache_read=7, output=3)


def test_the_total_tells_what_another_figure_leaves_out():
    metadata = {"promptTokenCount": 35, "candidatesTokenCount": 12, "totalTokenCount": 109}
    assert read_usage(metadata) == Usage(input_uncached=35, output=74)
    assert read_usage({**metadata, "totalTokenCount": 1}) == Usage(input_uncached=35, output=12)


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        "promptTokenCount",
        {},
        {"trafficType": "ON_DEMAND"},
        {"candidatesTokenCount": 5, "totalTokenCount": 5},
        {"promptTokenCount": None},
        {"promptTokenCount": "12"},
        {"promptTokenCount": -1},
        {"promptTokenCount": True},
        {"promptTokenCount": 1.5},
        {"promptTokenCount": MAX_COUNT + 1},
    ],
)
def test_what_has_no_prompt_is_no_usage(value):
    assert read_usage(value) is None


@given(st.dictionaries(st.sampled_from(list(figures(1, 1, 1, 1, 1))), st.one_of(JSON, st.integers(0, MAX_COUNT))))
def test_whatever_is_reported_stays_within_what_can_be_added_up(metadata):
    usage = read_usage(metadata)
    if usage is not None:
        assert min(usage.input_uncached, usage.cache_read, usage.output, usage.reasoning) >= 0
        assert usage.reasoning <= usage.output
        assert usage.input_total + usage.output < 2**52


# --- a single object


def test_a_single_object_names_its_model_and_its_searches():
    grounded = candidate("x", stop="STOP", groundingMetadata={"webSearchQueries": ["a", "b", "", "a", 1]})
    usage = read_answer(answer(grounded, usage=figures(5, candidates=1)))
    assert usage == Usage(input_uncached=5, output=1, model=MODEL, tool_calls=(("web_search", 2),))


@pytest.mark.parametrize("grounding", [None, [], "a", {"webSearchQueries": None}, {"webSearchQueries": "abc"}, {}])
def test_an_answer_that_searched_nothing_has_no_searches(grounding):
    usage = read_answer(answer(candidate("x", groundingMetadata=grounding), usage=figures(5)))
    assert usage is not None
    assert usage.tool_calls == ()


def test_a_name_that_is_no_models_is_not_kept():
    assert read_answer(answer(usage=figures(5), modelVersion="x" * 65)) == Usage(input_uncached=5)


def test_vectors_have_usage_or_none():
    assert read_answer({"embedding": {"values": [0.1]}, "usageMetadata": figures(9)}) == Usage(input_uncached=9)
    assert read_answer({"embedding": {"values": [0.1]}}) is None


@given(st.dictionaries(NAMES, ALMOST, max_size=5))
def test_an_object_of_any_shape_is_read_or_not_and_nothing_else(value):
    usage = read_answer(value)
    assert usage is None or not usage.estimated


# --- streams


@given(CONTENTS, FIGURES, FIGURES, FIGURES, CUTS, st.sampled_from(["\r\n", "\n"]))
def test_events_are_counted_and_pass_unchanged_wherever_they_are_cut(
    contents, prompt, written, thoughts, cuts, newline
):
    rows = [answer(candidate(text), usage=figures(prompt)) for text in contents]
    rows.append(answer(candidate("", stop="STOP"), usage=figures(prompt, written, thoughts)))
    usage = read(cut(b"".join(events_of(rows, newline)), cuts))
    assert usage == Usage(input_uncached=prompt, output=written + thoughts, reasoning=thoughts, model=MODEL)


@given(CONTENTS, FIGURES, FIGURES, CUTS, LAYOUTS)
def test_an_array_is_counted_and_passes_unchanged_wherever_it_is_cut(contents, prompt, written, cuts, layout):
    rows = [answer(candidate(text), usage=figures(prompt)) for text in contents]
    rows.append(answer(candidate("", stop="STOP"), usage=figures(prompt, written)))
    usage = read(cut(array_of(rows, layout), cuts), ArrayReader)
    assert usage == Usage(input_uncached=prompt, output=written, model=MODEL)


@pytest.mark.parametrize("text", ["\\", '"', '\\"', '\\\\"]}', 'a\\"}]\n', "\\\\\\"])
def test_an_escape_that_is_cut_in_two_is_still_one(text):
    stream = array_of([answer(candidate(text, stop="STOP"), usage=figures(5, 2)), answer(candidate(text))])
    for at in range(len(stream)):
        splitter = ObjectSplitter(WIDE)
        assert len(splitter.feed(stream[:at]) + splitter.feed(stream[at:])) == 2
        assert splitter.is_closed
    splitter = ObjectSplitter(WIDE)
    assert len([each for byte in stream for each in splitter.feed(bytes([byte]))]) == 2


def test_counters_that_start_again_with_each_hop_are_not_added_and_not_compared():
    rows = [
        answer(candidate({"executableCode": {"code": "1"}}), usage=figures(169, 51, 101)),
        answer(candidate({"codeExecutionResult": {"output": "1"}}), usage=figures(46)),
        answer(candidate("one"), usage=figures(46, 57, 67)),
        answer(candidate("", stop="STOP"), usage=figures(79, 20, 10, tools=30)),
    ]
    assert usage_of(rows) == Usage(input_uncached=109, output=30, reasoning=10, model=MODEL)


def test_usage_that_only_names_a_kind_of_traffic_takes_nothing_back():
    traffic = {"trafficType": "ON_DEMAND"}
    rows = [
        answer(candidate("a"), usage=traffic),
        answer(candidate("b", stop="STOP"), usage=figures(5, 2)),
        {"usageMetadata": traffic},
    ]
    assert usage_of(rows) == Usage(input_uncached=5, output=2, model=MODEL)


def test_searches_are_counted_once_over_the_whole_stream():
    rows = [
        answer(candidate("a", groundingMetadata={"webSearchQueries": ["x", "y"]}), usage=figures(5, 1)),
        answer(candidate("b", stop="STOP"), usage=figures(5, 2)),
        answer({"groundingMetadata": {"webSearchQueries": ["y", "z", ""]}}),
    ]
    assert usage_of(rows).tool_calls == (("web_search", 3),)


def test_searches_without_end_stay_bounded():
    many = answer(candidate("a", stop="STOP", groundingMetadata={"webSearchQueries": [str(n) for n in range(5000)]}))
    many["usageMetadata"] = figures(1)
    assert usage_of([many]).tool_calls == (("web_search", 1000),)


def test_the_model_may_be_named_before_the_last_figures():
    first = answer(candidate("a"))
    last = {"candidates": [candidate("", stop="STOP")], "usageMetadata": figures(5, 2)}
    assert usage_of([first, last]).model == MODEL


# --- whether a stream is complete


def test_a_stream_that_gives_no_reason_to_stop_is_not_complete():
    rows = [answer(candidate("a"), usage=figures(5, 2))]
    assert usage_of(rows) == Usage(input_uncached=5, output=2, model=MODEL, estimated=True)
    rows.append(answer(candidate("", stop="FINISH_REASON_UNSPECIFIED"), usage=figures(5, 2)))
    assert usage_of(rows).estimated


@pytest.mark.parametrize("reason", ["STOP", "MAX_TOKENS", "SAFETY", "RECITATION", "MALFORMED_FUNCTION_CALL", "NEW"])
def test_any_reason_to_stop_completes_a_stream(reason):
    assert not usage_of([answer({"finishReason": reason}, usage=figures(5, 2))]).estimated


def test_figures_before_the_reason_to_stop_are_not_the_last_ones():
    rows = [answer(candidate("a"), usage=figures(5, 2)), answer(candidate("b", stop="STOP"))]
    assert usage_of(rows).estimated
    assert not usage_of([*rows, answer(usage=figures(5, 3))]).estimated


def test_content_after_a_reason_to_stop_belies_it_until_there_is_another():
    first = answer(candidate("a", stop="STOP"), usage=figures(5, 2))
    second = answer(candidate("b"), usage=figures(5, 1))
    assert usage_of([first, second]).estimated
    assert not usage_of([first, second, first]).estimated
    assert not usage_of([first, answer(candidate(""), usage=figures(5, 2))]).estimated


@pytest.mark.parametrize("call", ["executableCode", "toolCall"])
def test_a_call_that_the_provider_answers_itself_is_no_end(call):
    first = answer(candidate("a", {call: {}}, "", stop="STOP"), usage=figures(5, 2))
    assert usage_of([first]).estimated
    assert not usage_of([first, answer(candidate("b", stop="STOP"), usage=figures(9, 4))]).estimated


def test_several_candidates_all_have_to_stop():
    first = answer(candidate("a", stop="STOP"), candidate("b", index=1), usage=figures(5, 2))
    second = answer(candidate("c", index=1, stop="MAX_TOKENS"), usage=figures(5, 3))
    assert usage_of([first]).estimated
    assert usage_of([first, second]) == Usage(input_uncached=5, output=3, model=MODEL)


def test_a_blocked_prompt_is_complete_when_it_is_counted():
    blocked = {"promptFeedback": {"blockReason": "SAFETY"}}
    assert usage_of([{**blocked, "usageMetadata": figures(37)}]) == Usage(input_uncached=37)
    assert usage_of([blocked]) == Usage(input_uncached=ESTIMATE, estimated=True)


def test_a_stream_that_breaks_off_is_never_complete():
    rows = [answer(candidate("a" * 80), usage=figures(5)), answer(candidate("b", stop="STOP"), usage=figures(5, 30))]
    stream = b"".join(events_of(rows))
    for at in range(len(stream) + 1):
        reader = StreamReader(WIDE)
        reader.feed(stream[:at])
        usage = reader.usage(ESTIMATE)
        assert usage.estimated
        assert usage.output <= 30
        assert usage.input_total in (ESTIMATE, 5)


def test_an_array_is_over_with_its_bracket_and_not_before():
    rows = [answer(candidate("a ]", stop="STOP"), usage=figures(5, 2))]
    stream = array_of(rows)
    reader = ArrayReader(WIDE)
    reader.feed(stream[:-1])
    reader.end()
    assert not reader.is_finished
    assert reader.usage(ESTIMATE).estimated
    reader.feed(stream[-1:])
    assert reader.is_finished
    assert reader.usage(ESTIMATE) == Usage(input_uncached=5, output=2, model=MODEL)
    reader.feed(array_of([answer(candidate("x"), usage=figures(9, 9))]))
    assert reader.usage(ESTIMATE) == Usage(input_uncached=5, output=2, model=MODEL)


def test_a_stream_of_events_has_no_last_word():
    reader = StreamReader(WIDE)
    reader.feed(b"".join(events_of([answer(candidate("a", stop="STOP"), usage=figures(5, 2))])))
    assert not reader.is_finished


def test_a_last_event_that_is_not_ended_is_read_all_the_same():
    stream = events_of([answer(candidate("a", stop="STOP"), usage=figures(5, 2))])[0]
    assert not read([stream.rstrip()]).estimated


# --- the lower bound


def test_what_was_said_bounds_an_answer_without_figures_from_below():
    text = "four letters a token" * 20
    rows = [answer(candidate(text[at : at + 100])) for at in range(0, 400, 100)]
    usage = usage_of(rows)
    assert usage == Usage(input_uncached=ESTIMATE, output=100, estimated=True)


def test_letters_of_three_bytes_and_signatures_are_not_taken_for_more_than_they_are():
    signature = {"functionCall": {"name": "f", "args": {}}, "thoughtSignature": "QXV0" * 1000}
    assert usage_of([answer(candidate("日本" * 20))]).output == 10
    assert usage_of([answer(candidate(signature))]).output == 1
    assert usage_of([answer(candidate({"codeExecutionResult": {"output": "x" * 400}}))]).output == 0


# --- errors in the middle


ERROR = {"error": {"code": 503, "message": "overloaded", "status": "UNAVAILABLE"}}
WHOLE = [answer(candidate("a", stop="STOP"), usage=figures(5, 2))]


@pytest.mark.parametrize(
    "tail",
    [
        events_of([ERROR])[0],
        json.dumps(ERROR).encode(),
        json.dumps(ERROR, indent=2).encode() + b"\n",
        json.dumps([ERROR], indent=2).encode() + b"\n",
        json.dumps(ERROR, indent=2).replace("\n", "\r\n").encode(),
        json.dumps(ERROR, indent=2).encode()[:15],
        b"data: [" + json.dumps(ERROR).encode() + b"]\n\n",
        b'data: {"candidates": [\r\n\r\n',
        b"data: garbage\n\n",
    ],
)
def test_what_is_no_answer_in_a_stream_makes_it_incomplete(tail):
    streams = [events_of(WHOLE)[0] + tail]
    if not tail.startswith(b"data:"):
        streams.append(events_of(WHOLE)[0].rstrip() + b"\r\n" + tail)  # without a line between
    for stream in streams:
        for pieces in ([stream], [stream[at : at + 1] for at in range(len(stream))]):
            assert read(pieces) == Usage(input_uncached=5, output=2, model=MODEL, estimated=True)


def test_comments_and_other_fields_of_events_are_no_error():
    assert not read([b": wait\n\n", b"id: 1\nretry: 5\n\n", *events_of(WHOLE)]).estimated


def test_an_argument_that_is_called_error_is_none():
    call = {"functionCall": {"name": "f", "args": {"error": {"code": 1}}}}
    assert not usage_of([answer(candidate(call, stop="STOP"), usage=figures(5, 2))]).estimated


@pytest.mark.parametrize("rows", [[*WHOLE, ERROR], [ERROR], [[ERROR]], [*WHOLE, [ERROR]]])
def test_an_error_in_an_array_makes_it_incomplete(rows):
    usage = read([array_of(rows)], ArrayReader)
    assert usage.estimated
    assert usage.output == (2 if rows[0] == WHOLE[0] else 0)


def test_an_element_that_is_no_json_makes_an_array_incomplete():
    assert read([array_of(WHOLE)[:-1] + b",{'a':1}]"], ArrayReader).estimated


# --- bounds


@given(st.lists(st.binary(max_size=40), max_size=10), st.integers(0, 60), st.sampled_from([StreamReader, ArrayReader]))
def test_any_bytes_are_forwarded_and_make_no_exception(pieces, max_bytes, kind):
    assert read(pieces, kind, max_bytes=max_bytes).estimated


@given(st.lists(st.sampled_from([*b'[]{}",:\\ \n', *b"da1"]), max_size=200), CUTS)
def test_bytes_that_are_nearly_json_are_found_the_same_wherever_they_are_cut(letters, cuts):
    text = bytes(letters)
    pieces = ObjectSplitter(WIDE)
    assert [each for piece in cut(text, cuts) for each in pieces.feed(piece)] == ObjectSplitter(WIDE).feed(text)


@given(st.lists(ALMOST, max_size=5), CUTS)
def test_objects_of_any_shape_make_no_exception(rows, cuts):
    for kind, stream in (
        (StreamReader, b"".join(map(_event, rows))),
        (ArrayReader, b"[%b]" % b",".join(map(_dump, rows))),
    ):
        usage = read(cut(stream, cuts), kind)
        assert min(usage.input_uncached, usage.cache_read, usage.output) >= 0


def _dump(value):
    return json.dumps(value).encode()


def _event(value):
    return b"data: " + _dump(value) + b"\n\n"


@given(st.lists(st.dictionaries(st.text(max_size=5), JSON, max_size=3), max_size=5), CUTS, LAYOUTS)
def test_a_splitter_finds_every_object_of_an_array_and_its_end(rows, cuts, layout):
    splitter = ObjectSplitter(WIDE)
    found = [each for piece in cut(array_of(rows, layout), cuts) for each in splitter.feed(piece)]
    assert [json.loads(each) for each in found] == rows
    assert splitter.is_closed


def test_an_object_that_is_too_long_to_hold_is_forwarded_and_estimated():
    rows = [
        answer(candidate("a"), usage=figures(5, 2)),
        answer(candidate("b" * 5000, stop="STOP"), usage=figures(5, 9)),
    ]
    stream = array_of(rows)
    usage = read([stream[at : at + 100] for at in range(0, len(stream), 100)], ArrayReader, max_bytes=1000)
    assert usage == Usage(input_uncached=5, output=2, model=MODEL, estimated=True)


def test_the_bound_is_for_one_object_and_not_for_all():
    splitter = ObjectSplitter(100)
    stream = array_of([{"a": "x" * 50}] * 20)
    assert len([each for byte in stream for each in splitter.feed(bytes([byte]))]) == 20


def test_what_a_splitter_holds_is_bounded():
    splitter = ObjectSplitter(1000)
    for _ in range(100):
        splitter.feed(b'{"' + b"x" * 98)
        assert sum(map(len, splitter._parts)) <= 1000
    assert splitter.overflowed
    assert splitter.feed(b'"}{}') == []


@pytest.mark.timeout(60)  # what is not linear here takes minutes
def test_an_array_made_to_be_slow_is_read_quickly():
    for piece in (b'{"a":' * 50_000 + b"}" * 50_000, b'"' * 200_000, b"\\" * 1_000_000, b'{"' + b"\\" * 1_000_000):
        assert read([b"[", piece, piece], ArrayReader).estimated
