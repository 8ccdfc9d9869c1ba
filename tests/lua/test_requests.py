"""What happens to requests, case by case, in the reference and in the scripts alike."""

import pytest

from edgeproxy.domain.keys import KeyId, KeyStatus, Mode
from edgeproxy.domain.limits import MAX_AMOUNT, NEVER_FITS, Amounts, Limit, parse_limits
from edgeproxy.domain.reservations import (
    NO_TIME_HELPS,
    WHATEVER_HOLDS,
    ChargedScope,
    HeartbeatStatus,
    KeyVersion,
    LedgerStatus,
    LimitReason,
    Outcome,
    Pending,
    PublishStatus,
    ReapStatus,
    ReserveReply,
    ReserveStatus,
    SettleReply,
    SettleStatus,
    WindowLevel,
)
from tests.lua.in_redis import record_of

NOW = 1_700_000_000_000  # at the beginning of a bucket of a minute
KEY = KeyVersion(KeyId("key"), 1)
KEY_2 = KeyVersion(KeyId("key"), 2)
ACCOUNT = KeyVersion(KeyId("account"), 5)
ONE = Amounts(requests=1)


def tokens(number: int) -> Amounts:
    return Amounts(requests=1, input_tokens=number // 4, output_tokens=number - number // 4)


def used(partition, key=KEY, now_ms=NOW) -> list[int]:
    return [window.used for window in partition.inspect(key.key_id, now_ms).windows]


@pytest.fixture
def publish(partition):
    """Publishes a version of a key, active and without a cap unless told otherwise."""

    def publish(key, *limits: str, now_ms=NOW, **options):
        return partition.publish(record_of(key, *limits, **options), now_ms)

    return publish


class TestReserve:
    def test_a_request_that_fits_is_charged_to_every_window(self, partition, publish):
        publish(KEY, "requests=5/1m", "tokens=1000/5h", "input_tokens=100/1m", "output_tokens=400/1m")
        reply = partition.reserve("r", [KEY], tokens(200), NOW)
        assert reply == ReserveReply(
            ReserveStatus.ADMITTED,
            NOW,
            windows=(
                WindowLevel(4, 61_000),
                WindowLevel(800, 18_300_000 - NOW % 300_000),
                WindowLevel(50, 61_000),
                WindowLevel(250, 61_000),
            ),
        )
        assert used(partition) == [1, 200, 50, 150]

    def test_exactly_as_many_as_the_limit_says_are_admitted(self, partition, publish):
        publish(KEY, "requests=50/1m")
        statuses = [partition.reserve(f"r{n}", [KEY], ONE, NOW + n).status for n in range(60)]
        assert statuses == [ReserveStatus.ADMITTED] * 50 + [ReserveStatus.REFUSED] * 10

    def test_a_refusal_says_when_the_request_fits_to_the_millisecond(self, partition, publish):
        publish(KEY, "tokens=100/1m")
        partition.reserve("a", [KEY], tokens(60), NOW + 400)
        partition.reserve("b", [KEY], tokens(40), NOW + 10_400)
        reply = partition.reserve("c", [KEY], tokens(50), NOW + 20_123)
        assert (reply.status, reply.position, reply.retry_ms) == (ReserveStatus.REFUSED, 0, 40_877)
        assert partition.reserve("c", [KEY], tokens(50), NOW + 20_123 + 40_876).status is ReserveStatus.REFUSED
        assert partition.reserve("c", [KEY], tokens(50), NOW + 20_123 + 40_877).status is ReserveStatus.ADMITTED

    def test_a_refusal_by_one_window_charges_no_other(self, partition, publish):
        publish(KEY, "requests=5/1m", "tokens=100/1m", "output_tokens=1000/1h")
        reply = partition.reserve("r", [KEY], tokens(101), NOW)
        assert (reply.position, reply.retry_ms) == (1, NEVER_FITS)
        assert reply.windows == (WindowLevel(5, 0), WindowLevel(100, 0), WindowLevel(1000, 0))
        assert used(partition) == [0, 0, 0]
        assert partition.inspect(KEY.key_id, NOW).open == partition.pending() == 0

    def test_the_window_that_takes_longest_decides(self, partition, publish):
        publish(KEY, "requests=1/1m", "tokens=10/1h", "output_tokens=10/1m")
        partition.reserve("a", [KEY], tokens(10), NOW)
        reply = partition.reserve("b", [KEY], tokens(10), NOW)
        assert (reply.position, reply.retry_ms) == (1, 3_660_000 - NOW % 60_000)
        reply = partition.reserve("b", [KEY], tokens(16), NOW)  # 12 of output: never
        assert (reply.position, reply.retry_ms) == (1, NEVER_FITS)

    def test_the_first_of_two_that_take_equally_long_is_named(self, partition, publish):
        publish(KEY, "requests=9/1m", "tokens=10/1m", "output_tokens=8/1m")
        partition.reserve("a", [KEY], tokens(10), NOW)
        reply = partition.reserve("b", [KEY], tokens(10), NOW)
        assert (reply.position, reply.retry_ms) == (1, 61_000)

    def test_the_first_of_two_that_never_fit_is_named(self, partition, publish):
        publish(KEY, "requests=5/1m", "input_tokens=1/1h", "output_tokens=1/1m")
        reply = partition.reserve("a", [KEY], tokens(100), NOW)
        assert (reply.position, reply.retry_ms) == (1, NEVER_FITS)

    def test_a_request_larger_than_the_limit_never_fits_into_an_empty_window(self, partition, publish):
        publish(KEY, "tokens=100/1m")
        assert partition.reserve("r", [KEY], tokens(101), NOW).retry_ms == NEVER_FITS
        assert partition.reserve("r", [KEY], tokens(100), NOW).status is ReserveStatus.ADMITTED

    def test_a_limit_of_nothing_refuses_forever(self, partition, publish):
        publish(KEY, "requests=0/1m")
        reply = partition.reserve("r", [KEY], ONE, NOW)
        assert (reply.status, reply.position, reply.retry_ms) == (ReserveStatus.REFUSED, 0, NEVER_FITS)

    def test_a_request_without_tokens_passes_a_full_window_of_tokens(self, partition, publish):
        publish(KEY, "tokens=100/1m", "output_tokens=0/1m")
        partition.reserve("a", [KEY], Amounts(1, 100, 0), NOW)
        reply = partition.reserve("b", [KEY], ONE, NOW)
        assert reply.status is ReserveStatus.ADMITTED
        assert reply.windows == (WindowLevel(0, 61_000), WindowLevel(0, 0))

    def test_a_key_without_limits_is_counted(self, partition, publish):
        publish(KEY)
        assert partition.reserve("r", [KEY], tokens(5), NOW) == ReserveReply(ReserveStatus.ADMITTED, NOW)
        assert partition.inspect(KEY.key_id, NOW).open == 1

    def test_repeating_a_reserve_charges_once(self, partition, publish):
        publish(KEY, "tokens=100/1m")
        partition.reserve("r", [KEY], tokens(30), NOW)
        assert partition.reserve("r", [KEY], tokens(30), NOW) == ReserveReply(ReserveStatus.DUPLICATE, NOW)
        partition.settle("r", Outcome.POST, tokens(30), b"e", NOW)
        assert partition.reserve("r", [KEY], tokens(30), NOW).status is ReserveStatus.DUPLICATE
        assert used(partition) == [30]

    def test_a_refused_request_may_come_again_with_its_id(self, partition, publish):
        publish(KEY, "tokens=100/1m")
        assert partition.reserve("r", [KEY], tokens(101), NOW).status is ReserveStatus.REFUSED
        assert partition.reserve("r", [KEY], tokens(99), NOW).status is ReserveStatus.ADMITTED

    def test_an_unpublished_key_gets_no_fresh_budget(self, partition, publish):
        assert partition.reserve("r", [KEY], ONE, NOW) == ReserveReply(ReserveStatus.UNPUBLISHED, NOW)
        assert partition.inspect(KEY.key_id, NOW) is None

    @pytest.mark.parametrize("version", [0, 1, 3])
    def test_another_version_of_the_key_is_stale(self, partition, publish, version):
        publish(KEY_2, "requests=5/1m")
        scope = KeyVersion(KEY.key_id, version)
        assert partition.reserve("r", [scope], ONE, NOW) == ReserveReply(ReserveStatus.STALE, NOW)
        assert used(partition) == [0]

    def test_a_revoked_key_is_disabled(self, partition, publish):
        publish(KEY, "requests=5/1m", status=KeyStatus.REVOKED)
        assert partition.reserve("r", [KEY], ONE, NOW) == ReserveReply(ReserveStatus.DISABLED, NOW)

    def test_a_clock_that_goes_back_frees_nothing(self, partition, publish):
        publish(KEY, "requests=2/1m")
        partition.reserve("a", [KEY], ONE, NOW)
        partition.reserve("b", [KEY], ONE, NOW - 3_600_000)
        reply = partition.reserve("c", [KEY], ONE, NOW - 3_600_000)
        assert (reply.status, reply.retry_ms) == (ReserveStatus.REFUSED, 3_661_000)
        assert used(partition, now_ms=NOW + 60_999) == [2]


class TestConcurrency:
    def test_as_many_as_the_cap_says_may_be_open(self, partition, publish):
        publish(KEY, "requests=5/1m", cap=2)
        partition.reserve("a", [KEY], ONE, NOW)
        partition.reserve("b", [KEY], ONE, NOW)
        reply = partition.reserve("c", [KEY], ONE, NOW)
        assert (reply.status, reply.reason, reply.position, reply.retry_ms) == (
            ReserveStatus.REFUSED,
            LimitReason.CONCURRENCY,
            0,
            NO_TIME_HELPS,
        )
        assert reply.windows == (WindowLevel(3, 61_000),)
        partition.settle("a", Outcome.POST, ONE, b"e", NOW)
        assert partition.reserve("c", [KEY], ONE, NOW).status is ReserveStatus.ADMITTED

    def test_a_window_that_refuses_too_says_when(self, partition, publish):
        publish(KEY, "requests=1/1m", cap=1)
        partition.reserve("a", [KEY], ONE, NOW)
        reply = partition.reserve("b", [KEY], ONE, NOW)
        assert (reply.position, reply.retry_ms) == (0, 61_000)

    def test_a_cap_of_nothing_refuses(self, partition, publish):
        publish(KEY, cap=0)
        assert partition.reserve("a", [KEY], ONE, NOW).retry_ms == NO_TIME_HELPS

    def test_each_request_is_taken_off_once(self, partition, publish):
        publish(KEY, cap=2)
        for name in "ab":
            partition.reserve(name, [KEY], ONE, NOW)
        for _ in range(3):
            partition.settle("a", Outcome.VOID, ONE, b"e", NOW)
        assert partition.inspect(KEY.key_id, NOW).open == 1


class TestTwoScopes:
    def test_both_are_charged(self, partition, publish):
        publish(KEY, "tokens=100/1m")
        publish(ACCOUNT, "requests=5/1m", "tokens=150/1m")
        reply = partition.reserve("r", [KEY, ACCOUNT], tokens(40), NOW)
        assert [level.remaining for level in reply.windows] == [60, 4, 110]
        partition.settle("r", Outcome.POST, tokens(30), b"e", NOW)
        assert used(partition) == [30]
        assert used(partition, ACCOUNT) == [1, 30]
        assert partition.inspect(ACCOUNT.key_id, NOW).totals == tokens(30).__class__(1, 7, 23)
        assert partition.events == [b"e"]

    def test_a_refusal_by_the_second_charges_neither(self, partition, publish):
        publish(KEY, "tokens=100/1m")
        publish(ACCOUNT, "requests=5/1m", "tokens=10/1m")
        reply = partition.reserve("r", [KEY, ACCOUNT], tokens(40), NOW)
        assert (reply.status, reply.position, reply.retry_ms) == (ReserveStatus.REFUSED, 2, NEVER_FITS)
        assert used(partition) + used(partition, ACCOUNT) == [0, 0, 0]
        assert partition.inspect(KEY.key_id, NOW).open == 0

    def test_the_cap_of_the_second_is_told_apart(self, partition, publish):
        publish(KEY, "tokens=100/1m", cap=3)
        publish(ACCOUNT, cap=1)
        partition.reserve("a", [KEY, ACCOUNT], ONE, NOW)
        reply = partition.reserve("b", [KEY, ACCOUNT], ONE, NOW)
        assert (reply.reason, reply.position, reply.retry_ms) == (LimitReason.CONCURRENCY, 1, NO_TIME_HELPS)

    @pytest.mark.parametrize(
        ("account", "status"),
        [
            (None, ReserveStatus.UNPUBLISHED),
            ((KeyVersion(ACCOUNT.key_id, 6), KeyStatus.ACTIVE), ReserveStatus.STALE),
            ((ACCOUNT, KeyStatus.REVOKED), ReserveStatus.DISABLED),
        ],
    )
    def test_what_stops_the_second_stops_the_request(self, partition, publish, account, status):
        publish(KEY, "tokens=100/1m")
        if account:
            publish(account[0], status=account[1])
        assert partition.reserve("r", [KEY, ACCOUNT], ONE, NOW) == ReserveReply(status, NOW)
        assert partition.inspect(KEY.key_id, NOW).open == 0


class TestSettle:
    def test_what_was_used_replaces_what_was_reserved(self, partition, publish):
        publish(KEY, "requests=5/1m", "tokens=1000/1m", "input_tokens=500/1m", "output_tokens=800/1m")
        partition.reserve("r", [KEY], Amounts(1, 100, 400), NOW)
        reply = partition.settle("r", Outcome.POST, Amounts(1, 120, 30), b"event", NOW + 5)
        assert reply == SettleReply(SettleStatus.RESOLVED, NOW + 5)
        assert used(partition) == [1, 150, 120, 30]
        assert partition.events == [b"event"]
        usage = partition.inspect(KEY.key_id, NOW)
        assert (usage.totals, usage.last_used_ms, usage.open) == (Amounts(1, 120, 30), NOW + 5, 0)
        assert partition.pending() == 0

    def test_void_gives_tokens_back_and_keeps_the_request(self, partition, publish):
        publish(KEY, "requests=5/1m", "tokens=1000/1m")
        partition.reserve("r", [KEY], tokens(400), NOW)
        assert partition.settle("r", Outcome.VOID, tokens(9), b"event", NOW).status is SettleStatus.RESOLVED
        assert used(partition) == [1, 0]
        assert partition.inspect(KEY.key_id, NOW).totals == Amounts(1, 0, 0)
        assert partition.events == [b"event"]

    @pytest.mark.parametrize("first", Outcome)
    @pytest.mark.parametrize("second", Outcome)
    def test_it_happens_once(self, partition, publish, first, second):
        publish(KEY, "tokens=1000/1m")
        partition.reserve("r", [KEY], tokens(400), NOW)
        partition.settle("r", first, tokens(100), b"event", NOW)
        before = partition.inspect(KEY.key_id, NOW), list(partition.events)
        is_news = second is Outcome.POST and first is not Outcome.POST  # it was used: whoever released it knew less
        status = SettleStatus.REAPED if is_news else SettleStatus.DUPLICATE
        assert partition.settle("r", second, tokens(700), b"other", NOW + 1) == SettleReply(status, NOW + 1)
        assert (partition.inspect(KEY.key_id, NOW), partition.events) == before
        assert partition.corrections == ([b"other"] if is_news else [])

    def test_an_unknown_reservation_is_not_made_up(self, partition, publish):
        publish(KEY, "tokens=1000/1m")
        assert partition.settle("r", Outcome.POST, tokens(5), b"e", NOW) == SettleReply(SettleStatus.UNKNOWN, NOW)
        assert used(partition) == [0]
        assert partition.events == []

    def test_a_refund_does_not_make_room_in_a_younger_bucket(self, partition, publish):
        publish(KEY, "tokens=100/1m")
        partition.reserve("a", [KEY], tokens(60), NOW)
        partition.reserve("b", [KEY], tokens(40), NOW + 30_000)
        partition.settle("a", Outcome.POST, tokens(20), b"e", NOW + 30_000)
        assert used(partition, now_ms=NOW + 60_999) == [60]
        assert used(partition, now_ms=NOW + 61_000) == [40]

    def test_a_refund_finds_its_bucket_among_many(self, partition, publish):
        publish(KEY, "tokens=1000/1m")
        for second in range(50):
            partition.reserve(f"r{second}", [KEY], tokens(10), NOW + 1_000 * second)
        partition.settle("r20", Outcome.VOID, ONE, b"e", NOW + 50_000)
        assert [used(partition, now_ms=NOW + at)[0] for at in (80_999, 81_000, 82_000)] == [290, 290, 280]

    def test_a_refund_after_its_bucket_has_left_is_dropped(self, partition, publish):
        publish(KEY, "tokens=100/1m")
        partition.reserve("a", [KEY], tokens(60), NOW)
        partition.reserve("b", [KEY], tokens(100), NOW + 61_000)
        partition.settle("a", Outcome.VOID, ONE, b"e", NOW + 61_000)
        assert used(partition, now_ms=NOW + 61_000) == [100]

    def test_excess_is_charged_to_the_bucket_of_now_even_over_the_limit(self, partition, publish):
        publish(KEY, "tokens=100/1m")
        partition.reserve("a", [KEY], tokens(60), NOW)
        partition.settle("a", Outcome.POST, tokens(260), b"e", NOW + 45_500)
        assert used(partition, now_ms=NOW + 45_500) == [260]
        reply = partition.reserve("b", [KEY], ONE, NOW + 46_000)
        assert (reply.retry_ms, reply.windows[0].remaining) == (60_000, 0)
        assert used(partition, now_ms=NOW + 61_000) == [200]
        assert used(partition, now_ms=NOW + 105_999) == [200]
        assert used(partition, now_ms=NOW + 106_000) == [0]

    def test_excess_long_after_everything_else_has_left(self, partition, publish):
        publish(KEY, "tokens=100/1m")
        for second in range(5):
            partition.reserve(f"r{second}", [KEY], tokens(10), NOW + 1_000 * second)
        partition.settle("r0", Outcome.POST, tokens(15), b"e", NOW + 600_000)
        assert used(partition, now_ms=NOW + 600_000) == [5]
        assert partition.reserve("next", [KEY], tokens(95), NOW + 610_000).status is ReserveStatus.ADMITTED

    def test_last_use_does_not_go_back(self, partition, publish):
        publish(KEY)
        for name in "ab":
            partition.reserve(name, [KEY], ONE, NOW)
        partition.settle("a", Outcome.POST, ONE, b"e", NOW + 5)
        partition.settle("b", Outcome.POST, ONE, b"e", NOW - 5)
        assert partition.inspect(KEY.key_id, NOW).last_used_ms == NOW + 5

    def test_a_revoked_key_still_settles(self, partition, publish):
        publish(KEY, "tokens=100/1m")
        partition.reserve("r", [KEY], tokens(60), NOW)
        publish(KEY_2, "tokens=100/1m", status=KeyStatus.REVOKED)
        assert partition.settle("r", Outcome.POST, tokens(20), b"e", NOW).status is SettleStatus.RESOLVED
        assert used(partition) == [20]

    def test_a_key_that_is_gone_still_settles_and_leaves_its_event(self, partition, publish):
        publish(KEY, "tokens=100/1m")
        partition.reserve("r", [KEY], tokens(60), NOW)
        partition.erase(KEY.key_id)
        assert partition.settle("r", Outcome.POST, tokens(20), b"e", NOW).status is SettleStatus.RESOLVED
        assert partition.events == [b"e"]
        assert partition.pending() == 0
        assert partition.inspect(KEY.key_id, NOW) is None

    def test_a_key_published_anew_is_not_refunded_what_its_predecessor_was_charged(self, partition, publish):
        publish(KEY, "tokens=100/1m")
        partition.reserve("r", [KEY], tokens(60), NOW)
        partition.erase(KEY.key_id)
        publish(KEY_2, "tokens=100/1m")
        partition.reserve("s", [KEY_2], tokens(70), NOW)
        partition.settle("r", Outcome.VOID, ONE, b"e", NOW)
        assert used(partition) == [70]


class TestPublish:
    def test_an_older_version_changes_nothing(self, partition, publish):
        publish(KEY_2, "tokens=100/1m")
        before = partition.inspect(KEY.key_id, NOW)
        assert publish(KEY, "tokens=5/1m", status=KeyStatus.REVOKED) is PublishStatus.KEPT
        assert publish(KEY_2, "tokens=5/1m") is PublishStatus.KEPT
        assert partition.inspect(KEY.key_id, NOW) == before

    def test_a_changed_limit_keeps_what_is_counted(self, partition, publish):
        publish(KEY, "requests=5/1m", "tokens=100/1m")
        partition.reserve("a", [KEY], tokens(40), NOW)
        partition.reserve("b", [KEY], tokens(40), NOW + 10_000)
        partition.settle("a", Outcome.POST, tokens(30), b"e", NOW + 10_000)
        assert publish(KEY_2, "tokens=75/1m", "output_tokens=9/1h", "requests=4/1m") is PublishStatus.PUBLISHED
        usage = partition.inspect(KEY.key_id, NOW + 10_000)
        assert [(window.limit.id, window.used, window.remaining) for window in usage.windows] == [
            ("tokens/60000", 70, 5),
            ("output_tokens/3600000", 0, 9),
            ("requests/60000", 2, 2),
        ]
        assert (usage.version, usage.totals.requests, usage.last_used_ms, usage.open) == (2, 1, NOW + 10_000, 1)
        assert partition.reserve("c", [KEY_2], tokens(6), NOW + 60_999).status is ReserveStatus.REFUSED
        assert partition.reserve("c", [KEY_2], tokens(6), NOW + 61_000).status is ReserveStatus.ADMITTED

    def test_a_reservation_is_settled_after_its_windows_changed_places(self, partition, publish):
        publish(KEY, "requests=5/1m", "tokens=100/1m", "input_tokens=100/1m")
        partition.reserve("r", [KEY], Amounts(1, 20, 20), NOW)
        publish(KEY_2, "output_tokens=100/1m", "input_tokens=100/1m", "tokens=100/1m")
        partition.settle("r", Outcome.POST, Amounts(1, 5, 30), b"e", NOW)
        assert used(partition) == [0, 5, 35]  # the window of output came after the reservation

    def test_a_window_that_was_away_begins_with_nothing(self, partition, publish):
        publish(KEY, "tokens=100/1m")
        partition.reserve("a", [KEY], tokens(60), NOW)
        publish(KEY_2)
        publish(KeyVersion(KEY.key_id, 3), "tokens=100/1m")
        assert used(partition) == [0]
        partition.reserve("b", [KeyVersion(KEY.key_id, 3)], tokens(50), NOW)
        partition.settle("a", Outcome.VOID, ONE, b"e", NOW)  # was never charged here: no refund
        assert used(partition) == [50]

    def test_a_window_that_was_away_finds_no_closed_buckets_either(self, partition, publish):
        publish(KEY, "tokens=100/1m")
        partition.reserve("a", [KEY], tokens(60), NOW)
        partition.reserve("b", [KEY], ONE, NOW + 1_000)
        publish(KEY_2)
        version_3 = KeyVersion(KEY.key_id, 3)
        publish(version_3, "tokens=100/1m")
        partition.reserve("c", [version_3], tokens(10), NOW + 2_000)
        partition.reserve("d", [version_3], tokens(10), NOW + 3_000)
        assert used(partition, now_ms=NOW + 3_000) == [20]

    def test_a_new_cap_counts_what_is_open(self, partition, publish):
        publish(KEY)
        for name in "abc":
            partition.reserve(name, [KEY], ONE, NOW)
        publish(KEY_2, cap=3)
        assert partition.reserve("d", [KEY_2], ONE, NOW).retry_ms == NO_TIME_HELPS
        partition.settle("a", Outcome.POST, ONE, b"e", NOW)
        assert partition.reserve("d", [KEY_2], ONE, NOW).status is ReserveStatus.ADMITTED


class TestTakingOver:
    """A window whose length changes keeps its sum: a limit that is changed never refills a budget."""

    def test_a_longer_window_counts_what_the_shorter_one_counted(self, partition, publish):
        publish(KEY, "tokens=100/1m")
        partition.reserve("a", [KEY], tokens(60), NOW)
        publish(KEY_2, "tokens=100/1h", now_ms=NOW + 500)
        assert used(partition, now_ms=NOW + 500) == [60]
        assert partition.reserve("b", [KEY_2], tokens(41), NOW + 500).status is ReserveStatus.REFUSED
        assert partition.reserve("b", [KEY_2], tokens(40), NOW + 500).status is ReserveStatus.ADMITTED

    def test_a_shorter_window_counts_what_is_not_too_old_for_it(self, partition, publish):
        hour = NOW - NOW % 60_000
        publish(KEY, "tokens=100/1h", now_ms=hour)
        partition.reserve("a", [KEY], tokens(30), hour)
        partition.reserve("b", [KEY], tokens(20), hour + 600_000)  # within the minute until 660 s
        partition.reserve("c", [KEY], tokens(10), hour + 690_000)  # its bucket ends at 720 s
        publish(KEY_2, "tokens=100/1m", now_ms=hour + 700_000)
        assert used(partition, now_ms=hour + 700_000) == [30]
        assert used(partition, now_ms=hour + 719_999) == [30]
        assert used(partition, now_ms=hour + 720_000) == [10]
        assert used(partition, now_ms=hour + 760_999) == [10]  # counted as if it were charged at 700 s
        assert used(partition, now_ms=hour + 761_000) == [0]

    def test_the_one_that_counted_most_is_taken_over_and_by_each_new_one(self, partition, publish):
        publish(KEY, "tokens=100/1s", "tokens=100/5h", "requests=9/1m")
        partition.reserve("a", [KEY], tokens(30), NOW)
        partition.reserve("b", [KEY], tokens(20), NOW + 10_000)
        publish(KEY_2, "tokens=100/1h", "tokens=100/1d", "output_tokens=9/1m", now_ms=NOW + 10_000)
        assert used(partition, now_ms=NOW + 10_000) == [50, 50, 0]

    def test_a_window_that_stays_is_not_taken_over(self, partition, publish):
        publish(KEY, "tokens=100/1m")
        partition.reserve("a", [KEY], tokens(30), NOW)
        publish(KEY_2, "tokens=100/1m", "tokens=100/1h")
        assert used(partition) == [30, 0]

    def test_a_clock_that_went_back_lets_nothing_leave_early(self, partition, publish):
        publish(KEY, "tokens=100/30d")
        partition.reserve("a", [KEY], tokens(60), NOW + 7_200_000)
        publish(KEY_2, "tokens=100/1m", now_ms=NOW)
        assert used(partition, now_ms=NOW + 7_260_999) == [60]
        assert used(partition, now_ms=NOW + 7_261_000) == [0]

    def test_excess_of_an_older_reservation_is_charged_and_what_was_too_much_is_not_given_back(
        self, partition, publish
    ):
        publish(KEY, "tokens=100/1m")
        for name in "ab":
            partition.reserve(name, [KEY], tokens(20), NOW)
        publish(KEY_2, "tokens=100/1h")
        partition.settle("a", Outcome.POST, tokens(5), b"e", NOW)
        assert used(partition) == [40]
        partition.settle("b", Outcome.POST, tokens(25), b"e", NOW)
        assert used(partition) == [45]

    def test_going_back_to_the_old_length_brings_no_old_bucket_back(self, partition, publish):
        publish(KEY, "tokens=100/1m")
        partition.reserve("a", [KEY], tokens(20), NOW)
        publish(KEY_2, "tokens=100/1h")
        publish(KeyVersion(KEY.key_id, 3), "tokens=100/1m")
        partition.settle("a", Outcome.VOID, ONE, b"e", NOW)
        assert used(partition) == [20]


class TestObserving:
    def test_a_limit_that_is_reached_is_told_and_refuses_nothing(self, partition, publish):
        publish(KEY, "tokens=100/1m", mode=Mode.OBSERVE)
        assert partition.reserve("a", [KEY], tokens(60), NOW).status is ReserveStatus.ADMITTED
        reply = partition.reserve("b", [KEY], tokens(60), NOW)
        assert (reply.status, reply.reason, reply.position, reply.retry_ms) == (
            ReserveStatus.OBSERVED,
            LimitReason.WINDOW,
            0,
            61_000,
        )
        assert used(partition) == [120]
        assert partition.settle("b", Outcome.POST, tokens(50), b"e", NOW).status is SettleStatus.RESOLVED
        assert used(partition) == [110]

    def test_cap_and_balance_only_observe_too(self, partition, publish):
        publish(KEY, cap=0, mode=Mode.OBSERVE)
        assert partition.reserve("a", [KEY], ONE, NOW).reason is LimitReason.CONCURRENCY
        publish(ACCOUNT, prepaid=True, mode=Mode.OBSERVE)
        reply = partition.reserve("b", [ACCOUNT], tokens(5), NOW)
        assert (reply.status, reply.reason, reply.balance) == (ReserveStatus.OBSERVED, LimitReason.BALANCE, -5)

    def test_another_scope_that_enforces_refuses(self, partition, publish):
        publish(KEY, "tokens=10/1m", mode=Mode.OBSERVE)
        publish(ACCOUNT, "tokens=20/1m")
        reply = partition.reserve("a", [KEY, ACCOUNT], tokens(15), NOW)
        assert (reply.status, reply.position) == (ReserveStatus.OBSERVED, 0)
        reply = partition.reserve("b", [KEY, ACCOUNT], tokens(15), NOW)
        assert (reply.status, reply.position, reply.retry_ms) == (ReserveStatus.REFUSED, 1, 61_000)


class TestBalance:
    def test_a_request_fits_into_what_is_neither_used_nor_held(self, partition, publish):
        publish(KEY, prepaid=True)
        assert partition.reserve("a", [KEY], tokens(1), NOW).reason is LimitReason.BALANCE
        partition.credit(KEY.key_id, 1, 100)
        assert partition.reserve("a", [KEY], tokens(60), NOW).balance == 40
        reply = partition.reserve("b", [KEY], tokens(41), NOW)
        assert reply == ReserveReply(
            ReserveStatus.REFUSED, NOW, LimitReason.BALANCE, 0, NO_TIME_HELPS, balance=40, windows=()
        )
        assert partition.reserve("b", [KEY], tokens(40), NOW).balance == 0
        partition.settle("a", Outcome.POST, tokens(10), b"e", NOW)
        usage = partition.inspect(KEY.key_id, NOW)
        assert (usage.balance, usage.held) == (90, 40)
        assert partition.reserve("c", [KEY], tokens(50), NOW).status is ReserveStatus.ADMITTED

    def test_late_excess_takes_it_below_nothing(self, partition, publish):
        publish(KEY, prepaid=True)
        partition.credit(KEY.key_id, 1, 10)
        partition.reserve("a", [KEY], tokens(10), NOW)
        partition.settle("a", Outcome.POST, tokens(25), b"e", NOW)
        reply = partition.reserve("b", [KEY], ONE, NOW)
        assert (reply.status, reply.reason, reply.balance) == (ReserveStatus.REFUSED, LimitReason.BALANCE, -15)

    def test_it_is_told_before_a_window_that_makes_wait_and_after_one_that_never_fits(self, partition, publish):
        publish(KEY, "tokens=10/1m", prepaid=True, cap=1)
        partition.credit(KEY.key_id, 1, 10)
        partition.reserve("a", [KEY], tokens(10), NOW)
        assert partition.reserve("b", [KEY], tokens(5), NOW).reason is LimitReason.BALANCE
        reply = partition.reserve("b", [KEY], tokens(11), NOW)
        assert (reply.reason, reply.retry_ms) == (LimitReason.WINDOW, NEVER_FITS)

    def test_whether_a_key_is_prepaid_is_decided_once(self, partition, publish):
        publish(KEY, prepaid=True)
        partition.credit(KEY.key_id, 1, 10)
        partition.reserve("a", [KEY], tokens(10), NOW)
        publish(KEY_2, prepaid=False)
        usage = partition.inspect(KEY.key_id, NOW)
        assert (usage.prepaid, usage.balance, usage.held) == (True, 10, 10)

    def test_a_key_that_is_not_prepaid_holds_nothing_and_counts_what_it_used(self, partition, publish):
        publish(KEY)
        assert partition.reserve("a", [KEY], tokens(10), NOW).balance is None
        assert partition.inspect(KEY.key_id, NOW).held == 0
        partition.settle("a", Outcome.POST, tokens(7), b"e", NOW)
        assert partition.inspect(KEY.key_id, NOW).balance == -7


class TestAnnouncing:
    def test_a_request_that_runs_is_charged_whatever_limits_version_and_status_say(self, partition, publish):
        publish(KEY_2, "tokens=10/1m", cap=0, prepaid=True, status=KeyStatus.REVOKED)
        reply = partition.reserve("a", [KEY], tokens(50), NOW, b"note", announce=True)
        assert (reply.status, reply.reason, reply.balance) == (ReserveStatus.ADMITTED, LimitReason.NONE, -50)
        assert used(partition) == [50]
        assert partition.reserve("a", [KEY], tokens(50), NOW, b"note", announce=True).status is ReserveStatus.DUPLICATE
        partition.settle("a", Outcome.POST, tokens(40), b"e", NOW)
        assert used(partition) == [40]

    def test_an_unpublished_key_gets_no_state(self, partition):
        assert partition.reserve("a", [KEY], ONE, NOW, announce=True).status is ReserveStatus.UNPUBLISHED
        assert partition.pending() == 0

    def test_whatever_version_holds_may_be_asked_for(self, partition, publish):
        publish(KEY_2, "tokens=10/1m")
        anything = KeyVersion(KEY.key_id, WHATEVER_HOLDS)
        assert partition.reserve("a", [anything], tokens(10), NOW).status is ReserveStatus.ADMITTED
        assert partition.reserve("b", [anything], tokens(1), NOW).status is ReserveStatus.REFUSED


class TestCancel:
    def test_it_is_as_if_the_request_had_never_been(self, partition, publish):
        publish(KEY, "requests=5/1m", "tokens=100/1m", prepaid=True)
        partition.credit(KEY.key_id, 1, 100)
        before = partition.inspect(KEY.key_id, NOW)
        partition.reserve("a", [KEY], tokens(60), NOW)
        assert partition.settle("a", Outcome.CANCEL, tokens(9), b"e", NOW + 5).status is SettleStatus.RESOLVED
        assert partition.inspect(KEY.key_id, NOW) == before
        assert (partition.events, partition.corrections, partition.pending()) == ([], [], 0)


class TestLeases:
    def test_a_reservation_is_reaped_when_its_lease_is_over_and_not_before(self, partition, publish):
        publish(KEY, "requests=5/1m", "tokens=100/1m", cap=1, prepaid=True)
        partition.credit(KEY.key_id, 1, 100)
        partition.reserve("a", [KEY], tokens(60), NOW)
        assert partition.reap("a", tokens(25), b"e", NOW + 29_999) is ReapStatus.ALIVE
        assert partition.inspect(KEY.key_id, NOW).open == 1
        assert partition.reap("a", tokens(25), b"e", NOW + 30_000) is ReapStatus.RESOLVED
        assert used(partition) == [1, 25]
        usage = partition.inspect(KEY.key_id, NOW)
        assert (usage.open, usage.held, usage.balance, usage.totals.requests) == (0, 0, 75, 1)
        assert partition.events == [b"e"]
        assert partition.reap("a", tokens(25), b"e", NOW + 30_000) is ReapStatus.DUPLICATE
        assert partition.events == [b"e"]

    def test_a_heartbeat_renews_and_tells_what_was_used_so_far(self, partition, publish):
        publish(KEY, "tokens=100/1m")
        partition.reserve("a", [KEY], Amounts(1, 20, 30), NOW, b"note")
        assert partition.heartbeat("a", Amounts(0, 19, 7), NOW + 20_000) is HeartbeatStatus.RENEWED
        assert partition.heartbeat("a", Amounts(0, 5, 9), NOW + 10_000) is HeartbeatStatus.RENEWED
        scope = ChargedScope(1, {"tokens/60000": NOW // 1_000})
        assert partition.examine("a") == Pending(NOW, Amounts(1, 20, 30), Amounts(0, 19, 9), b"note", (scope,))
        assert used(partition) == [50]
        assert partition.reap("a", ONE, b"e", NOW + 39_999) is ReapStatus.ALIVE
        assert partition.reap("a", ONE, b"e", NOW + 40_000) is ReapStatus.RESOLVED
        assert partition.heartbeat("a", ONE, NOW) is HeartbeatStatus.UNKNOWN
        assert partition.examine("a") is partition.examine("b") is None

    @pytest.mark.parametrize("outcome", Outcome)
    def test_a_worker_that_comes_back_is_told_and_charges_nothing(self, partition, publish, outcome):
        publish(KEY, "tokens=100/1m")
        partition.reserve("a", [KEY], tokens(60), NOW)
        partition.reap("a", tokens(25), b"e", NOW + 30_000)
        for _ in range(2):
            assert partition.settle("a", outcome, tokens(60), b"late", NOW + 31_000).status is SettleStatus.REAPED
        assert used(partition) == [25]
        assert partition.events == [b"e"]
        assert partition.corrections == ([] if outcome is Outcome.CANCEL else [b"late", b"late"])

    def test_a_reservation_without_an_event_is_reaped_without_one(self, partition, publish):
        publish(KEY, "tokens=100/1m")
        partition.reserve("a", [KEY], tokens(60), NOW)
        assert partition.reap("a", tokens(60), b"", NOW + 30_000) is ReapStatus.RESOLVED
        assert partition.events == []


class TestLedger:
    def test_each_entry_counts_once_and_in_order(self, partition, publish):
        publish(KEY, prepaid=True)
        for seq, expected, balance in (
            (2, (LedgerStatus.GAP, 0), 0),
            (1, (LedgerStatus.APPLIED, 1), 10),
            (1, (LedgerStatus.DUPLICATE, 1), 10),
            (3, (LedgerStatus.GAP, 1), 10),
            (2, (LedgerStatus.APPLIED, 2), 20),
        ):
            assert partition.credit(KEY.key_id, seq, 10) == expected
            assert partition.inspect(KEY.key_id, NOW).balance == balance
        assert partition.adjust(KEY.key_id, 2, (0, 9, 9), NOW) == (LedgerStatus.DUPLICATE, 2)
        assert partition.credit(KEY.key_id, 3, -15) == (LedgerStatus.APPLIED, 3)
        assert partition.inspect(KEY.key_id, NOW).balance == 5

    def test_what_was_settled_too_little_is_charged_now(self, partition, publish):
        publish(KEY, "requests=5/1m", "tokens=100/1m", "input_tokens=50/1m", "output_tokens=50/1m")
        assert partition.adjust(KEY.key_id, 1, (1, 10, 20), NOW + 45_000) == (LedgerStatus.APPLIED, 1)
        assert used(partition, now_ms=NOW + 105_999) == [1, 30, 10, 20]
        assert used(partition, now_ms=NOW + 106_000) == [0, 0, 0, 0]
        usage = partition.inspect(KEY.key_id, NOW)
        assert (usage.totals, usage.balance, usage.last_used_ms) == (Amounts(1, 10, 20), -30, 0)

    def test_what_was_settled_too_much_leaves_the_totals_and_not_the_windows(self, partition, publish):
        publish(KEY, "tokens=100/1m", "input_tokens=50/1m")
        partition.reserve("a", [KEY], Amounts(1, 20, 30), NOW)
        partition.settle("a", Outcome.POST, Amounts(1, 20, 30), b"e", NOW)
        assert partition.adjust(KEY.key_id, 1, (0, 5, -15), NOW) == (LedgerStatus.APPLIED, 1)
        assert used(partition) == [50, 25]
        usage = partition.inspect(KEY.key_id, NOW)
        assert (usage.totals, usage.balance) == (Amounts(1, 25, 15), -40)

    def test_an_unpublished_key_has_none(self, partition):
        assert partition.credit(KEY.key_id, 1, 10) == (LedgerStatus.UNPUBLISHED, 0)
        assert partition.adjust(KEY.key_id, 1, (1, 0, 0), NOW) == (LedgerStatus.UNPUBLISHED, 0)


class TestCorrections:
    @pytest.mark.parametrize("outcome", Outcome)
    def test_the_event_of_an_unknown_reservation_is_kept_for_the_database_to_decide(self, partition, publish, outcome):
        publish(KEY, "tokens=100/1m")
        assert partition.settle("r", outcome, tokens(5), b"event", NOW).status is SettleStatus.UNKNOWN
        assert partition.settle("r", outcome, tokens(5), b"", NOW).status is SettleStatus.UNKNOWN
        assert partition.corrections == ([] if outcome is Outcome.CANCEL else [b"event"])
        assert partition.events == []


class TestBigNumbers:
    """Lua counts in doubles and Redis answers in integers: both have to be exact up to 2**53."""

    @pytest.mark.parametrize("limit", [10**15 - 1, 10**15 + 3, 4 * 10**15 + 1, MAX_AMOUNT - 1, MAX_AMOUNT])
    def test_the_last_token_fits_and_the_next_does_not(self, partition, publish, limit):
        publish(KEY, f"tokens={limit}/1m")
        reply = partition.reserve("a", [KEY], Amounts(1, limit - 1, 0), NOW)
        assert [level.remaining for level in reply.windows] == [1]
        assert partition.reserve("b", [KEY], Amounts(1, 2, 0), NOW).status is ReserveStatus.REFUSED
        assert partition.reserve("c", [KEY], Amounts(1, 0, 1), NOW).status is ReserveStatus.ADMITTED
        reply = partition.reserve("d", [KEY], Amounts(1, 1, 0), NOW + 1_000)
        assert (reply.status, reply.retry_ms) == (ReserveStatus.REFUSED, 60_000)
        assert used(partition) == [limit]

    def test_closed_buckets_refunds_and_totals_are_exact(self, partition, publish):
        publish(KEY, f"tokens={MAX_AMOUNT}/1m")
        big = 10**15 + 7
        for second in range(4):
            partition.reserve(f"r{second}", [KEY], Amounts(1, big, big), NOW + 1_000 * second)
        assert used(partition, now_ms=NOW + 3_000) == [8 * big]
        partition.settle("r1", Outcome.POST, Amounts(1, big, 3), b"e", NOW + 3_000)
        assert used(partition, now_ms=NOW + 3_000) == [7 * big + 3]
        assert used(partition, now_ms=NOW + 61_000) == [5 * big + 3]
        assert partition.inspect(KEY.key_id, NOW).totals == Amounts(1, big, 3)


@pytest.mark.parametrize("seconds", [1, 7, 60, 3_600, 86_400 * 29, 86_400 * 30, 86_400 * 366])
def test_every_width_of_a_bucket_is_the_same_everywhere(partition, seconds):
    limit = Limit(parse_limits(["tokens=1/1s"])[0].dimension, 10, seconds * 1_000)
    partition.publish(record_of(KEY, limit), NOW)
    partition.reserve("a", [KEY], tokens(10), NOW)
    reply = partition.reserve("b", [KEY], tokens(1), NOW)
    leaves_ms = (NOW // limit.bucket_ms + limit.buckets + 1) * limit.bucket_ms
    assert NOW + reply.retry_ms == leaves_ms
    assert partition.reserve("c", [KEY], tokens(1), leaves_ms - 1).status is ReserveStatus.REFUSED
    assert partition.reserve("c", [KEY], tokens(1), leaves_ms).status is ReserveStatus.ADMITTED
