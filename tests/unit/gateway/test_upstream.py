"""Which provider a model goes to, and what is sent there."""

from pathlib import Path

import pytest

from edgeproxy.config import Model, Provider, Settings
from edgeproxy.domain.features import Feature
from edgeproxy.errors import CANNOT_BE_METERED, MODEL_NOT_FOUND, WRONG_PATH, GatewayError, OperatorError
from edgeproxy.gateway import routes
from edgeproxy.gateway.routes import Query, Route
from edgeproxy.gateway.upstream import Target, Upstreams
from edgeproxy.providers.base import Incoming, ListedModel, RequestFacts

NONE = Query("")
CHAT = routes.find("POST", "/v1/chat/completions", NONE, {})
MESSAGES = routes.find("POST", "/v1/messages", NONE, {})


def provider(name: str, dialect: str = "openai", base_url: str = "https://api.example.com", **more: object) -> Provider:
    return Provider(name=name, dialect=dialect, base_url=base_url, secret_env="SECRET", **more)  # type: ignore[arg-type]


def upstreams(providers: list[Provider], models: list[Model]) -> Upstreams:
    return Upstreams(Settings(provider=tuple(providers), model=tuple(models)), {"SECRET": "sk-1"})


def asking(model: str, *features: Feature) -> RequestFacts:
    return RequestFacts(model, stream=False, input_estimate=10, output_max=None, features=features)


def choose(known: Upstreams, route: Route, model: str) -> Target:
    return known.choose(route, asking(model))


@pytest.mark.claims("OG-4")
async def test_the_first_row_that_matches_and_speaks_the_dialect_wins() -> None:
    known = upstreams(
        [provider("a"), provider("b", "anthropic"), provider("c")],
        [Model("claude-*", "b"), Model("claude-3*", "a"), Model("gpt-4", "c"), Model("gpt-*", "a")],
    )
    assert choose(known, CHAT, "gpt-4").provider.name == "c"
    assert choose(known, CHAT, "gpt-4o").provider.name == "a"
    assert choose(known, MESSAGES, "claude-3").provider.name == "b"
    assert choose(known, CHAT, "claude-3").provider.name == "a"
    with pytest.raises(GatewayError) as caught:
        choose(known, CHAT, "claude-4")
    assert caught.value.kind is WRONG_PATH
    assert "/v1/messages" in caught.value.message
    with pytest.raises(GatewayError) as caught:
        choose(known, CHAT, "GPT-4")
    assert caught.value.kind is MODEL_NOT_FOUND


@pytest.mark.parametrize(
    ("dialect", "base_url", "path"),
    [
        ("openai", "https://api.example.com", "/v1/chat/completions"),
        ("openai", "https://api.example.com/", "/v1/chat/completions"),
        ("openai", "https://api.example.com/v1", "/v1/chat/completions"),
        ("openai", "https://api.example.com/v1/", "/v1/chat/completions"),
        ("openai", "https://api.example.com/api/v1", "/api/v1/chat/completions"),
        ("openai", "https://api.example.com/v1beta/openai", "/v1beta/openai/chat/completions"),
        ("openai", "http://127.0.0.1:9/v1", "/v1/chat/completions"),
        ("anthropic", "https://api.example.com", "/v1/messages"),
        ("anthropic", "https://api.example.com/v1", "/v1/messages"),
        ("anthropic", "https://api.example.com/anthropic/", "/anthropic/v1/messages"),
        ("gemini", "https://api.example.com", "/v1beta/models/m:generateContent"),
        ("gemini", "https://api.example.com/v1beta", "/v1beta/models/m:generateContent"),
        ("gemini", "https://api.example.com/google", "/google/v1beta/models/m:generateContent"),
    ],
)
async def test_a_base_url_is_joined_as_the_dialects_own_clients_join_it(dialect: str, base_url: str, path: str) -> None:
    asked = {"openai": "/v1/chat/completions", "anthropic": "/v1/messages"}
    route = routes.find("POST", asked.get(dialect, "/v1beta/models/m:generateContent"), NONE, {})
    target = choose(upstreams([provider("a", dialect, base_url)], [Model("*", "a")]), route, "m")
    head = target.encode("POST", route, NONE, {}, 3).decode()
    assert head.startswith(f"POST {path} HTTP/1.1\r\n")
    assert head.endswith("\r\ncontent-length: 3\r\n\r\n")


async def test_what_the_client_sent_beside_the_body_is_dropped_unless_it_is_named() -> None:
    target = choose(upstreams([provider("b", "anthropic")], [Model("*", "b")]), MESSAGES, "m")
    client = {"anthropic-version": "2026-10-21", "cookie": "c", "x-api-key": "ep-mine", "content-type": "text/plain"}
    head = target.encode("POST", MESSAGES, Query("beta=true&key=ep-mine&x=1"), client, 0).decode()
    assert head.startswith("POST /v1/messages?beta=true HTTP/1.1\r\n")
    assert "anthropic-version: 2026-10-21" in head
    assert "x-api-key: sk-1" in head
    assert "content-type: application/json" in head
    assert "ep-mine" not in head
    assert "cookie" not in head


async def test_a_form_keeps_its_type_and_comes_in_chunks_where_its_length_is_not_known() -> None:
    form = routes.find("POST", "/v1/audio/transcriptions", NONE, {})
    target = choose(upstreams([provider("a")], [Model("*", "a")]), form, "m")
    head = target.encode("POST", form, NONE, {"content-type": "multipart/form-data; boundary=x"}, None).decode()
    assert "content-type: multipart/form-data; boundary=x" in head
    assert "transfer-encoding: chunked" in head
    assert "content-length" not in head


async def test_another_name_of_a_model_stands_in_the_path_too() -> None:
    route = routes.find("POST", "/v1beta/models/gemini-x:generateContent", NONE, {})
    model = Model("gemini-*", "g", upstream_model="gemini-real")
    target = choose(upstreams([provider("g", "gemini")], [model]), route, "gemini-x")
    assert target.encode("POST", route, NONE, {}, 0).startswith(b"POST /v1beta/models/gemini-real:generateContent HTTP")


async def test_usage_is_asked_for_only_where_it_is_missing_and_wanted() -> None:
    on = choose(upstreams([provider("a")], [Model("*", "a")]), CHAT, "m")
    off = choose(upstreams([provider("a", include_usage=False)], [Model("*", "a")]), CHAT, "m")
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


async def test_after_a_reload_the_connections_of_a_provider_that_is_the_same_are_used_on() -> None:
    rows = [Model("a", "a"), Model("b", "b")]
    before = upstreams([provider("a"), provider("b")], rows)
    settings = Settings(provider=(provider("a"), provider("b", idle_ms=1)), model=tuple(rows))
    after = Upstreams(settings, {"SECRET": "sk-2"}, before)
    assert choose(after, CHAT, "a").pool is choose(before, CHAT, "a").pool
    assert choose(after, CHAT, "a").secret == "sk-2"
    assert choose(after, CHAT, "b").pool is not choose(before, CHAT, "b").pool
    closed: list[str] = []
    for known in (before, after):
        for name, pool in known.pools.items():
            pool.close = lambda name=name, pool=pool: closed.append((name, pool))  # type: ignore[method-assign]
    before.close(successor=after)
    assert closed == [("b", choose(before, CHAT, "b").pool)]


# --- what hides its bill


@pytest.mark.parametrize("feature", Feature)
async def test_what_hides_its_bill_is_refused_by_name_with_the_reason(feature: Feature) -> None:
    target = choose(upstreams([provider("a")], [Model("*", "a")]), CHAT, "m")
    with pytest.raises(GatewayError) as caught:
        target.with_charges(asking("m", feature))
    assert caught.value.kind is CANNOT_BE_METERED
    assert caught.value.message.startswith(feature.reason)
    assert f"'{feature}'" in caught.value.message


async def test_what_is_allowed_is_taken_to_cost_what_the_operator_says() -> None:
    allowing = provider("a", unmetered=("background=500", "stored_context=20000"))
    target = choose(upstreams([allowing], [Model("*", "a")]), CHAT, "m")
    assert target.with_charges(asking("m", Feature.BACKGROUND, Feature.STORED_CONTEXT)).input_estimate == 20_510
    assert target.with_charges(asking("m")).input_estimate == 10
    free = RequestFacts("m", False, 0, 0, is_free=True, features=(Feature.BACKGROUND,))  # noqa: FBT003
    assert target.with_charges(free).input_estimate == 0


async def test_what_names_no_model_goes_to_the_first_provider_that_allows_it() -> None:
    batches = routes.find("POST", "/v1/batches", NONE, {})
    facts = batches.endpoint.read_request(Incoming("POST", b"", 0))
    rows = [Model("gpt-*", "a"), Model("claude-*", "b"), Model("grok-*", "c", upstream_model="other")]
    with pytest.raises(GatewayError) as caught:
        upstreams([provider("a"), provider("b", "anthropic", unmetered=("batches=1",)), provider("c")], rows).choose(
            batches, facts
        )
    assert caught.value.kind is CANNOT_BE_METERED
    known = upstreams([provider("a"), provider("b", "anthropic"), provider("c", unmetered=("batches=7",))], rows)
    target = known.choose(batches, facts)
    assert (target.provider.name, target.model.match, target.model.upstream_model) == ("c", "batches", "")
    assert target.with_charges(facts).input_estimate == 7


# --- the list of models


async def test_models_are_listed_once_and_only_to_clients_that_can_use_them() -> None:
    known = upstreams(
        [provider("a"), provider("b", "anthropic"), provider("c")],
        [
            Model("gpt-5", "a", list=("gpt-5",), max_output_tokens=7),
            Model("claude-*", "b", list=("claude-1",)),
            Model("gpt-*", "c", list=("gpt-5", "gpt-6")),
        ],
    )
    assert list(known.listed(CHAT.dialect)) == [ListedModel("gpt-5", "a", 7), ListedModel("gpt-6", "c", 0)]
    assert list(known.listed(MESSAGES.dialect)) == [ListedModel("claude-1", "b", 0)]
