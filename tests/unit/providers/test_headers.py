import pytest

from edgeproxy.domain.limits import Dimension, Limit
from edgeproxy.errors import BUDGET_EXHAUSTED, INVALID_KEY, RATE_LIMITED, GatewayError
from edgeproxy.providers.base import LimitLevel
from edgeproxy.providers.headers import answer_headers, pick, retry_headers, tightest

# --- windows


def level(dimension, remaining, amount=100):
    return LimitLevel(Limit(dimension, amount, 60_000), remaining, 1)


def test_the_tightest_window_is_the_one_with_least_left():
    levels = [
        level(Dimension.REQUESTS, 1),
        level(Dimension.TOKENS, 50, 60),
        level(Dimension.TOKENS, 40, 1000),
        level(Dimension.OUTPUT_TOKENS, 45),
    ]
    assert tightest(levels, (Dimension.TOKENS, Dimension.OUTPUT_TOKENS)) == levels[2]
    assert tightest(levels, (Dimension.OUTPUT_TOKENS,)) == levels[3]
    assert tightest(levels, (Dimension.INPUT_TOKENS,)) is None
    assert tightest([], tuple(Dimension)) is None


# --- headers


def test_picking_heeds_no_case_and_keeps_repetition_and_order():
    headers = [("B", "1"), ("a", "2"), ("c", "3"), ("b", "4")]
    assert pick(headers, frozenset({"a", "b"})) == [("b", "1"), ("a", "2"), ("b", "4")]


@pytest.mark.parametrize(("status", "passes"), [(200, False), (400, False), (401, False), (500, False), (502, False)])
@pytest.mark.parametrize("name", ["retry-after", "retry-after-ms"])
def test_a_wait_is_not_handed_on_where_it_is_no_error_signal(status, passes, name):
    assert bool(answer_headers(status, [(name, "1")], frozenset())) is passes


@pytest.mark.parametrize("status", [429, 503, 529])
def test_a_wait_is_handed_on_where_the_provider_asks_for_one(status):
    headers = [("retry-after", "7"), ("retry-after-ms", "6900")]
    assert answer_headers(status, headers, frozenset()) == headers


@pytest.mark.parametrize(
    ("wait_ms", "seconds"), [(0, "0"), (1, "1"), (999, "1"), (1000, "1"), (1001, "2"), (60_000, "60"), (60_001, "61")]
)
def test_a_wait_is_rounded_up_to_seconds_and_exact_in_milliseconds(wait_ms, seconds):
    headers = retry_headers(GatewayError(RATE_LIMITED, retry_after_ms=wait_ms))
    assert headers == [("retry-after", seconds), ("retry-after-ms", str(wait_ms))]


def test_what_time_alone_does_not_heal_says_stop():
    assert retry_headers(GatewayError(INVALID_KEY)) == [("x-should-retry", "false")]
    assert ("x-should-retry", "false") in retry_headers(GatewayError(BUDGET_EXHAUSTED, retry_after_ms=5))
    assert retry_headers(GatewayError(RATE_LIMITED)) == []


def test_a_dialect_adds_to_what_may_be_handed_on():
    headers = [("content-type", "text/plain"), ("x-own", "1"), ("set-cookie", "c"), ("server", "s")]
    assert answer_headers(200, headers, frozenset({"x-own"})) == headers[:2]
    assert answer_headers(200, headers, frozenset()) == headers[:1]
