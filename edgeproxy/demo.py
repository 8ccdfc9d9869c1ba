"""`edgeproxy demo`: everything that `serve` runs, a mock provider beside it, a fresh key, and lines to paste.

Nothing here is different from `serve` but the providers: for each real provider whose secret is in the environment,
its models go there; whatever is left, and the models of the lines to paste, the mock provider answers.
"""

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import click

from edgeproxy.app import open_control
from edgeproxy.config import DIALECTS, Model, Provider, Settings, check, environment
from edgeproxy.control.keys import create_key
from edgeproxy.embedded.placement import make_data_dir
from edgeproxy.embedded.secrets import own_secret
from edgeproxy.supervisor.listeners import bind, url_of
from edgeproxy.supervisor.reloading import Reread
from edgeproxy.supervisor.serve import Serving, listener_lines, serve

_MOCK_SECRET = "mock_provider_secret"  # noqa: S105 - the name of a file
_LIMITS = ("requests=60/1m", "tokens=200000/5h")
_CONCURRENCY = 8


@dataclass(frozen=True, slots=True)
class _Real:
    """A provider that is wired in when its secret is there."""

    name: str
    dialect: str
    base_url: str
    secret_env: str
    patterns: tuple[str, ...]


_REAL = (
    _Real("anthropic", "anthropic", "https://api.anthropic.com", "ANTHROPIC_API_KEY", ("claude-*",)),
    _Real("openai", "openai", "https://api.openai.com", "OPENAI_API_KEY", ("gpt-*", "o1*", "o3*", "o4*", "chatgpt-*")),
    _Real("gemini", "gemini", "https://generativelanguage.googleapis.com", "GEMINI_API_KEY", ("gemini-*",)),
    _Real("deepseek", "openai", "https://api.deepseek.com", "DEEPSEEK_API_KEY", ("deepseek-*",)),
    _Real("xai", "openai", "https://api.x.ai", "XAI_API_KEY", ("grok-*",)),
)


async def run_demo(settings: Settings, reread: Reread) -> None:
    """Run until Ctrl-C; `reread` returns the settings as they are now. Raises OperatorError, StoreUnavailable."""
    data_dir = make_data_dir(settings.data_dir)
    (mock,) = bind("127.0.0.1:0", "the mock provider's address")
    with mock:
        secret_file = own_secret(data_dir, _MOCK_SECRET)

        def wire(settings: Settings) -> Settings:
            return with_providers(settings, environment(), url_of(mock), secret_file)

        wired = wire(settings)

        async def announce(serving: Serving) -> None:
            for line in [*listener_lines(serving), f"mock     {url_of(mock)}", *await _welcome(serving, wired)]:
                click.echo(line)
            click.echo(f"ready    Ctrl-C stops everything; keys and counts stay in {data_dir}")

        await serve(wired, lambda: wire(reread()), announce, mock)


def with_providers(settings: Settings, environ: Mapping[str, str], mock_url: str, secret_file: Path) -> Settings:
    """Return the settings with the real providers that have a secret, and with the mock provider for the rest.

    Raises OperatorError when a provider of the configuration has the name of one of these.
    """
    real = [each for each in _REAL if environ.get(each.secret_env)]
    mocks = tuple(
        Provider(name=f"mock-{dialect}", dialect=dialect, base_url=mock_url, secret_file=str(secret_file))
        for dialect in DIALECTS
    )
    providers = tuple(
        Provider(name=each.name, dialect=each.dialect, base_url=each.base_url, secret_env=each.secret_env)
        for each in real
    )
    models = (
        # First, so that the lines to paste cost nothing, whatever secrets there are.
        Model(match="gpt-mock*", provider="mock-openai", list=("gpt-mock",)),
        Model(match="claude-mock*", provider="mock-anthropic", list=("claude-mock",)),
        Model(match="gemini-mock*", provider="mock-gemini", list=("gemini-mock",)),
        *settings.model,
        *(Model(match=pattern, provider=each.name) for each in real for pattern in each.patterns),
        *(Model(match="*", provider=f"mock-{dialect}") for dialect in DIALECTS),
    )
    wired = replace(settings, provider=(*settings.provider, *providers, *mocks), model=models)
    check(wired)
    return wired


async def _welcome(serving: Serving, settings: Settings) -> list[str]:
    """Issue a key, and return what to tell about it and about where requests go."""
    async with open_control(serving.settings) as control:
        issued = await create_key(control, name="demo", limits=_LIMITS, concurrency=_CONCURRENCY)
    key = issued.secret
    return [
        "",
        f"API key  {key}",
        f"         {', '.join(_LIMITS)}, {_CONCURRENCY} at once; it is not shown again",
        "",
        *_destinations(settings),
        "",
        "Try it:",
        "",
        *_lines_to_paste(serving, key),
        "",
        "Point an SDK at it:",
        f"  OpenAI     OPENAI_BASE_URL={serving.api}/v1 OPENAI_API_KEY={key}",
        f"  Anthropic  ANTHROPIC_BASE_URL={serving.api} ANTHROPIC_API_KEY={key}",
        f"  Gemini     GOOGLE_GEMINI_BASE_URL={serving.api} GEMINI_API_KEY={key}",
        "",
    ]


def _destinations(settings: Settings) -> Iterable[str]:
    """Yield which models go where, the first that matches first."""
    patterns: dict[str, list[str]] = {}
    for model in settings.model:
        if not model.provider.startswith("mock-"):
            patterns.setdefault(model.provider, []).append(model.match)
    for provider, matches in patterns.items():
        yield f"Models   {', '.join(matches)} go to {provider}"
    yield f"Models   {'all others' if patterns else 'all of them'} are answered by the mock provider"


def _lines_to_paste(serving: Serving, key: str) -> Iterable[str]:
    """Yield a curl line each for OpenAI, Anthropic and Gemini, streamed, and for the key's usage."""
    question = '"stream":true,"messages":[{"role":"user","content":"Hello"}]}'
    yield _curl(
        f"{serving.api}/v1/chat/completions",
        [f"Authorization: Bearer {key}", "Content-Type: application/json"],
        '{"model":"gpt-mock",' + question,
    )
    yield _curl(
        f"{serving.api}/v1/messages",
        [f"x-api-key: {key}", "anthropic-version: 2023-06-01", "Content-Type: application/json"],
        '{"model":"claude-mock","max_tokens":256,' + question,
    )
    yield _curl(
        f"{serving.api}/v1beta/models/gemini-mock:streamGenerateContent?alt=sse",
        [f"x-goog-api-key: {key}", "Content-Type: application/json"],
        '{"contents":[{"parts":[{"text":"Hello"}]}]}',
    )
    yield _curl(f"{serving.web}/api/v1/usage", [f"Authorization: Bearer {key}"])


def _curl(url: str, headers: Iterable[str], body: str = "") -> str:
    arguments = ["curl", "-sN", url]
    for header in headers:
        arguments += ["-H", header]
    if body:
        arguments += ["-d", body]
    return shlex.join(arguments)
