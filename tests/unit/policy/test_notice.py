"""Every setting that matters changes a sentence, and nothing is said that is not so."""

from dataclasses import asdict, fields, replace

import pytest

from edgeproxy.domain.inventory import GROUPS, PROFILES, Kind, places
from edgeproxy.policy.notice import Facts, Receiver, make_notice
from edgeproxy.policy.profiles import Change, Kept, Profile, load_profile

FACTS = Facts((Receiver("anthropic", "api.anthropic.com"), Receiver("openai", "api.openai.com")))


def text_of(profile: Profile, facts: Facts = FACTS) -> str:
    return repr(asdict(make_notice(profile, facts)))


def section(profile: Profile, name: str, facts: Facts = FACTS) -> str:
    (found,) = (each for each in make_notice(profile, facts).sections if each.id == name)
    return repr(asdict(found))


@pytest.fixture
def profile() -> Profile:
    return load_profile("opusmax")


@pytest.mark.claims("OL-11", "OL-12", "OG-9")
def test_each_field_of_a_profile_changes_what_is_said(profile):
    changes = {
        "title": ("Another Name", "in-short"),
        "contact": ("privacy@example.com", "contact"),
        "region": ("the moon", "receivers"),
        "history": ((*profile.history, Change("2031-02-03", "Everything.")), "changes"),
    }
    for name, (value, where) in changes.items():
        changed = replace(profile, **{name: value})
        assert section(changed, where) != section(profile, where), name
    assert "privacy@example.com" in section(replace(profile, contact="privacy@example.com"), "rights")
    assert make_notice(replace(profile, history=changes["history"][0]), FACTS).updated == "2031-02-03"
    told_by_keep_and_claims = {"name", "keep", "longest_window"}
    assert set(changes) | told_by_keep_and_claims == {each.name for each in fields(Profile)}


@pytest.mark.parametrize("group", [each.name for each in fields(Kept)])
def test_each_group_is_told_where_it_is_kept_and_for_how_long(profile, group):
    without = replace(profile, keep=replace(profile.keep, **{group: ""}))
    briefly = replace(profile, keep=replace(profile.keep, **{group: "17 days"}))
    for name in ("kept", "how-long"):
        assert section(without, name) != section(briefly, name)
    assert "17 days" in section(briefly, "how-long")
    assert "17 days" not in section(without, "how-long")


@pytest.mark.parametrize(
    ("group", "words"),
    [
        ("technical_log", "network address"),
        ("accounts", "there are no accounts"),
        ("payments", "about payments"),
        ("analytics", "set no cookie"),
    ],
)
def test_what_is_kept_is_not_said_to_be_left_out(profile, group, words):
    kept = replace(profile, keep=replace(profile.keep, **{group: "30 days"}))
    assert words in section(profile, "not-kept")
    assert words not in section(kept, "not-kept")


def test_what_is_kept_is_told_as_the_inventory_has_it(profile):
    told = section(profile, "kept")
    for group in profile.kept():
        for place in places(Kind.COLUMN, group=group):
            assert place.what in told


@pytest.mark.claims("OL-7")
def test_the_providers_that_are_configured_are_named_and_no_other(profile):
    told = section(profile, "receivers")
    assert "api.anthropic.com" in told
    assert "api.openai.com" in told
    one = section(profile, "receivers", Facts(FACTS.receivers[:1]))
    assert "api.openai.com" not in one
    assert "rules of their own" in one
    assert "No provider is configured" in section(profile, "receivers", Facts())


def test_what_a_provider_is_asked_to_keep_is_told(profile):
    keeping = Facts((Receiver("openai", "api.openai.com", ("batches", "files", "background", "stored_context")),))
    told = section(profile, "receivers", keeping)
    assert "batches of requests, files, answers that are made in the background, conversations" in told
    assert "asked to keep" not in section(profile, "receivers")


def test_lines_of_access_are_told(profile):
    assert "leaves a line" in section(profile, "kept", replace(FACTS, access_lines=True))
    assert "leaves a line" not in section(profile, "kept")


@pytest.mark.claims("OL-9", "OG-3b")
@pytest.mark.parametrize("name", PROFILES)
def test_what_every_service_says_is_there(name):
    profile = load_profile(name)
    told = text_of(profile)
    for words in ("not meant for children under 13", "No model is trained", "nothing of it is sold", profile.contact):
        assert words in told
    assert profile.updated in told


def test_every_group_that_a_profile_can_choose_has_a_name():
    everything = Profile(keep=Kept(**dict.fromkeys((each.name for each in fields(Kept)), "life of key")))
    notice = make_notice(replace(everything, history=(Change("2026-01-01", "x"),)), FACTS)
    (kept,) = (each for each in notice.sections if each.id == "kept")
    assert len(kept.rows) == len([group for group in GROUPS if group in everything.kept()])
    assert any("Have it put right" in point for each in notice.sections for point in each.points)
