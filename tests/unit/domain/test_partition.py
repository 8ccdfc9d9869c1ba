"""The life of a reservation as the table of `domain/reservations.py` tells it, row by row, in the reference.

Requests case by case, in the reference and in Redis alike, are in tests/lua.
"""

import pytest

from edgeproxy.domain.keys import KeyId, KeyRecord, KeyStatus
from edgeproxy.domain.limits import Amounts, parse_limits
from edgeproxy.domain.partition import LEASE_MS, Partition
from edgeproxy.domain.reservations import (
    NO_TIME_HELPS,
    HeartbeatStatus,
    KeyVersion,
    LimitReason,
    Outcome,
    PublishStatus,
    ReapStatus,
    RebuiltState,
    ReservationState,
    ReserveStatus,
    SettleStatus,
)

NOW = 1_700_000_000_000
KEY = KeyVersion(KeyId("key"), 1)
TEN = Amounts(requests=1, input_tokens=4, output_tokens=6)
TWO = Amounts(requests=1, input_tokens=1, output_tokens=1)
HUGE = Amounts(requests=1, input_tokens=1_000, output_tokens=0)


WAYS = {
    ReservationState.SETTLED: lambda partition: partition.settle("r", Outcome.POST, TWO, b"first", NOW),
    ReservationState.RELEASED: lambda partition: partition.settle("r", Outcome.VOID, TWO, b"first", NOW),
    ReservationState.REAPED: lambda partition: partition.reap("r", TWO, b"first", NOW + LEASE_MS),
}


def record_of(key, *limits: str, cap=None, status=KeyStatus.ACTIVE) -> KeyRecord:
    return KeyRecord(key.key_id, key.version, status, 7, parse_limits(limits), cap, None, ())


@pytest.fixture
def partition():
    partition = Partition()
    partition.publish(record_of(KEY, "tokens=100/1m"), NOW)
    return partition


def used(partition) -> int:
    return partition.inspect(KEY.key_id, NOW).windows[0].used


def bring_to(partition, state):
    if state is not None:
        partition.reserve("r", [KEY], TEN, NOW)
    if state in WAYS:
        WAYS[state](partition)


@pytest.mark.parametrize(
    ("state", "charged"),
    [
        (None, 0),
        (ReservationState.PENDING, 10),
        (ReservationState.SETTLED, 2),
        (ReservationState.RELEASED, 0),
        (ReservationState.REAPED, 2),
    ],
)
class TestTable:
    def test_what_is_charged_in_each_state(self, partition, state, charged):
        bring_to(partition, state)
        assert used(partition) == charged
        assert partition.pending() == (state is ReservationState.PENDING)

    def test_reserve(self, partition, state, charged):
        bring_to(partition, state)
        reply = partition.reserve("r", [KEY], TWO, NOW)
        assert reply.status is (ReserveStatus.ADMITTED if state is None else ReserveStatus.DUPLICATE)
        assert used(partition) == (2 if state is None else charged)

    def test_reserve_of_what_does_not_fit(self, partition, state, charged):
        bring_to(partition, state)
        reply = partition.reserve("r", [KEY], HUGE, NOW)
        assert reply.status is (ReserveStatus.REFUSED if state is None else ReserveStatus.DUPLICATE)
        assert used(partition) == charged

    @pytest.mark.parametrize("outcome", Outcome)
    def test_settle(self, partition, state, charged, outcome):
        bring_to(partition, state)
        events = list(partition.events)
        status = partition.settle("r", outcome, HUGE, b"second", NOW).status
        told = [] if outcome is Outcome.CANCEL else [b"second"]
        if state is ReservationState.PENDING:
            assert status is SettleStatus.RESOLVED
            assert used(partition) == (1_000 if outcome is Outcome.POST else 0)
            assert (partition.events, partition.corrections) == (events + told, [])
            return
        assert used(partition) == charged
        assert partition.events == events
        is_news = state is ReservationState.RELEASED and outcome is Outcome.POST
        if state in (None, ReservationState.REAPED) or is_news:
            assert status is (SettleStatus.UNKNOWN if state is None else SettleStatus.REAPED)
            assert partition.corrections == told
        else:
            assert status is SettleStatus.DUPLICATE
            assert partition.corrections == []

    @pytest.mark.parametrize(("later_ms", "over"), [(LEASE_MS - 1, False), (LEASE_MS, True)])
    def test_reap(self, partition, state, charged, later_ms, over):
        bring_to(partition, state)
        events = list(partition.events)
        status = partition.reap("r", HUGE, b"second", NOW + later_ms)
        if state is ReservationState.PENDING and over:
            assert status is ReapStatus.RESOLVED
            assert (used(partition), partition.events) == (1_000, [b"second"])
            return
        expected = {None: ReapStatus.UNKNOWN, ReservationState.PENDING: ReapStatus.ALIVE}
        assert status is expected.get(state, ReapStatus.DUPLICATE)
        assert (used(partition), partition.events) == (charged, events)

    def test_heartbeat_and_examine(self, partition, state, charged):
        bring_to(partition, state)
        status = partition.heartbeat("r", TWO, NOW)
        pending = partition.examine("r")
        if state is ReservationState.PENDING:
            assert status is HeartbeatStatus.RENEWED
            assert (pending.reserved, pending.so_far) == (TEN, Amounts(0, 1, 1))
        else:
            assert (status, pending) == (HeartbeatStatus.UNKNOWN, None)
        assert used(partition) == charged


def test_a_reservation_in_two_scopes_is_all_or_nothing(partition):
    account = KeyVersion(KeyId("account"), 1)
    partition.publish(record_of(account, cap=1), NOW)
    assert partition.reserve("a", [KEY, account], TEN, NOW).status is ReserveStatus.ADMITTED
    reply = partition.reserve("b", [KEY, account], TEN, NOW)
    assert (reply.status, reply.reason) == (ReserveStatus.REFUSED, LimitReason.CONCURRENCY)
    assert (reply.position, reply.retry_ms) == (1, NO_TIME_HELPS)
    assert used(partition) == 10


def test_publishing_an_older_version_is_told(partition):
    assert partition.publish(record_of(KEY, status=KeyStatus.REVOKED), NOW) is PublishStatus.KEPT
    assert partition.inspect(KEY.key_id, NOW).status is KeyStatus.ACTIVE


def test_what_is_rebuilt_is_what_was_told(partition):
    record = record_of(KeyVersion(KEY.key_id, 4), "requests=5/1m", cap=2)
    totals, bucket = Amounts(9, 8, 7), NOW // 1_000
    windows = (((bucket - 3, 2), (bucket, 1)),)
    partition.rebuild(RebuiltState(record, 1, 0, NOW, totals, -15, 6, windows))
    usage = partition.inspect(KEY.key_id, NOW)
    assert (usage.version, usage.open, usage.totals, usage.balance, usage.ledger) == (4, 1, totals, -15, 6)
    assert [partition.inspect(KEY.key_id, NOW + at).windows[0].used for at in (57_999, 58_000, 61_000)] == [3, 1, 0]
