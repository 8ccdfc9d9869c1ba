"""Clocks and open files."""

import resource

import pytest

from edgeproxy.checkup import host
from edgeproxy.checkup.findings import Clock, Level
from edgeproxy.config import Bounds, Model, Provider, Settings


@pytest.mark.parametrize(
    ("clock", "level", "found"),
    [
        (Clock(0, 0), Level.OK, "Redis agrees with this machine"),
        (Clock(-900, 0), Level.OK, "Redis agrees with this machine"),
        (Clock(3000, 2500), Level.OK, "Redis agrees with this machine"),
        (Clock(3000, 500), Level.WARNING, "Redis is 2.5 s ahead of this machine"),
        (Clock(-3000, 500), Level.WARNING, "Redis is 2.5 s behind this machine"),
        (Clock(-61_000, 1), Level.ERROR, "Redis is 61.0 s behind this machine"),
    ],
)
def test_a_clock_is_judged_by_how_far_it_is_off_at_least(clock: Clock, level: Level, found: str):
    (finding,) = host.clocks({"Redis": clock})
    assert (finding.level, finding.found) == (level, found)


def settings(*connections: int) -> Settings:
    providers = [Provider(str(n), base_url="https://a.example", max_connections=n) for n in connections]
    unused = Provider("unused", base_url="https://a.example", max_connections=10**6)
    return Settings(provider=(*providers, unused), model=tuple(Model("*", str(n)) for n in connections))


def test_clients_and_the_providers_that_are_used_need_connections():
    assert host.needed_files(settings(10, 20)) - host.needed_files(settings()) == 30
    assert host.needed_files(settings()) > Bounds().max_client_connections


@pytest.mark.parametrize(
    ("hard", "level"), [(10**6, Level.OK), (resource.RLIM_INFINITY, Level.OK), (10_000, Level.WARNING)]
)
def test_fewer_files_than_connections_are_a_warning(monkeypatch: pytest.MonkeyPatch, hard: int, level: Level):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, hard))
    (finding,) = host.open_files(settings(100))
    assert finding.level is level
    assert "-1" not in finding.found
    assert (f"LimitNOFILE={host.needed_files(settings(100))}" in finding.remedy) is (level is Level.WARNING)
