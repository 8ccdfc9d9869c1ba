import re

import pytest

from edgeproxy.domain.features import Feature

# What operators have written into their configurations does not change.
NAMES = {"batches", "files", "background", "stored_context"}


def test_features_go_by_the_names_that_they_had():
    assert {str(feature) for feature in Feature} == NAMES


@pytest.mark.parametrize("feature", Feature)
def test_a_refusal_says_why_as_the_start_of_a_sentence(feature):
    assert re.fullmatch(r"[A-Z][^\n.]+[a-z]", feature.reason)


def test_every_feature_has_a_reason_of_its_own():
    assert len({feature.reason for feature in Feature}) == len(Feature)
