"""Profiles that come with the program, an operator's own, and every mistake that one can hold."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from edgeproxy.domain.inventory import GROUPS, PROFILES, Whose, places
from edgeproxy.domain.retention import LIFE_OF_KEY, days
from edgeproxy.errors import OperatorError
from edgeproxy.policy.profiles import Kept, load_profile, read_profile, shipped

GOOD = """
name = "opusmax"
title = "Ours"
contact = "privacy@example.com"

[keep]
keys = "life of key"
usage = "life of key"

[[history]]
date = "2026-01-01"
what = "First version."
[[history]]
date = 2026-02-03
what = "Another address."
"""


@pytest.fixture
def write(tmp_path):
    def write(text):
        (tmp_path / "own.toml").write_text(text)
        return tmp_path / "own.toml"

    return write


@pytest.mark.parametrize("name", PROFILES)
def test_those_that_come_with_the_program_can_be_read(name):
    profile = load_profile(name)
    assert profile.name == name
    assert profile.contact
    assert re.fullmatch(r"2026-\d\d-\d\d", profile.updated)


def test_there_is_no_other_beside_them():
    assert {path.stem for path in (shipped() / "profiles").iterdir()} == set(PROFILES)


def test_an_operators_own_is_named_by_its_path(write):
    profile = load_profile(str(write(GOOD)))
    assert (profile.title, profile.updated) == ("Ours", "2026-02-03")
    assert profile.kept() == {"keys": LIFE_OF_KEY, "usage": LIFE_OF_KEY}


def test_what_a_profile_chooses_is_all_that_is_kept_of_people():
    about_people = {place.group for place in places(whose=Whose.HOLDER)} - {"log"}
    chosen = [each.name for each in fields(Kept)]
    assert set(chosen) == about_people | {name for name, group in GROUPS.items() if not group.is_built}


@pytest.mark.claims("OL-6")
def test_those_that_can_be_served_keep_what_the_program_writes_and_for_the_life_of_the_key():
    for name in ("opuslive", "opusmax"):
        kept = load_profile(name).kept()
        assert set(kept) == {"keys", "usage", "refusals", "counters", "ledger"}
        assert set(kept.values()) == {LIFE_OF_KEY}
    assert load_profile("opusgate").kept()["technical_log"] == days(30)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('contact = "privacy@example.com"', "", "contact is missing: write whom people can ask"),
        ('contact = "privacy@example.com"', 'contact = " "', "line 4: contact is missing"),
        ('title = "Ours"', 'title = "a\\nb"', "line 3: title is missing: write the name of the service"),
        ('name = "opusmax"', 'name = "mine"', "line 2: name must be that of the service whose claims are made"),
        ('name = "opusmax"', "nmae = 1", "line 2: unknown setting nmae; did you mean name?"),
        ('name = "opusmax"', "name = 1", "line 2: name must be a string"),
        ("[keep]", 'longest_window = "1y"\n[keep]', "line 6: longest_window must be a length such as 30d"),
        ("[keep]", 'longest_window = "999d"\n[keep]', "line 6: longest_window must be a length such as 30d"),
        ('keys = "life of key"', 'kays = "life of key"', "line 7: unknown setting keep.kays; did you mean keys?"),
        ('keys = "life of key"', "", "keep.keys is missing: nothing works without"),
        ('keys = "life of key"', "keys = 30", "line 7: keep.keys must be a string"),
        (
            'usage = "life of key"',
            'usage = "forever"',
            "line 8: keep.usage = 'forever' is no rule: write 'life of key'",
        ),
        (
            'usage = "life of key"',
            'technical_log = "0 days"',
            "line 8: keep.technical_log is collected and not kept at all: remove the line, or keep it longer",
        ),
        (
            'usage = "life of key"',
            'usage = "90 days"',
            "line 8: keep.usage is shorter than a limit may be (366d): keep it longer, or set longest_window",
        ),
        (
            'usage = "life of key"',
            'usage = "account + 24 months"',
            "line 8: keep.usage depends on accounts, which are not collected: add keep.accounts",
        ),
        ('date = "2026-01-01"', 'date = "1 May"', "line 11: history[0].date must be a day such as 2026-03-17"),
        ("date = 2026-02-03", "", "history[1].date must be a day"),
        ('what = "Another address."', 'what = ""', "line 15: history[1].what is missing: say what was changed"),
        ('what = "Another address."', "why = 1", "line 15: unknown setting history[1].why"),
        ("[keep]", "[keep", "is not valid TOML"),
    ],
)
def test_a_mistake_is_refused_with_its_line_and_what_to_do(write, old, new, said):
    assert old in GOOD
    with pytest.raises(OperatorError) as raised:
        read_profile(write(GOOD.replace(old, new)))
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_history_that_is_missing_is_refused(write):
    with pytest.raises(OperatorError, match=r"history is missing: add a \[\[history\]\]"):
        read_profile(write(GOOD.partition("[[history]]")[0]))


def test_usage_may_be_kept_briefly_where_no_limit_is_longer(write):
    text = GOOD.replace('usage = "life of key"', 'usage = "31 days"')
    assert read_profile(write(f'longest_window = "31d"\n{text}')).kept()["usage"] == days(31)


@pytest.mark.parametrize("path", ["none.toml", "./none", "/nonexistent/own.toml"])
def test_a_file_that_is_not_there_is_told(path):
    with pytest.raises(OperatorError, match=r"cannot read profile .* check the setting profile"):
        load_profile(path)


def test_bytes_that_are_no_text_are_told(tmp_path):
    path = Path(tmp_path / "own.toml")
    path.write_bytes(b"\xff")
    with pytest.raises(OperatorError, match="is not valid TOML"):
        read_profile(path)
