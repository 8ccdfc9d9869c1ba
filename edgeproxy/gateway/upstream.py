"""Where a request goes: the provider that the configuration names for its model, and the bytes that are sent there."""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from urllib.parse import urlsplit

from edgeproxy import __version__
from edgeproxy.config import Model, Provider, Settings, provider_secret
from edgeproxy.errors import MODEL_NOT_FOUND, WRONG_PATH, GatewayError
from edgeproxy.gateway.connections import Pool
from edgeproxy.gateway.routes import ROUTES, Route
from edgeproxy.providers.base import Headers, RequestFacts


@dataclass(frozen=True, slots=True)
class Target:
    """One row of the configuration that a request can match: a model pattern and its provider."""

    model: Model
    provider: Provider
    secret: str
    pool: Pool

    def asks_for_usage(self, facts: RequestFacts) -> bool:
        """Whether a stream has to be made to report its usage, which its client did not ask for."""
        return facts.stream and not facts.usage_requested and self.provider.include_usage

    def encode(self, route: Route, query: str, headers: Mapping[str, str], length: int) -> bytes:
        """Return the head of the request to send. `headers` are the client's, `length` is the body's in bytes."""
        path = _joined(urlsplit(self.provider.base_url).path, route.dialect.paths[route.path])
        lines: Headers = [
            ("host", self.pool.host_header),
            ("user-agent", f"edgeproxy/{__version__}"),
            ("accept-encoding", "identity"),
            *route.dialect.outgoing_headers(self.secret, headers),
            ("content-length", str(length)),
        ]
        start = f"POST {path}{'?' + query if query else ''} HTTP/1.1"
        text = "\r\n".join([start, *(f"{name}: {value}" for name, value in lines)]) + "\r\n\r\n"
        return text.encode("utf-8", "surrogateescape")


class Upstreams:
    """All targets, in the order of the configuration, and the connections to their providers."""

    def __init__(self, settings: Settings, environ: Mapping[str, str]) -> None:
        providers = {provider.name: provider for provider in settings.provider}
        used = {model.provider for model in settings.model}
        pools = {name: Pool(providers[name]) for name in used}
        secrets = {name: provider_secret(providers[name], environ) for name in used}
        self._pools = pools
        self._targets = tuple(
            Target(model, providers[model.provider], secrets[model.provider], pools[model.provider])
            for model in settings.model
        )

    def choose(self, route: Route, model: str) -> Target:
        """Return the first target that matches and speaks the path's dialect.

        Raises GatewayError: WRONG_PATH, naming the right one, or MODEL_NOT_FOUND.
        """
        matching = [target for target in self._targets if fnmatchcase(model, target.model.match)]
        for target in matching:
            if target.provider.dialect == route.dialect.name:
                return target
        if matching:
            dialect = matching[0].provider.dialect
            path = next(path for path, each in ROUTES.items() if each.dialect.name == dialect)
            raise GatewayError(WRONG_PATH, f"This model is served on another path: send the request to {path}.")
        raise GatewayError(MODEL_NOT_FOUND)

    def close(self) -> None:
        """Close idle connections."""
        for pool in self._pools.values():
            pool.close()


def _joined(base: str, path: str) -> str:
    """Return the path below a base path; `/v1` is not doubled where the base ends with it."""
    base = base.rstrip("/")
    if base.endswith("/v1") and path.startswith("/v1/"):
        base = base.removesuffix("/v1")
    return base + path
