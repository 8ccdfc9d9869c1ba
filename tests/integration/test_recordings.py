"""Answers of providers, read in every way that a network can cut them, and metered as the gateway meters them.

Each has to be counted as expected, and to pass unchanged: whole, byte by byte, cut in two, compressed, broken off.
"""

import copy
import gzip
import json
import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from urllib.parse import quote

import aiohttp
import pytest

from edgeproxy.domain.reservations import Outcome
from edgeproxy.domain.usage import Usage
from edgeproxy.gateway.metering import Meter
from edgeproxy.providers import sse
from edgeproxy.providers.base import Body, Headers
from edgeproxy.providers.registry import DIALECTS
from tests.support.gateway import Gateway, StartGateway
from tests.support.recordings import FIGURES, OURS, RECORDED, Recording, all_recordings, cases, recordings

ESTIMATE = 1_000_003  # of the input: no answer here has this many, so that it is seen where it is used
SMALL = 8 * 1024  # answers up to this size are cut at every byte
SEED = 20261121


def play(recording: Recording, pieces: list[bytes], **options: object) -> tuple[bytes, Usage]:
    """What is forwarded of an answer that ends in order, and what it is charged."""
    return finish(recording.meter(ESTIMATE, **options), pieces)  # type: ignore[arg-type]


def finish(meter: Meter, pieces: list[bytes]) -> tuple[bytes, Usage]:
    forwarded = b"".join([*(meter.feed(piece) for piece in pieces), meter.end()])
    return forwarded, meter.charge(written=True).usage


def check(recording: Recording, forwarded: bytes, usage: Usage, *, where: object = None) -> None:
    assert forwarded == recording.raw, where
    if not recording.is_served:
        assert usage == Usage(), where
        return
    assert recording.is_right(usage), (where, usage)
    if recording.expected is None and not usage.input_uncached == usage.output == 0:
        assert usage.input_total == ESTIMATE, where


@pytest.mark.parametrize("recording", cases())
def test_a_whole_answer_is_counted_and_passes_unchanged(recording: Recording) -> None:
    check(recording, *play(recording, [recording.raw]))


@pytest.mark.parametrize("recording", cases())
def test_an_answer_that_comes_byte_by_byte_is_counted_and_passes_unchanged(recording: Recording) -> None:
    check(recording, *play(recording, [bytes([byte]) for byte in recording.raw]))


def cuts(recording: Recording) -> set[int]:
    """Where to cut an answer in two: everywhere, or around its events and at seeded places when it is long."""
    size = len(recording.raw)
    if size <= SMALL:
        return set(range(size + 1))
    ends = [] if recording.is_gzip or not recording.streamed else recording.ends()
    around = {end + offset for end in ends for offset in range(-2, 3) if 0 <= end + offset <= size}
    return around | set(random.Random(SEED).sample(range(size), 200))


@pytest.mark.parametrize("recording", cases())
def test_an_answer_that_is_cut_in_two_is_counted_and_passes_unchanged(recording: Recording) -> None:
    for at in cuts(recording):
        check(recording, *play(recording, [recording.raw[:at], recording.raw[at:]]), where=at)


@pytest.mark.parametrize("recording", cases(streamed=True))
def test_an_event_with_usage_may_be_cut_at_any_byte(recording: Recording) -> None:
    if len(recording.raw) <= SMALL:  # cut at every byte above
        return
    for start, end in pairwise([0, *recording.ends()]):
        event = recording.raw[start:end]
        if (b'"usage"' not in event and b"usageMetadata" not in event) or b'"usage":null' in event:
            continue
        before = recording.meter(ESTIMATE)
        before.feed(recording.raw[:start])
        for at in range(1, len(event)):
            forwarded, usage = finish(copy.deepcopy(before), [event[:at], event[at:], recording.raw[end:]])
            assert forwarded == recording.raw[start:]
            assert recording.is_right(usage), (at, usage)


@pytest.mark.parametrize("recording", cases())
def test_a_compressed_answer_is_counted_and_passes_unchanged(recording: Recording) -> None:
    packed = gzip.compress(recording.body, mtime=0)
    headers: Headers = [recording.headers[0], ("content-encoding", "gzip")]
    squeezed = replace(recording, raw=packed, name=recording.name.removesuffix(".gz") + ".gz", headers=headers)
    for size in (len(packed), 100, 1):
        check(squeezed, *play(squeezed, [packed[at : at + size] for at in range(0, len(packed), size)]), where=size)


@pytest.mark.parametrize("recording", cases(streamed=True))
def test_lines_may_end_as_they_like(recording: Recording) -> None:
    if recording.is_gzip or b"\r\n" in recording.raw or not recording.is_complete:
        return
    for newline in (b"\r\n", b"\r"):
        body = recording.raw.replace(b"\n", newline)
        for size in (len(body), 5):
            other = replace(recording, raw=body)
            check(other, *play(other, [body[at : at + size] for at in range(0, len(body), size)]), where=newline)


def is_usage_chunk(event: bytes) -> bool:
    """Whether this is the chunk that OpenAI adds for `include_usage`. Written apart from the code under test."""
    lines = [line[5:] for line in event.decode().splitlines() if line.startswith("data:")]
    if not lines or lines[0].strip() == "[DONE]":
        return False
    chunk = json.loads("\n".join(lines))
    return chunk.get("choices") == [] and isinstance(chunk.get("usage"), dict)


@pytest.mark.parametrize("recording", cases(streamed=True))
def test_usage_that_only_we_asked_for_is_taken_out_and_nothing_else(recording: Recording) -> None:
    if not recording.path.endswith("completions") or not recording.is_served:
        return
    kept = b"".join(event for event in sse.events(recording.raw) if not is_usage_chunk(event))
    for size in (len(recording.raw), 1, 7, 100):
        pieces = [recording.raw[at : at + size] for at in range(0, len(recording.raw), size)]
        forwarded, usage = play(recording, pieces, asks_for_usage=True)
        assert forwarded == kept
        assert recording.is_right(usage), (size, usage)


def broken_off(recording: Recording) -> Iterator[tuple[int, Usage]]:
    """An answer that ends after each of its events, with its connection or in order: where, and what is charged."""
    for end in [0, *recording.ends()]:
        for in_order in (False, True):
            meter = recording.meter(0)
            meter.feed(recording.body[:end])
            if in_order:
                meter.end()
            yield end, meter.charge(written=True).usage


@pytest.mark.parametrize("recording", cases(streamed=True))
def test_a_stream_that_breaks_off_gives_a_lower_bound_and_says_so(recording: Recording) -> None:
    plain = replace(
        recording, raw=recording.body, name=recording.name.removesuffix(".gz"), headers=recording.headers[:1]
    )
    was_final = False
    for end, usage in broken_off(plain):
        if not usage.estimated:
            assert recording.is_right(usage), (end, usage)
            was_final = True
        elif recording.expected is not None:
            assert usage.input_total <= sum(recording.expected[name] for name in FIGURES[:3]), (end, usage)
            assert usage.output <= recording.expected["output"] or not recording.is_complete, (end, usage)
    assert was_final is recording.is_complete


@pytest.mark.parametrize("recording", cases(streamed=False))
def test_a_single_object_that_breaks_off_is_estimated(recording: Recording) -> None:
    if not recording.is_complete or recording.facts(0).is_free:
        return
    for at in range(0, len(recording.raw), 7):
        meter = recording.meter(ESTIMATE)
        meter.feed(recording.raw[:at].rstrip().removesuffix(b"}"))
        usage = meter.charge(written=True).usage
        assert usage.estimated
        assert usage.input_total == ESTIMATE


def test_an_error_costs_nothing() -> None:
    errors = [each for each in all_recordings() if not each.is_served]
    assert errors or not RECORDED.is_dir()
    for recording in errors:
        meter = recording.meter(ESTIMATE)
        meter.feed(recording.raw)
        assert meter.charge(written=True).outcome is Outcome.VOID


def test_every_dialect_has_answers_of_both_kinds_here() -> None:
    found = {(each.route.dialect.name, each.streamed) for each in recordings(OURS)}
    assert found == {(name, streamed) for name in DIALECTS for streamed in (True, False)}
    indexed = {each.name for each in recordings(OURS)} | {"index.json"}
    assert {path.name for path in OURS.iterdir()} == indexed


async def ask(
    gateway: Gateway, session: aiohttp.ClientSession, recording: Recording, name: str
) -> tuple[int, bytes, str]:
    """What a client gets that asks for a recording, and its key."""
    secret = await gateway.issue()
    model = f"recording:{name}"
    path = recording.path
    if recording.route.model:
        path = path.replace(f"/models/{recording.route.model}:", f"/models/{quote(model, safe='')}:")
    options = {"stream_options": {"include_usage": True}} if recording.path.endswith("completions") else {}
    body: object = json.dumps({**recording.request, **options, "model": model, "stream": recording.streamed}).encode()
    if recording.route.endpoint.body is Body.FORM:
        body = aiohttp.FormData({"model": model})
        body.add_field("file", b"sound" * 1000, filename="a.wav")
    headers = {"authorization": f"Bearer {secret}"}
    async with session.post(gateway.url + path, data=body, headers=headers) as answer:
        return answer.status, await answer.read(), secret


@pytest.mark.claims("OG-1")
@pytest.mark.parametrize("folder", [OURS, RECORDED], ids=["ours", "recorded"])
async def test_every_answer_passes_the_gateway_unchanged_and_is_counted(
    start_gateway: StartGateway, folder: Path
) -> None:
    if not folder.is_dir():
        pytest.skip("no recordings beside the checkout")
    gateway = await start_gateway(recordings=OURS.parent if folder is OURS else folder)
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        for recording in recordings(folder):
            name = f"{OURS.name}/{recording.name}" if folder is OURS else recording.name
            status, body, secret = await ask(gateway, session, recording, name)
            if recording.status == 401 or b"API_KEY_INVALID" in recording.raw:
                assert (status, recording.raw in body) == (502, False), name
            else:
                assert (status, body) == (recording.status, recording.raw), name
            (event,) = await gateway.events(secret)
            assert event.status == status
            if recording.is_complete:
                figures = {figure: getattr(event.usage, figure) for figure in FIGURES}
                assert figures == {figure: recording.expected[figure] for figure in FIGURES}, name
            assert event.usage.estimated is (recording.is_served and not recording.is_complete), name
