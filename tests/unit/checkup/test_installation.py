"""Stores that belong to another installation are found before anything is written to them."""

from dataclasses import replace
from pathlib import Path

import pytest

from edgeproxy.checkup.findings import Level
from edgeproxy.checkup.installation import fits, of_redis
from edgeproxy.config import Secrets, Settings, Stores
from edgeproxy.domain.keys import pepper_fingerprint

PEPPER, OLD, OTHER = (bytes([number]) * 32 for number in (1, 2, 3))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    for name, pepper in (("pepper", PEPPER), ("old", OLD)):
        (tmp_path / name).write_text(pepper.hex())
        (tmp_path / name).chmod(0o600)
    secrets = Secrets(str(tmp_path / "pepper"), str(tmp_path / "old"))
    return Settings(stores=Stores("redis://h", "postgresql://h", partitions=8), secrets=secrets)


@pytest.mark.parametrize(
    ("there", "level", "words"),
    [
        (None, Level.OK, "the first start fixes"),
        ((8, pepper_fingerprint(PEPPER)), Level.OK, "has these partitions and this pepper"),
        ((8, pepper_fingerprint(OLD)), Level.OK, "has these partitions"),  # in the middle of a rotation
        ((9, pepper_fingerprint(PEPPER)), Level.ERROR, "9 partitions"),
        ((8, pepper_fingerprint(OTHER)), Level.ERROR, "another pepper"),
    ],
)
def test_what_was_fixed_has_to_be_what_is_set(settings: Settings, there, level: Level, words: str):
    (finding,) = fits(settings, {"Redis": there})
    assert finding.level is level
    assert words in finding.found
    assert finding.found.startswith("Redis ")


def test_each_store_is_told_of_and_one_that_does_not_answer_is_not(settings: Settings):
    assert len(list(fits(settings, {"Redis": None, "PostgreSQL": None}))) == 2
    assert list(fits(settings, {})) == []


def test_a_pepper_that_cannot_be_used_is_an_error_that_does_not_tell_it(settings: Settings, tmp_path: Path):
    (tmp_path / "pepper").write_text("Zq7-not-a-pepper")
    (finding,) = fits(settings, {"Redis": None})
    assert (finding.level, "64 hexadecimal digits" in finding.found + finding.remedy) == (Level.ERROR, True)
    assert "Zq7" not in finding.found + finding.remedy
    (tmp_path / "pepper").unlink()
    (finding,) = fits(settings, {"Redis": None})
    assert finding.level is Level.ERROR


def test_named_stores_without_a_pepper_are_an_error_embedded_ones_make_theirs(settings: Settings):
    unset = replace(settings, secrets=Secrets())
    assert [finding.level for finding in fits(unset, {})] == [Level.ERROR]
    assert list(fits(replace(unset, stores=Stores()), {})) == []


@pytest.mark.parametrize("raw", ["", "[]", "null", "{}", '{"partitions": "many", "pepper": ""}', '{"partitions": 8}'])
def test_an_entry_that_is_not_ours_fits_nothing(settings: Settings, raw: str):
    assert [finding.level for finding in fits(settings, {"Redis": of_redis(raw)})] == [Level.ERROR]


def test_what_redis_holds_is_read():
    assert of_redis(None) is None
    assert of_redis('{"partitions": 8, "pepper": "ab"}') == (8, "ab")
