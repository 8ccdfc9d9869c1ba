"""Constants are put in where they are used, and nothing else changes."""

import pytest

from edgeproxy.hotstate.inlining import inlined


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("local A = 5\nreturn A", "\nreturn 5"),
        ("local A, B_C = 5, -1    -- why\nreturn A -B_C", "\nreturn 5 -(-1)"),
        ("local A = 5\nreturn AA + A_ + x.A", "\nreturn AA + A_ + x.5"),  # so no script names a field in capitals
        ("local A = 5\nreturn redis.call('A')", "\nreturn redis.call('A')"),
        ("-- A 'quoted\nlocal A = 5\nreturn A  -- A", "\n\nreturn 5"),
        ("local a = 5\nlocal A = B\n  local C = 6\nreturn C", "local a = 5\nlocal A = B\n  local C = 6\nreturn C"),
        ("return KEYS[1]", "return KEYS[1]"),
    ],
)
def test_what_becomes_of_a_script(source, expected):
    assert inlined(source) == expected


@pytest.mark.parametrize("source", ["local A = 5\nlocal A = 6", "local A, A = 5, 6", "local A, B = 5"])
def test_what_is_not_one_constant_is_refused(source):
    with pytest.raises(ValueError, match=r"two constants|zip"):
        inlined(source)
