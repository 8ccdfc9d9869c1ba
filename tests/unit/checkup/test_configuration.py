"""What is told of settings that are valid, and hardly what was meant."""

import pytest

from edgeproxy.checkup.configuration import configured, notes
from edgeproxy.checkup.findings import Level
from edgeproxy.config import Bounds, Listen, Model, Provider, Settings

OPENAI = Provider("o", "openai", "https://o.example", secret_env="X")
CLAUDE = Provider("a", "anthropic", "https://a.example", secret_env="X")


def told(settings: Settings) -> list[str]:
    found = list(notes(settings))
    assert all(finding.level is Level.WARNING and finding.remedy for finding in found)
    return [finding.found for finding in found]


def models(*rows: tuple[str, str]) -> Settings:
    return Settings(provider=(OPENAI, CLAUDE), model=(Model("claude-9", "a"), *(Model(*row) for row in rows)))


def test_nothing_is_said_of_what_is_well():
    settings = models(("gpt-4*", "o"), ("gpt-*", "o"), ("*", "o"), ("*", "a"))
    assert told(settings) == []
    assert [finding.level for finding in configured(settings)] == [Level.OK]


def test_what_serves_nothing_is_told():
    assert told(Settings(provider=(OPENAI,))) == [
        "no [[model]] is configured, so every request for a model gets 404",
        "no [[model]] uses provider 'o'",
    ]
    assert [finding.level for finding in configured(Settings())] == [Level.WARNING]


@pytest.mark.parametrize(("first", "second"), [("*", "gpt-*"), ("gpt-*", "gpt-4o"), ("gpt-*", "gpt-*"), ("g?t", "g?t")])
def test_a_row_that_an_earlier_one_of_its_dialect_covers_is_told(first: str, second: str):
    assert told(models((first, "o"), (second, "o"))) == [
        f"[[model]] {second!r} is never reached: {first!r} stands before it"
    ]
    assert told(models((first, "a"), (second, "o"))) == []


@pytest.mark.parametrize(
    ("first", "second"), [("gpt-4*", "gpt-*"), ("g?t-*", "gpt-4"), ("gpt-[4]*", "gpt-4"), ("a", "ab")]
)
def test_a_row_that_may_be_reached_is_not_told(first: str, second: str):
    assert told(models((first, "o"), (second, "o"))) == []


def test_bounds_that_contradict_one_another_are_told():
    slow = Provider("o", "openai", "https://o.example", secret_env="X", first_byte_timeout_ms=2, total_timeout_ms=1)
    assert "is longer than total_timeout_ms" in told(Settings(provider=(slow,), model=(Model("*", "o"),)))[0]
    bounds = Bounds(max_body_bytes=10, max_buffered_bytes=9)
    assert "always get 503" in told(Settings(provider=(OPENAI,), model=(Model("*", "o"),), bounds=bounds))[0]


@pytest.mark.parametrize(("address", "count"), [("0.0.0.0:9464", 1), ("[::1]:9464", 0), ("localhost:1", 0)])
def test_metrics_that_are_open_to_others_are_told(address: str, count: int):
    settings = Settings(provider=(OPENAI,), model=(Model("*", "o"),), listen=Listen(metrics=address))
    assert len(told(settings)) == count
