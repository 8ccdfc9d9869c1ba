"""Records are dataclasses; that nobody changes one is for type checking to say."""

import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from edgeproxy.domain.records import record

CHANGE = """
from edgeproxy.domain.records import record


@record
class Point:
    x: int
    y: int = 0


Point(1).x = 2
"""


@record
class Point:
    x: int
    y: int = 0


def test_a_record_is_a_dataclass_with_slots() -> None:
    assert Point(1) == Point(1, 0)
    assert replace(Point(1, 2), x=3) == Point(3, 2)
    assert {Point(1): "a"}[Point(1)] == "a"
    with pytest.raises(AttributeError):
        Point(1).z = 2  # type: ignore[attr-defined]  # what is tested


def test_type_checking_refuses_to_change_one(tmp_path: Path) -> None:
    source = tmp_path / "change.py"
    source.write_text(CHANGE)
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path), "--no-incremental", str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert 'Property "x" defined in "Point" is read-only' in done.stdout


def test_making_one_calls_nothing_for_a_field() -> None:
    @dataclass(frozen=True, slots=True)
    class Frozen:
        x: int
        y: int = 0

    assert "__setattr__" not in Point.__init__.__code__.co_names
    assert "__setattr__" in Frozen.__init__.__code__.co_names
