import pytest

from edgeproxy.domain.retention import (
    INSTALLATION,
    LIFE_OF_KEY,
    OPEN_REQUEST,
    OUTSIDE,
    UNTIL_FLUSHED,
    Keep,
    Until,
    after_account,
    days,
    parse_keep,
    short,
    span,
)


@pytest.mark.parametrize(
    ("text", "keep"),
    [
        ("life of key", LIFE_OF_KEY),
        ("30 days", days(30)),
        ("1 day", days(1)),
        ("0 days", days(0)),
        ("24 months", days(24 * 30)),
        ("account + 24 months", after_account(24 * 30 * 86_400)),
    ],
)
def test_a_rule_is_read(text, keep):
    assert parse_keep(text) == keep


@pytest.mark.parametrize("text", ["", "forever", "30", "30 Days", "-1 days", "00 days", "account", "key", "1 hour"])
def test_what_is_no_rule_is_refused_with_what_can_be_written(text):
    with pytest.raises(ValueError, match="'account \\+ 24 months'"):
        parse_keep(text)


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        (LIFE_OF_KEY, "until the key is deleted"),
        (days(30), "30 days"),
        (days(1), "1 day"),
        (days(0), "not at all"),
        (short(120), "2 minutes"),
        (after_account(24 * 30 * 86_400), "as long as the account is open, and 24 months after"),
        (OPEN_REQUEST, "while the request is open"),
        (UNTIL_FLUSHED, "until it has been passed on"),
        (INSTALLATION, "as long as the installation"),
        (OUTSIDE, "as long as whoever collects the log keeps it"),
    ],
)
def test_a_rule_is_told_in_words(keep, words):
    assert keep.told.startswith(words)


def test_every_end_has_words():
    assert all(Keep(until).told for until in Until)


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0, "0 seconds"), (1, "1 second"), (90, "90 seconds"), (3600, "1 hour"), (90 * 86_400, "90 days")],
)
def test_a_length_of_time_is_told_in_the_largest_unit_that_fits(seconds, told):
    assert span(seconds) == told
