"""What `policy` prints, for people and for programs."""

import json

import pytest
from click.testing import CliRunner

from edgeproxy.__main__ import cli
from edgeproxy.domain.inventory import PLACES, PROFILES
from edgeproxy.errors import OperatorError
from edgeproxy.policy.claims import claims_of


def run(*arguments):
    result = CliRunner().invoke(cli, ["policy", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0
    return result.stdout


@pytest.mark.parametrize("name", PROFILES)
def test_every_claim_is_told_with_its_tests_and_what_is_missing(name):
    told = run("claims", "--profile", name)
    for claim in claims_of(name):
        assert f"{claim.id} " in told
        assert all(test in told for test in claim.tests)
    assert json.loads(run("claims", "--profile", name, "--json"))["profile"] == name


def test_what_cannot_be_served_says_why():
    told = run("claims", "--profile", "opusgate")
    assert "still missing: accounts of users" in told
    assert "opusgate cannot be served by this version; it lacks:" in told
    assert "  OG-2a (accounts of users)" in told


def test_the_configured_profile_is_told_where_none_is_named():
    assert "opusmax can be served by this version" in run("claims")


def test_the_inventory_is_told_whole_or_as_a_profile_has_it():
    rows = json.loads(run("inventory", "--json"))
    assert [row["name"] for row in rows] == [place.name for place in PLACES]
    assert len(run("inventory").splitlines()) == len(PLACES)
    keeps = {row["name"]: row["keep"] for row in json.loads(run("inventory", "--profile", "ominigate", "--json"))}
    assert keeps["usage_events.model"] == "90 days"
    assert keeps["{pNN}:events"].startswith("until it has been passed on")
    keeps = {row["name"]: row["keep"] for row in json.loads(run("inventory", "--profile", "opusmax", "--json"))}
    assert keeps["usage_events.model"] == "until the key is deleted"


def test_a_profile_that_nobody_knows_is_an_error():
    with pytest.raises(OperatorError, match="did you mean opusmax"):
        run("claims", "--profile", "opusmaks")
