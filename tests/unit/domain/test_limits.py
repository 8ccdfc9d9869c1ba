"""Limits as text, and the window ring against an exact log of everything that was charged."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeproxy.domain.limits import (
    MAX_AMOUNT,
    MAX_LIMITS,
    NEVER_FITS,
    Amounts,
    Dimension,
    Limit,
    WindowRing,
    check_limits,
    format_limit,
    format_window,
    parse_limit,
    parse_limits,
)

DAY_MS = 86_400_000


class TestText:
    @pytest.mark.parametrize(
        ("text", "limit"),
        [
            ("requests=60/1m", Limit(Dimension.REQUESTS, 60, 60_000)),
            ("tokens=200000/5h", Limit(Dimension.TOKENS, 200_000, 18_000_000)),
            ("input_tokens=0/1s", Limit(Dimension.INPUT_TOKENS, 0, 1_000)),
            ("output_tokens=9007199254740992/366d", Limit(Dimension.OUTPUT_TOKENS, MAX_AMOUNT, 366 * DAY_MS)),
        ],
    )
    def test_a_limit_is_read_and_written(self, text, limit):
        assert parse_limit(text) == limit
        assert format_limit(limit) == text

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("", "write DIMENSION=AMOUNT/WINDOW"),
            ("tokens", "write DIMENSION=AMOUNT/WINDOW"),
            ("tokens=1000", "write DIMENSION=AMOUNT/WINDOW"),
            ("tokens=/1m", "write DIMENSION=AMOUNT/WINDOW"),
            ("tokens=-1/1m", "write DIMENSION=AMOUNT/WINDOW"),
            ("tokens=1e3/1m", "write DIMENSION=AMOUNT/WINDOW"),
            ("tokens=1_000/1m", "write DIMENSION=AMOUNT/WINDOW"),
            ("tokens=\N{ARABIC-INDIC DIGIT ONE}/1m", "write DIMENSION=AMOUNT/WINDOW"),
            ("tokens=1000/m", "write DIMENSION=AMOUNT/WINDOW"),
            ("tokens=1000/1w", "write DIMENSION=AMOUNT/WINDOW"),
            ("tokens=1000/1m\n", "write DIMENSION=AMOUNT/WINDOW"),
            (" tokens=1000/1m", "write DIMENSION=AMOUNT/WINDOW"),
            ("Tokens=1000/1m", "write DIMENSION=AMOUNT/WINDOW"),
            ("token=1000/1m", "no dimension 'token', use one of requests, tokens, input_tokens, output_tokens"),
            ("cost=5/1d", "no dimension 'cost'"),
            ("tokens=9007199254740993/1m", "amount lies between 0 and 9007199254740992"),
            ("tokens=1/0s", "window lies between 1s and 366d"),
            ("tokens=1/367d", "window lies between 1s and 366d"),
            ("tokens=1/999999999d", "window lies between 1s and 366d"),
        ],
    )
    def test_anything_else_is_refused_with_one_line_that_helps(self, text, reason):
        with pytest.raises(ValueError, match=r"^limit ") as caught:
            parse_limit(text)
        assert reason in str(caught.value)
        assert "\n" not in str(caught.value)

    @given(st.text(max_size=30))
    def test_any_text_is_a_limit_or_a_value_error(self, text):
        try:
            limit = parse_limit(text)
        except ValueError:
            return
        assert parse_limit(format_limit(limit)) == limit

    @given(st.sampled_from(Dimension), st.integers(0, MAX_AMOUNT), st.integers(1, 366 * 86_400).map(lambda s: s * 1000))
    def test_every_limit_survives_being_written(self, dimension, amount, window_ms):
        limit = Limit(dimension, amount, window_ms)
        assert parse_limit(format_limit(limit)) == limit

    @pytest.mark.parametrize(
        ("window_ms", "text"),
        [(1_000, "1s"), (90_000, "90s"), (60_000, "1m"), (18_000_000, "5h"), (DAY_MS, "1d"), (7 * DAY_MS, "7d")],
    )
    def test_a_window_is_written_in_the_largest_unit_that_divides_it(self, window_ms, text):
        assert format_window(window_ms) == text

    def test_a_window_of_parts_of_a_second_cannot_be_written(self):
        with pytest.raises(ValueError, match="whole seconds"):
            format_window(1_500)

    def test_one_key_has_one_limit_per_window(self):
        assert len(parse_limits(["tokens=5/1m", "tokens=50/1h", "requests=5/1m"])) == 3
        with pytest.raises(ValueError, match="two limits for tokens per 1m"):
            parse_limits(["tokens=5/1m", "tokens=6/60s"])

    def test_one_key_has_a_bounded_number_of_limits(self):
        limits = parse_limits([f"tokens=5/{n}s" for n in range(1, MAX_LIMITS + 1)])
        with pytest.raises(ValueError, match="at most 16 limits"):
            check_limits((*limits, Limit(Dimension.REQUESTS, 1, 1_000)))


class TestLimit:
    @pytest.mark.parametrize(
        ("amount", "window_ms"),
        [(-1, 1_000), (MAX_AMOUNT + 1, 1_000), (1, 0), (1, -1_000), (1, 1_500), (1, 367 * DAY_MS)],
    )
    def test_what_cannot_be_counted_is_no_limit(self, amount, window_ms):
        with pytest.raises(ValueError, match="a limit's"):
            Limit(Dimension.TOKENS, amount, window_ms)

    def test_the_amount_does_not_name_the_window(self):
        assert Limit(Dimension.TOKENS, 5, 60_000).id == Limit(Dimension.TOKENS, 6, 60_000).id == "tokens/60000"

    @pytest.mark.parametrize(
        ("window_ms", "buckets", "bucket_ms"),
        [
            (1_000, 60, 17),  # does not divide: rounded up, so that the buckets cover the window
            (60_000, 60, 1_000),
            (30 * DAY_MS - 1_000, 60, 43_199_984),
            (30 * DAY_MS, 120, 21_600_000),
        ],
    )
    def test_geometry(self, window_ms, buckets, bucket_ms):
        limit = Limit(Dimension.TOKENS, 1, window_ms)
        assert (limit.buckets, limit.bucket_ms) == (buckets, bucket_ms)
        assert limit.buckets * limit.bucket_ms >= window_ms

    def test_amounts_by_dimension(self):
        amounts = Amounts(requests=1, input_tokens=20, output_tokens=300)
        assert [amounts.of(dimension) for dimension in Dimension] == [1, 320, 20, 300]


def ring_of(amount: int, window_ms: int = 60_000) -> WindowRing:
    return WindowRing(Limit(Dimension.TOKENS, amount, window_ms))


class TestRing:
    def test_the_oldest_bucket_counts_whole_until_all_of_it_has_left(self):
        ring = ring_of(10)
        ring.charge(1_000_999, 10)  # at the very end of its bucket
        assert ring.used(1_060_999) == 10
        assert ring.used(1_061_000) == 0
        ring = ring_of(10)
        ring.charge(1_000_000, 10)  # at the very beginning: counted for almost a bucket too long
        assert ring.used(1_060_999) == 10
        assert ring.used(1_061_000) == 0

    def test_a_full_window_is_full_and_not_fuller(self):
        ring = ring_of(10)
        ring.charge(1_000_000, 4)
        assert ring.retry_ms(1_000_000, 6) == 0
        assert ring.retry_ms(1_000_000, 7) == 61_000
        assert ring.remaining(1_000_000) == 6

    def test_retry_waits_for_as_many_buckets_as_are_needed(self):
        ring = ring_of(10)
        for second, amount in ((1_000, 3), (1_010, 3), (1_020, 4)):
            ring.charge(second * 1_000, amount)
        now_ms = 1_030_500
        assert [ring.retry_ms(now_ms, amount) for amount in (0, 3, 4, 6, 7, 10, 11)] == [
            0, 30_500, 40_500, 40_500, 50_500, 50_500, NEVER_FITS,
        ]  # fmt: skip

    def test_a_limit_of_nothing_lets_nothing_through_but_nothing(self):
        ring = ring_of(0)
        assert ring.retry_ms(1_000_000, 1) == NEVER_FITS
        assert ring.retry_ms(1_000_000, 0) == 0

    def test_a_refund_goes_to_the_bucket_that_was_charged(self):
        ring = ring_of(10)
        index = ring.charge(1_000_000, 8)
        ring.charge(1_030_000, 2)
        ring.refund(index, 5)
        assert ring.used(1_030_000) == 5
        assert ring.used(1_061_000) == 2  # nothing was taken from the younger bucket

    def test_a_refund_to_a_bucket_that_has_left_is_dropped(self):
        ring = ring_of(10)
        index = ring.charge(1_000_000, 8)
        ring.charge(1_061_000, 6)
        ring.refund(index, 5)
        assert ring.used(1_061_000) == 6

    def test_excess_over_the_limit_makes_all_that_follows_wait(self):
        ring = ring_of(10)
        ring.charge(1_000_000, 8)
        ring.charge(1_005_000, 20)
        assert ring.used(1_005_000) == 28
        assert ring.remaining(1_005_000) == 0
        assert ring.retry_ms(1_005_000, 0) == ring.retry_ms(1_005_000, 10) == 61_000

    def test_a_clock_that_goes_back_opens_no_older_bucket(self):
        ring = ring_of(10)
        ring.charge(1_100_000, 6)
        assert ring.charge(1_000_000, 4) == 1_100
        assert ring.used(1_000_000) == ring.used(1_160_999) == 10
        assert ring.retry_ms(1_000_000, 1) == 161_000

    def test_reset_is_when_the_last_charge_has_left(self):
        ring = ring_of(10)
        assert ring.reset_ms(1_000_000) == 0
        ring.charge(1_000_000, 5)
        ring.charge(1_030_400, 5)
        assert ring.reset_ms(1_030_400) == 60_600
        ring.charge(1_050_000, 0)  # nothing is no charge
        assert ring.reset_ms(1_050_000) == 41_000
        assert ring.used(1_091_000) == ring.reset_ms(1_091_000) == 0


@dataclass(slots=True)
class Charge:
    at_ms: int  # by a clock that never goes back
    index: int
    reserved: int
    left: int  # what remains of it after refunds
    excess: bool = False


@dataclass
class Watched:
    """A ring that is used as the scripts use it, with an exact log of everything beside it."""

    limit: Limit
    effective_ms: int = 0
    log: list[Charge] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ring = WindowRing(self.limit)
        self.now_ms = 100_000 * self.limit.bucket_ms  # at the beginning of a bucket

    def logged(self, after_ms: int, to_ms: int) -> int:
        return sum(charge.left for charge in self.log if after_ms < charge.at_ms <= to_ms)

    def in_window(self, at_ms: int) -> int:
        return self.logged(at_ms - self.limit.window_ms, at_ms)

    def time(self) -> int:
        return max(self.effective_ms, self.now_ms)

    def reserve(self, amount: int) -> None:
        if self.ring.retry_ms(self.now_ms, amount) == 0:
            self.charge(amount)
            assert self.in_window(self.effective_ms) <= self.limit.amount  # I1
        else:
            span_ms = (self.limit.buckets + 1) * self.limit.bucket_ms
            assert self.logged(self.time() - span_ms, self.time()) + amount > self.limit.amount  # I2

    def charge(self, amount: int, *, excess: bool = False) -> None:
        self.effective_ms = self.time()
        index = self.ring.charge(self.now_ms, amount)
        assert index == self.effective_ms // self.limit.bucket_ms  # I4, and never a bucket before the newest
        self.log.append(Charge(self.effective_ms, index, amount, amount, excess))

    def settle(self, which: int, actual: int) -> None:
        open_charges = [charge for charge in self.log if charge.left == charge.reserved and not charge.excess]
        if not open_charges:
            return
        charge = open_charges[which % len(open_charges)]
        if actual > charge.reserved:
            self.charge(actual - charge.reserved, excess=True)
        else:
            self.ring.refund(charge.index, charge.reserved - actual)
            charge.left = actual

    def check(self) -> None:
        oldest = self.time() // self.limit.bucket_ms - self.limit.buckets
        by_bucket = sum(charge.left for charge in self.log if charge.index >= oldest)
        assert self.ring.used(self.now_ms) == by_bucket  # I3: each refund is found in the bucket of its charge
        assert self.ring.remaining(self.now_ms) == max(self.limit.amount - by_bucket, 0)

    def check_retry(self, amount: int) -> None:
        wait_ms = self.ring.retry_ms(self.now_ms, amount)
        if wait_ms == NEVER_FITS:
            assert amount > self.limit.amount
            return
        at_ms = self.now_ms + wait_ms
        assert self.ring.retry_ms(at_ms, amount) == 0
        assert self.ring.used(at_ms) + amount <= self.limit.amount
        if wait_ms:
            assert self.ring.used(at_ms - 1) + amount > self.limit.amount


# Steps that meet the edges of a bucket and of a window: a number of buckets, and some ms more or less.
STEPS = st.tuples(st.sampled_from([0, 1, 1, 2, 30, 31, 59, 60, 61, 61, 62]), st.sampled_from([-1, 0, 0, 1, 7]))
AMOUNTS = st.integers(0, 12)
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("reserve"), AMOUNTS),
        st.tuples(st.just("reserve"), AMOUNTS),
        st.tuples(st.just("settle"), st.integers(0, 9), AMOUNTS),
        STEPS.map(lambda step: ("step", step)),
        STEPS.map(lambda step: ("step", step)),
        STEPS.map(lambda step: ("back", step)),
    ),
    min_size=15,
    max_size=50,
)


def step_ms(limit: Limit, step: tuple[int, int]) -> int:
    buckets, more_ms = step
    return max(buckets * limit.bucket_ms + more_ms, 0)


LIMITS = st.builds(
    Limit, st.just(Dimension.TOKENS), st.integers(0, 15), st.sampled_from([1_000, 2_000, 60_000, 30 * DAY_MS])
)


@settings(max_examples=500, deadline=None)
@given(LIMITS, OPERATIONS, AMOUNTS)
def test_the_ring_against_an_exact_log(limit, operations, probe):
    watched = Watched(limit)
    for name, *arguments in operations:
        match name:
            case "reserve":
                watched.reserve(*arguments)
            case "settle":
                watched.settle(*arguments)
            case "step":
                watched.now_ms += step_ms(limit, *arguments)
            case "back":
                watched.now_ms -= step_ms(limit, *arguments)
        watched.check()
        watched.check_retry(probe)


@settings(max_examples=300, deadline=None)
@given(LIMITS, OPERATIONS)
def test_without_excess_no_window_ever_holds_more_than_the_limit(limit, operations):
    watched = Watched(limit)
    for name, *arguments in operations:
        if name == "reserve":
            watched.reserve(*arguments)
        elif name == "step":
            watched.now_ms += step_ms(limit, *arguments)
    for charge in watched.log:  # a sum over a window is largest when it ends with a charge
        assert watched.in_window(charge.at_ms) <= limit.amount


def test_undershoot_is_at_most_one_bucket():
    watched = Watched(Limit(Dimension.TOKENS, 6_000, 60_000))
    for _ in range(30_000):  # 5 minutes, one every 10 ms: more than fits
        watched.now_ms += 10
        if watched.ring.retry_ms(watched.now_ms, 2) == 0:
            watched.charge(2)
    admitted = watched.logged(watched.now_ms - 60_000, watched.now_ms)
    assert 6_000 * 59 // 60 <= admitted <= 6_000


CHARGES = st.lists(st.tuples(st.integers(0, 90_000), st.integers(1, 9)), min_size=1, max_size=12)


@settings(max_examples=300, deadline=None)
@given(LIMITS, LIMITS, CHARGES, st.integers(0, 90_000), st.integers(-500, 300_000))
def test_a_window_that_is_taken_over_forgets_nothing_that_it_covers(old, new, charges, wait_ms, look_ms):
    """Whatever the clock did: charges come in any order of time, as if it went back between them."""
    start_ms = 1_700_000_000_000
    ring = WindowRing(old)
    for at_ms, amount in charges:
        ring.charge(start_ms + at_ms, amount)
    seen_ms = start_ms + max(at_ms for at_ms, _ in charges) + wait_ms
    taken = ring.taken_over(new, seen_ms)
    now_ms = seen_ms + look_ms
    covered_since_ms = max(seen_ms - old.window_ms, now_ms - new.window_ms)
    assert taken.used(now_ms) >= sum(amount for at_ms, amount in charges if start_ms + at_ms > covered_since_ms)
    assert taken.used(seen_ms) <= ring.charged_in_all
    assert taken.used(seen_ms + (new.buckets + 1) * new.bucket_ms) == 0


def test_a_ring_may_begin_with_buckets():
    ring = WindowRing(Limit(Dimension.TOKENS, 100, 60_000), [(1_000, 7), (1_060, 2)])
    assert [ring.used(at_ms) for at_ms in (0, 1_060_999, 1_061_000, 1_120_999, 1_121_000)] == [9, 9, 2, 2, 0]
    assert ring.newest_ms == 1_060_000
    assert WindowRing(Limit(Dimension.TOKENS, 100, 60_000)).newest_ms == 0
