"""Where the demo sends which models, and the lines that it gives to paste."""

import json
import shlex
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from edgeproxy.config import DIALECTS, Model, Provider, Settings
from edgeproxy.demo import _destinations, _lines_to_paste, with_providers
from edgeproxy.errors import OperatorError
from edgeproxy.supervisor.serve import Serving

MOCK = "http://127.0.0.1:9"
KEYS = {
    "ANTHROPIC_API_KEY": "anthropic",
    "OPENAI_API_KEY": "openai",
    "GEMINI_API_KEY": "gemini",
    "DEEPSEEK_API_KEY": "deepseek",
    "XAI_API_KEY": "xai",
}


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text("mock")
    return path


def providers_of(settings: Settings, model: str) -> set[str]:
    """The providers that the model goes to, over all dialects: the first row that matches and speaks it."""
    found = set()
    dialects = {provider.name: provider.dialect for provider in settings.provider}
    for dialect in DIALECTS:
        rows = (row for row in settings.model if fnmatchcase(model, row.match) and dialects[row.provider] == dialect)
        found.add(next(rows).provider)
    return found


def test_without_any_secret_everything_is_answered_by_the_mock_provider(secret_file: Path):
    settings = with_providers(Settings(), {}, MOCK, secret_file)
    assert providers_of(settings, "gpt-4o") == {f"mock-{dialect}" for dialect in DIALECTS}
    assert {provider.base_url for provider in settings.provider} == {MOCK}
    assert list(_destinations(settings)) == ["Models   all of them are answered by the mock provider"]


@pytest.mark.parametrize(("variable", "name"), KEYS.items())
def test_a_real_provider_is_wired_in_when_its_secret_is_there(secret_file: Path, variable: str, name: str):
    settings = with_providers(Settings(), {variable: "x"}, MOCK, secret_file)
    (real,) = (provider for provider in settings.provider if provider.base_url != MOCK)
    assert (real.name, real.secret_env) == (name, variable)
    assert real.base_url.startswith("https://")
    models = {
        "anthropic": "claude-x",
        "openai": "gpt-x",
        "gemini": "gemini-x",
        "deepseek": "deepseek-x",
        "xai": "grok-x",
    }
    assert name in providers_of(settings, models[name])
    assert next(iter(_destinations(settings))).endswith(f" go to {name}")


def test_an_empty_secret_is_none(secret_file: Path):
    assert len(with_providers(Settings(), {"OPENAI_API_KEY": ""}, MOCK, secret_file).provider) == len(DIALECTS)


def test_the_models_of_the_lines_to_paste_cost_nothing_whatever_secrets_there_are(secret_file: Path):
    settings = with_providers(Settings(), dict.fromkeys(KEYS, "x"), MOCK, secret_file)
    assert "mock-openai" in providers_of(settings, "gpt-mock")
    assert "mock-anthropic" in providers_of(settings, "claude-mock")
    assert "mock-gemini" in providers_of(settings, "gemini-mock")


def test_what_is_configured_comes_before_what_the_demo_adds(secret_file: Path):
    own = Provider("own", base_url="https://own.example", secret_env="OPENAI_API_KEY")
    given = Settings(provider=(own,), model=(Model("gpt-own", "own"),))
    settings = with_providers(given, {"OPENAI_API_KEY": "x"}, MOCK, secret_file)
    assert "own" in providers_of(settings, "gpt-own")
    assert "openai" in providers_of(settings, "gpt-4o")


def test_two_providers_of_one_name_are_refused(secret_file: Path):
    own = Provider("openai", base_url="https://own.example", secret_env="OWN")
    with pytest.raises(OperatorError, match="name of its own"):
        with_providers(Settings(provider=(own,)), {"OPENAI_API_KEY": "x"}, MOCK, secret_file)


def test_the_lines_to_paste_are_what_a_shell_understands():
    serving = Serving(Settings(), "http://127.0.0.1:1", "http://127.0.0.1:2", "http://127.0.0.1:3")
    chat, messages, generate, usage = (shlex.split(line) for line in _lines_to_paste(serving, "ep-key"))
    assert chat[:3] == ["curl", "-sN", "http://127.0.0.1:1/v1/chat/completions"]
    assert json.loads(chat[-1])["model"] == "gpt-mock"
    assert json.loads(messages[-1])["max_tokens"] > 0
    assert "x-api-key: ep-key" in messages
    assert generate[2].endswith("/v1beta/models/gemini-mock:streamGenerateContent?alt=sse")
    assert "x-goog-api-key: ep-key" in generate
    assert usage[2:] == ["http://127.0.0.1:2/api/v1/usage", "-H", "Authorization: Bearer ep-key"]
