"""Where a request goes: the provider that the configuration names for its model, and the head that is sent there."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property, lru_cache
from urllib.parse import urlsplit

from edgeproxy import __version__
from edgeproxy.config import Model, Provider, Settings, allowed_features, provider_secret
from edgeproxy.domain.features import Feature
from edgeproxy.domain.keys import partition_of, provider_holder
from edgeproxy.domain.reservations import WHATEVER_HOLDS
from edgeproxy.errors import CANNOT_BE_METERED, MODEL_NOT_FOUND, WRONG_PATH, GatewayError
from edgeproxy.gateway.connections import Pool
from edgeproxy.gateway.routes import Query, Route
from edgeproxy.hotstate import keyspace
from edgeproxy.hotstate.scripts import Scope
from edgeproxy.providers.base import Body, Dialect, Headers, ListedModel, RequestFacts
from edgeproxy.providers.registry import DIALECTS

_REMEMBERED = 256  # models; what a client calls one is whatever it likes


@dataclass(frozen=True, slots=True)
class Shared:
    """The limits of our own account at a provider, which all keys share, and the partition that counts them."""

    partition: int
    scope: Scope


@dataclass(frozen=True)
class Target:
    """One row of the configuration that a request can match: a model pattern and its provider."""

    model: Model
    provider: Provider
    secret: str
    pool: Pool
    allowed: Mapping[Feature, int]
    shared: Shared | None

    def asks_for_usage(self, facts: RequestFacts) -> bool:
        """Whether a stream has to be made to report its usage, which its client did not ask for."""
        return facts.stream and not facts.usage_requested and self.provider.include_usage

    def with_charges(self, facts: RequestFacts) -> RequestFacts:
        """Return the facts with what the operator takes hidden bills to be.

        Raises GatewayError for what is not allowed here, with the reason.
        """
        for feature in facts.features:
            if feature not in self.allowed:
                raise _refusal(feature)
        charge = 0 if facts.is_free else sum(self.allowed[feature] for feature in facts.features)
        return replace(facts, input_estimate=facts.input_estimate + charge) if charge else facts

    @cached_property
    def _own_lines(self) -> str:
        """What is sent whatever the client sent."""
        host, agent = self.pool.host_header, f"edgeproxy/{__version__}"
        return f"host: {host}\r\nuser-agent: {agent}\r\naccept-encoding: identity\r\n"

    @cached_property
    def _base_path(self) -> str:
        return urlsplit(self.provider.base_url).path

    @cached_property
    def _paths(self) -> dict[str, str]:
        return {}

    def _path(self, route: Route) -> str:
        """Return the path to send; those that hold no model are few, and kept."""
        path = self._paths.get(route.path)
        if path is None:
            path = route.upstream_path(self._base_path, self.model.upstream_model or route.model)
            if len(self._paths) < _REMEMBERED and not route.model and route.endpoint.body is Body.JSON:
                self._paths[route.path] = path
        return path

    def encode(self, method: str, route: Route, query: Query, headers: Mapping[str, str], length: int | None) -> bytes:
        """Return the head of the request to send.

        `headers` are the client's, `length` is the body's in bytes: None where it is sent in chunks, as it comes.
        """
        passed = query.only(route.dialect.query) if query.raw else ""
        lines: Headers = route.dialect.outgoing_headers(self.secret, headers)
        content_type = "application/json" if route.endpoint.body is Body.JSON else headers.get("content-type")
        if content_type is not None:
            lines.append(("content-type", content_type))
        start = f"{method} {self._path(route)}{'?' + passed if passed else ''} HTTP/1.1\r\n{self._own_lines}"
        for name, value in lines:
            start += f"{name}: {value}\r\n"
        framing = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
        return f"{start}{framing}\r\n\r\n".encode("utf-8", "surrogateescape")


class Upstreams:
    """All targets, in the order of the configuration, and the connections to their providers.

    Where a provider is what it was `before`, its connections are, too.
    """

    def __init__(self, settings: Settings, environ: Mapping[str, str], before: "Upstreams | None" = None) -> None:
        providers = {provider.name: provider for provider in settings.provider}
        used = {model.provider: model for model in settings.model}
        known = {} if before is None else {pool.provider: pool for pool in before.pools.values()}
        self.pools: dict[str, Pool] = {name: known.get(providers[name]) or Pool(providers[name]) for name in used}
        secrets = {name: provider_secret(providers[name], environ) for name in used}

        def target(model: Model) -> Target:
            provider = providers[model.provider]
            pool, secret = self.pools[provider.name], secrets[provider.name]
            shared = _shared(provider, settings.stores.partitions) if provider.limits else None
            return Target(model, provider, secret, pool, allowed_features(provider), shared)

        self._targets = tuple(target(model) for model in settings.model)
        self._matching = lru_cache(maxsize=_REMEMBERED)(self._match)

    def choose(self, route: Route, facts: RequestFacts) -> Target:
        """Return where a request goes: the first target that matches its model and speaks its dialect.

        What is no request to a model goes to the first provider of the dialect that allows it. Raises GatewayError:
        WRONG_PATH, naming the right one, MODEL_NOT_FOUND, or CANNOT_BE_METERED.
        """
        if route.endpoint.body is Body.ANY:
            return self._allowing(route.dialect, facts.features[0])
        matching = self._matching(facts.model)
        for target in matching:
            if target.provider.dialect == route.dialect.name:
                if facts.other_models:
                    self._check_others(target, facts)
                return target
        if matching:
            path = DIALECTS[matching[0].provider.dialect].example_path
            raise GatewayError(WRONG_PATH, f"This model is served on another path: send the request to {path}.")
        raise GatewayError(MODEL_NOT_FOUND)

    def _match(self, model: str) -> tuple[Target, ...]:
        return tuple(target for target in self._targets if fnmatchcase(model, target.model.match))

    def _check_others(self, target: Target, facts: RequestFacts) -> None:
        """Refuse a request that lets the provider use models which are not configured there. Raises GatewayError."""
        patterns = [each.model.match for each in self._targets if each.provider.name == target.provider.name]
        for name in facts.other_models:
            if name != "default" and not any(fnmatchcase(name, pattern) for pattern in patterns):
                raise GatewayError(MODEL_NOT_FOUND)

    def _allowing(self, dialect: Dialect, feature: Feature) -> Target:
        for target in self._targets:
            if target.provider.dialect == dialect.name and feature in target.allowed:
                # The row is only a way to the provider: its pattern and its other name belong to models.
                return replace(target, model=Model(match=feature.value, provider=target.provider.name))
        raise _refusal(feature)

    def listed(self, dialect: Dialect) -> Iterator[ListedModel]:
        """Yield the models to show to a dialect's clients, each name once, as the first row that has it says."""
        seen = set()
        for target in self._targets:
            if target.provider.dialect != dialect.name:
                continue
            for name in target.model.list:
                if name not in seen:
                    seen.add(name)
                    yield ListedModel(name, target.provider.name, target.model.max_output_tokens)

    def close(self, successor: "Upstreams | None" = None) -> None:
        """Close idle connections, except those of a successor; the others are closed once they are idle for long."""
        kept = () if successor is None else successor.pools.values()
        for pool in self.pools.values():
            if pool not in kept:
                pool.close()


def _shared(provider: Provider, partitions: int) -> Shared:
    holder = provider_holder(provider.name)
    partition = partition_of(holder, partitions)
    state, ring = keyspace.state(partition, holder), keyspace.ring(partition, holder)
    return Shared(partition, Scope(holder, state, ring, WHATEVER_HOLDS))


def _refusal(feature: Feature) -> GatewayError:
    remedy = f"The administrator can allow '{feature}' for a provider."
    return GatewayError(CANNOT_BE_METERED, f"{feature.reason}, so this request is refused. {remedy}")
