"""The table of claims: complete, in order, and honest about what is missing."""

from dataclasses import replace

import pytest

from edgeproxy.domain.inventory import PROFILES
from edgeproxy.errors import OperatorError
from edgeproxy.policy.claims import (
    BEARABLE,
    NEEDS,
    ClaimKind,
    all_claims,
    claims_json,
    claims_of,
    refuse_unkept,
    unkept,
)
from edgeproxy.policy.profiles import load_profile

SERVED = ("opuslive", "opusmax")


def test_a_service_claims_what_it_takes_over_as_well():
    ids = [claim.id for claim in claims_of("opusmax")]
    assert ids[0] == "OL-1"
    assert ids[-2:] == ["OM-3", "OM-6"]
    assert "OL-6" not in ids


def test_what_says_the_same_is_shown_by_the_same_tests():
    assert all_claims()["OG-8a"].tests == all_claims()["OL-5b"].tests
    assert set(all_claims()["OP-2"].tests) == {*all_claims()["OL-1"].tests, *all_claims()["OL-2a"].tests}


def test_what_is_missing_has_words_and_every_word_is_used():
    used = {need for claim in all_claims().values() for need in claim.needs}
    assert used == set(NEEDS)
    assert used >= BEARABLE


@pytest.mark.parametrize("name", SERVED)
def test_what_can_be_served_lacks_nothing_but_pages(name):
    refuse_unkept(name)
    for claim in claims_of(name):
        assert set(claim.needs) <= BEARABLE
        assert claim.tests or claim.needs


@pytest.mark.parametrize("name", sorted(set(PROFILES) - set(SERVED)))
def test_what_cannot_be_served_is_refused_with_the_list(name):
    with pytest.raises(OperatorError) as raised:
        refuse_unkept(name)
    said = str(raised.value)
    assert "set profile to opuslive or opusmax" in said
    assert all(claim.id in said for claim in claims_of(name) if set(claim.needs) - BEARABLE)
    assert "\n" not in said


@pytest.mark.parametrize(
    ("group", "rule", "said"),
    [
        ("technical_log", "30 days", "keep.technical_log (not collected by this version)"),
        ("refusals", "", "keep.refusals (always collected by this version)"),
        ("refusals", "30 days", "keep.refusals (kept for the life of the key by this version)"),
    ],
)
def test_what_this_version_keeps_otherwise_is_told(group, rule, said):
    profile = load_profile("opusmax")
    changed = replace(profile, keep=replace(profile.keep, **{group: rule}))
    assert list(unkept(profile)) == []
    assert list(unkept(changed)) == [said]


def test_it_is_told_to_programs():
    told = claims_json(load_profile("opusgate"))
    assert (told["profile"], told["can_be_served"]) == ("opusgate", False)
    assert {claim["id"] for claim in told["claims"]} == {claim.id for claim in claims_of("opusgate")}
    assert claims_json(load_profile("opusmax"))["lacking"] == []


def test_every_kind_is_there():
    assert {claim.kind for claim in all_claims().values()} == set(ClaimKind)
