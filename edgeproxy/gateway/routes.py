"""Which path asks for which operation of which dialect. The first stage of a request; it reads only the request's head.

Some paths mean three things: `GET /v1/models` is asked by clients of every dialect. Their own headers tell them apart.
"""

from collections.abc import Mapping
from functools import lru_cache
from urllib.parse import parse_qsl, quote, unquote_plus

from edgeproxy.domain.records import record
from edgeproxy.errors import METHOD_NOT_ALLOWED, PATH_NOT_FOUND, UPGRADE_REFUSED, GatewayError
from edgeproxy.providers.base import AllowedQuery, Call, Dialect, Endpoint
from edgeproxy.providers.registry import DIALECTS

_MAX_PARAMETERS = 100
_SEPARATORS = frozenset(";#")
_GEMINI_PREFIXES = ("/v1beta/", "/upload/")


@record
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
        path = self.path.replace("{model}", quote(model, safe="")) if "{" in self.path else self.path
        return self.dialect.upstream_path(base_path.rstrip("/"), path)


@record
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


NO_QUERY = Query("")


def find(method: str, path: str, query: Query, headers: Mapping[str, str]) -> Route:
    """Return the route. Raises GatewayError (404, 405, 426)."""
    if "upgrade" in headers and headers["upgrade"].lower() == "websocket":
        raise GatewayError(UPGRADE_REFUSED)
    _, route, methods = _spoken(method, path, _sender(query, headers))
    if route is None:
        raise GatewayError(PATH_NOT_FOUND)
    if method not in methods:
        raise GatewayError(METHOD_NOT_ALLOWED, f"This path takes {' and '.join(methods)} requests only.")
    return route


def dialect_of(method: str, path: str, query: Query, headers: Mapping[str, str]) -> Dialect:
    """Return the dialect in which a request is answered, whatever the answer is."""
    return _spoken(method, path, _sender(query, headers))[0]


def _sender(query: Query, headers: Mapping[str, str]) -> str:
    """Return the dialect whose clients alone send such headers, or such a query; "" where that tells nothing."""
    if "anthropic-version" in headers:
        return "anthropic"
    return "gemini" if "x-goog-api-key" in headers or (query.raw and query.get("key")) else ""


@lru_cache(maxsize=256)
def _spoken(method: str, path: str, sender: str) -> tuple[Dialect, Route | None, tuple[str, ...]]:
    """Return the dialect that a request speaks, what it asks for there, and with which methods that can be asked.

    The path and the method decide where only one dialect has them; then what only one dialect's clients send.
    """
    calls = _calls(path)
    fitting = {name: call for name, call in calls.items() if method in call.endpoint.methods} or calls
    if len(fitting) == 1:
        name = next(iter(fitting))
    elif sender == "anthropic" or path.startswith("/v1/messages"):
        name = "anthropic"
    else:
        name = "gemini" if path.startswith(_GEMINI_PREFIXES) or sender else "openai"
    call = fitting.get(name)
    if call is None:
        return DIALECTS[name], None, ()
    return DIALECTS[name], Route(DIALECTS[name], call.endpoint, call.path, call.model), call.endpoint.methods


def _calls(path: str) -> dict[str, Call]:
    """Return what a path asks for in each dialect that has it. Paths are few, but for the models' names in Gemini's."""
    found = ((name, dialect.find(path)) for name, dialect in DIALECTS.items())
    return {name: call for name, call in found if call is not None}
