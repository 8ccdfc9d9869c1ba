"""Tables become dataclasses whole, or not at all. What settings make of it is in test_config.py."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from edgeproxy.errors import OperatorError
from edgeproxy.tables import Text, between, build, one_of, overlay, positive, shown, suggestion, variables


@dataclass(frozen=True)
class Inner:
    names: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Outer:
    on: bool = False
    count: int = 1
    place: Path = Path()
    inner: Inner = field(default_factory=Inner)
    rows: tuple[Inner, ...] = ()


def test_a_table_becomes_what_it_says() -> None:
    table = {"on": True, "count": 7, "place": "a/b", "inner": {"names": ["x"]}, "rows": [{}, {"numbers": [1, 2]}]}
    assert build(Outer, table, "") == Outer(
        on=True, count=7, place=Path("a/b"), inner=Inner(("x",)), rows=(Inner(), Inner(numbers=(1, 2)))
    )


@pytest.mark.parametrize(
    ("text", "names"),
    [("", ()), ("a", ("a",)), ("a,b", ("a", "b")), (" a , b ", ("a", "b")), ("a,,b", ("a", "", "b"))],
)
def test_a_list_in_the_environment_has_commas(text: str, names: tuple[str, ...]) -> None:
    assert build(Inner, {"names": Text(text)}, "") == Inner(names)
    assert all(type(name) is str for name in build(Inner, {"names": Text(text)}, "").names)


def test_the_values_of_a_list_in_the_environment_have_their_type() -> None:
    assert build(Inner, {"numbers": Text("1,22")}, "") == Inner(numbers=(1, 22))
    with pytest.raises(OperatorError, match=r"^t\.numbers\[1\] must be a whole number$"):
        build(Inner, {"numbers": Text("1,x")}, "t.")


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ({"names": "a,b"}, "t.names must be a list"),  # in a file a list is a list
        ({"names": ["a", 1]}, r"t.names\[1\] must be a string"),
        ({"name": []}, "unknown setting t.name; did you mean names?"),
        ([], "t must be a table"),
    ],
)
def test_what_does_not_fit_is_one_line_that_names_it(table: Any, line: str) -> None:
    with pytest.raises(OperatorError, match=f"^{line.replace('?', '[?]')}$"):
        build(Inner, table, "t.")


def refusal(check: Callable[..., None], *arguments: Any) -> str:
    with pytest.raises(OperatorError) as caught:
        check(*arguments)
    return str(caught.value)


def test_what_is_not_among_those_that_are_known_is_refused() -> None:
    one_of("name", "b", ("a", "b"))
    assert refusal(one_of, "name", "c", ("a", "b")) == "name = 'c' is not known; known: a, b"


def test_what_is_out_of_its_bounds_is_refused() -> None:
    between("name", 1, 1, 2)
    between("name", 2, 1, 2)
    for value in (0, 3):
        assert refusal(between, "name", value, 1, 2) == "name must be 1 to 2"


def test_a_number_that_bounds_nothing_is_refused() -> None:
    positive("t", Outer(count=10**12))
    for value in (0, -1, 10**12 + 1):
        assert refusal(positive, "t", Outer(count=value)) == f"t.count must be greater than 0, and at most {10**12}"
    positive("t", Outer(count=0), ["count"])
    assert refusal(positive, "t", Outer(count=-1), ["count"]).startswith("t.count must be 0 or more")


def test_the_environment_is_laid_over_the_tables_by_name() -> None:
    known = {variable: path for path, variable in variables(Outer, "P_")}
    assert known == {
        "P_ON": ("on",),
        "P_COUNT": ("count",),
        "P_PLACE": ("place",),
        "P_INNER_NAMES": ("inner", "names"),
        "P_INNER_NUMBERS": ("inner", "numbers"),
    }
    tables = overlay({"count": 1, "on": True}, {"P_COUNT": "7", "P_INNER_NAMES": "a,b"}, known)
    assert build(Outer, tables, "") == Outer(on=True, count=7, inner=Inner(("a", "b")))
    assert "did you mean P_COUNT?" in refusal(overlay, {}, {"P_CUONT": "7"}, known)
    assert refusal(overlay, {"inner": 7}, {"P_INNER_NAMES": "a"}, known) == "inner must be a table"


def test_a_suggestion_is_what_was_probably_meant_or_all_there_is() -> None:
    assert suggestion("cuont", ["count", "place"]) == "; did you mean count?"
    assert suggestion("zzz", ["count", "place"]) == "; known: count, place"
    assert suggestion("zzz", []) == "; none is configured"


def test_a_name_is_shown_on_one_line() -> None:
    assert shown("a b") == "a b"
    assert shown("a\nb") == "'a\\nb'"
