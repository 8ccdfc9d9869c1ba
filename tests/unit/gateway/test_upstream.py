"""Which provider a model goes to, and what is sent there."""

from pathlib import Path

import pytest

from edgeproxy.config import Model, Provider, Settings
from edgeproxy.errors import MODEL_NOT_FOUND, WRONG_PATH, GatewayError, OperatorError
from edgeproxy.gateway.routes import ROUTES
from edgeproxy.gateway.upstream import Upstreams
from edgeproxy.providers.base import RequestFacts

CHAT = ROUTES["/v1/chat/completions"]
MESSAGES = ROUTES["/v1/messages"]


def provider(name: str, dialect: str = "openai", base_url: str = "https://api.example.com", **more: object) -> Provider:
    return Provider(name=name, dialect=dialect, base_url=base_url, secret_env="SECRET", **more)  # type: ignore[arg-type]


def upstreams(providers: list[Provider], models: list[Model]) -> Upstreams:
    return Upstreams(Settings(provider=tuple(providers), model=tuple(models)), {"SECRET": "sk-1"})


async def test_the_first_row_that_matches_and_speaks_the_dialect_wins() -> None:
    known = upstreams(
        [provider("a"), provider("b", "anthropic"), provider("c")],
        [Model("claude-*", "b"), Model("claude-3*", "a"), Model("gpt-4", "c"), Model("gpt-*", "a")],
    )
    assert known.choose(CHAT, "gpt-4").provider.name == "c"
    assert known.choose(CHAT, "gpt-4o").provider.name == "a"
    assert known.choose(MESSAGES, "claude-3").provider.name == "b"
    assert known.choose(CHAT, "claude-3").provider.name == "a"
    with pytest.raises(GatewayError) as caught:
        known.choose(CHAT, "claude-4")
    assert caught.value.kind is WRONG_PATH
    assert "/v1/messages" in caught.value.message
    with pytest.raises(GatewayError) as caught:
        known.choose(CHAT, "GPT-4")
    assert caught.value.kind is MODEL_NOT_FOUND


@pytest.mark.parametrize(
    ("base_url", "path"),
    [
        ("https://api.example.com", "/v1/chat/completions"),
        ("https://api.example.com/", "/v1/chat/completions"),
        ("https://api.example.com/v1", "/v1/chat/completions"),
        ("https://api.example.com/v1/", "/v1/chat/completions"),
        ("https://api.example.com/api/v1", "/api/v1/chat/completions"),
        ("https://api.example.com/openai", "/openai/v1/chat/completions"),
        ("http://127.0.0.1:9/v1", "/v1/chat/completions"),
    ],
)
async def test_a_base_url_may_hold_a_path(base_url: str, path: str) -> None:
    target = upstreams([provider("a", base_url=base_url)], [Model("*", "a")]).choose(CHAT, "m")
    head = target.encode(CHAT, "", {}, 3).decode()
    assert head.startswith(f"POST {path} HTTP/1.1\r\n")
    assert head.endswith("\r\ncontent-length: 3\r\n\r\n")


async def test_a_head_holds_ours_and_what_is_allowed() -> None:
    target = upstreams([provider("b", "anthropic")], [Model("*", "b")]).choose(MESSAGES, "m")
    client = {"anthropic-version": "2023-06-01", "authorization": "Bearer ep-x", "x-api-key": "ep-x", "cookie": "c"}
    head = target.encode(MESSAGES, "beta=true", client, 0).decode()
    assert head.startswith("POST /v1/messages?beta=true HTTP/1.1\r\nhost: api.example.com\r\n")
    assert "x-api-key: sk-1\r\n" in head
    assert "anthropic-version: 2023-06-01\r\n" in head
    assert "accept-encoding: identity\r\n" in head
    assert "ep-x" not in head
    assert "cookie" not in head


async def test_usage_is_asked_for_only_where_it_is_missing_and_wanted() -> None:
    on = upstreams([provider("a")], [Model("*", "a")]).choose(CHAT, "m")
    off = upstreams([provider("a", include_usage=False)], [Model("*", "a")]).choose(CHAT, "m")
    missing = RequestFacts("m", stream=True, input_estimate=1, output_max=None, usage_requested=False)
    there = RequestFacts("m", stream=True, input_estimate=1, output_max=None)
    single = RequestFacts("m", stream=False, input_estimate=1, output_max=None, usage_requested=False)
    assert [on.asks_for_usage(facts) for facts in (missing, there, single)] == [True, False, False]
    assert not off.asks_for_usage(missing)


async def test_a_provider_that_no_model_uses_needs_no_secret(tmp_path: Path) -> None:
    unused = Provider(name="u", base_url="https://u.example", secret_file=str(tmp_path / "absent"))
    upstreams([provider("a"), unused], [Model("*", "a")])
    with pytest.raises(OperatorError, match="'u'"):
        upstreams([unused], [Model("*", "u")])
