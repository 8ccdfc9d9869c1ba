"""Any sequence of operations, played through the pure reference and through the scripts, gives the same answers.

EDGEPROXY_TEST_EVIDENCE=1 plays many more.
"""

import itertools
import os
import random
from collections import Counter
from enum import IntEnum

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeproxy.domain.keys import KeyId, KeyStatus, Mode
from edgeproxy.domain.limits import Amounts, Dimension, Limit
from edgeproxy.domain.partition import Partition
from edgeproxy.domain.reservations import (
    HeartbeatStatus,
    KeyVersion,
    LedgerStatus,
    Outcome,
    PublishStatus,
    ReapStatus,
    RebuiltState,
    ReserveStatus,
    SettleStatus,
)
from tests.lua.in_redis import ADMITTED, record_of

EVIDENCE = bool(os.environ.get("EDGEPROXY_TEST_EVIDENCE"))
KEYS = (KeyId("key"), KeyId("account"))


def mostly(usual, *seldom, times=8):
    return st.sampled_from([usual] * times + list(seldom))


AMOUNTS = st.builds(Amounts, mostly(1, 0, 2), st.integers(0, 6), st.integers(0, 6))
DIFFERENCES = st.tuples(st.integers(-1, 1), st.integers(-6, 6), st.integers(-6, 6))
LIMITS = st.lists(
    st.builds(Limit, st.sampled_from(Dimension), st.integers(0, 60), st.sampled_from([1_000, 3_000, 7_000])),
    max_size=4,
    unique_by=lambda limit: limit.id,
)
CAPS = st.sampled_from([None, None, None, 0, 1, 4])
MODES = mostly(Mode.ENFORCE, Mode.OBSERVE, times=3)
# In widths of the buckets of two windows (17 and 50 ms), and one ms around them; windows are 60 buckets long.
STEPS_MS = st.builds(
    lambda width_ms, buckets, more_ms: max(width_ms * buckets + more_ms, 0),
    st.sampled_from([17, 50]),
    mostly(1, 0, 2, 10, 59, 60, 61, 62, 200, times=4),
    mostly(0, -1, 1, times=2),
)
WHICH = mostly(0, 1, times=2)
OPEN = st.integers(0, 5)
PUBLISH = st.tuples(
    st.just("publish"),
    WHICH,
    mostly(1, 2, 0, -1),
    mostly(KeyStatus.ACTIVE, KeyStatus.REVOKED, times=4),
    CAPS,
    LIMITS,
    MODES,
    st.booleans(),
)
RESERVE = st.tuples(
    st.just("reserve"),
    mostly((0,), (1,), (0, 1), times=3),
    mostly(0, -1, 1, None, times=12),
    AMOUNTS,
    mostly("admit", "announce", times=10),
)
SETTLE = st.tuples(st.just("settle"), OPEN, mostly(Outcome.POST, Outcome.VOID, Outcome.CANCEL, times=3), AMOUNTS)
SELDOM = (
    PUBLISH,
    PUBLISH,
    PUBLISH,
    st.tuples(st.just("erase"), WHICH),
    st.tuples(st.just("rebuild"), WHICH, st.lists(st.integers(0, 5), min_size=3, max_size=3)),
)
OPERATIONS = st.lists(
    st.one_of(
        *[RESERVE] * 6,
        *[SETTLE] * 5,
        *[STEPS_MS.map(lambda step_ms: ("step", step_ms))] * 4,
        STEPS_MS.map(lambda step_ms: ("step", -step_ms)),
        st.tuples(st.just("heartbeat"), OPEN, AMOUNTS),
        st.tuples(st.just("reap"), OPEN, AMOUNTS, mostly(30_001, 30_000, 29_999, 0, times=2)),
        st.tuples(st.just("credit"), WHICH, mostly(1, 0, -1, 2, times=4), st.integers(-5, 60)),
        st.tuples(st.just("adjust"), WHICH, mostly(1, 0, -1, 2, times=4), DIFFERENCES),
        st.sampled_from(["reserve", "settle", "heartbeat", "reap"]).map(lambda method: ("repeat", method)),
        st.sampled_from(SELDOM).flatmap(lambda operation: operation),
    ),
    min_size=30,
    max_size=80,
)
PUBLISHED = st.tuples(CAPS, LIMITS, MODES, st.booleans())

partition_numbers = itertools.count(100)


class Both:
    """The reference and the scripts, played together; every answer is compared."""

    def __init__(self, in_redis, *published) -> None:
        self.reference = Partition()
        self.in_redis = in_redis
        self.now_ms = 1_700_000_000_000
        self.requests = 0
        self.open: list[str] = []
        unknown = ("0", Amounts(), self.now_ms)
        self.last = {
            "reserve": ("0", [], Amounts(), self.now_ms),
            "settle": ("0", Outcome.POST, Amounts(), b"unknown", self.now_ms),
            "heartbeat": unknown,
            "reap": ("0", Amounts(), b"unknown", self.now_ms),
        }
        self.versions = [0, 0]
        for which, (cap, limits, mode, prepaid) in enumerate(published):
            self.publish(which, 1, KeyStatus.ACTIVE, cap, limits, mode, prepaid)

    def same(self, method, *arguments, **named):
        expected = getattr(self.reference, method)(*arguments, **named)
        assert getattr(self.in_redis, method)(*arguments, **named) == expected, (method, arguments)
        return expected

    def remembered(self, method, *arguments):
        self.last[method] = arguments
        return self.same(method, *arguments)

    def publish(self, which, grow, status, cap, limits, mode, prepaid):
        version = max(self.versions[which] + grow, 0)
        self.versions[which] = max(self.versions[which], version)
        key = KeyVersion(KEYS[which], version)
        record = record_of(key, *limits, cap=cap, status=status, mode=mode, prepaid=prepaid)
        return self.same("publish", record, self.now_ms)

    def reserve(self, which, off, amounts, how="admit"):
        self.requests += 1
        request_id, note = str(self.requests), b"\x00note %d" % self.requests
        scopes = [KeyVersion(KEYS[one], -1 if off is None else self.versions[one] + off) for one in which]
        self.last["reserve"] = (request_id, scopes, amounts, self.now_ms, note)
        status = self.same("reserve", *self.last["reserve"], announce=how == "announce").status
        if status in ADMITTED:
            self.open.append(request_id)
        return status

    def settle(self, which, outcome, actual):
        """One of the open requests, or, where none is, one that there never was."""
        request_id = self.open.pop(which % len(self.open)) if self.open else "unknown"
        return self.remembered("settle", request_id, outcome, actual, self.event(request_id), self.now_ms).status

    def heartbeat(self, which, so_far):
        return self.remembered("heartbeat", self.one_of_open(which), so_far, self.now_ms)

    def reap(self, which, actual, later_ms):
        """The worker stands still for so long; afterwards it settles, as it did not know."""
        self.now_ms += later_ms
        request_id = self.one_of_open(which)
        return self.remembered("reap", request_id, actual, self.event(request_id), self.now_ms)

    def credit(self, which, step, tokens):
        return self.same("credit", KEYS[which], self.ledger(which) + step, tokens)[0]

    def adjust(self, which, step, differences):
        return self.same("adjust", KEYS[which], self.ledger(which) + step, differences, self.now_ms)[0]

    def rebuild(self, which, amounts):
        """What is counted, with other amounts in the buckets that end now."""
        state = self.reference._keys.get(KEYS[which])
        if state is None:
            return
        windows = tuple(
            tuple(
                (window.ring._bucket_of(self.now_ms) - back, amount)
                for back, amount in zip((9, 1, 0), amounts, strict=True)
            )
            for window in state.windows.values()
        )
        self.same(
            "rebuild",
            RebuiltState(
                state.record,
                state.open,
                state.held,
                state.last_used_ms,
                state.totals,
                state.balance,
                state.ledger,
                windows,
            ),
        )

    def repeat(self, method):
        answer = self.same(method, *self.last[method])
        return getattr(answer, "status", answer)

    def erase(self, which):
        self.same("erase", KEYS[which])

    def step(self, step_ms):
        self.now_ms += step_ms

    def check(self):
        for key in KEYS:
            self.same("inspect", key, self.now_ms)
        assert self.in_redis.pending() == self.reference.pending()

    def check_what_is_left(self):
        for request_id in map(str, range(self.requests + 1)):
            self.same("examine", request_id)
        assert self.in_redis.events == self.reference.events
        assert self.in_redis.corrections == self.reference.corrections

    def one_of_open(self, which):
        return self.open[which % len(self.open)] if self.open else "unknown"

    def event(self, request_id):
        return b"" if request_id.endswith("7") else b"event of " + request_id.encode()

    def ledger(self, which):
        usage = self.reference.inspect(KEYS[which], self.now_ms)
        return usage.ledger if usage else 0


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=2_000 if EVIDENCE else 100
)
@pytest.mark.timeout(1_800 if EVIDENCE else 120)
@given(key=PUBLISHED, account=PUBLISHED, operations=OPERATIONS)
def test_any_sequence_of_operations(make_partition, key, account, operations):
    both = Both(make_partition(next(partition_numbers)), key, account)
    for method, *arguments in operations:
        getattr(both, method)(*arguments)
        both.check()
    both.check_what_is_left()


@pytest.mark.parametrize("seed", range(6))
def test_a_long_life(in_redis, seed):
    """Many requests over many windows, with more open at once than the short sequences have."""
    chance = random.Random(seed)
    limits = [
        Limit(dimension, chance.randrange(40, 200), chance.choice([1_000, 3_000, 7_000]))
        for dimension in chance.sample(list(Dimension), 3)
    ]
    lengths = [Limit(limit.dimension, limit.amount, chance.choice([2_000, 5_000])) for limit in limits]
    both = Both(in_redis, (12, limits, Mode.ENFORCE, False), (None, limits[:2], Mode.ENFORCE, False))
    met: Counter[IntEnum] = Counter()
    for _ in range(400):
        amounts = Amounts(1, chance.randrange(9), chance.randrange(30))
        match chance.choices(["reserve", "settle", "step", "publish"], [10, 8, 8, 0.3])[0]:
            case "reserve":
                met[both.reserve(chance.choice([(0,), (0, 1)]), 0, amounts)] += 1
            case "settle":
                both.settle(chance.randrange(9), chance.choice(list(Outcome)), amounts)
            case "step":
                both.step(chance.choice([1, 7, 17, 50, 117, 400, 1_037, -30]))
            case "publish":
                chosen = [chance.choice(pair) for pair in zip(limits, lengths, strict=True)]
                both.publish(0, 1, KeyStatus.ACTIVE, 12, chance.sample(chosen, 2), Mode.ENFORCE, prepaid=False)
        both.check()
    both.check_what_is_left()
    assert min(met[ReserveStatus.ADMITTED], met[ReserveStatus.REFUSED]) > 20


def test_the_sequences_meet_every_answer():
    """A comparison of two programs that refuse everything would pass, too."""
    met: Counter[str] = Counter()

    @settings(deadline=None, max_examples=200, database=None, derandomize=True)
    @given(key=PUBLISHED, account=PUBLISHED, operations=OPERATIONS)
    def play(key, account, operations):
        both = Both(Partition(), key, account)
        for method, *arguments in operations:
            status = getattr(both, method)(*arguments)
            if isinstance(status, IntEnum):
                met[f"{type(status).__name__} {status.name}"] += 1

    play()
    for status in itertools.chain(
        ReserveStatus, SettleStatus, HeartbeatStatus, ReapStatus, LedgerStatus, PublishStatus
    ):
        if status.name != "LAYOUT":
            assert met[f"{type(status).__name__} {status.name}"] >= 20, met
