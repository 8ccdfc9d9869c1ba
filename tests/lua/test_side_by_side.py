"""Any sequence of operations, played through the pure reference and through the scripts, gives the same answers."""

import itertools
import random
from collections import Counter
from enum import IntEnum

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeproxy.domain.keys import KeyId, KeyStatus
from edgeproxy.domain.limits import Amounts, Dimension, Limit
from edgeproxy.domain.reservations import KeyVersion, Outcome, Partition, ReserveStatus, SettleStatus

KEYS = (KeyId("key"), KeyId("account"))


def mostly(usual, *seldom, times=8):
    return st.sampled_from([usual] * times + list(seldom))


AMOUNTS = st.builds(Amounts, mostly(1, 0, 2), st.integers(0, 6), st.integers(0, 6))
LIMITS = st.lists(
    st.builds(Limit, st.sampled_from(Dimension), st.integers(0, 60), st.sampled_from([1_000, 3_000])),
    max_size=4,
    unique_by=lambda limit: limit.id,
)
CAPS = st.sampled_from([None, None, None, 0, 1, 4])
# In widths of the buckets of both windows (17 and 50 ms), and one ms around them; windows are 60 buckets long.
STEPS_MS = st.builds(
    lambda width_ms, buckets, more_ms: max(width_ms * buckets + more_ms, 0),
    st.sampled_from([17, 50]),
    mostly(1, 0, 2, 10, 59, 60, 61, 62, 200, times=4),
    mostly(0, -1, 1, times=2),
)
PUBLISH = st.tuples(
    st.just("publish"),
    mostly(0, 1, times=2),
    mostly(1, 2, 0, -1),
    mostly(KeyStatus.ACTIVE, KeyStatus.REVOKED, times=4),
    CAPS,
    LIMITS,
)
ERASE = st.tuples(st.just("erase"), mostly(0, 1, times=1))
OPERATIONS = st.lists(
    st.one_of(
        *[st.tuples(st.just("reserve"), mostly((0,), (1,), (0, 1), times=3), mostly(0, -1, 1, times=12), AMOUNTS)] * 6,
        *[st.tuples(st.just("settle"), st.integers(0, 5), mostly(Outcome.POST, Outcome.VOID, times=3), AMOUNTS)] * 5,
        *[STEPS_MS.map(lambda step_ms: ("step", step_ms))] * 4,
        STEPS_MS.map(lambda step_ms: ("step", -step_ms)),
        mostly("reserve", "settle", times=1).map(lambda method: ("repeat", method)),
        mostly(PUBLISH, ERASE, times=6).flatmap(lambda operation: operation),
    ),
    min_size=30,
    max_size=80,
)
PUBLISHED = st.tuples(CAPS, LIMITS)

partition_numbers = itertools.count(100)


class Both:
    """The reference and the scripts, played together; every answer is compared."""

    def __init__(self, in_redis, *published) -> None:
        self.reference = Partition()
        self.in_redis = in_redis
        self.now_ms = 1_700_000_000_000
        self.requests = 0
        self.open: list[str] = []
        self.last = {"reserve": ("0", [], Amounts(), self.now_ms), "settle": ("0", Outcome.POST, Amounts(), b"")}
        self.versions = [0, 0]
        for which, (cap, limits) in enumerate(published):
            self.publish(which, 1, KeyStatus.ACTIVE, cap, limits)

    def same(self, method, *arguments):
        expected = getattr(self.reference, method)(*arguments)
        assert getattr(self.in_redis, method)(*arguments) == expected, (method, arguments)
        return expected

    def publish(self, which, grow, status, cap, limits):
        version = max(self.versions[which] + grow, 0)
        self.versions[which] = max(self.versions[which], version)
        return self.same("publish", KeyVersion(KEYS[which], version), status, cap, limits)

    def reserve(self, which, off, amounts):
        self.requests += 1
        scopes = [KeyVersion(KEYS[one], self.versions[one] + off) for one in which]
        self.last["reserve"] = (str(self.requests), scopes, amounts, self.now_ms)
        status = self.same("reserve", *self.last["reserve"]).status
        if status is ReserveStatus.ADMITTED:
            self.open.append(str(self.requests))
        return status

    def settle(self, which, outcome, actual):
        """One of the open requests, or, where none is, one that there never was."""
        request_id = self.open.pop(which % len(self.open)) if self.open else "unknown"
        self.last["settle"] = (request_id, outcome, actual, b"event of " + request_id.encode())
        return self.same("settle", *self.last["settle"], self.now_ms).status

    def repeat(self, method):
        return self.same(method, *self.last[method], *([self.now_ms] if method == "settle" else [])).status

    def erase(self, which):
        self.same("erase", KEYS[which])

    def step(self, step_ms):
        self.now_ms += step_ms

    def check(self):
        for key in KEYS:
            self.same("inspect", key, self.now_ms)
        assert self.in_redis.pending() == self.reference.pending()
        assert self.in_redis.events == self.reference.events


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(key=PUBLISHED, account=PUBLISHED, operations=OPERATIONS)
def test_any_sequence_of_operations(make_partition, key, account, operations):
    both = Both(make_partition(next(partition_numbers)), key, account)
    for method, *arguments in operations:
        getattr(both, method)(*arguments)
        both.check()


@pytest.mark.parametrize("seed", range(6))
def test_a_long_life(in_redis, seed):
    """Many requests over many windows, with more open at once than the short sequences have."""
    chance = random.Random(seed)
    limits = [
        Limit(dimension, chance.randrange(40, 400), chance.choice([1_000, 3_000, 7_000]))
        for dimension in chance.sample(list(Dimension), 3)
    ]
    both = Both(in_redis, (12, limits), (None, limits[:2]))
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
                both.publish(0, 1, KeyStatus.ACTIVE, 12, chance.sample(limits, 2))
        both.check()
    assert min(met[ReserveStatus.ADMITTED], met[ReserveStatus.REFUSED]) > 20


def test_the_sequences_meet_every_answer():
    """A comparison of two programs that refuse everything would pass, too."""
    met: Counter[str] = Counter()

    @settings(deadline=None, max_examples=100, database=None, derandomize=True)
    @given(key=PUBLISHED, account=PUBLISHED, operations=OPERATIONS)
    def play(key, account, operations):
        both = Both(Partition(), key, account)
        for method, *arguments in operations:
            status = getattr(both, method)(*arguments)
            if isinstance(status, IntEnum):
                met[f"{type(status).__name__} {status.name}"] += 1

    play()
    for status in (*ReserveStatus, *SettleStatus):
        if status is not ReserveStatus.LAYOUT:
            assert met[f"{type(status).__name__} {status.name}"] >= 20, met
