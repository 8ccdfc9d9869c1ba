"""The life of a reservation as the table of the module tells it, row by row, in the reference.

Requests case by case, in the reference and in Redis alike, are in tests/lua.
"""

import pytest

from edgeproxy.domain.keys import KeyId, KeyStatus
from edgeproxy.domain.limits import Amounts, parse_limits
from edgeproxy.domain.reservations import (
    NO_TIME_HELPS,
    TRANSITIONS,
    KeyVersion,
    Outcome,
    Partition,
    PublishStatus,
    ReservationState,
    ReserveStatus,
    SettleStatus,
)

NOW = 1_700_000_000_000
KEY = KeyVersion(KeyId("key"), 1)
TEN = Amounts(requests=1, input_tokens=4, output_tokens=6)
TWO = Amounts(requests=1, input_tokens=1, output_tokens=1)
HUGE = Amounts(requests=1, input_tokens=1_000, output_tokens=0)


@pytest.fixture
def partition():
    partition = Partition()
    partition.publish(KEY, KeyStatus.ACTIVE, None, parse_limits(["tokens=100/1m"]))
    return partition


def used(partition) -> int:
    return partition.inspect(KEY.key_id, NOW).windows[0].used


def bring_to(partition, state):
    if state is not None:
        partition.reserve("r", [KEY], TEN, NOW)
    for outcome in Outcome:
        if TRANSITIONS[ReservationState.PENDING, outcome] is state:
            partition.settle("r", outcome, TWO, b"first", NOW)


@pytest.mark.parametrize(
    ("state", "charged"),
    [(None, 0), (ReservationState.PENDING, 10), (ReservationState.SETTLED, 2), (ReservationState.RELEASED, 0)],
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
        if state is ReservationState.PENDING:
            assert status is SettleStatus.RESOLVED
            assert used(partition) == (1_000 if outcome is Outcome.POST else 0)
            assert partition.events == [*events, b"second"]
        else:
            assert status is (SettleStatus.UNKNOWN if state is None else SettleStatus.DUPLICATE)
            assert used(partition) == charged
            assert partition.events == events


def test_only_a_pending_reservation_leaves_its_state():
    assert {state for state, _ in TRANSITIONS} == {ReservationState.PENDING}
    assert {outcome for _, outcome in TRANSITIONS} == set(Outcome)


def test_a_reservation_in_two_scopes_is_all_or_nothing(partition):
    account = KeyVersion(KeyId("account"), 1)
    partition.publish(account, KeyStatus.ACTIVE, 1, ())
    assert partition.reserve("a", [KEY, account], TEN, NOW).status is ReserveStatus.ADMITTED
    reply = partition.reserve("b", [KEY, account], TEN, NOW)
    assert (reply.status, reply.limit_index, reply.retry_ms) == (ReserveStatus.REFUSED, -2, NO_TIME_HELPS)
    assert used(partition) == 10


def test_publishing_an_older_version_is_told(partition):
    assert partition.publish(KEY, KeyStatus.REVOKED, None, ()) is PublishStatus.KEPT
    assert partition.inspect(KEY.key_id, NOW).status is KeyStatus.ACTIVE
