"""The table against what the program has: nothing is kept that it does not name, and it names nothing that is not."""

import inspect
import re
from collections import Counter

import pytest
from prometheus_client.metrics import MetricWrapperBase

from edgeproxy import logs
from edgeproxy.domain.inventory import GROUPS, PLACES, PROFILES, Kind, Whose, places, undeclared
from edgeproxy.domain.retention import LIFE_OF_KEY, OUTSIDE, Until
from edgeproxy.hotstate import keyspace
from edgeproxy.metrics import Metrics


def names(kind):
    return {place.name for place in places(kind)}


async def test_it_names_every_column_that_there_is_and_no_other(rows):
    query = """
        SELECT relname || '.' || attname AS name FROM pg_attribute JOIN pg_class ON attrelid = pg_class.oid
        WHERE relnamespace = 'edgeproxy'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition
        AND attnum > 0 AND NOT attisdropped
    """
    assert names(Kind.COLUMN) == {row["name"] for row in await rows(query)}


def test_it_names_every_family_of_redis_keys_and_no_other():
    families = {keyspace.INSTALL}
    for name, make in vars(keyspace).items():
        if callable(make) and name != "cache":
            arguments = [7 if each == "partition" else "*" for each in inspect.signature(make).parameters]
            families.add(make(*arguments).replace("{p07}", "{pNN}"))
    assert names(Kind.REDIS) == families


def test_it_names_every_log_field_and_no_other():
    assert names(Kind.LOG_FIELD) == {*logs.FIELDS, "event", "timestamp"}


def test_it_names_every_metric_label_and_no_other():
    metrics = [each for each in vars(Metrics()).values() if isinstance(each, MetricWrapperBase)]
    assert names(Kind.METRIC_LABEL) == {label for metric in metrics for label in metric._labelnames}


def test_there_is_no_cookie():
    assert not places(Kind.COOKIE)


def test_every_row_is_complete_and_unique():
    assert not [each for each, count in Counter((place.kind, place.name) for place in PLACES).items() if count > 1]
    for place in PLACES:
        assert place.what
        assert place.why
        assert place.group in GROUPS, place
        assert set(place.profiles) <= set(PROFILES)


def test_a_group_that_is_not_built_has_no_place_and_every_other_has_one():
    having = {place.group for place in PLACES}
    assert having == {name for name, group in GROUPS.items() if group.is_built}


def test_what_is_about_the_holder_of_a_key_ends_with_the_key_or_before():
    ends = {place.keep.until for place in places(whose=Whose.HOLDER) if place.keep != OUTSIDE}
    assert ends == {Until.KEY, Until.FLUSHED, Until.REQUEST}


@pytest.mark.claims("OL-3a")
def test_of_a_request_is_kept_what_it_used_and_nothing_of_what_it_said():
    kept = {place.name.partition(".")[2] for place in places(group="usage") if place.name.startswith("usage_events.")}
    tokens = {"input_uncached", "cache_read", "cache_write", "output", "reasoning", "estimated"}
    assert kept == {"id", "key_id", "at", "model", "status", "latency_ms"} | tokens


def test_rows_are_found_by_kind_group_and_person():
    assert {place.group for place in places(group="ledger")} == {"ledger"}
    assert all(place.keep == LIFE_OF_KEY for place in places(Kind.COLUMN, group="refusals", whose=Whose.HOLDER))
    assert len(places()) == len(PLACES)


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (Kind.COLUMN, ["keys.name", "usage_events.at"], ["keys.email", "accounts.id", "name"]),
        (
            Kind.REDIS,
            ["install", "key:ab", "{p00}:state:x", "{p63}:leases"],
            ["keys", "key:", "{p00}:prompt:x", "{p0}:leases", "x{p00}:leases", "session:1", "{p00}:leases:x", ""],
        ),
        (Kind.LOG_FIELD, ["key_id", "event"], ["address", "body", ""]),
        (Kind.METRIC_LABEL, ["provider"], ["key", "model"]),
        (Kind.COOKIE, [], ["session"]),
        (
            Kind.FILE,
            ["lock", "secrets/pepper", "redis/appendonlydir/x", "postgres/base/1/2", "journal/a.journal"],
            ["notes.txt", "secrets/a/b", "journal", "redis", "journal/a/b", "redisx/y", "lock/x"],
        ),
    ],
)
def test_what_is_not_declared_is_found(kind, good, bad):
    assert undeclared(kind, good) == []
    assert undeclared(kind, [*good, *bad, *bad]) == sorted(bad)


def test_the_names_of_files_are_those_that_the_program_makes():
    text = " ".join(sorted(names(Kind.FILE)))
    for made in ("lock", "redis.lock", "postgres.lock", "redis.log", "postgres.log", "stores_are_in"):
        assert re.search(rf"(^| ){re.escape(made)}( |$)", text)
