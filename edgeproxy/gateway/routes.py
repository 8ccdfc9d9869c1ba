"""Which path asks for which operation of which dialect. The first stage of a request; it reads only the request's head.

Some paths mean three things: `GET /v1/models` is asked by clients of every dialect. Their own headers tell them apart.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import parse_qsl, quote, unquote_plus

from edgeproxy.errors import METHOD_NOT_ALLOWED, PATH_NOT_FOUND, UPGRADE_REFUSED, GatewayError
from edgeproxy.providers.base import AllowedQuery, Call, Dialect, Endpoint
from edgeproxy.providers.registry import DIALECTS

_MAX_PARAMETERS = 100
_SEPARATORS = frozenset(";#")
_GEMINI_PREFIXES = ("/v1beta/", "/upload/")


@dataclass(frozen=True, slots=True)
class Route:
    """The dialect and the operation that are asked for.

    `path` is what to send to the provider, with `{model}` where the model's name belongs; `model` is the name in the
    path, "" where the body holds it.
    """

    dialect: Dialect
    endpoint: Endpoint
    path: str
    model: str = ""

    def upstream_path(self, base_path: str, model: str) -> str:
        """Return the path to send to a provider whose base URL has this path."""
        path = self.path.replace("{model}", quote(model, safe=""))
        return self.dialect.upstream_path(base_path.rstrip("/"), path)


@dataclass(frozen=True, slots=True)
class Query:
    """The query of a request. `raw` is what stands in the request line: it can hold a key, and is never written out."""

    raw: str

    def get(self, name: str) -> str:
        """Return the first value of a parameter, "" when there is none."""
        return self.parameters().get(name, "")

    def parameters(self) -> dict[str, str]:
        """Return all parameters, the first value of each. What is no query has none."""
        if not self.raw:
            return {}
        try:
            pairs = parse_qsl(self.raw, keep_blank_values=True, max_num_fields=_MAX_PARAMETERS)
        except ValueError:
            return {}
        return dict(reversed(pairs))

    def only(self, allowed: AllowedQuery) -> str:
        """Return the query with these parameters only, and the values that they may have, as it was written."""
        kept = []
        for piece in self.raw.split("&") if self.raw else []:
            name, _, value = map(unquote_plus, piece.partition("="))
            values = allowed.get(name)
            is_plain = not _SEPARATORS.intersection(piece)  # to some parsers another parameter begins there
            if name in allowed and is_plain and (values is None or value in values):
                kept.append(piece)
        return "&".join(kept)


def find(method: str, path: str, query: Query, headers: Mapping[str, str]) -> Route:
    """Return the route. Raises GatewayError (404, 405, 426)."""
    if headers.get("upgrade", "").lower() == "websocket":
        raise GatewayError(UPGRADE_REFUSED)
    dialect, call = _spoken(method, path, query, headers)
    if call is None:
        raise GatewayError(PATH_NOT_FOUND)
    if method not in call.endpoint.methods:
        raise GatewayError(METHOD_NOT_ALLOWED, f"This path takes {' and '.join(call.endpoint.methods)} requests only.")
    return Route(dialect, call.endpoint, call.path, call.model)


def dialect_of(method: str, path: str, query: Query, headers: Mapping[str, str]) -> Dialect:
    """Return the dialect in which a request is answered, whatever the answer is."""
    return _spoken(method, path, query, headers)[0]


def _spoken(method: str, path: str, query: Query, headers: Mapping[str, str]) -> tuple[Dialect, Call | None]:
    """Return the dialect that a request speaks, and what it asks for there.

    The path and the method decide where only one dialect has them; then what only one dialect's clients send.
    """
    calls = _calls(path)
    fitting = {name: call for name, call in calls.items() if method in call.endpoint.methods} or calls
    if len(fitting) == 1:
        name = next(iter(fitting))
    elif "anthropic-version" in headers or path.startswith("/v1/messages"):
        name = "anthropic"
    elif path.startswith(_GEMINI_PREFIXES) or "x-goog-api-key" in headers or (query.raw and query.get("key")):
        name = "gemini"
    else:
        name = "openai"
    return DIALECTS[name], fitting.get(name)


@lru_cache(maxsize=256)
def _calls(path: str) -> dict[str, Call]:
    """Return what a path asks for in each dialect that has it. Paths are few, but for the models' names in Gemini's."""
    found = ((name, dialect.find(path)) for name, dialect in DIALECTS.items())
    return {name: call for name, call in found if call is not None}
