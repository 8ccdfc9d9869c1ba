"""Which path speaks which dialect. The first stage of a request; it reads nothing but the request line."""

from dataclasses import dataclass

from edgeproxy.errors import METHOD_NOT_ALLOWED, PATH_NOT_FOUND, GatewayError
from edgeproxy.providers.base import Dialect
from edgeproxy.providers.registry import DIALECTS


@dataclass(frozen=True, slots=True)
class Route:
    """A path that clients call, and the dialect that is spoken there."""

    path: str
    dialect: Dialect


ROUTES = {path: Route(path, dialect) for dialect in DIALECTS.values() for path in dialect.paths}


def find(method: str, path: str) -> Route:
    """Return the route. Raises GatewayError (404, 405)."""
    route = ROUTES.get(path)
    if route is None:
        raise GatewayError(PATH_NOT_FOUND)
    if method != "POST":
        raise GatewayError(METHOD_NOT_ALLOWED)
    return route


def dialect_of_errors(path: str) -> Dialect:
    """Return the dialect in which errors on a path are told, also on paths that are not served."""
    return DIALECTS["anthropic" if path.startswith("/v1/messages") else "openai"]
