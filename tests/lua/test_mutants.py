"""The checks find every mistake that is kept in `mutants.py`, and none in the scripts as they are."""

import itertools
import random
from importlib import resources

import pytest
from redis.exceptions import ResponseError

from edgeproxy.domain.keys import KeyId, KeyStatus
from edgeproxy.domain.limits import Amounts
from edgeproxy.domain.reservations import KeyVersion, Outcome, ReapStatus, RebuildStatus, RebuiltState, ReserveStatus
from edgeproxy.hotstate import keyspace, scripts
from tests.lua.exact_log import BEGIN_MS, ExactLog
from tests.lua.in_redis import PartitionInRedis, record_of
from tests.lua.mutants import MUTANTS

PLAYS = 40
KEY = KeyVersion(KeyId("key"), 1)
ONE = Amounts(requests=1)

partition_numbers = itertools.count(100)


def check_standing(partition: PartitionInRedis) -> None:
    """A revoked key, and counters of another layout, admit nothing."""
    partition.publish(record_of(KEY, status=KeyStatus.REVOKED), BEGIN_MS)
    assert partition.reserve("r", [KEY], ONE, BEGIN_MS).status is ReserveStatus.DISABLED
    partition.client.set(keyspace.state(partition.number, KEY.key_id), b"\x01\x01\x01")
    assert partition.reserve("r", [KEY], ONE, BEGIN_MS).status is ReserveStatus.LAYOUT


def check_rebuild(partition: PartitionInRedis) -> None:
    """What was counted since the rebuilder looked is not overwritten."""
    partition.publish(record_of(KEY), BEGIN_MS)
    known = RebuiltState(record_of(KEY), 0, 0, 0, Amounts(), 0, 0, ())
    reply = partition.run("rebuild", scripts.rebuild_args(partition.number, b"older", known))
    assert scripts.decode_rebuild(reply) is RebuildStatus.CHANGED


def check_clock(partition: PartitionInRedis) -> None:
    """A window that is taken over while the clock is back still counts what was charged before it went back."""
    partition.publish(record_of(KEY, "requests=1/1h"), BEGIN_MS)
    partition.reserve("r", [KEY], ONE, BEGIN_MS + 50_000)
    newer = KeyVersion(KEY.key_id, 2)
    partition.publish(record_of(newer, "requests=1/1m"), BEGIN_MS)
    assert partition.reserve("s", [newer], ONE, BEGIN_MS + 100_000).status is ReserveStatus.REFUSED


def check_buckets_stay_closed(partition: PartitionInRedis) -> None:
    """What comes while the clock is back is counted in the newest bucket that there ever was."""
    partition.publish(record_of(KEY, "requests=2/1m"), BEGIN_MS)
    for number, at_ms in enumerate((BEGIN_MS, BEGIN_MS - 3_600_000)):
        partition.reserve(f"r{number}", [KEY], ONE, at_ms)
    assert partition.reserve("s", [KEY], ONE, BEGIN_MS + 59_999).status is ReserveStatus.REFUSED


def check_heartbeats(partition: PartitionInRedis) -> None:
    """The lease is that of the last one, the amounts are the largest."""
    partition.publish(record_of(KEY), BEGIN_MS)
    partition.reserve("r", [KEY], ONE, BEGIN_MS)
    for amount, at_ms in ((5, BEGIN_MS + 10_000), (3, BEGIN_MS + 20_000)):
        partition.heartbeat("r", Amounts(0, amount, amount), at_ms)
    assert partition.examine("r").so_far == Amounts(0, 5, 5)
    assert partition.reap("r", ONE, b"", BEGIN_MS + 49_999) is ReapStatus.ALIVE


def check_length(partition: PartitionInRedis) -> None:
    """What a window takes over leaves when its old bucket would have, at the earliest, if that is over already."""
    hour = BEGIN_MS - BEGIN_MS % 60_000
    partition.publish(record_of(KEY, "requests=2/1h"), hour)
    partition.reserve("r", [KEY], ONE, hour + 50_000)
    newer = KeyVersion(KEY.key_id, 2)
    partition.publish(record_of(newer, "requests=1/1m"), hour + 60_000)
    assert partition.reserve("s", [newer], ONE, hour + 110_000).status is ReserveStatus.REFUSED


def check_length_there_and_back(partition: PartitionInRedis) -> None:
    """A reservation that was made before names buckets that are not there any more."""
    for version, limit in enumerate(("requests=2/1m", "requests=2/1h", "requests=2/1m"), start=1):
        key = KeyVersion(KEY.key_id, version)
        partition.publish(record_of(key, limit), BEGIN_MS)
        partition.reserve(f"r{version}", [key], ONE, BEGIN_MS)
    partition.settle("r1", Outcome.CANCEL, ONE, b"", BEGIN_MS)
    assert [window.used for window in partition.inspect(KEY.key_id, BEGIN_MS).windows] == [2]


CASES = (
    *(check_standing, check_rebuild, check_heartbeats),
    *(check_clock, check_buckets_stay_closed, check_length, check_length_there_and_back),
)


def check(client, loaded) -> None:
    """Raise AssertionError, or what Redis says, when something is wrong."""
    for one in CASES:
        one(PartitionInRedis(client, next(partition_numbers), loaded))
    for seed in range(PLAYS):
        partition = PartitionInRedis(client, next(partition_numbers), loaded)
        ExactLog(partition, random.Random(seed), late_excess=seed % 2 == 0).play(60)


def test_the_scripts_as_they_are_pass(client):
    check(client, scripts.load())


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.breaks.replace(" ", "-"))
def test_every_mutant_is_caught(client, tmp_path, mutant):
    for path in (resources.files("edgeproxy.hotstate") / "lua").iterdir():
        text = path.read_text("utf-8")
        if path.name == f"{mutant.script}.lua":
            assert text.count(mutant.text) == 1, "the script has changed: bring the mutant up to date"
            text = text.replace(mutant.text, mutant.replacement)
        (tmp_path / path.name).write_text(text, "utf-8")
    with pytest.raises((AssertionError, ResponseError)):
        check(client, scripts.load(tmp_path))
