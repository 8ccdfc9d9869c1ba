"""The table of charges, row by row."""

import pytest

from edgeproxy.domain.reservations import Outcome
from edgeproxy.domain.usage import Usage
from edgeproxy.gateway.metering import Meter
from edgeproxy.providers.anthropic import Anthropic
from edgeproxy.providers.base import RequestFacts
from edgeproxy.providers.openai import OpenAI

FACTS = RequestFacts("m", stream=False, input_estimate=70, output_max=None)
ANSWER = b'{"usage":{"prompt_tokens":11,"completion_tokens":4,"total_tokens":15}}'


def meter(facts: RequestFacts = FACTS, *, asks_for_usage: bool = False) -> Meter:
    return Meter(OpenAI(), facts, asks_for_usage=asks_for_usage, max_bytes=10_000)


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
    metered.begin(status)
    assert metered.feed(ANSWER) is ANSWER
    assert metered.charge(written=written).outcome is Outcome.VOID


def test_an_answer_costs_what_the_provider_says() -> None:
    metered = meter()
    metered.begin(200)
    assert metered.feed(ANSWER) is ANSWER
    assert metered.charge(written=True).usage == Usage(input_uncached=11, output=4)


def test_an_answer_that_came_before_the_request_was_fully_sent_is_charged_all_the_same() -> None:
    metered = meter()
    metered.begin(200)
    metered.feed(ANSWER)
    assert metered.charge(written=False).usage == Usage(input_uncached=11, output=4)


def test_an_answer_that_breaks_off_is_charged_an_estimate() -> None:
    metered = meter()
    metered.begin(200)
    metered.feed(ANSWER[:20])
    charge = metered.charge(written=True)
    assert (charge.outcome, charge.usage.input_uncached, charge.usage.estimated) == (Outcome.POST, 70, True)


def test_only_a_stream_that_we_asked_for_usage_may_become_shorter() -> None:
    stream = RequestFacts("m", stream=True, input_estimate=1, output_max=None, usage_requested=False)
    asked = meter(stream, asks_for_usage=True)
    assert not asked.may_change_length
    asked.begin(200)
    assert asked.may_change_length
    failed = meter(stream, asks_for_usage=True)
    failed.begin(500)
    assert not failed.may_change_length


def test_the_last_word_of_a_stream_is_noticed() -> None:
    metered = Meter(Anthropic(), RequestFacts("m", True, 1, None), asks_for_usage=False, max_bytes=10_000)  # noqa: FBT003
    metered.begin(200)
    metered.feed(b'event: message_delta\ndata: {"type":"message_delta","usage":{"output_tokens":3}}\n\n')
    assert not metered.is_finished
    metered.feed(b'event: message_stop\ndata: {"type":"message_stop"}\n')
    assert not metered.is_finished
    metered.feed(b"\n")
    assert metered.is_finished
    assert metered.end() == b""
