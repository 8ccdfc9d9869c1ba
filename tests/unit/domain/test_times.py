from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeproxy.domain.times import parse_time, rfc3339, to_datetime, to_ms

TIMES = st.integers(0, 253_402_300_799_999)


@given(TIMES)
def test_every_time_comes_back_as_it_was(at_ms):
    assert to_ms(to_datetime(at_ms)) == at_ms
    assert parse_time(rfc3339(at_ms)) == at_ms


@given(TIMES, TIMES)
def test_text_sorts_as_time_does(one_ms, other_ms):
    assert (rfc3339(one_ms) < rfc3339(other_ms)) == (one_ms < other_ms)


def test_a_time_is_written_in_utc_with_milliseconds():
    assert rfc3339(0) == "1970-01-01T00:00:00.000Z"
    assert rfc3339(1_750_000_000_123) == "2025-06-15T15:06:40.123Z"


def test_a_day_is_its_beginning_in_utc():
    assert parse_time("2027-06-30") == to_ms(datetime(2027, 6, 30, tzinfo=UTC))


@pytest.mark.parametrize("text", ["2027-06-30T12:00:00Z", "2027-06-30T14:00:00+02:00", "2027-06-30 12:00:00.000+00:00"])
def test_a_zone_is_heeded(text):
    assert parse_time(text) == to_ms(datetime(2027, 6, 30, 12, tzinfo=UTC))


@pytest.mark.parametrize("text", ["", "tomorrow", "30.06.2027", "2027-13-01", "2027-06-30T25:00:00Z", "1\n2"])
def test_what_is_no_time_is_refused_with_what_is_right(text):
    with pytest.raises(ValueError, match="written 2027-06-30 or 2027-06-30T12:00:00Z"):
        parse_time(text)


def test_a_time_of_day_without_zone_is_refused():
    with pytest.raises(ValueError, match="needs its zone"):
        parse_time("2027-06-30T12:00:00")


def test_what_is_finer_than_a_millisecond_is_cut_off():
    assert to_ms(datetime(1970, 1, 1, 0, 0, 0, 1999, tzinfo=UTC)) == 1
