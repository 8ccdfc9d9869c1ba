import json
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeproxy.domain.usage import Usage
from edgeproxy.providers.fields import is_count
from edgeproxy.providers.readers import EventReader, ObjectReader, OpaqueReader, load

WIDE = 1 << 20
ESTIMATE = 77  # of the input, where the provider's figures are not known
CUTS = st.lists(st.integers(0, 10_000), max_size=12)
FIGURES = st.integers(0, 1_000_000)


def cut(text, cuts):
    at = sorted({0, len(text), *(each % (len(text) + 1) for each in cuts)})
    return [text[start:end] for start, end in pairwise(at)]


def play(reader, pieces):
    """Feed all of it. Every piece is handed on as the same object, and nothing is held back."""
    assert all(reader.feed(piece) is piece for piece in pieces)
    assert reader.end() == b""
    return reader.usage(ESTIMATE)


# --- single objects


def read_plain(value):
    number = value.get("n")
    return Usage(number, output=7) if is_count(number) else None


@given(FIGURES, CUTS, st.text("\n\r \t", max_size=5))
def test_a_single_object_is_read_wherever_it_was_cut(number, cuts, lead):
    answer = lead.encode() + json.dumps({"text": "x" * 50, "n": number}).encode()
    reader = ObjectReader(WIDE, read_plain)
    assert play(reader, cut(answer, cuts)) == Usage(number, output=7)
    assert not reader.is_finished


@given(st.lists(st.binary(max_size=30), max_size=5))
def test_an_answer_that_is_no_object_is_estimated(pieces):
    size = sum(map(len, pieces))
    assert play(ObjectReader(WIDE, read_plain), pieces) == Usage(ESTIMATE, output=size // 4, estimated=True)


@pytest.mark.parametrize("answer", [b'{"n":-1}', b'{"n":"1"}', b"{}", b"[]", b'{"n":1', b'{"n":1}{}', b"[" * 100_000])
def test_an_object_without_figures_is_estimated(answer):
    usage = play(ObjectReader(WIDE, read_plain), [answer])
    assert usage == Usage(ESTIMATE, output=len(answer) // 4, estimated=True)


@pytest.mark.parametrize(("output_max", "output"), [(None, 100), (1000, 100), (30, 30), (0, 0)])
def test_an_estimate_does_not_exceed_what_the_request_allows(output_max, output):
    usage = play(ObjectReader(WIDE, read_plain, output_max), [b"x" * 400])
    assert usage == Usage(ESTIMATE, output=output, estimated=True)


def test_what_the_provider_reports_may_exceed_what_the_request_allows():
    assert play(ObjectReader(WIDE, read_plain, 1), [b'{"n":5}']) == Usage(5, output=7)


def test_an_answer_beyond_the_bound_passes_and_leaves_an_estimate():
    answer = json.dumps({"n": 1, "x": "y" * 400}).encode()
    pieces = [answer[at : at + 50] for at in range(0, len(answer), 50)]
    reader = ObjectReader(len(answer) - 1, read_plain)
    assert play(reader, pieces) == Usage(ESTIMATE, output=len(answer) // 4, estimated=True)
    assert play(reader, [b'{"n":1}']).estimated  # it does not begin anew
    assert not reader._held
    assert play(ObjectReader(len(answer), read_plain), pieces) == Usage(1, output=7)


# --- answers that tell nothing


@given(st.lists(st.binary(max_size=30), max_size=5))
def test_what_tells_nothing_is_charged_as_estimated(pieces):
    reader = OpaqueReader()
    assert play(reader, pieces) == Usage(ESTIMATE, estimated=True)
    assert not reader.is_finished


# --- streams


class Stream(EventReader):
    """A dialect of a test: `usage` holds the figures, `last` says that they are final, `bad` that it failed."""

    output = re.compile(rb'"say"')
    framing = 40

    def read(self, value):
        figures = value["usage"]
        self.known = Usage(figures.get("in", 0), output=figures.get("out", 0), model="m", parts=(Usage(1),))
        self.is_final = figures.get("last") is True
        self.failed |= figures.get("bad") is True


def say(text):
    return b'data: {"say":%b}\n\n' % json.dumps(text).encode()


def report(**figures):
    return b'data: {"usage":%b}\n\n' % json.dumps(figures).encode()


FINAL = Usage(9, output=5, model="m", parts=(Usage(1),))
LAST = report(**{"in": 9, "out": 5, "last": True})


@given(st.lists(st.text(max_size=20), max_size=5), CUTS)
def test_any_cut_of_a_stream_gives_the_same_figures(texts, cuts):
    assert play(Stream(WIDE), cut(b"".join(map(say, texts)) + LAST, cuts)) == FINAL


def test_figures_count_only_once_they_are_final():
    reader = Stream(WIDE)
    for event in (say("a"), report(**{"in": 9, "out": 5}), say("b")):
        reader.feed(event)
        assert reader.usage(ESTIMATE).estimated
    assert reader.usage(ESTIMATE) == Usage(9, output=5, model="m", estimated=True)
    reader.feed(LAST)
    assert reader.usage(ESTIMATE) == FINAL


def test_figures_do_not_become_final_because_the_stream_ended():
    assert play(Stream(WIDE), [say("a"), report(**{"in": 9})]) == Usage(9, output=1, model="m", estimated=True)


def test_a_stream_that_failed_is_estimated_whatever_it_reported():
    usage = play(Stream(WIDE), [report(**{"in": 9, "out": 5, "bad": True}), LAST])
    assert usage == Usage(9, output=5, model="m", estimated=True)


def test_the_last_event_counts_although_nothing_ends_it():
    assert play(Stream(WIDE), [LAST.rstrip()]) == FINAL


def test_output_is_bounded_from_below_by_what_passed_and_by_what_was_reported():
    assert play(Stream(WIDE), [say("x")] * 3) == Usage(ESTIMATE, output=3, estimated=True)
    assert play(Stream(WIDE), [say("x" * 400)]).output == (400 + len(say("")) - 40) // 4
    assert play(Stream(WIDE), [report(out=500), say("x")]).output == 500
    assert play(Stream(WIDE), [b": ping\n\n", b'data: {"other":1}\n\n', b"\n\n"]).output == 0


@pytest.mark.parametrize(
    "beside",
    [
        {"logprobs": {"content": [{"token": "x", "top_logprobs": ["y" * 3000]}]}},
        {"logprobs": [{"token": "x", "top_logprobs": ["y" * 3000]}]},
        {"logprobsResult": {"topCandidates": ["y" * 3000]}},
    ],
)
def test_log_probabilities_are_no_output(beside):
    event = b"data: " + json.dumps({"say": "x", **beside}).encode() + b"\n\n"
    assert play(Stream(WIDE), [event] * 4) == Usage(ESTIMATE, output=4, estimated=True)


def test_text_that_speaks_of_log_probabilities_is_output():
    assert play(Stream(WIDE), [say('"logprobs": {"a"' + "x" * 400)]).output > 90


@given(st.lists(st.binary(max_size=30), max_size=8), st.integers(0, 50))
def test_garbage_passes_unharmed_and_is_estimated(pieces, max_bytes):
    usage = play(Stream(max_bytes), pieces)
    assert usage.estimated
    assert usage.input_total == ESTIMATE


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"usage":{"last":true}\n\n',
        b'data: ["usage": {}]\n\n',
        b'data: [{"usage":{"last":true}}]\n\n',
        b'data: {"usage":{"in":NaN,"last":true}}\n\n',
        b'data: {"usage":{' + b"[" * 10_000 + b"\n\n",
        b'event: {"usage":{"last":true}}\n\n',
        b'data: {"usage":{"last":true}}\xff\n\n',
    ],
)
def test_an_event_that_cannot_be_read_is_no_event(event):
    assert play(Stream(WIDE), [event]) == Usage(ESTIMATE, estimated=True)


def test_an_event_beyond_the_bound_passes_and_makes_an_estimate_of_all_that_follows():
    reader = Stream(200)
    assert play(reader, [LAST, b"data: " + b"x" * 300, b"\n\n", LAST]).estimated
    assert reader._splitter.tail == b""


@given(st.lists(st.sampled_from([say("x"), LAST, b": ping\n\n", b"data: " + b"y" * 90]), max_size=20), CUTS)
def test_no_more_is_held_than_the_bound(events, cuts):
    reader = Stream(60)
    for piece in cut(b"".join(events), cuts):
        reader.feed(piece)
        assert len(reader._splitter.tail) <= 60
        assert len(reader._splitter._parts) <= 60


# --- one object


@pytest.mark.parametrize("raw", [b"", b" ", b"{", b"[]", b"1", b"null", b'{"a":NaN}', b"\xff", b"[" * 100_000])
def test_what_is_no_object_is_none(raw):
    assert load(raw) is None


@given(st.binary(max_size=40))
def test_any_bytes_are_an_object_or_none(raw):
    assert load(raw) is None or isinstance(load(raw), dict)
