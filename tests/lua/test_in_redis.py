"""What only the real thing has: its clock, its memory, its keys, and what it keeps of them."""

import time

import pytest
from redis.exceptions import NoScriptError, ResponseError

from edgeproxy.domain.keys import KeyId, KeyStatus
from edgeproxy.domain.limits import Amounts, parse_limits
from edgeproxy.domain.reservations import (
    HeartbeatStatus,
    KeyVersion,
    LedgerStatus,
    LimitReason,
    Outcome,
    PublishStatus,
    ReapStatus,
    RebuildStatus,
    RebuiltState,
    ReserveStatus,
    SettleStatus,
)
from edgeproxy.hotstate import keyspace, scripts
from tests.lua.in_redis import PartitionInRedis, record_of

NOW = 1_700_000_000_000
KEY = KeyVersion(KeyId("key"), 1)
KEY_2 = KeyVersion(KeyId("key"), 2)
OTHER = KeyVersion(KeyId("key2"), 1)
ONE = Amounts(requests=1)
TEN = Amounts(1, 4, 6)
LIMITS = parse_limits(["requests=100/1m", "tokens=1000/1h"])


def publish(in_redis, key=KEY, status=KeyStatus.ACTIVE, cap=None, limits=LIMITS, **options):
    return in_redis.publish(record_of(key, *limits, cap=cap, status=status, **options), NOW)


class TestClock:
    def test_the_clock_is_that_of_redis(self, in_redis, client):
        publish(in_redis)
        seconds, microseconds = client.time()
        before_ms = seconds * 1_000 + microseconds // 1_000
        reserved = in_redis.reserve("r", [KEY], TEN)
        settled = in_redis.settle("r", Outcome.POST, TEN, b"e")
        seconds, microseconds = client.time()
        after_ms = seconds * 1_000 + microseconds // 1_000
        assert before_ms <= reserved.now_ms <= settled.now_ms <= after_ms
        usage = in_redis.inspect(KEY.key_id)
        assert usage.last_used_ms == settled.now_ms
        assert [window.used for window in usage.windows] == [1, 10]

    def test_a_refused_request_is_admitted_after_the_time_that_it_was_told(self, in_redis):
        publish(in_redis, limits=parse_limits(["requests=1/1s"]))
        in_redis.reserve("a", [KEY], ONE)
        refused = in_redis.reserve("b", [KEY], ONE)
        assert 0 < refused.retry_ms <= 1_037
        time.sleep(refused.retry_ms / 1_000 + 0.002)
        assert in_redis.reserve("b", [KEY], ONE).status is ReserveStatus.ADMITTED


class TestKeys:
    def test_what_an_open_request_leaves(self, in_redis, client):
        publish(in_redis)
        in_redis.reserve("r", [KEY], TEN, NOW)
        assert in_redis.everything().keys() == {
            b"{p07}:state:key",
            b"{p07}:reservation:r",
            b"{p07}:leases",
        }
        assert client.zrange(keyspace.leases(7), 0, -1, withscores=True) == [(b"r", NOW + 30_000)]
        assert client.ttl(keyspace.reservation(7, "r")) == -1  # it is not forgotten while it is open

    def test_what_a_settled_request_leaves(self, in_redis, client):
        publish(in_redis)
        in_redis.reserve("r", [KEY], TEN, NOW)
        in_redis.settle("r", Outcome.POST, TEN, b"event", NOW)
        assert in_redis.everything().keys() == {
            b"{p07}:state:key",
            b"{p07}:reservation:r",
            b"{p07}:events",
        }
        assert 110_000 < client.pttl(keyspace.reservation(7, "r")) <= 120_000
        assert [entry for _, entry in client.xrange(keyspace.events(7))] == [{b"e": b"event"}]

    def test_closed_buckets_are_kept_as_long_as_they_count(self, in_redis, client):
        publish(in_redis, limits=parse_limits(["tokens=1000/1m"]))
        ring = keyspace.ring(7, KEY.key_id)
        sizes = []
        for second in range(300):
            in_redis.reserve(f"r{second}", [KEY], TEN, NOW + 1_000 * second)
            sizes.append(client.hstrlen(ring, "tokens/60000"))
        assert max(sizes) == sizes[-1] < 600
        in_redis.reserve("late", [KEY], TEN, NOW + 3_600_000)
        assert not client.exists(ring)

    @pytest.mark.parametrize("scope", [KEY, KEY_2, KeyVersion(KeyId("nobody"), 1)])
    def test_what_is_refused_writes_nothing(self, in_redis, scope):
        publish(in_redis, limits=parse_limits(["tokens=25/1m"]), cap=9)
        in_redis.reserve("a", [KEY], TEN, NOW)
        in_redis.reserve("b", [KEY], TEN, NOW + 2_000)
        before = in_redis.everything()
        for now_ms in (NOW + 2_000, NOW + 30_000, NOW + 3_600_000):
            amounts = TEN if now_ms < NOW + 60_000 else Amounts(1, 26, 0)
            assert in_redis.reserve("c", [scope], amounts, now_ms).status is not ReserveStatus.ADMITTED
            assert in_redis.reserve("a", [scope], amounts, now_ms).status is ReserveStatus.DUPLICATE
            assert in_redis.settle("c", Outcome.CANCEL, TEN, b"e", now_ms).status is SettleStatus.UNKNOWN
            assert in_redis.settle("c", Outcome.POST, TEN, b"", now_ms).status is SettleStatus.UNKNOWN
            assert in_redis.heartbeat("c", TEN, now_ms) is HeartbeatStatus.UNKNOWN
            assert in_redis.reap("c", TEN, b"e", now_ms) is ReapStatus.UNKNOWN
            assert in_redis.reap("b", TEN, b"e", NOW + 2_000) is ReapStatus.ALIVE
            assert in_redis.credit(KEY.key_id, 2, 5) == (LedgerStatus.GAP, 0)
            assert in_redis.adjust(KEY.key_id, 0, (1, 1, 1), now_ms) == (LedgerStatus.DUPLICATE, 0)
            in_redis.examine("a")
            in_redis.inspect(KEY.key_id, now_ms)
        assert publish(in_redis) is PublishStatus.KEPT
        assert in_redis.everything() == before

    def test_publishing_takes_the_rings_of_windows_that_go(self, in_redis, client):
        publish(in_redis)
        in_redis.reserve("a", [KEY], TEN, NOW)
        in_redis.reserve("b", [KEY], TEN, NOW + 3_600_000)
        assert client.hkeys(keyspace.ring(7, KEY.key_id)) == [b"tokens/3600000"]
        publish(in_redis, KEY_2, limits=LIMITS[:1])
        assert not client.exists(keyspace.ring(7, KEY.key_id))

    @pytest.mark.parametrize(
        ("width_ms", "buckets", "leaves_ms"),
        [
            (500, 120, 61_000),  # ended at 999 ms, counted in 500-999
            (2_000, 30, 62_000),
            (7_000, 9, 70_000 - NOW % 7_000),  # was charged in a bucket that began before
            (100_000, 1, 200_000 - NOW % 100_000),
        ],
    )
    def test_a_window_whose_buckets_change_keeps_what_it_counts(self, in_redis, client, width_ms, buckets, leaves_ms):
        """Another number of buckets in a new version of the program must not refill a budget."""
        publish(in_redis)
        in_redis.reserve("a", [KEY], TEN, NOW + 999)
        names = [2, keyspace.state(7, KEY.key_id), keyspace.ring(7, KEY.key_id)]
        in_redis.run("publish", (*names, NOW + 999, 2, 1, -1, 1, 0, "requests/60000", 1, width_ms, buckets, 50))
        usage = in_redis.inspect(KEY.key_id, NOW + leaves_ms - 1)
        assert [(window.used, window.limit.amount) for window in usage.windows] == [(1, 50)]
        assert in_redis.inspect(KEY.key_id, NOW + leaves_ms).windows[0].used == 0
        assert in_redis.settle("a", Outcome.CANCEL, ONE, b"", NOW + 1_000).status is SettleStatus.RESOLVED
        assert in_redis.inspect(KEY.key_id, NOW + 1_000).windows[0].used == 1  # its bucket is not there any more

    def test_many_old_buckets_go_into_one_new_one(self, in_redis, client):
        publish(in_redis, limits=parse_limits(["tokens=1000/1m"]))
        for second in range(50):
            in_redis.reserve(f"r{second}", [KEY], TEN, NOW + 1_000 * second)
        names = [2, keyspace.state(7, KEY.key_id), keyspace.ring(7, KEY.key_id)]
        now_ms = NOW + 49_500
        in_redis.run("publish", (*names, now_ms, 2, 1, -1, 1, 0, "tokens/60000", 2, 10_000, 6, 1_000))
        left = [in_redis.inspect(KEY.key_id, NOW + at).windows[0].used for at in (49_500, 69_999, 70_000, 80_000)]
        assert left == [500, 500, 400, 300]
        assert client.hlen(keyspace.ring(7, KEY.key_id)) == 1

    def test_erasing_leaves_nothing_of_the_key_and_everything_of_others(self, in_redis, client):
        for key in (KEY, OTHER):
            publish(in_redis, key)
            in_redis.reserve(f"a{key.key_id}", [key], TEN, NOW)
            in_redis.reserve(f"b{key.key_id}", [key], TEN, NOW + 3_600_000)
            in_redis.run("refusal", scripts.refusal_args(7, key.key_id, 429, now_ms=NOW))
        arguments = scripts.erase_args(7, KEY.key_id)
        assert scripts.decode_erase(in_redis.run("erase", arguments)) is scripts.EraseStatus.ERASED
        assert scripts.decode_erase(in_redis.run("erase", arguments)) is scripts.EraseStatus.ABSENT
        assert {name for name in in_redis.everything() if b":reservation:" not in name} == {
            b"{p07}:state:key2",
            b"{p07}:ring:key2",
            b"{p07}:refusals",
            b"{p07}:leases",
        }
        assert client.hkeys(keyspace.refusals(7)) == [b"key2:28333333:429"]

    def test_no_name_of_a_key_is_in_a_reservation(self, in_redis, client):
        publish(in_redis)
        in_redis.reserve("r", [KEY], TEN, NOW)
        assert b"key" not in client.get(keyspace.reservation(7, "r"))


class TestForeignLayout:
    """A state that another version of the program wrote is neither read nor destroyed."""

    @pytest.fixture(params=[1, 3])
    def foreign(self, in_redis, client, request):
        publish(in_redis)
        in_redis.reserve("r", [KEY], TEN, NOW)
        packed = bytes([request.param, 1, 1])
        client.set(keyspace.state(7, KEY.key_id), packed)
        yield in_redis
        assert client.get(keyspace.state(7, KEY.key_id)) == packed

    def test_nothing_is_admitted(self, foreign):
        assert foreign.reserve("s", [KEY], TEN, NOW).status is ReserveStatus.LAYOUT
        assert foreign.reserve("s", [KEY], TEN, NOW, announce=True).status is ReserveStatus.LAYOUT

    def test_nothing_is_published(self, foreign):
        assert publish(foreign, KEY_2) is PublishStatus.LAYOUT

    def test_nothing_is_told(self, foreign):
        with pytest.raises(ValueError, match="incompatible version"):
            foreign.inspect(KEY.key_id)

    def test_no_entry_of_the_ledger_is_applied(self, foreign):
        assert foreign.credit(KEY.key_id, 1, 5) == (LedgerStatus.LAYOUT, 0)
        assert foreign.adjust(KEY.key_id, 1, (1, 1, 1), NOW) == (LedgerStatus.LAYOUT, 0)

    def test_a_settle_still_resolves(self, foreign):
        assert foreign.settle("r", Outcome.POST, TEN, b"e", NOW).status is SettleStatus.RESOLVED
        assert foreign.events == [b"e"]

    def test_a_reservation_is_still_reaped(self, foreign):
        assert foreign.reap("r", TEN, b"e", NOW + 30_000) is ReapStatus.RESOLVED
        assert foreign.events == [b"e"]


class TestRebuild:
    KNOWN = RebuiltState(
        record=record_of(KEY_2, *LIMITS, cap=3, prepaid=True),
        open=1,
        held=10,
        last_used_ms=NOW,
        totals=Amounts(5, 6, 7),
        balance=40,
        ledger=9,
        windows=(((NOW // 1_000 - 5, 7), (NOW // 1_000, 2)), ()),
    )

    def rebuild(self, in_redis, expected):
        return scripts.decode_rebuild(in_redis.run("rebuild", scripts.rebuild_args(7, expected, self.KNOWN)))

    def test_what_is_known_is_counted(self, in_redis):
        assert self.rebuild(in_redis, b"") is RebuildStatus.REBUILT
        usage = in_redis.inspect(KEY.key_id, NOW)
        assert (usage.version, usage.totals, usage.open, usage.held) == (2, Amounts(5, 6, 7), 1, 10)
        assert (usage.prepaid, usage.balance, usage.ledger, usage.last_used_ms) == (True, 40, 9, NOW)
        assert [window.used for window in usage.windows] == [9, 0]
        assert in_redis.inspect(KEY.key_id, NOW + 56_000).windows[0].used == 2
        assert in_redis.reserve("r", [KEY_2], Amounts(1, 31, 0), NOW).reason is LimitReason.BALANCE
        assert in_redis.reserve("r", [KEY_2], Amounts(1, 30, 0), NOW).balance == 0

    def test_what_was_counted_meanwhile_is_not_lost(self, in_redis, client):
        publish(in_redis)
        seen = client.get(keyspace.state(7, KEY.key_id))
        in_redis.reserve("r", [KEY], TEN, NOW)
        before = in_redis.everything()
        assert self.rebuild(in_redis, seen) is RebuildStatus.CHANGED
        assert self.rebuild(in_redis, b"") is RebuildStatus.CHANGED
        assert in_redis.everything() == before
        assert self.rebuild(in_redis, client.get(keyspace.state(7, KEY.key_id))) is RebuildStatus.REBUILT

    def test_a_state_that_is_gone_is_not_the_expected_one(self, in_redis):
        assert self.rebuild(in_redis, b"packed") is RebuildStatus.CHANGED
        assert in_redis.everything() == {}

    def test_a_foreign_layout_is_replaced_with_its_rings(self, in_redis, client):
        client.set(keyspace.state(7, KEY.key_id), b"\x01\x01\x01")
        client.hset(keyspace.ring(7, KEY.key_id), "tokens/3600000", b"\x01\x02")
        assert self.rebuild(in_redis, b"\x01\x01\x01") is RebuildStatus.REBUILT
        assert client.hkeys(keyspace.ring(7, KEY.key_id)) == [b"requests/60000"]

    def test_a_reservation_from_before_is_given_back_only_to_the_bucket_it_knows(self, in_redis, client):
        """The windows here count it as the rebuilder does: 1 of the 2 requests in the bucket of now is `r`."""
        publish(in_redis)
        in_redis.reserve("r", [KEY], TEN, NOW)
        assert self.rebuild(in_redis, client.get(keyspace.state(7, KEY.key_id))) is RebuildStatus.REBUILT
        in_redis.settle("r", Outcome.CANCEL, TEN, b"", NOW)
        assert [window.used for window in in_redis.inspect(KEY.key_id, NOW).windows] == [8, 0]

    def test_a_reservation_of_other_buckets_is_given_back_nothing_and_charged_its_excess(self, in_redis, client):
        publish(in_redis, limits=LIMITS[1:])
        in_redis.reserve("r", [KEY], TEN, NOW)
        assert self.rebuild(in_redis, client.get(keyspace.state(7, KEY.key_id))) is RebuildStatus.REBUILT
        in_redis.settle("r", Outcome.POST, Amounts(2, 4, 6), b"e", NOW)
        assert [window.used for window in in_redis.inspect(KEY.key_id, NOW).windows] == [10, 0]


class TestHeartbeats:
    def test_many_are_told_apart(self, in_redis, client):
        publish(in_redis)
        for name in "abc":
            in_redis.reserve(name, [KEY], TEN, NOW)
        in_redis.settle("b", Outcome.POST, TEN, b"e", NOW)
        beats = [scripts.Beat(name, number, 9) for number, name in enumerate("abxc")]
        reply = in_redis.run("heartbeat", scripts.heartbeat_args(7, 500, beats, now_ms=NOW + 20_000))
        assert reply == [NOW + 20_000, 1, 3, 3, 1]
        assert dict(client.zrange(keyspace.leases(7), 0, -1, withscores=True)) == {
            b"a": NOW + 20_500,
            b"c": NOW + 20_500,
        }
        assert [in_redis.examine(name).so_far for name in "ac"] == [Amounts(0, 0, 9), Amounts(0, 3, 9)]
        assert in_redis.examine("b") is in_redis.examine("x") is None

    def test_no_beat_is_no_mistake(self, in_redis):
        assert in_redis.run("heartbeat", scripts.heartbeat_args(7, 500, [], now_ms=NOW)) == [NOW]
        assert in_redis.everything() == {}


def test_a_lease_without_a_reservation_is_taken_away(in_redis, client):
    publish(in_redis)
    in_redis.reserve("r", [KEY], TEN, NOW)
    in_redis.settle("r", Outcome.POST, TEN, b"e", NOW)
    for name, expected in (("r", ReapStatus.DUPLICATE), ("s", ReapStatus.UNKNOWN)):
        client.zadd(keyspace.leases(7), {name: NOW})
        assert in_redis.reap(name, TEN, b"f", NOW) is expected
        assert in_redis.pending() == 0
    assert in_redis.events == [b"e"]


def test_a_reaped_reservation_is_known_for_two_minutes(in_redis, client):
    publish(in_redis)
    in_redis.reserve("r", [KEY], TEN, NOW)
    in_redis.reap("r", TEN, b"", NOW + 30_000)
    assert 110_000 < client.pttl(keyspace.reservation(7, "r")) <= 120_000
    assert in_redis.events == []


class TestRefusals:
    def test_they_are_counted_per_key_minute_and_status(self, in_redis, client):
        for key_id, status, now_ms in (
            ("a", 429, NOW),
            ("a", 429, NOW + 39_999),
            ("a", 429, NOW + 40_000),
            ("a", 400, NOW),
            ("b", 429, NOW),
        ):
            reply = in_redis.run("refusal", scripts.refusal_args(7, KeyId(key_id), status, now_ms=now_ms))
            assert scripts.decode_refusal(reply) is scripts.RefusalStatus.COUNTED
        assert client.hgetall(keyspace.refusals(7)) == {
            b"a:28333333:429": b"2",
            b"a:28333334:429": b"1",
            b"a:28333333:400": b"1",
            b"b:28333333:429": b"1",
        }

    def test_their_rows_are_bounded(self, in_redis, client):
        client.hset(keyspace.refusals(7), mapping={f"x:{n}:429": 1 for n in range(scripts.MAX_REFUSAL_ROWS - 1)})
        replies = [
            scripts.decode_refusal(in_redis.run("refusal", scripts.refusal_args(7, KeyId(name), 429, now_ms=NOW)))
            for name in ("a", "b", "a")
        ]
        assert replies == [scripts.RefusalStatus.COUNTED, scripts.RefusalStatus.FULL, scripts.RefusalStatus.COUNTED]
        assert client.hlen(keyspace.refusals(7)) == scripts.MAX_REFUSAL_ROWS


class TestRecord:
    def test_the_newest_version_stays_whatever_the_order(self, in_redis, client):
        for version, text, expected in (
            (2, "first", PublishStatus.PUBLISHED),
            (2, "again", PublishStatus.KEPT),
            (1, "older", PublishStatus.KEPT),
            (10, "newer", PublishStatus.PUBLISHED),
            (9, "older", PublishStatus.KEPT),
        ):
            raw = f'{{"version":{version},"text":"{text}"}}'.encode()
            assert scripts.decode_publish(in_redis.run("record", (1, "key:d", version, raw))) is expected
        assert client.get("key:d") == b'{"version":10,"text":"newer"}'


def test_a_script_that_redis_does_not_have_is_told_apart(client):
    with pytest.raises(NoScriptError):
        client.execute_command("EVALSHA", "0" * 40, 0)


def test_a_failing_script_has_written_nothing(in_redis, client):
    """Scripts do not roll back, so whatever can fail comes before the first write."""
    publish(in_redis)
    in_redis.reserve("r", [KEY], TEN, NOW)
    client.set(keyspace.state(7, OTHER.key_id), b"\xdc")  # the beginning of a list, cut off
    before = in_redis.everything()
    with pytest.raises(ResponseError, match="Missing bytes"):
        in_redis.reserve("s", [KEY, OTHER], TEN, NOW + 60_000)
    assert in_redis.everything() == before


@pytest.fixture
def full_redis(own_redis):
    """A Redis of the test's own, which can be told to have no memory left."""
    return own_redis.start("--appendonly", "no")


def test_without_memory_nothing_is_admitted_and_everything_settles(full_redis):
    in_redis = PartitionInRedis(full_redis, 7)
    publish(in_redis)
    publish(in_redis, OTHER)
    in_redis.reserve("r", [OTHER], TEN, NOW)
    in_redis.reserve("a", [KEY], TEN, NOW)
    in_redis.reserve("b", [KEY], TEN, NOW + 60_000)  # closes a bucket
    full_redis.config_set("maxmemory", 1)

    for now_ms in (NOW + 60_000, NOW + 120_000, NOW + 86_400_000):  # the last begins with nothing but a deletion
        with pytest.raises(ResponseError, match="maxmemory"):
            in_redis.reserve("c", [KEY], TEN, now_ms)
    assert [window.used for window in in_redis.inspect(KEY.key_id, NOW + 60_000).windows] == [2, 20]
    assert in_redis.inspect(KEY.key_id, NOW).open == 2

    assert in_redis.settle("a", Outcome.POST, Amounts(1, 2, 3), b"e", NOW + 61_000).status is SettleStatus.RESOLVED
    assert in_redis.settle("b", Outcome.POST, Amounts(1, 20, 30), b"f", NOW + 61_000).status is SettleStatus.RESOLVED
    assert in_redis.events == [b"e", b"f"]
    assert [window.used for window in in_redis.inspect(KEY.key_id, NOW + 61_000).windows] == [1, 55]

    assert publish(in_redis, KEY_2, KeyStatus.REVOKED) is PublishStatus.PUBLISHED
    assert in_redis.reserve("d", [KEY_2], TEN, NOW).status is ReserveStatus.DISABLED
    assert in_redis.credit(KEY.key_id, 1, 500) == (LedgerStatus.APPLIED, 1)
    assert in_redis.adjust(KEY.key_id, 2, (1, 2, 3), NOW + 86_400_000) == (LedgerStatus.APPLIED, 2)
    assert in_redis.heartbeat("r", TEN, NOW) is HeartbeatStatus.RENEWED
    assert in_redis.reap("r", TEN, b"g", NOW + 30_000) is ReapStatus.RESOLVED
    assert in_redis.settle("r", Outcome.POST, TEN, b"late", NOW).status is SettleStatus.REAPED
    assert in_redis.settle("x", Outcome.POST, TEN, b"unknown", NOW).status is SettleStatus.UNKNOWN
    assert (in_redis.events[2:], in_redis.corrections) == ([b"g"], [b"late", b"unknown"])
    reply = in_redis.run("record", (1, "key:d", 2, b'{"version":2}'))
    assert scripts.decode_publish(reply) is PublishStatus.PUBLISHED
    in_redis.rebuild(TestRebuild.KNOWN)
    in_redis.erase(KEY.key_id)
    assert in_redis.inspect(KEY.key_id) is None
