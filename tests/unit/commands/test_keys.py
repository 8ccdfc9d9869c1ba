"""How `keys` reads its options; what the commands do is shown where they are run."""

import pytest

from edgeproxy.commands.keys import _changes, _echo_facts, _patterns
from edgeproxy.control.key_rules import KEEP, KeyChanges
from edgeproxy.domain.keys import Mode, OnLimit, Reserve
from edgeproxy.errors import OperatorError

NOTHING = {
    **dict.fromkeys(("name", "concurrency", "expires", "models", "mode", "reserve", "on_limit")),
    **dict.fromkeys(("limit", "add_limit", "remove_limit"), ()),
}


def test_what_is_not_given_is_kept():
    assert _changes(**NOTHING) == KeyChanges()


@pytest.mark.parametrize(
    ("option", "value", "field", "change"),
    [
        ("name", "ann", "name", "ann"),
        ("limit", ("tokens=1/1m",), "limits", ("tokens=1/1m",)),
        ("limit", ("none",), "limits", ()),
        ("add_limit", ("tokens=1/1m",), "add_limits", ("tokens=1/1m",)),
        ("remove_limit", ("tokens/1m",), "remove_limits", ("tokens/1m",)),
        ("concurrency", "8", "concurrency", 8),
        ("concurrency", "none", "concurrency", None),
        ("expires", "1970-01-02", "expires_ms", 86_400_000),
        ("expires", "never", "expires_ms", None),
        ("models", "claude-*, gpt-*", "models", ("claude-*", "gpt-*")),
        ("models", "all", "models", ()),
        ("mode", Mode.OBSERVE, "mode", Mode.OBSERVE),
        ("reserve", Reserve.STRICT, "reserve", Reserve.STRICT),
        ("on_limit", OnLimit.SHRINK, "on_limit", OnLimit.SHRINK),
    ],
)
def test_an_option_changes_its_field_alone(option: str, value: object, field: str, change: object):
    changes = _changes(**NOTHING | {option: value})
    assert getattr(changes, field) == change
    assert getattr(changes, field) is not KEEP
    assert changes == KeyChanges(**{field: change})


@pytest.mark.parametrize(
    ("option", "value", "line"),
    [
        ("concurrency", "-1", "neither a number nor none"),
        ("concurrency", "²", "neither a number nor none"),
        ("expires", "tomorrow", "--expires: a time is written 2027-06-30"),
        ("expires", "2027-06-30T12:00", "--expires: a time of day needs its zone"),
    ],
)
def test_a_value_that_cannot_be_read_is_one_line(option: str, value: str, line: str):
    with pytest.raises(OperatorError, match=line):
        _changes(**NOTHING | {option: value})


def test_patterns_are_separated_by_commas():
    assert _patterns("claude-*") == ("claude-*",)
    assert _patterns("a, b ,c") == ("a", "b", "c")


def test_facts_are_printed_one_per_line_and_only_those_that_there_are(capsys: pytest.CaptureFixture[str]):
    none = {"last_used": None, "limits": [], "published": False}
    _echo_facts({"id": "1", **none, "models": ["a", "b"], "prepaid": True, "totals": {"requests": 0}})
    assert capsys.readouterr().out.splitlines() == [
        "id           1",
        "models       a, b",
        "prepaid      yes",
        "totals       0 requests",
    ]
