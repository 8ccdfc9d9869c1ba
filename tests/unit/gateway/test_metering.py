"""The table of charges, row by row."""

import gzip

import pytest

from edgeproxy.domain.reservations import Outcome
from edgeproxy.domain.usage import Usage
from edgeproxy.gateway import routes
from edgeproxy.gateway.metering import Meter
from edgeproxy.gateway.routes import Query
from edgeproxy.providers.base import Headers, RequestFacts
from tests.support.recordings import Recording, cases

FACTS = RequestFacts("m", stream=False, input_estimate=70, output_max=None)
PLAIN: Headers = [("content-type", "application/json")]
STREAM: Headers = [("content-type", "text/event-stream; charset=utf-8")]
ANSWER = b'{"usage":{"prompt_tokens":11,"completion_tokens":4,"total_tokens":15}}'


def meter(facts: RequestFacts = FACTS, *, asks_for_usage: bool = False, path: str = "/v1/chat/completions") -> Meter:
    route = routes.find("POST", path, Query(""), {})
    return Meter(route, facts, asks_for_usage=asks_for_usage, max_bytes=10_000)


def test_a_request_that_was_not_fully_sent_costs_nothing() -> None:
    charge = meter().charge(written=False)
    assert (charge.outcome, charge.usage) == (Outcome.VOID, Usage())


def test_a_request_that_was_sent_and_not_answered_costs_its_input() -> None:
    charge = meter().charge(written=True)
    assert (charge.outcome, charge.usage) == (Outcome.POST, Usage(input_uncached=70, estimated=True))


@pytest.mark.parametrize("status", [301, 400, 429, 500, 529])
@pytest.mark.parametrize("written", [True, False])
def test_an_error_of_the_provider_costs_nothing(status: int, *, written: bool) -> None:
    metered = meter()
    metered.begin(status, PLAIN)
    assert metered.feed(ANSWER) is ANSWER
    assert metered.charge(written=written).outcome is Outcome.VOID


def test_an_answer_costs_what_the_provider_says() -> None:
    metered = meter()
    metered.begin(200, PLAIN)
    assert metered.feed(ANSWER) is ANSWER
    assert metered.charge(written=True).usage == Usage(input_uncached=11, output=4)


def test_an_answer_that_came_before_the_request_was_fully_sent_is_charged_all_the_same() -> None:
    metered = meter()
    metered.begin(200, PLAIN)
    metered.feed(ANSWER)
    assert metered.charge(written=False).usage == Usage(input_uncached=11, output=4)


def test_an_answer_that_breaks_off_is_charged_an_estimate() -> None:
    metered = meter()
    metered.begin(200, PLAIN)
    metered.feed(ANSWER[:20])
    charge = metered.charge(written=True)
    assert (charge.outcome, charge.usage.input_uncached, charge.usage.estimated) == (Outcome.POST, 70, True)


def test_only_a_stream_that_we_asked_for_usage_may_become_shorter() -> None:
    stream = RequestFacts("m", stream=True, input_estimate=1, output_max=None, usage_requested=False)
    asked = meter(stream, asks_for_usage=True)
    assert not asked.may_change_length
    asked.begin(200, STREAM)
    assert asked.may_change_length
    failed = meter(stream, asks_for_usage=True)
    failed.begin(500, STREAM)
    assert not failed.may_change_length


def test_the_last_word_of_a_stream_is_noticed() -> None:
    metered = meter(path="/v1/messages")
    metered.begin(200, STREAM)
    metered.feed(b'event: message_delta\ndata: {"type":"message_delta","usage":{"output_tokens":3}}\n\n')
    assert metered.reader is not None
    assert not metered.reader.is_finished
    metered.feed(b'event: message_stop\ndata: {"type":"message_stop"}\n')
    assert not metered.reader.is_finished
    metered.feed(b"\n")
    assert metered.reader.is_finished
    assert metered.end() == b""


def test_what_the_provider_bills_nothing_for_costs_nothing_however_it_ends() -> None:
    free = RequestFacts("m", stream=False, input_estimate=0, output_max=0, is_free=True)
    for written in (True, False):
        assert meter(free).charge(written=written).outcome is Outcome.VOID
        answered = meter(free)
        answered.begin(200, PLAIN)
        assert answered.feed(ANSWER) is ANSWER
        assert answered.charge(written=written).usage == Usage()


def test_what_came_decides_how_it_is_read_and_not_what_was_asked_for() -> None:
    asked = RequestFacts("m", stream=True, input_estimate=70, output_max=None)
    metered = meter(asked)
    metered.begin(200, PLAIN)
    metered.feed(ANSWER)
    assert metered.charge(written=True).usage == Usage(input_uncached=11, output=4)
    metered = meter()
    metered.begin(200, [("content-type", "TEXT/Event-Stream ; charset=utf-8")])
    metered.feed(b'data: {"choices":[],"usage":{"prompt_tokens":11,"completion_tokens":4}}\n\n')
    assert metered.charge(written=True).usage == Usage(input_uncached=11, output=4)


def test_an_answer_that_is_compressed_all_the_same_is_counted_and_left_as_it_is() -> None:
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":11,"completion_tokens":4}}\n\ndata: [DONE]\n\n'
    packed = gzip.compress(usage)
    metered = meter(RequestFacts("m", True, 70, None, usage_requested=False), asks_for_usage=True)  # noqa: FBT003
    metered.begin(200, [*STREAM, ("content-encoding", "gzip")])
    assert not metered.may_change_length
    assert [metered.feed(packed[:9]), metered.feed(packed[9:]), metered.end()] == [packed[:9], packed[9:], b""]
    assert metered.charge(written=True).usage == Usage(input_uncached=11, output=4)


def test_an_answer_in_an_unknown_encoding_is_charged_the_estimate() -> None:
    metered = meter()
    metered.begin(200, [*PLAIN, ("content-encoding", "br")])
    assert metered.feed(b"?" * 400) == b"?" * 400
    assert metered.charge(written=True).usage == Usage(input_uncached=70, output=100, estimated=True)


@pytest.mark.parametrize(
    "headers", [[], [("content-type", "text/plain")], [("content-type", "application/octet-stream")]]
)
def test_a_stream_that_does_not_say_that_it_is_one_is_read_as_one(headers: Headers) -> None:
    metered = meter(RequestFacts("m", True, 70, None, usage_requested=False), asks_for_usage=True)  # noqa: FBT003
    metered.begin(200, headers)
    assert metered.feed(b'data: {"choices":[],"usage":{"prompt_tokens":11,"completion_tokens":4}}\n\n') == b""
    assert metered.charge(written=True).usage == Usage(input_uncached=11, output=4)


# --- the backstop

DELTA = b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % (b"word " * 100)


def stream() -> Meter:
    metered = meter(RequestFacts("m", stream=True, input_estimate=70, output_max=1000))
    metered.begin(200, STREAM)
    return metered


def test_an_answer_that_goes_on_far_beyond_its_reservation_is_over() -> None:
    metered, fed = stream(), 0
    while not metered.is_over(1000):
        metered.feed(DELTA)
        fed += 1
        assert fed < 1000
    assert metered.output_so_far() > 1000 + 250 + 256
    assert metered.charge(written=True).usage.output == metered.output_so_far()


def test_an_answer_within_its_reservation_is_not_over() -> None:
    metered = stream()
    for _ in range(200):
        metered.feed(DELTA)
        assert not metered.is_over(10**6)
    assert metered.output_so_far() > 200


def test_how_long_an_answer_has_become_is_looked_at_only_now_and_then() -> None:
    metered, looks = stream(), 0
    metered.feed(DELTA * 500)
    assert metered.is_over(0)
    for _ in range(20):
        metered.feed(DELTA)
        looks += metered.is_over(0)
    assert looks == 0
    metered.feed(DELTA * 10)
    assert metered.is_over(0)


def test_an_answer_in_one_piece_is_never_over() -> None:
    metered = meter()
    metered.begin(200, PLAIN)
    metered.feed(b'{"choices":[{"message":{"content":"' + b"word " * 10**5)
    assert not metered.is_over(0)
    assert metered.output_so_far() == 0


def test_what_is_not_read_is_never_over() -> None:
    metered = meter()
    metered.feed(b"x" * 10**6)
    assert not metered.is_over(0)


def test_a_compressed_answer_is_over_as_well() -> None:
    metered = meter(RequestFacts("m", stream=True, input_estimate=70, output_max=1000))
    metered.begin(200, [*STREAM, ("content-encoding", "gzip")])
    metered.feed(gzip.compress(DELTA * 2000, 0))
    assert metered.is_over(1000)


@pytest.mark.parametrize("recording", cases(streamed=True))
def test_no_recorded_answer_is_over_what_it_was_billed(recording: Recording) -> None:
    if not recording.is_complete or recording.expected is None:
        return
    metered = recording.meter(0)
    for at in range(0, len(recording.raw), 997):
        metered.feed(recording.raw[at : at + 997])
        assert not metered.is_over(recording.expected["output"])
