"""Random operations against an exact log of them. EDGEPROXY_TEST_EVIDENCE=1 plays many more."""

import itertools
import os
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeproxy.domain.reservations import LimitReason, ReapStatus, ReserveStatus, SettleStatus
from tests.lua.exact_log import ExactLog

EVIDENCE = bool(os.environ.get("EDGEPROXY_TEST_EVIDENCE"))

partition_numbers = itertools.count(100)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    deadline=None,
    max_examples=2_000 if EVIDENCE else 40,
)
@given(chance=st.randoms(use_true_random=False), late_excess=st.booleans())
@pytest.mark.timeout(1_800 if EVIDENCE else 120)
def test_what_is_admitted_refused_and_counted_is_what_the_log_says(make_partition, chance, late_excess):
    ExactLog(make_partition(next(partition_numbers)), chance, late_excess=late_excess).play(60)


@pytest.mark.parametrize("late_excess", [True, False])
@pytest.mark.timeout(1_800 if EVIDENCE else 120)
def test_long_lives_meet_every_answer(make_partition, late_excess):
    met = set()
    for seed in range(100 if EVIDENCE else 3):
        log = ExactLog(make_partition(next(partition_numbers)), random.Random(seed), late_excess=late_excess)
        log.play(400)
        met |= log.met.keys()
    wanted = {*LimitReason, *SettleStatus, *ReapStatus, ReserveStatus.ADMITTED, ReserveStatus.REFUSED}
    assert {repr(each) for each in wanted} - met == set()
