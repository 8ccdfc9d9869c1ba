import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeproxy.domain.usage import Usage
from edgeproxy.providers.anthropic_usage import StreamReader, read_answer, read_usage
from edgeproxy.providers.fields import MAX_COUNT
from edgeproxy.providers.readers import ObjectReader

WIDE = 1 << 20
ESTIMATE = 77  # of the input, where the provider's figures are not known
MODEL = "claude-mock"

CONTENTS = st.lists(
    st.one_of(
        st.sampled_from(
            [
                *('"usage": {"output_tokens": 9}', "event: message_stop", '"type": "message_stop"', "\n\ndata: {}\n\n"),
                *('"delta": {"text": "x"}', '{"type":"error"}', "message_delta", "", "😀\u2028\r"),
            ]
        ),
        st.text(max_size=20),
    ),
    max_size=6,
)
FIGURES = st.integers(0, 1_000_000)
USAGES = st.builds(Usage, FIGURES, FIGURES, FIGURES, FIGURES, model=st.just(MODEL))
FRAMINGS = st.sampled_from([(" ", "\n", ""), ("", "\n", "   "), (" ", "\r\n", " "), ("", "\r", "")])
CUTS = st.lists(st.integers(0, 10_000), max_size=12)


def used(*figures, model=MODEL, **more):
    """A usage by this model: uncached, read, written, output."""
    return Usage(*figures, model=model, **more)


def figures(usage):
    """The provider's words for a usage."""
    return {
        "input_tokens": usage.input_uncached,
        "cache_creation_input_tokens": usage.cache_write,
        "cache_read_input_tokens": usage.cache_read,
        "output_tokens": usage.output,
    }


def start_of(usage):
    return {"type": "message_start", "message": {"model": MODEL, "usage": usage}}


def text_of(text):
    return {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}


def delta_of(usage, reason="end_turn"):
    return {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": usage}


STOP = {"type": "message_stop"}
ERROR = {"type": "error", "error": {"type": "overloaded_error", "message": "x"}}


def event_of(row, framing=(" ", "\n", "")):
    space, newline, pad = framing
    text = json.dumps(row, ensure_ascii=False) + pad
    return f"event:{space}{row['type']}{newline}data:{space}{text}{newline}{newline}".encode()


def stream_of(contents, first, final, framing=(" ", "\n", "")):
    """The events of a stream, each as its bytes: `first` is the usage at its start, `final` the usage at its end."""
    rows = [
        start_of(figures(first)),
        {"type": "ping"},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *map(text_of, contents),
        {"type": "content_block_stop", "index": 0},
        delta_of(figures(final)),
        STOP,
    ]
    return [event_of(row, framing) for row in rows]


def cut(stream, cuts):
    at = sorted({0, len(stream), *(each % (len(stream) + 1) for each in cuts)})
    return [stream[start:end] for start, end in pairwise(at)]


def read(pieces, *, max_bytes=WIDE, long_cache=False):
    """What is forwarded of a stream that ends in order, and its usage."""
    reader = StreamReader(max_bytes, long_cache=long_cache)
    forwarded = b"".join(reader.feed(piece) for piece in pieces) + reader.end()
    return forwarded, reader.usage(ESTIMATE)


def read_rows(*rows, long_cache=False):
    return read(map(event_of, rows), long_cache=long_cache)[1]


def broken_off(pieces):
    """The usage of a stream of which nothing more came."""
    reader = StreamReader(WIDE, long_cache=False)
    for piece in pieces:
        reader.feed(piece)
    return reader.usage(ESTIMATE)


def total(parts):
    """What the parts of a usage are together."""
    names = ("input_uncached", "cache_read", "cache_write", "output", "reasoning", "cache_write_1h")
    calls = tuple(call for part in parts for call in part.tool_calls)
    return Usage(**{name: sum(getattr(part, name) for part in parts) for name in names}, tool_calls=calls)


def bare(usage):
    """A usage without its models."""
    return total((usage,))


# --- one usage


@pytest.mark.parametrize(
    ("reported", "usage"),
    [
        ({"input_tokens": 5, "output_tokens": 7}, Usage(5, output=7)),
        ({"output_tokens": 7}, Usage(output=7)),
        ({"input_tokens": None, "output_tokens": 7, "cache_read_input_tokens": None}, Usage(output=7)),
        (figures(Usage(1, 2, 3, 4)), Usage(1, 2, 3, 4)),
        (
            {"input_tokens": 1, "output_tokens": 9, "output_tokens_details": {"thinking_tokens": 6}},
            Usage(1, output=9, reasoning=6),
        ),
        ({"output_tokens": 2, "output_tokens_details": {"thinking_tokens": 6}}, Usage(output=2, reasoning=2)),
        ({**figures(Usage(1, output=2)), "iterations": {"type": "compaction"}}, Usage(1, output=2)),
        ({"input_tokens": -1, "output_tokens": 2, "cache_read_input_tokens": "9"}, Usage(output=2)),
        (
            {"output_tokens": 2, "server_tool_use": {"web_search_requests": 3, "web_fetch_requests": 1}},
            Usage(output=2, tool_calls=(("web_fetch", 1), ("web_search", 3))),
        ),
        (
            {
                "output_tokens": 2,
                "server_tool_use": {
                    "web_search_requests": 0,
                    "code_execution_requests": 2,
                    "web_fetch_requests": -1,
                    "searches": 9,
                    "Bad Name_requests": 9,
                    "_requests": 9,
                    "a" * 41 + "_requests": 9,
                },
            },
            Usage(output=2, tool_calls=(("code_execution", 2),)),
        ),
        ({"output_tokens": 2, "server_tool_use": [1]}, Usage(output=2)),
    ],
)
def test_usage_is_read_into_the_normal_form(reported, usage):
    assert read_usage(reported) == usage


@pytest.mark.parametrize(
    "value",
    [None, [], "x", 1, {}, {"input_tokens": 1}, *({"output_tokens": bad} for bad in (None, -1, 1.5, "1", True))],
)
def test_what_has_no_count_of_the_output_is_no_usage(value):
    assert read_usage(value) is None


@pytest.mark.parametrize(
    ("written", "split", "long_cache", "hour"),
    [
        (300, (100, 200), False, 200),
        (300, (100, 200), True, 200),
        (300, (300, 0), True, 0),
        (300, (0, 300), False, 300),
        (300, None, False, 0),
        (300, None, True, 300),
        # Revised without a new split.
        (600, (100, 200), False, 400),
        (100, (100, 200), True, 67),  # rounded up: an hour is the dearer
        (337, (300, 0), False, 0),
        (337, (300, 0), True, 37),
        (200, (300, 0), True, 0),
        (0, (100, 200), True, 0),
        (9, ("x", None), True, 9),
    ],
)
def test_what_is_kept_for_an_hour_is_told_apart(written, split, long_cache, hour):
    reported = {"output_tokens": 1, "cache_creation_input_tokens": written}
    if split is not None:
        minutes, hours = split
        reported["cache_creation"] = {"ephemeral_5m_input_tokens": minutes, "ephemeral_1h_input_tokens": hours}
    usage = read_usage(reported, long_cache=long_cache)
    assert (usage.cache_write, usage.cache_write_1h, usage.cache_write_5m) == (written, hour, written - hour)


# --- the bill beside the top level


def turn(kind, *counts, model=None, **more):
    return {"type": kind, **figures(Usage(*counts)), **({"model": model} if model else {}), **more}


def test_compaction_is_billed_beside_the_top_level_and_turns_of_the_message_are_not():
    turns = [turn("compaction", 100, 10, 55_096, 131), turn("message", 229, 0, 0, 5), "nonsense", None, turn("new", 9)]
    reported = {**figures(Usage(229, output=5)), "iterations": turns}
    assert read_usage(reported, MODEL) == used(329, 10, 55_096, 136)


def test_an_advisor_is_billed_at_its_own_model():
    thinking = {"output_tokens_details": {"thinking_tokens": 3}, "cache_creation": {"ephemeral_1h_input_tokens": 4}}
    advice = turn("advisor_message", 2543, 7, 4, 18, model="claude-adviser", **thinking)
    reported = {
        **figures(Usage(2411, output=145)),
        "server_tool_use": {"web_search_requests": 2},
        "iterations": [turn("message", 1128, 0, 0, 135), advice, turn("message", 1283, 0, 0, 10), advice],
    }
    usage = read_usage(reported, MODEL)
    assert usage.model == MODEL
    assert usage.parts == (
        used(2411, 0, 0, 145, tool_calls=(("web_search", 2),)),
        used(5086, 14, 8, 36, reasoning=6, cache_write_1h=8, model="claude-adviser"),
    )
    assert bare(usage) == total(usage.parts)


def test_what_another_model_alone_has_used_is_its_own():
    reported = {**figures(Usage()), "iterations": [turn("advisor_message", 5, 0, 0, 1, model="claude-adviser")]}
    assert read_usage(reported, MODEL).parts == (used(5, 0, 0, 1, model="claude-adviser"),)


SERVED = turn("fallback_message", 700, 0, 50, 22, model="claude-fallback")
FALLBACK = used(700, 0, 50, 22, model="claude-fallback")


@pytest.mark.parametrize(
    ("turns", "parts"),
    [
        ([turn("message", 690, 0, 0, 0, model=MODEL), SERVED], ()),  # declined before any output
        ([turn("message", 690, 0, 0, 12, model=MODEL), SERVED], (FALLBACK, used(690, 0, 0, 12))),
        (
            [turn("message", 690, 0, 0, 12, model=MODEL), turn("message", 5, 0, 0, 3, model="claude-two"), SERVED],
            (FALLBACK, used(690, 0, 0, 12), used(5, 0, 0, 3, model="claude-two")),
        ),
        (
            [turn("message", 690, 0, 0, 12, model=MODEL), turn("message", 9, model="claude-two"), SERVED],
            (FALLBACK, used(690, 0, 0, 12)),
        ),
        (
            [turn("fallback_message", 5, 0, 0, 3, model="claude-two"), SERVED],
            (FALLBACK, used(5, 0, 0, 3, model="claude-two")),
        ),
        # Earlier turns of the serving model, and turns that name none, are in the top level.
        ([turn("message", 9, 0, 0, 2, model="claude-fallback"), turn("message", 9, 0, 0, 2), SERVED], ()),
        ([turn("compaction", 9, 0, 0, 2), SERVED], (FALLBACK, used(9, 0, 0, 2))),
    ],
)
def test_the_model_that_served_in_the_end_is_billed_and_late_refusals_beside_it(turns, parts):
    usage = read_usage({**figures(Usage(700, 0, 50, 22)), "iterations": turns}, MODEL)
    assert (usage.model, usage.parts) == ("claude-fallback", parts)
    assert bare(usage) == total(parts or [FALLBACK])


def test_when_all_models_declined_the_last_one_is_the_top_level():
    turns = [turn("message", 10, 0, 0, 4, model="claude-first"), turn("message", 10, 0, 0, 6, model=MODEL)]
    usage = read_usage({**figures(Usage(10, output=6)), "iterations": turns}, MODEL)
    assert usage.parts == (used(10, 0, 0, 6), used(10, 0, 0, 4, model="claude-first"))


def test_turns_that_the_top_level_covers_are_not_billed_twice_for_another_name():
    turns = [turn("message", 10, 0, 0, 4, model="claude-mock-latest"), turn("message", 10, 0, 0, 6, model=MODEL)]
    assert read_usage({**figures(Usage(20, output=10)), "iterations": turns}, MODEL) == used(20, 0, 0, 10)


@pytest.mark.parametrize("name", [None, 7, "", "no name", "x" * 65, ["claude"]])
def test_what_is_no_name_of_a_model_is_not_taken_for_one(name):
    turns = [{**turn("advisor_message", 1, 0, 0, 1), "model": name}, {**SERVED, "model": name}]
    answer = {"model": MODEL, "usage": {**figures(Usage(1, output=22)), "iterations": turns}}
    assert read_answer(answer, long_cache=False) == used(2, 0, 0, 23)
    assert read_answer({**answer, "model": name}, long_cache=False) == Usage(2, output=23)


def test_absurd_figures_stay_countable_and_parts_few():
    most = {**figures(Usage(*[MAX_COUNT] * 4)), "output_tokens_details": {"thinking_tokens": MAX_COUNT}}
    turns = [{**most, "type": "advisor_message", "model": f"claude-{number}"} for number in range(1000)]
    few = [turn("advisor_message", 1, 1, 1, 1, model=f"claude-{number}") for number in range(1000)]
    for reported in ({**most, "iterations": turns}, {"output_tokens": 1, "iterations": few}):
        usage = read_usage(reported, MODEL)
        assert usage.input_total + usage.output <= 2**53
        assert len(usage.parts) <= 8
        assert not usage.parts or bare(usage) == total(usage.parts)
    assert usage.output == 1001


COUNTS = st.one_of(st.integers(-1, 1000), st.sampled_from([None, True, MAX_COUNT, MAX_COUNT + 1, 2**70, "1", 1.5]))
ROWS = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(figures(Usage()), COUNTS),
        "type": st.sampled_from(["message", "fallback_message", "advisor_message", "compaction", "new", None]),
        "model": st.sampled_from([MODEL, "claude-two", "claude-three", "no name", None, 7]),
        "cache_creation": st.dictionaries(
            st.sampled_from(["ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens"]), COUNTS
        ),
        "output_tokens_details": st.dictionaries(st.just("thinking_tokens"), COUNTS),
        "server_tool_use": st.dictionaries(st.sampled_from(["web_search_requests", "web_fetch_requests"]), COUNTS),
    },
)
REPORTS = st.builds(lambda row, turns: {**row, "iterations": turns}, ROWS, st.lists(ROWS, max_size=5))


@given(st.lists(REPORTS, min_size=1, max_size=4), st.booleans())
def test_whatever_is_laid_over_what_the_parts_add_up_to_the_whole(reports, long_cache):
    first, *deltas = reports
    usage = read_rows(start_of(first), *(delta_of(each, "end_turn") for each in deltas), STOP, long_cache=long_cache)
    for each in (usage, *usage.parts):
        assert 0 <= each.reasoning <= each.output <= MAX_COUNT
        assert 0 <= each.cache_write_1h <= each.cache_write <= MAX_COUNT
        assert min(each.input_uncached, each.cache_read) >= 0
        assert max(each.input_uncached, each.cache_read) <= MAX_COUNT
    if usage.parts:
        assert bare(usage) == total(usage.parts)
        assert len({part.model for part in usage.parts}) == len(usage.parts)


# --- streams


@given(CONTENTS, USAGES, USAGES, FRAMINGS, CUTS)
def test_any_cut_of_a_stream_gives_the_same_usage_and_the_same_bytes(contents, first, final, framing, cuts):
    stream = b"".join(stream_of(contents, first, final, framing))
    assert read(cut(stream, cuts)) == (stream, final)


@given(CONTENTS, FIGURES, FIGURES, FIGURES)
def test_a_stream_that_broke_off_is_a_lower_bound_and_says_so(contents, uncached, cached, output):
    contents = [content for content in contents if content]
    first = used(uncached, 0, 0, 1)
    final = used(uncached, cached, 7, output + 1 + sum(map(len, contents)))
    events = stream_of(contents, first, final)
    for passed in range(len(events) + 1):
        for seen in (broken_off(events[:passed]), read(events[:passed])[1]):
            if passed == 0:
                assert seen == Usage(ESTIMATE, estimated=True)
            elif passed < len(events) - 1:
                assert (seen.estimated, seen.model) == (True, MODEL)
                assert (seen.input_uncached, seen.cache_read, seen.cache_write) == (uncached, 0, 0)
                deltas = len([each for each in events[:passed] if b"text_delta" in each])
                assert max(1, deltas) <= seen.output <= final.output
            else:
                assert seen == final


@pytest.mark.parametrize("framing", [(" ", "\n", ""), ("", "\n", ""), (" ", "\r\n", "")])
@pytest.mark.parametrize("letters", [1, 10_000])
def test_an_estimate_counts_text_events_and_what_they_hold(framing, letters):
    start, *events = stream_of(["x" * letters] * 50, Usage(5, output=1), Usage(), framing)
    passed = [start, *(event for event in events if b"text_delta" in event)]
    tokens = 50 if letters == 1 else (len(b"".join(passed[1:])) - 50 * 175) // 4
    assert broken_off(passed) == used(5, 0, 0, tokens, estimated=True)


@pytest.mark.parametrize(
    ("delta", "deltas"),
    [
        ({"type": "text_delta", "text": "a"}, 1),
        ({"type": "thinking_delta", "thinking": "a", "estimated_tokens": 9999}, 1),
        ({"type": "input_json_delta", "partial_json": "{"}, 1),
        ({"type": "text_delta", "text": ""}, 0),
        ({"type": "thinking_delta", "thinking": ""}, 0),
        ({"type": "input_json_delta", "partial_json": ""}, 0),
        ({"type": "signature_delta", "signature": "EpAD" * 1000}, 0),
        ({"type": "citations_delta", "citation": {"cited_text": "a" * 1000, "text": "a"}}, 0),
    ],
)
def test_only_deltas_that_have_content_count_as_output(delta, deltas):
    row = {"type": "content_block_delta", "index": 0, "delta": delta}
    assert read_rows(start_of({"input_tokens": 5, "output_tokens": 0}), row).output == deltas


def test_results_of_the_providers_own_tools_are_no_output():
    document = {"type": "document", "source": {"type": "text", "data": "a" * 9000}, "text": "a" * 9000}
    block = {"type": "content_block_start", "content_block": {"type": "web_fetch_tool_result", "content": document}}
    assert read_rows(start_of({"input_tokens": 5, "output_tokens": 3}), block) == used(5, 0, 0, 3, estimated=True)


def test_the_provisional_count_of_the_start_is_a_lower_bound_too():
    stream = stream_of(["a", "b"], Usage(92, output=88), Usage(92, output=189))
    assert broken_off(stream[:-2]) == used(92, 0, 0, 88, estimated=True)


@given(st.lists(st.binary(max_size=30), max_size=8), st.integers(0, 50))
def test_garbage_passes_unharmed_and_is_estimated(pieces, max_bytes):
    forwarded, usage = read(pieces, max_bytes=max_bytes)
    assert forwarded == b"".join(pieces)
    assert usage == Usage(ESTIMATE, estimated=True)


WILD = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**65), 2**65), st.floats(), st.text(max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                [
                    *("usage", "input_tokens", "output_tokens", "cache_read_input_tokens", "iterations", "type"),
                    *("model", "cache_creation", "server_tool_use", "output_tokens_details", "stop_reason"),
                ]
            ),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=8,
)
KINDS_OF_EVENTS = st.one_of(st.sampled_from(["message_start", "message_delta", "message_stop", "error"]), WILD)


@given(
    st.lists(
        st.fixed_dictionaries({"type": KINDS_OF_EVENTS, "message": WILD, "usage": WILD, "delta": WILD}), max_size=4
    )
)
def test_nonsense_in_the_right_places_never_raises_and_stays_countable(rows):
    stream = b"".join(b"event: x\ndata: " + json.dumps(row).encode() + b"\n\n" for row in rows)
    forwarded, usage = read([stream])
    assert forwarded == stream
    assert 0 <= usage.input_total + usage.output <= 2**53
    assert min(usage.input_uncached, usage.cache_read, usage.cache_write, usage.output, usage.reasoning) >= 0


def test_an_event_beyond_the_bound_passes_and_leaves_an_estimate():
    stream = b"".join(stream_of(["a", "b" * 900, "c"], Usage(10, output=1), Usage(10, output=30)))
    forwarded, usage = read([stream[at : at + 7] for at in range(0, len(stream), 7)], max_bytes=400)
    assert forwarded == stream
    assert usage.estimated
    assert usage.input_total == 10


def test_a_delta_replaces_what_it_names_and_may_lower_it():
    first = start_of({**figures(Usage(2225, 55_096, 3, 1)), "x": 1})
    grown = delta_of({"input_tokens": 9447, "output_tokens": 11}, None)
    fallen = {"input_tokens": 404, "cache_read_input_tokens": 0, "output_tokens": 12}
    assert read_rows(first, grown, delta_of({**fallen, "cache_creation_input_tokens": None})) == used(404, 0, 3, 12)


def test_a_revised_cache_keeps_the_last_split_that_was_told():
    split = {"cache_creation": {"ephemeral_5m_input_tokens": 1000, "ephemeral_1h_input_tokens": 2000}}
    first = start_of({**figures(Usage(2, 0, 3000, 1)), **split})
    final = delta_of(figures(Usage(6, 6289, 3600, 198)))
    assert read_rows(first, final) == used(6, 6289, 3600, 198, cache_write_1h=2400)
    unsplit = start_of(figures(Usage(2, 0, 3000, 1)))
    assert read_rows(unsplit, final, long_cache=True) == used(6, 6289, 3600, 198, cache_write_1h=3600)


def test_other_models_in_a_stream_are_its_parts_until_it_breaks():
    turns = [turn("message", 9, 0, 0, 7), turn("advisor_message", 5, 0, 0, 1, model="claude-adviser")]
    rows = [start_of(figures(Usage(9, output=1))), delta_of({"output_tokens": 7, "iterations": turns})]
    parts = (used(9, 0, 0, 7), used(5, 0, 0, 1, model="claude-adviser"))
    assert read_rows(*rows) == used(14, 0, 0, 8, parts=parts)
    assert read_rows(*rows, ERROR) == used(14, 0, 0, 8, estimated=True)


def test_figures_are_final_only_where_the_message_stopped():
    rows = [start_of(figures(Usage(5, output=1))), delta_of({"output_tokens": 11}, None)]
    assert broken_off(map(event_of, rows)) == used(5, 0, 0, 11, estimated=True)
    assert read_rows(*rows) == used(5, 0, 0, 11, estimated=True)  # the connection ended, not the message
    assert read_rows(*rows, STOP) == used(5, 0, 0, 11)
    for reason in ("end_turn", "max_tokens", "tool_use", "pause_turn", "refusal", "model_context_window_exceeded"):
        assert read_rows(*rows, delta_of({"output_tokens": 12}, reason)) == used(5, 0, 0, 12)
    assert read_rows(*rows, delta_of({"output_tokens": 12}), rows[1]).estimated


def test_the_provisional_figures_of_the_start_are_never_final():
    bare_stop = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}}
    stream = b"".join(map(event_of, [start_of(figures(Usage(5, output=1))), bare_stop, STOP]))
    for pieces in ([stream], [bytes([byte]) for byte in stream]):
        assert read(pieces)[1] == used(5, 0, 0, 1, estimated=True)


def test_the_last_event_counts_although_nothing_ends_it():
    stream = b"".join(stream_of(["x"], Usage(3), Usage(3, output=4))[:-1]).removesuffix(b"\n\n")
    assert read([stream]) == (stream, used(3, 0, 0, 4))


def test_an_error_in_the_stream_leaves_an_estimate():
    events = stream_of(["x"], Usage(3, output=1), Usage(3, output=4))
    assert read([*events[:4], event_of(ERROR)])[1] == used(3, 0, 0, 1, estimated=True)
    assert read([*events, event_of(ERROR)])[1] == used(3, 0, 0, 4, estimated=True)


def test_the_last_word_is_noticed():
    reader = StreamReader(WIDE, long_cache=False)
    *events, last = stream_of(["message_stop", '{"type": "message_stop"}'], Usage(3), Usage(3, output=4))
    for event in events:
        reader.feed(event)
    assert not reader.is_finished
    reader.feed(last)
    assert reader.is_finished


def test_what_a_provider_adds_to_its_usage_is_not_kept():
    reader = StreamReader(WIDE, long_cache=False)
    for number in range(1000):
        reader.feed(event_of(delta_of({"output_tokens": 1, f"new_{number}": "x"})))
    assert set(reader._figures) == {"output_tokens"}


# --- single messages


@given(USAGES, CUTS)
def test_a_single_message_is_read_wherever_it_was_cut(usage, cuts):
    answer = json.dumps({"type": "message", "model": MODEL, "content": [], "usage": figures(usage)}).encode()
    reader = ObjectReader(WIDE, lambda value: read_answer(value, long_cache=False))
    assert b"".join(reader.feed(piece) for piece in cut(answer, cuts)) + reader.end() == answer
    assert reader.usage(ESTIMATE) == usage
