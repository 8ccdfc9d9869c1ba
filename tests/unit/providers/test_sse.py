from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeproxy.providers.sse import EventSplitter, data, events

# Small alphabets make ends of lines meet in every way; arbitrary bytes make sure that nothing else matters.
STREAMS = st.one_of(st.text("\r\n:da", max_size=60).map(str.encode), st.binary(max_size=60))
LINES = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=12)


def cut(stream: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted({0, len(stream), *(each % (len(stream) + 1) for each in cuts)})
    return [stream[start:end] for start, end in pairwise(at)] or [stream]


PIECES = st.builds(cut, STREAMS, st.lists(st.integers(0, 60), max_size=20))


def fed(splitter: EventSplitter, pieces: list[bytes]) -> bytes:
    return b"".join(splitter.feed(piece) for piece in pieces)


@given(PIECES)
def test_what_went_out_and_the_tail_are_what_came_in(pieces):
    splitter = EventSplitter(1 << 20)
    assert fed(splitter, pieces) + splitter.tail == b"".join(pieces)
    assert not splitter.overflowed


@given(PIECES, st.integers(0, 40))
def test_nothing_is_lost_beyond_the_bound_either(pieces, max_bytes):
    splitter = EventSplitter(max_bytes)
    out = b""
    for number, piece in enumerate(pieces, 1):
        out += splitter.feed(piece)
        assert len(splitter.tail) <= max_bytes
        assert out + splitter.tail == b"".join(pieces[:number])


@given(PIECES)
def test_the_end_of_an_event_is_never_held_back(pieces):
    splitter = EventSplitter(1 << 20)
    fed(splitter, pieces)
    assert not any(end in splitter.tail for end in (b"\n\n", b"\r\r", b"\n\r\n"))


@given(STREAMS)
def test_events_joined_are_the_whole(stream):
    parts = events(stream)
    assert b"".join(parts) == stream
    assert all(parts)


@given(st.lists(st.lists(LINES, min_size=1, max_size=3), max_size=5), st.sampled_from(["\n", "\r\n", "\r"]), st.data())
def test_events_come_out_one_by_one_wherever_the_network_cut(payloads, newline, draw):
    written = ["".join(f"data: {line}{newline}" for line in lines) + newline for lines in payloads]
    stream = "".join(written).encode()
    pieces = cut(stream, draw.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    splitter = EventSplitter(1 << 20)
    found = [event for piece in pieces for event in events(splitter.feed(piece))]
    # Of a CRLF in the old Mac's framing the second half may come with the next event, where it is an empty line.
    assert [data(event) for event in found if data(event) or b"data:" in event] == [
        "\n".join(lines).encode() for lines in payloads
    ]
    assert splitter.tail == b""


@pytest.mark.parametrize(
    ("event", "payload"),
    [
        (b"data: {}\n\n", b"{}"),
        (b"data:{}\n\n", b"{}"),
        (b"data:  two spaces\n\n", b" two spaces"),
        (b"event: x\ndata: 1\nid: 7\n\n", b"1"),
        (b"data: a\r\ndata: b\r\n\r\n", b"a\nb"),
        (b"data: a\rdata: b\r\r", b"a\nb"),
        (b"data\n\n", b""),
        (b": a comment\n\n", b""),
        (b"database: 1\n\n", b""),
        (b" data: indented\n\n", b""),
        (b"data: no end", b"no end"),
        (b"", b""),
    ],
)
def test_the_payload_is_what_the_data_lines_say(event, payload):
    assert data(event) == payload


def test_a_boundary_across_three_cuts_is_found():
    splitter = EventSplitter(100)
    assert [splitter.feed(piece) for piece in (b"data: 1\r", b"\n", b"\r", b"\ndata: 2")] == [
        b"",
        b"",
        b"",
        b"data: 1\r\n\r\n",
    ]
    assert splitter.tail == b"data: 2"


def test_an_event_may_be_as_long_as_the_bound_and_no_longer():
    splitter = EventSplitter(8)
    assert splitter.feed(b"12345678") == b""
    assert not splitter.overflowed
    assert splitter.feed(b"9") == b"123456789"
    assert splitter.overflowed
    assert splitter.feed(b"\n\nmore") == b"\n\nmore"
    assert splitter.tail == b""


def test_the_bound_is_the_same_after_every_event():
    splitter = EventSplitter(8)
    for _ in range(3):
        splitter.feed(b"1\n\n")
        splitter.feed(b"12345678")
        assert not splitter.overflowed
        assert splitter.feed(b"\n\n") == b"12345678\n\n"


def test_a_stream_may_change_how_its_lines_end():
    parts = [b"data: 1\n\n", b"data: 2\r\n\r\n", b"data: 3\r\r", b"data: 4\r\n\r\n", b"data: 5\n\n", b"data: 6\r\r"]
    assert events(b"".join(parts)) == parts


def test_a_whole_event_that_comes_at_once_may_exceed_the_bound():
    splitter = EventSplitter(4)
    assert splitter.feed(b"data: 1234567890\n\n") == b"data: 1234567890\n\n"
    assert not splitter.overflowed


def test_the_bound_is_on_one_event_and_not_on_the_stream():
    splitter = EventSplitter(12)
    assert fed(splitter, [b"data: 1234", b"\n\n"] * 100) == b"data: 1234\n\n" * 100
    assert not splitter.overflowed


@pytest.mark.parametrize("held", [b"", b"data: 1", b"\n"])
@pytest.mark.parametrize(
    "chunk",
    [b"data: 2\n\n", b"data: 2\r\n\r\n", b"data: 2\n", b"\n\n", b"data: 2\n\ndata: 3\n\n", b"a\r\n\n", b"a\n\n\n", b""],
)
def test_what_is_one_event_is_what_would_have_been_cut(held, chunk):
    splitter = EventSplitter(100)
    splitter.feed(held)
    is_one = splitter.is_one_event(chunk)
    assert not is_one or (splitter.feed(chunk), splitter.tail, events(chunk)) == (chunk, b"", [chunk])
    assert is_one == (held == b"" and chunk == b"data: 2\n\n")
