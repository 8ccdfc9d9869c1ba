"""The examination as a whole: every check has its place, a store that is away silences its own checks only."""

from dataclasses import replace
from pathlib import Path

import pytest

from edgeproxy.checkup.examination import CHECKS, Subject, examine
from edgeproxy.checkup.findings import Finding, Level
from edgeproxy.config import Listen, Model, Provider, Secrets, Settings, Stores
from edgeproxy.control.installation import Control, claim
from tests.support.certificates import DAY, make_pair
from tests.unit.conftest import NOWHERE, PARTITIONS

STORE_CHECKS = {name for name in CHECKS if name.startswith(("redis ", "postgresql "))}


@pytest.fixture
def subject(redis_url: str, migrated_url: str, tmp_path: Path) -> Subject:
    """An installation with stores that run, and a provider that does not."""
    pepper = tmp_path / "pepper"
    pepper.write_text(bytes(range(32)).hex())
    pepper.chmod(0o600)
    provider = Provider("p", base_url="http://127.0.0.1:1", secret_env="P_SECRET")
    settings = Settings(
        data_dir=tmp_path / "data",
        stores=Stores(redis_url, migrated_url, partitions=PARTITIONS),
        secrets=Secrets(str(pepper)),
        provider=(provider, replace(provider, name="unused")),
        model=(Model("*", "p"),),
    )
    return Subject(settings, frozenset({"redis", "postgresql"}), {"P_SECRET": "Zq7"}, None)


def by_check(report: list[tuple[str, Finding]]) -> dict[str, list[Finding]]:
    assert all(finding.found and (finding.remedy or finding.level is Level.OK) for _, finding in report)
    assert "Zq7" not in str(report)
    found: dict[str, list[Finding]] = {}
    for name, finding in report:
        found.setdefault(name, []).append(finding)
    return found


async def test_every_check_of_what_is_there_finds_something_in_the_order_of_the_table(subject: Subject):
    found = by_check(await examine(subject))
    assert list(found) == [name for name in CHECKS if name != "certificates"]
    assert [finding.level for finding in found["providers"]] == [Level.ERROR]
    assert len(found["clocks"]) == 2
    assert [finding.found for finding in found["installation"]] == [
        "Redis is new: the first start fixes partitions and pepper",
        "PostgreSQL is new: the first start fixes partitions and pepper",
    ]


async def test_looking_changes_nothing_and_finds_what_the_first_start_fixed(subject: Subject, control: Control):
    await examine(subject)
    await examine(subject)
    await claim(control)
    other = replace(subject, settings=replace(subject.settings, stores=replace(subject.settings.stores, partitions=9)))
    assert [finding.level for finding in by_check(await examine(subject))["installation"]] == [Level.OK, Level.OK]
    assert [finding.level for finding in by_check(await examine(other))["installation"]] == [Level.ERROR, Level.ERROR]


async def test_stores_that_are_away_are_two_errors_and_the_rest_is_looked_at(subject: Subject):
    stores = Stores(NOWHERE, "postgresql://u:Zq7@127.0.0.1:1/d", redis_timeout_ms=100)
    found = by_check(await examine(replace(subject, settings=replace(subject.settings, stores=stores))))
    assert [found[name][0].level for name in ("redis", "postgresql")] == [Level.ERROR, Level.ERROR]
    assert not STORE_CHECKS & set(found)
    assert {"secret files", "providers", "open files"} <= set(found)


async def test_embedded_stores_that_do_not_run_are_left_out(subject: Subject):
    settings = replace(subject.settings, stores=Stores(), secrets=Secrets())
    found = by_check(await examine(replace(subject, settings=settings)))
    assert not ({"redis", "postgresql", "installation", "clocks"} | STORE_CHECKS) & set(found)


async def test_certificates_are_looked_at(subject: Subject, tmp_path: Path):
    listen = Listen(**make_pair(tmp_path, begins=-9 * DAY, ends=-DAY).settings())
    found = by_check(await examine(replace(subject, settings=replace(subject.settings, listen=listen))))
    assert [finding.level for finding in found["certificates"]] == [Level.ERROR]
