"""How errors of ours become findings."""

import pytest

from edgeproxy.checkup.findings import Level, error, of_error, ok, warning
from edgeproxy.errors import OperatorError, StoreUnavailable


def test_a_finding_has_a_remedy_unless_it_is_well():
    assert (ok("a").level, ok("a").remedy) == (Level.OK, "")
    assert (warning("a", "b").level, error("a", "b").level) == (Level.WARNING, Level.ERROR)


@pytest.mark.parametrize(
    ("raised", "found", "remedy"),
    [
        (OperatorError("this is wrong; do that"), "this is wrong", "do that"),
        (OperatorError("this is wrong; and this; do that"), "this is wrong; and this", "do that"),
        (
            StoreUnavailable("redis"),
            "redis cannot be reached or does not answer",
            "check stores.redis, and that it runs",
        ),
    ],
)
def test_the_line_of_an_error_is_what_is_wrong_and_what_to_do(raised, found: str, remedy: str):
    assert of_error(raised) == error(found, remedy)


def test_a_line_without_a_remedy_still_says_what_is_wrong():
    assert of_error(OperatorError("this is wrong")).found == "this is wrong"
    assert of_error(OperatorError("this is wrong")).remedy
