import gzip
import json
import tracemalloc
import zlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeproxy.domain.usage import Usage
from edgeproxy.providers.encoding import DECODED, DecodingReader, decoded, encoding_of
from edgeproxy.providers.openai_chat import StreamReader, read_answer
from edgeproxy.providers.readers import ObjectReader, OpaqueReader

ESTIMATE = 77
CUTS = st.lists(st.integers(0, 10_000), max_size=12)
ANSWER = json.dumps({"text": "x" * 300, "usage": {"prompt_tokens": 3, "completion_tokens": 4}}).encode()
STREAM = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\ndata: {"choices":[],"usage":%b}\n\ndata: [DONE]\n\n' % (
    b'{"prompt_tokens":3,"completion_tokens":4}'
)
USAGE = Usage(3, output=4)
PACK = {"gzip": gzip.compress, "zlib": zlib.compress}


class Recorder:
    """A reader that is always sure, and remembers what it was fed."""

    is_finished = False
    ended = 0

    def __init__(self):
        self.pieces = []

    def feed(self, chunk):
        self.pieces.append(chunk)
        return b"what an inner reader gives back is not forwarded"

    def end(self):
        self.ended += 1
        return b"nor this"

    def output_so_far(self):
        return 7

    def usage(self, input_estimate):
        return Usage(input_estimate)


def cut(text, cuts):
    at = sorted({0, len(text), *(each % (len(text) + 1) for each in cuts)})
    return [text[start:end] for start, end in pairwise(at)]


def decoded_pieces(pieces):
    """What an inner reader gets of these pieces, and whether the usage is flagged. All pieces pass as they are."""
    inner = Recorder()
    reader = DecodingReader(inner)
    assert all(reader.feed(piece) is piece for piece in pieces)
    assert reader.end() == b""
    assert inner.ended == 1
    usage = reader.usage(ESTIMATE)
    assert usage.input_uncached == ESTIMATE
    return b"".join(inner.pieces), usage.estimated


def test_the_names_are_those_that_mean_gzip_or_zlib():
    assert set(DECODED) == {"gzip", "x-gzip", "deflate"}


@given(st.sampled_from(sorted(PACK)), st.binary(max_size=300), CUTS)
def test_what_was_packed_is_read_wherever_it_was_cut(packing, plain, cuts):
    assert decoded_pieces(cut(PACK[packing](plain), cuts)) == (plain, False)


@given(st.lists(st.binary(max_size=60), min_size=1, max_size=5), CUTS)
def test_a_gzip_file_may_have_several_members(plains, cuts):
    packed = b"".join(map(gzip.compress, plains))
    assert decoded_pieces(cut(packed, cuts)) == (b"".join(plains), False)


def test_a_piece_is_read_as_soon_as_it_can_be():
    packer = zlib.compressobj(wbits=31)
    inner = Recorder()
    reader = DecodingReader(inner)
    for number in range(20):
        reader.feed(packer.compress(b"data: %d\n\n" % number) + packer.flush(zlib.Z_SYNC_FLUSH))
        assert b"".join(inner.pieces).endswith(b"data: %d\n\n" % number)


@pytest.mark.parametrize("packing", sorted(PACK))
@pytest.mark.parametrize(("plain", "kind"), [(ANSWER, "object"), (STREAM, "stream")])
def test_usage_is_read_as_if_it_had_come_plain(packing, plain, kind):
    packed = PACK[packing](plain)
    for size in (1, 7, len(packed)):
        is_object = kind == "object"
        inner = ObjectReader(1000, read_answer) if is_object else StreamReader(1000, drop_usage_chunk=False)
        reader = DecodingReader(inner)
        for at in range(0, len(packed), size):
            reader.feed(packed[at : at + size])
        assert reader.is_finished is not is_object
        reader.end()
        assert reader.usage(ESTIMATE) == USAGE


@given(st.integers(0, 10_000))
def test_what_is_cut_short_is_estimated_unless_the_last_word_was_read(at):
    packed = gzip.compress(ANSWER)
    at %= len(packed)
    reader = DecodingReader(ObjectReader(1000, read_answer))
    reader.feed(packed[:at])
    reader.end()
    usage = reader.usage(ESTIMATE)
    # Behind the answer there is only a checksum.
    assert usage == USAGE if not usage.estimated else at < len(packed) - 8


@given(st.lists(st.binary(max_size=40), max_size=6))
def test_garbage_passes_unharmed_and_is_estimated(pieces):
    reader = DecodingReader(ObjectReader(1000, read_answer))
    assert all(reader.feed(piece) is piece for piece in pieces)
    assert reader.end() == b""
    usage = reader.usage(ESTIMATE)
    assert usage.estimated
    assert usage.input_total == ESTIMATE


@pytest.mark.parametrize(
    "broken",
    [
        ANSWER,  # said to be packed, but is not
        gzip.compress(ANSWER)[:-8] + b"\0" * 8,  # another checksum
        gzip.compress(ANSWER) + b"garbage",
        gzip.compress(ANSWER) + gzip.compress(b"")[:4] + b"\xff" * 9,
        zlib.compress(ANSWER)[2:],  # neither gzip nor zlib
        b"\x1f\x8b\x08" + b"\xff" * 40,
    ],
)
@pytest.mark.parametrize("size", [1, 1000])
def test_figures_out_of_what_does_not_decode_are_flagged(broken, size):
    plain, flagged = decoded_pieces([broken[at : at + size] for at in range(0, len(broken), size)])
    assert flagged
    assert ANSWER.startswith(plain)


def test_nothing_is_read_beyond_what_does_not_decode():
    plain, flagged = decoded_pieces([gzip.compress(b"a"), b"garbage", gzip.compress(b"b")])
    assert (plain, flagged) == (b"a", True)


def test_what_expands_beyond_measure_is_read_in_pieces_and_never_held():
    packer = zlib.compressobj(9, wbits=31)
    size = 64 * 2**20
    bomb = b"".join([*(packer.compress(bytes(2**20)) for _ in range(size // 2**20)), packer.flush()])
    assert len(bomb) < 2**16 + 2**12
    sizes = []
    inner = ObjectReader(2**20, read_answer)
    hold = inner.feed
    inner.feed = lambda chunk: sizes.append(len(chunk)) or hold(chunk)
    tracemalloc.start()
    try:
        reader = DecodingReader(inner)
        assert reader.feed(bomb) is bomb
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 4 * 2**20
    assert sum(sizes) == size
    assert max(sizes) <= 64 * 1024
    assert reader.usage(ESTIMATE).estimated


def test_what_expands_to_nothing_is_not_held_either():
    inner = Recorder()
    reader = DecodingReader(inner)
    reader.feed(gzip.compress(b"") * 3000)
    assert inner.pieces == []
    assert not reader.usage(ESTIMATE).estimated


def test_padding_behind_a_member_is_no_damage():
    packed = gzip.compress(ANSWER) + b"\0" * 7
    for size in (1, 5, 1000):
        assert decoded_pieces([packed[at : at + size] for at in range(0, len(packed), size)]) == (ANSWER, False)


def test_what_does_not_decode_is_charged_by_its_size_at_least():
    reader = DecodingReader(OpaqueReader())
    reader.feed(b"plain text, whatever the header says" * 100)
    assert reader.usage(7) == Usage(7, output=900, estimated=True)


@pytest.mark.parametrize(
    ("header", "encoding"),
    [
        *((header, "") for header in ("", "identity", "none", "identity, identity", "UTF-8", "chunked", " , ")),
        *((header, header.strip().lower()) for header in ("gzip", " GZIP ", "deflate", "x-gzip")),
        *((header, "gzip") for header in ("identity, gzip", "gzip,identity")),
        *((header, "unknown") for header in ("br", "zstd", "gzip, gzip", "br, gzip", "compress")),
    ],
)
def test_what_is_no_encoding_is_told_from_one(header, encoding):
    assert encoding_of(header) == encoding


def test_a_short_body_is_decoded_as_far_as_allowed():
    assert decoded(gzip.compress(b"\xef\xbb\xbfabc"), "gzip", 100) == b"abc"
    assert decoded(gzip.compress(b"a" * 1000), "gzip", 10) == b"a" * 10
    assert decoded(b"abc", "gzip", 100) == decoded(b"abc", "", 100) == decoded(b"abc", "unknown", 100) == b"abc"


def test_how_much_has_passed_is_for_the_other_reader_to_say():
    assert DecodingReader(Recorder()).output_so_far() == 7
