import bz2
import gzip
import lzma
import random
import tracemalloc

import pytest

from edgeproxy.canary import decoys
from edgeproxy.canary.markers import Kind, Marker, Markers
from edgeproxy.canary.scanning import BLOCK_BYTES, Found, Scanner, wanted

OUTSIDE = Marker(Kind.SECRET, "key", "")


def scanned(markers: Markers, *blocks: bytes) -> Scanner:
    scanner = Scanner(wanted(markers))
    for block in blocks:
        scanner.feed(block)
    scanner.end()
    return scanner


@pytest.mark.parametrize("name", decoys._FORMS)
@pytest.mark.parametrize("size", [1, 7, 64, BLOCK_BYTES])
def test_every_form_is_found_however_it_is_cut_into_blocks(name: str, size: int):
    markers = Markers()
    text = markers.content(name)
    data = decoys._FORMS[name](text)
    data = (data if len(data) < 5000 else data[-300:]) + b" behind"
    found = scanned(markers, *(data[at : at + size] for at in range(0, len(data), size))).found
    assert {each.marker for each in found} == {markers.planted[0]}
    assert len(found) == 1


@pytest.mark.parametrize("back", range(30))
def test_a_text_across_the_border_of_two_blocks_is_found_once(back: int):
    markers = Markers()
    text = markers.content("prompt").encode()
    data = bytes(BLOCK_BYTES - back) + text + bytes(BLOCK_BYTES)
    found = scanned(markers, data[:BLOCK_BYTES], data[BLOCK_BYTES:]).found
    assert found == [Found(BLOCK_BYTES - back, "text", markers.planted[0])]


def test_nothing_is_found_in_what_holds_nothing():
    markers, rng = Markers(), random.Random(7)
    markers.content("prompt")
    assert scanned(markers, *(rng.randbytes(BLOCK_BYTES) for _ in range(8))).found == []
    assert scanned(markers, bytes(BLOCK_BYTES), b"").found == []
    assert scanned(markers).found == []


def test_each_of_many_texts_is_found_with_its_place():
    markers, data, places = Markers(), b"", []
    for number in range(50):
        data += b"x" * number
        places.append(len(data))
        data += markers.content(str(number)).encode()
    found = scanned(markers, data).found
    assert [(each.offset, each.marker) for each in found] == list(zip(places, markers.planted, strict=True))


def test_a_secret_that_is_not_of_the_run_is_found_by_itself():
    markers = Markers()
    scanner = Scanner(wanted(markers, [(OUTSIDE, b"A1b2C3d4E5f6G7h8I9")]))
    scanner.feed(b"Bearer A1b2C3d4E5f6G7h8I9 and")
    scanner.end()
    assert scanner.found == [Found(7, "text", OUTSIDE)]


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_what_is_compressed_is_looked_into_wherever_it_begins(pack):
    markers, rng = Markers(), random.Random(1)
    text = markers.content("prompt").encode()
    letters = bytes(rng.choices(b"abcdefghijklmnop \n", k=100_000))
    packed = pack(letters + text + letters)
    for before in (b"", b"x" * 999):
        data = before + packed + b"behind"
        found = scanned(markers, *(data[at : at + 1000] for at in range(0, len(data), 1000))).found
        assert found == [Found(len(before), "text, compressed", markers.planted[0])]


def test_an_archive_in_an_archive_is_looked_into():
    markers = Markers()
    packed = gzip.compress(gzip.compress(markers.content("prompt").encode()))
    assert [each.form for each in scanned(markers, packed).found][-1] == "text, compressed, compressed"


def test_what_only_begins_like_an_archive_or_breaks_off_does_no_harm():
    markers = Markers()
    text = markers.content("prompt").encode()
    whole = gzip.compress(bytes(5000) + text)
    for data in (b"\x1f\x8b\x08" * 50 + text, b"BZh91AY&SY" + text, b"\xfd7zXZ\0" + text, whole[:20] + text):
        assert [each.marker for each in scanned(markers, data).found if each.form == "text"] == markers.planted


def test_what_cannot_be_looked_into_is_told():
    assert scanned(Markers(), b"\x28\xb5\x2f\xfd and more").given_up == ["compressed with zstd"]
    assert scanned(Markers(), b"\x04\x22\x4d\x18 and more").given_up == ["compressed with lz4"]


def test_what_expands_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("edgeproxy.canary.scanning._MAX_EXPANDED_BYTES", 3 * BLOCK_BYTES)
    scanner = scanned(Markers(), gzip.compress(bytes(50 * BLOCK_BYTES)))
    assert scanner.given_up == ["expands too far"]
    assert scanner.expanded_bytes < 5 * BLOCK_BYTES


def test_memory_does_not_grow_with_what_is_searched():
    markers = Markers()
    text = markers.content("prompt").encode()
    scanner = Scanner(wanted(markers))
    block = b"some words " * (BLOCK_BYTES // 11)
    scanner.feed(block)
    tracemalloc.start()
    try:
        for _ in range(40):
            scanner.feed(block)
        scanner.feed(text)
        scanner.end()
        assert tracemalloc.get_traced_memory()[1] < 6 * BLOCK_BYTES
    finally:
        tracemalloc.stop()
    assert [each.offset for each in scanner.found] == [41 * len(block)]
