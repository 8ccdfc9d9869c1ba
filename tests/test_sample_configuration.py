"""The sample configuration is the reference of every setting, so it must load, be complete and tell the defaults."""

import tomllib
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from edgeproxy.config import Bounds, Jobs, Listen, Logs, Model, Provider, Secrets, Settings, Stores, load

SAMPLE = Path(__file__).parents[1] / "config" / "edgeproxy.toml"


@pytest.fixture(scope="module")
def tables() -> dict[str, Any]:
    return tomllib.loads(SAMPLE.read_text(encoding="utf-8"))


def test_it_loads_and_what_it_says_before_the_providers_is_the_default() -> None:
    settings = load(SAMPLE, {})
    assert settings.provider
    assert settings.model
    assert replace(settings, provider=(), model=()) == Settings()


def test_the_first_provider_tells_the_defaults_too() -> None:
    first = load(SAMPLE, {}).provider[0]
    named = Provider(name=first.name, dialect=first.dialect, base_url=first.base_url, secret_env=first.secret_env)
    assert first == named


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        (Settings, []),
        (Listen, ["listen"]),
        (Stores, ["stores"]),
        (Secrets, ["secrets"]),
        (Bounds, ["bounds"]),
        (Jobs, ["jobs"]),
        (Logs, ["logs"]),
        (Provider, ["provider", 0]),
        (Model, ["model", 0]),
    ],
)
def test_it_names_every_field(tables: dict[str, Any], kind: type[Any], place: list[Any]) -> None:
    table = tables
    for step in place:
        table = table[step]
    missing = {each.name for each in fields(kind)} - set(table)
    assert not missing, f"describe in config/edgeproxy.toml: {', '.join(sorted(missing))}"


def test_every_field_is_explained_above_its_line() -> None:
    lines = SAMPLE.read_text(encoding="utf-8").partition('name = "openai"')[0].splitlines()
    for before, line in pairwise(lines):
        if line[:1].isalpha() and not line.startswith("secret_file"):  # explained together with secret_env
            assert before.startswith("#"), f"no explanation above: {line}"
