"""What is told of a certificate is what a client would find."""

from datetime import timedelta
from pathlib import Path

import pytest

from edgeproxy.checkup.certificates import certificates
from edgeproxy.checkup.findings import Finding, Level
from edgeproxy.config import Listen
from tests.support.certificates import DAY, Pair, make_pair

MINUTE = timedelta(minutes=1)  # so that whole days are still ahead when they are counted


def judged(pair: Pair, name: str = "api") -> list[Finding]:
    return list(certificates(Listen(**pair.settings(name))))


@pytest.mark.parametrize("name", ["api", "web"])
def test_a_good_one_is_told_with_its_names_and_days(tmp_path: Path, name: str):
    pair = make_pair(tmp_path, hosts=("api.example.com", "*.example.org"), ends=90 * DAY + MINUTE)
    finding = judged(pair, name)[0]
    assert finding.level is Level.OK
    assert finding.found == f"listen.{name}_certificate is for api.example.com, *.example.org, 90 days more"


def test_an_authority_that_nobody_knows_is_told_and_one_that_is_known_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pair = make_pair(tmp_path, ends=90 * DAY)
    finding = judged(pair)[1]
    assert (finding.level, "leads to no authority" in finding.found) == (Level.WARNING, True)
    monkeypatch.setenv("SSL_CERT_FILE", str(pair.certificate))
    assert [finding.level for finding in judged(pair)] == [Level.OK]


@pytest.mark.parametrize(("days", "level"), [(0, Level.WARNING), (13, Level.WARNING), (14, Level.OK)])
def test_one_that_ends_soon_is_to_be_renewed(tmp_path: Path, days: int, level: Level):
    finding = judged(make_pair(tmp_path, ends=days * DAY + MINUTE))[0]
    assert (finding.level, f"{days} days more" in finding.found) == (level, True)


@pytest.mark.parametrize(
    ("begins", "ends", "words"), [(-9 * DAY, -DAY, "has expired"), (DAY, 9 * DAY, "is not valid yet")]
)
def test_one_that_does_not_hold_now_is_an_error(tmp_path: Path, begins: timedelta, ends: timedelta, words: str):
    (finding,) = judged(make_pair(tmp_path, begins=begins, ends=ends))
    assert (finding.level, words in finding.found) == (Level.ERROR, True)


def test_what_a_listener_would_refuse_is_an_error(tmp_path: Path):
    pair, other = make_pair(tmp_path, "one"), make_pair(tmp_path, "two")
    for key in (other.key, tmp_path / "missing", pair.certificate):
        (finding,) = judged(Pair(pair.certificate, key, 0))
        assert finding.level is Level.ERROR


def test_both_are_looked_at_and_plain_http_has_none(tmp_path: Path):
    pair = make_pair(tmp_path, ends=90 * DAY)
    listen = Listen(**pair.settings("api"), **Pair(tmp_path / "missing", pair.key, 0).settings("web"))
    assert [finding.level for finding in certificates(listen)] == [Level.OK, Level.WARNING, Level.ERROR]
    assert list(certificates(Listen())) == []
