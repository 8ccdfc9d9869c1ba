"""What only the real thing has: its clock, its memory, its keys, and what it keeps of them."""

import time

import pytest
from redis import Redis
from redis.exceptions import NoScriptError, ResponseError

from edgeproxy.domain.keys import KeyId, KeyStatus
from edgeproxy.domain.limits import Amounts, parse_limits
from edgeproxy.domain.reservations import KeyVersion, Outcome, PublishStatus, ReserveStatus, SettleStatus
from edgeproxy.embedded.placement import place
from edgeproxy.embedded.redis import EmbeddedRedis
from edgeproxy.hotstate import keyspace, scripts

NOW = 1_700_000_000_000
KEY = KeyVersion(KeyId("key"), 1)
KEY_2 = KeyVersion(KeyId("key"), 2)
OTHER = KeyVersion(KeyId("key2"), 1)
ONE = Amounts(requests=1)
TEN = Amounts(1, 4, 6)
LIMITS = parse_limits(["requests=100/1m", "tokens=1000/1h"])


def publish(in_redis, key=KEY, status=KeyStatus.ACTIVE, cap=None, limits=LIMITS):
    return in_redis.publish(key, status, cap, limits)


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
            assert in_redis.settle("c", Outcome.POST, TEN, b"e", now_ms).status is SettleStatus.UNKNOWN
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

    def test_a_window_that_stays_keeps_the_geometry_in_which_it_was_counted(self, in_redis, client):
        """Another number of buckets in a new version of the program must not refill a budget."""
        publish(in_redis)
        in_redis.reserve("a", [KEY], TEN, NOW)
        arguments = [2, keyspace.state(7, KEY.key_id), keyspace.ring(7, KEY.key_id), 2, 1, -1]
        in_redis.run("publish", (*arguments, "requests/60000", 1, 500, 120, 50, "tokens/3600000", 2, 30_000, 120, 60))
        usage = in_redis.inspect(KEY.key_id, NOW + 60_999)
        assert [(window.used, window.limit.amount) for window in usage.windows] == [(1, 50), (10, 60)]
        assert in_redis.inspect(KEY.key_id, NOW + 61_000).windows[0].used == 0

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

    FOREIGN = b"\x02\x01\x01"

    @pytest.fixture
    def foreign(self, in_redis, client):
        publish(in_redis)
        in_redis.reserve("r", [KEY], TEN, NOW)
        client.set(keyspace.state(7, KEY.key_id), self.FOREIGN)
        yield in_redis
        assert client.get(keyspace.state(7, KEY.key_id)) == self.FOREIGN

    def test_nothing_is_admitted(self, foreign):
        assert foreign.reserve("s", [KEY], TEN, NOW).status is ReserveStatus.LAYOUT

    def test_nothing_is_published(self, foreign):
        assert publish(foreign, KEY_2) is PublishStatus.LAYOUT

    def test_nothing_is_told(self, foreign):
        with pytest.raises(ValueError, match="incompatible version"):
            foreign.inspect(KEY.key_id)

    def test_a_settle_still_resolves(self, foreign):
        assert foreign.settle("r", Outcome.POST, TEN, b"e", NOW).status is SettleStatus.RESOLVED
        assert foreign.events == [b"e"]


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
def full_redis(data_dir, make_partition):
    """A Redis of the test's own, which can be told to have no memory left."""
    placement = place(data_dir)
    placement.make_runtime()
    server = EmbeddedRedis(placement.stores, placement)
    try:
        with Redis.from_url(server.start()) as client:
            yield client
    finally:
        server.stop()
        placement.remove_runtime()


def test_without_memory_nothing_is_admitted_and_everything_settles(full_redis, in_redis):
    in_redis = type(in_redis)(full_redis, 7)
    publish(in_redis)
    in_redis.reserve("a", [KEY], TEN, NOW)
    in_redis.reserve("b", [KEY], TEN, NOW + 60_000)  # closes a bucket
    full_redis.config_set("maxmemory", 1)

    for now_ms in (NOW + 60_000, NOW + 120_000, NOW + 86_400_000):  # the last begins with nothing but a deletion
        with pytest.raises(ResponseError, match="OOM"):
            in_redis.reserve("c", [KEY], TEN, now_ms)
    assert [window.used for window in in_redis.inspect(KEY.key_id, NOW + 60_000).windows] == [2, 20]
    assert in_redis.inspect(KEY.key_id, NOW).open == 2

    assert in_redis.settle("a", Outcome.POST, Amounts(1, 2, 3), b"e", NOW + 61_000).status is SettleStatus.RESOLVED
    assert in_redis.settle("b", Outcome.POST, Amounts(1, 20, 30), b"f", NOW + 61_000).status is SettleStatus.RESOLVED
    assert in_redis.events == [b"e", b"f"]
    assert [window.used for window in in_redis.inspect(KEY.key_id, NOW + 61_000).windows] == [1, 55]

    assert publish(in_redis, KEY_2, KeyStatus.REVOKED) is PublishStatus.PUBLISHED
    assert in_redis.reserve("d", [KEY_2], TEN, NOW).status is ReserveStatus.DISABLED
    reply = in_redis.run("record", (1, "key:d", 2, b'{"version":2}'))
    assert scripts.decode_publish(reply) is PublishStatus.PUBLISHED
    in_redis.erase(KEY.key_id)
    assert in_redis.inspect(KEY.key_id) is None
