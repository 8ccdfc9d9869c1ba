"""What is reserved: by an estimate, or as the most that can be; and less, where that fits and the key allows it."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeproxy.config import Model
from edgeproxy.domain.keys import KeyId, KeyRecord, KeyStatus, OnLimit, Reserve
from edgeproxy.domain.limits import Amounts, Dimension, Limit, WindowRing
from edgeproxy.domain.reservations import LimitReason, ReserveReply, ReserveStatus, WindowLevel
from edgeproxy.errors import COUNTERS_UNAVAILABLE, NO_UPPER_BOUND, GatewayError
from edgeproxy.gateway.bounds import AROUND_TOKENS, LEAST_TOKENS, lowers_output, shrunk, wanted
from edgeproxy.providers import unbounded
from edgeproxy.providers.base import NOT_EXAMINED, Incoming, RequestFacts
from edgeproxy.providers.fields import MAX_COUNT
from edgeproxy.providers.openai_chat import ChatCompletions
from tests.support.recordings import all_recordings

MINUTE = 60_000
KEY = KeyRecord(KeyId("k"), 1, KeyStatus.ACTIVE, 0, (), None, None, ())
STRICT = replace(KEY, reserve=Reserve.STRICT)
FACTS = RequestFacts("m", stream=True, input_estimate=50, output_max=900, least_output=1, unbounded="")
MODEL = Model(match="*", provider="p")
TOKENS = Limit(Dimension.TOKENS, 1000, MINUTE)


def refusal(facts: RequestFacts, model: Model = MODEL) -> GatewayError:
    with pytest.raises(GatewayError) as caught:
        wanted(STRICT, facts, model, 200, 4096)
    return caught.value


# --- what is wanted


@pytest.mark.parametrize(
    ("declared", "setting", "of_model", "reserved"),
    [(None, 4096, 0, 4096), (100, 4096, 0, 100), (64_000, 4096, 0, 4096), (None, 4096, 512, 512), (100, 4096, 50, 50)],
)
def test_an_estimate_is_what_is_declared_or_possible_up_to_a_setting(
    declared: int | None, setting: int, of_model: int, reserved: int
) -> None:
    facts = replace(FACTS, output_max=declared, unbounded=NOT_EXAMINED)
    amounts = wanted(KEY, facts, replace(MODEL, max_output_tokens=of_model), 10**6, setting)
    assert amounts == Amounts(requests=1, input_tokens=50, output_tokens=reserved)


def test_the_most_is_every_byte_and_all_that_is_declared() -> None:
    assert wanted(STRICT, FACTS, MODEL, 200, 4096) == Amounts(1, 200 + AROUND_TOKENS, 900)
    assert wanted(STRICT, replace(FACTS, output_max=64_000), MODEL, 200, 4096).output_tokens == 64_000


def test_the_most_is_no_more_than_the_model_can_write_in_all_its_answers() -> None:
    model = replace(MODEL, max_output_tokens=300)
    assert wanted(STRICT, FACTS, model, 200, 4096).output_tokens == 300
    assert wanted(STRICT, replace(FACTS, answers=2), model, 200, 4096).output_tokens == 600
    assert wanted(STRICT, replace(FACTS, output_max=None, answers=4), model, 200, 4096).output_tokens == 1200


def test_where_no_maximum_is_known_the_remedy_is_told() -> None:
    error = refusal(replace(FACTS, output_max=None))
    assert error.kind is NO_UPPER_BOUND
    assert "Declare one" in error.message
    assert "max_output_tokens" in error.message


def test_what_gives_no_bound_is_named() -> None:
    error = refusal(replace(FACTS, unbounded=unbounded.TOOL))
    assert (error.kind.status, error.kind.retryable) == (400, False)
    assert unbounded.TOOL in error.message


def test_a_key_that_has_just_become_strict_is_asked_to_send_its_request_again() -> None:
    error = refusal(replace(FACTS, unbounded=NOT_EXAMINED))
    assert error.kind is COUNTERS_UNAVAILABLE
    assert error.retry_after_ms


@pytest.mark.parametrize("record", [KEY, STRICT])
def test_what_is_free_reserves_no_tokens(record: KeyRecord) -> None:
    free = RequestFacts("m", stream=False, input_estimate=0, output_max=0, is_free=True)
    assert wanted(record, free, MODEL, 10**6, 4096) == Amounts(requests=1)


def test_numbers_beyond_measure_stay_within_what_redis_counts() -> None:
    model = replace(MODEL, max_output_tokens=2**52)
    amounts = wanted(STRICT, replace(FACTS, output_max=MAX_COUNT, answers=2**53), model, 200, 4096)
    assert amounts.output_tokens <= MAX_COUNT


# Body bytes and input tokens as Anthropic billed them in the public recordings of pydantic-ai: a bare question, and
# requests of two and more turns with two tools.
BILLED = [(301, 92), (1055, 590), (1056, 594), (1729, 797), (1797, 806), (2087, 868), (2155, 877)]


@pytest.mark.parametrize(("body_bytes", "billed"), BILLED)
def test_the_most_covers_what_was_billed(body_bytes: int, billed: int) -> None:
    assert wanted(STRICT, FACTS, MODEL, body_bytes, 4096).input_tokens >= billed


def test_what_is_put_around_a_request_covers_all_that_the_shortest_recorded_ones_were_billed() -> None:
    """The questions are not recorded, but these have no more than a line of text and a tool."""
    short = [
        each.expected["input_total"]
        for each in all_recordings()
        if each.is_complete and each.expected and 0 < each.expected.get("input_total", 0) < 300
    ]
    assert short
    assert max(short) < AROUND_TOKENS


@given(st.text(max_size=300))
def test_text_is_never_longer_than_the_body_that_carries_it(text: str) -> None:
    """So a tokenizer that makes a token of each single byte stays within the bound."""
    text = text.encode("utf-8", "ignore").decode()
    for ascii_only in (True, False):
        fields = {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": 1}
        body = json.dumps(fields, ensure_ascii=ascii_only).encode()
        facts = ChatCompletions().read_request(Incoming("POST", body, len(body), strict=True))
        assert wanted(STRICT, facts, MODEL, len(body), 4096).input_tokens >= len(text.encode()) + AROUND_TOKENS


# --- what is left


def refused(record: KeyRecord, remaining: tuple[int, ...], balance: int | None = None) -> ReserveReply:
    windows = tuple(WindowLevel(each, 0) for each in remaining)
    assert len(windows) == len(record.limits)
    return ReserveReply(ReserveStatus.REFUSED, 0, LimitReason.WINDOW, balance=balance, windows=windows)


SHRINK = replace(KEY, on_limit=OnLimit.SHRINK, limits=(TOKENS,))
WANTED = Amounts(1, 50, 900)


def test_an_answer_is_shortened_to_what_a_limit_has_left() -> None:
    assert shrunk(SHRINK, FACTS, WANTED, refused(SHRINK, (450,))) == Amounts(1, 50, 400)


def test_the_limit_that_has_least_left_decides() -> None:
    limits = (TOKENS, Limit(Dimension.OUTPUT_TOKENS, 1000, MINUTE), Limit(Dimension.INPUT_TOKENS, 1000, MINUTE))
    record = replace(SHRINK, limits=limits)
    for remaining, left in (((450, 999, 99), 400), ((900, 300, 99), 300), ((950, 999, 50), None)):
        amounts = shrunk(record, FACTS, WANTED, refused(record, remaining))
        assert (amounts.output_tokens if amounts else None) == left


def test_the_balance_is_a_limit_too() -> None:
    record = replace(SHRINK, limits=(), prepaid=True)
    assert shrunk(record, FACTS, WANTED, refused(record, (), balance=250)) == Amounts(1, 50, 200)
    assert shrunk(record, FACTS, WANTED, refused(record, (), balance=50)) is None
    assert shrunk(record, FACTS, WANTED, refused(record, (), balance=-5)) is None


@pytest.mark.parametrize(
    ("dimension", "remaining"), [(Dimension.REQUESTS, 0), (Dimension.INPUT_TOKENS, 49), (Dimension.TOKENS, 49)]
)
def test_what_is_refused_for_something_else_is_not_shortened(dimension: Dimension, remaining: int) -> None:
    record = replace(SHRINK, limits=(Limit(dimension, 1000, MINUTE), Limit(Dimension.OUTPUT_TOKENS, 1000, MINUTE)))
    assert shrunk(record, FACTS, WANTED, refused(record, (remaining, 500))) is None


def test_no_answer_is_made_too_short_to_say_anything() -> None:
    assert shrunk(SHRINK, FACTS, WANTED, refused(SHRINK, (50 + LEAST_TOKENS,))) is not None
    assert shrunk(SHRINK, FACTS, WANTED, refused(SHRINK, (50 + LEAST_TOKENS - 1,))) is None
    three = replace(FACTS, answers=3)
    assert shrunk(SHRINK, three, WANTED, refused(SHRINK, (50 + 3 * LEAST_TOKENS - 1,))) is None


def test_no_answer_is_made_shorter_than_its_thinking_may_be() -> None:
    thinking = replace(FACTS, least_output=513)
    assert shrunk(SHRINK, thinking, WANTED, refused(SHRINK, (50 + 512,))) is None
    assert shrunk(SHRINK, thinking, WANTED, refused(SHRINK, (50 + 513,))) == Amounts(1, 50, 513)


@pytest.mark.parametrize("status", [each for each in ReserveStatus if each is not ReserveStatus.REFUSED])
def test_only_a_refusal_is_answered_so(status: ReserveStatus) -> None:
    assert shrunk(SHRINK, FACTS, WANTED, replace(refused(SHRINK, (450,)), status=status)) is None


def test_where_all_fits_and_concurrency_refuses_nothing_is_shortened() -> None:
    assert shrunk(SHRINK, FACTS, WANTED, replace(refused(SHRINK, (1000,)), reason=LimitReason.CONCURRENCY)) is None


def test_what_is_declared_is_not_touched_where_the_key_refuses() -> None:
    record = replace(KEY, limits=(TOKENS,))
    assert shrunk(record, FACTS, WANTED, refused(record, (450,))) is None
    assert shrunk(replace(record, reserve=Reserve.STRICT), FACTS, WANTED, refused(record, (450,))) is None


def test_for_a_guess_nothing_is_refused_but_a_bound_is_no_guess() -> None:
    record, guess = replace(KEY, limits=(TOKENS,)), replace(FACTS, output_max=None)
    assert shrunk(record, guess, WANTED, refused(record, (51,))) == Amounts(1, 50, 1)
    assert shrunk(record, guess, WANTED, refused(record, (50,))) is None
    assert shrunk(replace(record, reserve=Reserve.STRICT), guess, WANTED, refused(record, (51,))) is None


def test_only_a_request_with_a_maximum_to_lower_is_sent_with_a_lower_one() -> None:
    assert lowers_output(SHRINK, FACTS)
    assert not lowers_output(SHRINK, replace(FACTS, least_output=None))
    assert not lowers_output(KEY, FACTS)
    cannot = replace(FACTS, least_output=None)
    assert shrunk(SHRINK, cannot, WANTED, refused(SHRINK, (450,))) is None


@given(st.integers(0, 2000), st.integers(0, 500), st.integers(0, 2000))
def test_what_is_left_fits_and_one_more_would_not(used: int, tokens: int, output: int) -> None:
    ring = WindowRing(TOKENS)
    ring.charge(0, used)
    amounts = Amounts(1, tokens, output)
    if ring.retry_ms(0, tokens + output) == 0:
        return
    smaller = shrunk(SHRINK, FACTS, amounts, refused(SHRINK, (ring.remaining(0),)))
    if smaller is None:
        assert ring.remaining(0) - tokens < LEAST_TOKENS
    else:
        assert ring.retry_ms(0, smaller.of(Dimension.TOKENS)) == 0
        assert ring.retry_ms(0, smaller.of(Dimension.TOKENS) + 1) != 0
