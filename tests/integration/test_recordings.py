"""Answers of providers, read in every way that a network can cut them: those of this repository, which follow the
documented shapes, and recorded ones, where a folder of them lies beside the checkout.

A folder has `index.json` files: for each answer its file, the endpoint that gave it, and the usage that is to be read.
"""

import json
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate
from pathlib import Path

import pytest

from edgeproxy.domain.usage import Usage
from edgeproxy.providers import anthropic, openai, sse
from edgeproxy.providers.base import Dialect, RequestFacts, UsageReader
from edgeproxy.providers.registry import DIALECTS

OURS = Path(__file__).parents[1] / "fixtures" / "answers"
RECORDED = Path(__file__).parents[3] / "shared" / "recordings"
FIGURES = ("input_uncached", "cache_read", "cache_write", "output", "reasoning")
WIDE = 16 * 2**20
ESTIMATE = 1_000_003  # of the input: no answer here has this many, so that it is seen where it is used


@dataclass(frozen=True)
class Recording:
    """An answer with a status of success; `usage` None: it brings none."""

    name: str
    body: bytes
    dialect: Dialect
    streamed: bool
    usage: Usage | None

    def reader(self, *, ask_for_usage: bool = False) -> UsageReader:
        facts = RequestFacts(model="m", stream=self.streamed, input_estimate=ESTIMATE, output_max=None)
        return self.dialect.reader(facts, ask_for_usage=ask_for_usage, max_bytes=WIDE)

    def events(self) -> list[bytes]:
        return sse.events(self.body)


def dialect_of(endpoint: str) -> Dialect | None:
    path = endpoint.partition("?")[0]
    if path.endswith("/chat/completions"):
        return DIALECTS["openai"]
    return DIALECTS["anthropic"] if path.endswith("/v1/messages") else None


@cache
def recordings(folder: Path) -> list[Recording]:
    """The answers in a folder of which the endpoint is one that we serve."""
    found = []
    for index in sorted(folder.rglob("index.json")):
        for row in json.loads(index.read_text(encoding="utf-8"))["fixtures"]:
            dialect = dialect_of(row["endpoint"])
            if dialect is None or row["http_status"] != 200:
                continue
            path = index.parent / row["file"]
            expected = row["expected"]
            usage = None if expected is None else Usage(**{name: expected[name] for name in FIGURES})
            name = path.relative_to(folder).as_posix()
            found.append(Recording(name, path.read_bytes(), dialect, path.suffix == ".sse", usage))
    return found


def cases(*, streamed: bool | None = None) -> list[object]:
    """The recordings as parameters; one that says why it is skipped stands for a folder that is not there."""
    rows: list[object] = [pytest.param(each, id=each.name) for each in recordings(OURS)]
    if RECORDED.is_dir():
        rows += [pytest.param(each, id=f"recorded {each.name}") for each in recordings(RECORDED)]
    else:
        missing = pytest.mark.skip(reason="no recordings beside the checkout")
        rows.append(pytest.param(None, id="recorded", marks=missing))
    return [row for row in rows if streamed is None or row.values[0] is None or row.values[0].streamed is streamed]


def play(recording: Recording, pieces: list[bytes], *, ask_for_usage: bool = False) -> tuple[bytes, Usage]:
    """What is forwarded of an answer that ends in order, and its usage."""
    reader = recording.reader(ask_for_usage=ask_for_usage)
    forwarded = b"".join([*(reader.feed(piece) for piece in pieces), reader.end()])
    return forwarded, reader.usage(ESTIMATE)


def is_right(usage: Usage, recording: Recording) -> bool:
    if recording.usage is None:
        return usage.estimated and usage.input_total == ESTIMATE and usage.output > 0
    return usage == recording.usage


def is_usage_chunk(event: bytes) -> bool:
    """Whether this is the chunk that OpenAI adds for `include_usage`. Written apart from the code under test."""
    lines = [line[5:] for line in event.decode().splitlines() if line.startswith("data:")]
    if not lines or lines[0].strip() == "[DONE]":
        return False
    chunk = json.loads("\n".join(lines))
    return chunk.get("choices") == [] and isinstance(chunk.get("usage"), dict)


@pytest.mark.parametrize("recording", cases())
def test_a_whole_answer_is_counted_and_passes_unchanged(recording: Recording) -> None:
    forwarded, usage = play(recording, [recording.body])
    assert forwarded == recording.body
    assert is_right(usage, recording), usage


@pytest.mark.parametrize("recording", cases())
def test_an_answer_that_comes_byte_by_byte_is_counted_and_passes_unchanged(recording: Recording) -> None:
    forwarded, usage = play(recording, [bytes([byte]) for byte in recording.body])
    assert forwarded == recording.body
    assert is_right(usage, recording), usage


@pytest.mark.parametrize("recording", cases(streamed=True))
def test_a_stream_that_is_cut_around_an_event_is_counted_and_passes_unchanged(recording: Recording) -> None:
    ends = list(accumulate(len(event) for event in recording.events()))
    for boundary in {*ends[:: len(ends) // 40 + 1], *ends[-4:]}:
        for at in range(max(boundary - 2, 0), min(boundary + 2, len(recording.body)) + 1):
            forwarded, usage = play(recording, [recording.body[:at], recording.body[at:]])
            assert forwarded == recording.body
            assert is_right(usage, recording), (at, usage)


@pytest.mark.parametrize("recording", cases(streamed=True))
def test_lines_may_end_as_they_like(recording: Recording) -> None:
    for newline in (b"\r\n", b"\r"):
        body = recording.body.replace(b"\n", newline)
        for pieces in ([body], [body[at : at + 5] for at in range(0, len(body), 5)]):
            forwarded, usage = play(replace(recording, body=body), pieces)
            assert forwarded == body
            if recording.usage is not None:
                assert usage == recording.usage


@pytest.mark.parametrize("recording", cases(streamed=True))
def test_usage_that_only_we_asked_for_is_taken_out_and_nothing_else(recording: Recording) -> None:
    expected = recording.body
    if recording.dialect.name == "openai":
        expected = b"".join(event for event in recording.events() if not is_usage_chunk(event))
    for size in (len(recording.body), 1, 7, 100):
        pieces = [recording.body[at : at + size] for at in range(0, len(recording.body), size)]
        forwarded, usage = play(recording, pieces, ask_for_usage=True)
        assert forwarded == expected
        assert is_right(usage, recording), (size, usage)


def provisional(recording: Recording, events: list[bytes]) -> Usage | None:
    """The figures that the provider has given in these events. Written apart from the code under test."""
    known: Usage | None = None
    figures: dict[str, object] = {}
    for event in events:
        lines = [line[5:] for line in event.decode().splitlines() if line.startswith("data:")]
        if not lines or lines[0].strip() == "[DONE]":
            continue
        row = json.loads("\n".join(lines))
        if recording.dialect.name == "openai":
            known = openai.read_usage(row.get("usage")) or known
        else:
            figures |= row.get("usage") or row.get("message", {}).get("usage") or {}
            known = anthropic.read_usage(figures)
    return known


@pytest.mark.parametrize("recording", cases(streamed=True))
def test_a_stream_that_breaks_off_gives_a_lower_bound_and_says_so(recording: Recording) -> None:
    events = recording.events()
    was_final = False
    for passed in range(len(events) + 1):
        reader = recording.reader()
        for event in events[:passed]:
            reader.feed(event)
        usage = reader.usage(0)
        if not usage.estimated:
            assert is_right(usage, recording), (passed, usage)
            was_final = True
            continue
        assert not was_final, f"final before event {passed}, estimated after it"
        known = provisional(recording, events[:passed]) or Usage()
        assert usage.input_total == known.input_total
        assert usage.output >= known.output
        assert recording.usage is None or usage.input_total <= recording.usage.input_total
    # The last word of a stream is its end at the latest; without usage there is none.
    assert was_final or recording.usage is None


@pytest.mark.parametrize("recording", cases(streamed=False))
def test_a_single_object_is_counted_wherever_it_is_cut_and_estimated_when_it_breaks_off(recording: Recording) -> None:
    for at in range(len(recording.body)):
        forwarded, usage = play(recording, [recording.body[:at], recording.body[at:]])
        assert forwarded == recording.body
        assert is_right(usage, recording), (at, usage)
        reader = recording.reader()
        reader.feed(recording.body[:at].rstrip().removesuffix(b"}"))
        assert reader.usage(ESTIMATE).estimated


def test_every_dialect_has_answers_of_both_kinds_here() -> None:
    found = {(each.dialect.name, each.streamed) for each in recordings(OURS)}
    assert found == {(name, streamed) for name in DIALECTS for streamed in (True, False)}
    indexed = {each.name for each in recordings(OURS)} | {"index.json"}
    assert {path.name for path in OURS.iterdir()} == indexed
