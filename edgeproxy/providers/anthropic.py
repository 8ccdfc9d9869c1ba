"""Anthropic's API: its operations, headers and errors. How usage is read is in `anthropic_usage`.

Source: platform.claude.com/docs. What a request declares bounds its output only where the provider does not work on its
own: with server tools, an advisor, MCP servers or compaction it asks itself again and bills every turn's input and
output. So a reservation can be too small; what is beyond it is charged when the answer is known. Without these, the
declared maximum includes thinking.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from urllib.parse import unquote

import orjson

from edgeproxy.domain.features import Feature
from edgeproxy.domain.limits import Dimension
from edgeproxy.errors import GatewayError
from edgeproxy.providers import unbounded
from edgeproxy.providers.anthropic_usage import StreamReader, read_answer
from edgeproxy.providers.base import (
    MODELS,
    AllowedQuery,
    Call,
    Endpoint,
    Headers,
    Incoming,
    LimitLevel,
    ListedModel,
    RequestFacts,
    UsageReader,
)
from edgeproxy.providers.body import with_number_at_most
from edgeproxy.providers.fields import (
    count,
    count_member,
    estimate_input_tokens,
    flag_member,
    list_member,
    names_in,
    read_object,
    text_member,
)
from edgeproxy.providers.headers import answer_headers, pick, retry_headers, tightest
from edgeproxy.providers.readers import ObjectReader
from edgeproxy.providers.unbounded import Kinds, Members, examined, names
from edgeproxy.providers.unmetered import IDS, Paths, Row

_MEMBERS = ("model", "stream", "max_tokens", "fallbacks", "thread")
_LONG_CACHE = re.compile(rb'"ttl"\s*:\s*"1h"')  # in a text, the quotation marks would be escaped
_CLIENT_HEADERS = frozenset({"accept", "anthropic-version", "anthropic-beta"})
_ANSWER_HEADERS = frozenset({"x-should-retry"})
_ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",  # Anthropic's own status for it is 529
    504: "timeout_error",
}
_HEADER_DIMENSIONS = {
    "requests": Dimension.REQUESTS,
    "tokens": Dimension.TOKENS,
    "input-tokens": Dimension.INPUT_TOKENS,
    "output-tokens": Dimension.OUTPUT_TOKENS,
}
_REQUEST = Members(
    names(
        "model messages system max_tokens stream stop_sequences temperature top_k top_p metadata tools tool_choice",
        "thinking service_tier cache_control output_config output_format speed inference_geo context_management",
    ),
    {
        "thread": unbounded.STORED,
        "fallbacks": unbounded.OTHER_MODELS,
        "mcp_servers": unbounded.TOOL,
        "container": unbounded.TOOL,
        "compaction": unbounded.COMPACTION,
    },
)
_MESSAGE = Members(names("role content"))
_TEXT = Members(names("type text cache_control"))
_BLOCKS = Kinds(
    {
        "text": _TEXT,
        "thinking": Members(names("type thinking signature")),
        "redacted_thinking": Members(names("type data")),
        "tool_use": Members(names("type id name input cache_control caller")),
        "tool_result": Members(names("type tool_use_id content is_error cache_control")),
    },
    {
        "image": unbounded.IMAGE,
        "document": unbounded.DOCUMENT,
        "compaction": unbounded.COMPACTION,
        "server_tool_use": unbounded.TOOL,
        "container_upload": unbounded.DOCUMENT,
    },
)
_RESULTS = Kinds({"text": _TEXT}, {"image": unbounded.IMAGE, "document": unbounded.DOCUMENT})
_TOOLS = Kinds(
    {
        "custom": Members(
            names("type name description input_schema cache_control strict input_examples eager_input_streaming")
        )
    },
    otherwise=unbounded.TOOL,
    default="custom",
)
_PAGE, _LARGEST_PAGE = 20, 1000  # models, as the provider's own list has them


class Messages(Endpoint):
    """`POST /v1/messages`."""

    name = "messages"

    def read_request(self, incoming: Incoming) -> RequestFacts:
        """Return the facts of a request."""
        value = read_object(incoming.body, _MEMBERS)
        list_member(value, "messages")
        return RequestFacts(
            model=text_member(value, "model"),
            stream=flag_member(value, "stream"),
            input_estimate=estimate_input_tokens(incoming.body),
            output_max=_output_max(value),
            features=(Feature.STORED_CONTEXT,) if value.get("thread") is not None else (),
            long_cache=_LONG_CACHE.search(incoming.body) is not None,
            other_models=_other_models(value),
            # The budget of thinking has to stay below the maximum; a fallback has a maximum of its own.
            least_output=None
            if value.get("fallbacks") is not None
            else count(value.get("thinking"), "budget_tokens") + 1,
            unbounded=examined(incoming, _unbounded(value)),
        )

    def with_output_max(self, body: bytes, facts: RequestFacts, tokens: int) -> bytes:
        """Return the body with a lower maximum."""
        return with_number_at_most(body, ("max_tokens",), tokens)

    def reader(self, facts: RequestFacts, content_type: str, *, ask_for_usage: bool, max_bytes: int) -> UsageReader:
        """Return a reader for a stream or for a single message. Usage always comes unasked."""
        if content_type == "text/event-stream":
            return StreamReader(max_bytes, long_cache=facts.long_cache)
        return ObjectReader(max_bytes, partial(read_answer, long_cache=facts.long_cache), facts.output_max)


def _unbounded(value: dict[str, object]) -> Iterator[str]:
    """Yield what gives a message no bound, part by part."""
    yield _REQUEST.first(value)
    yield from _TOOLS.each(value.get("tools"))
    edits = value.get("context_management")
    if edits is not None and not _only_clears(edits):
        yield unbounded.COMPACTION
    yield from _RESULTS.each(value.get("system"))
    for message in unbounded.rows(value["messages"]):
        if message is None:
            yield unbounded.PART
            continue
        yield _MESSAGE.first(message)
        content = message.get("content")
        yield from _BLOCKS.each(content)
        for block in unbounded.rows(content):
            if block is not None and block.get("type") == "tool_result":
                yield from _RESULTS.each(block.get("content"))


def _only_clears(management: object) -> bool:
    """Whether all that is to be done to the context is to leave parts of it out."""
    edits = management.get("edits") if isinstance(management, dict) and len(management) == 1 else None
    return isinstance(edits, list) and all(
        isinstance(edit, dict) and str(edit.get("type")).startswith("clear_") for edit in edits
    )


def _other_models(value: dict[str, object]) -> tuple[str, ...]:
    """Return the models that may answer in place of the requested one, or advise it.

    `"default"` stands for fallbacks that the provider chooses: a key that is limited to models needs it among them.
    """
    fallbacks = value.get("fallbacks")
    chosen = (fallbacks,) if isinstance(fallbacks, str) else names_in(fallbacks, "model")
    return (*chosen, *names_in(value.get("tools"), "model"))


def _output_max(value: dict[str, object]) -> int | None:
    """Return the largest declared maximum: a fallback model can have one of its own. Only one attempt is served."""
    declared = count_member(value, "max_tokens")
    fallbacks = value.get("fallbacks")
    if declared is None or not isinstance(fallbacks, list):  # "default" leaves the request's own maximum
        return declared
    own = (count_member(each, "max_tokens") or 0 for each in fallbacks if isinstance(each, dict))
    return max([declared, *own])


class CountTokens(Endpoint):
    """`POST /v1/messages/count_tokens`: free."""

    name = "count tokens"

    def read_request(self, incoming: Incoming) -> RequestFacts:
        """Return the facts of a request."""
        value = read_object(incoming.body, ("model",))
        list_member(value, "messages")
        return RequestFacts(text_member(value, "model"), stream=False, input_estimate=0, output_max=0, is_free=True)


_ENDPOINTS: dict[str, Endpoint] = {
    "/v1/messages": Messages(),
    "/v1/messages/count_tokens": CountTokens(),
}
_FEATURES = Paths(
    Row("/v1/messages/batches", Feature.BATCHES),
    Row(f"/v1/messages/batches{IDS}", Feature.BATCHES, creates=False),
    Row("/v1/files", Feature.FILES),
    Row(f"/v1/files{IDS}", Feature.FILES, creates=False),
)
_LIST = "/v1/models"


_QUERY: AllowedQuery = dict.fromkeys(("beta", "limit", "after_id", "before_id"))


class Anthropic:
    """The dialect: see `base.Dialect`."""

    name = "anthropic"
    query = _QUERY
    example_path = "/v1/messages"

    def find(self, path: str) -> Call | None:
        """Return what a path asks for."""
        endpoint = _ENDPOINTS.get(path)
        if endpoint is not None:
            return Call(endpoint, path)
        if path == _LIST or path.startswith(_LIST + "/"):
            return Call(MODELS, path, unquote(path[len(_LIST) + 1 :]))
        return _FEATURES.find(path)

    def upstream_path(self, base_path: str, path: str) -> str:
        """Return the path below a base path. The version stands in the path; a base that says it too is no mistake."""
        return base_path.removesuffix("/v1") + path

    def outgoing_headers(self, secret: str, client_headers: Mapping[str, str]) -> Headers:
        """Return the headers for the provider; version and beta flags as the client sent them."""
        return [("x-api-key", secret), *pick(client_headers.items(), _CLIENT_HEADERS)]

    def incoming_headers(self, status: int, provider_headers: Headers, request_id: str) -> Headers:
        """Return what of the provider's headers may be handed on, and our request id."""
        return [*answer_headers(status, provider_headers, _ANSWER_HEADERS), *_ids(request_id)]

    def is_credentials_error(self, body: bytes) -> bool:
        """Whether a 400 is about our secret: never, Anthropic says so with a 401 or a 403."""
        return False

    def error(self, error: GatewayError, request_id: str) -> tuple[Headers, bytes]:
        """Return an error as `{"type": "error", "error": {type, message, details}, "request_id"}`."""
        fallback = "invalid_request_error" if error.kind.status < 500 else "api_error"
        row = {
            "type": _ERROR_TYPES.get(error.kind.status, fallback),
            "message": error.message,
            "details": {"error_code": error.kind.code},
        }
        headers: Headers = [("content-type", "application/json"), *_ids(request_id), *retry_headers(error)]
        if error.kind.status == 401:
            headers.append(("www-authenticate", "Bearer"))
        return headers, orjson.dumps({"type": "error", "error": row, "request_id": request_id})

    def limit_headers(self, levels: Sequence[LimitLevel], now_ms: int) -> Headers:
        """Return `anthropic-ratelimit-*`: for each dimension the window that has least left."""
        headers: Headers = []
        for noun, dimension in _HEADER_DIMENSIONS.items():
            if (level := tightest(levels, (dimension,))) is not None:
                reset = datetime.fromtimestamp(-(-(now_ms + level.reset_ms) // 1000), UTC)
                headers += [
                    (f"anthropic-ratelimit-{noun}-limit", str(level.limit.amount)),
                    (f"anthropic-ratelimit-{noun}-remaining", str(level.remaining)),
                    (f"anthropic-ratelimit-{noun}-reset", reset.strftime("%Y-%m-%dT%H:%M:%SZ")),
                ]
        return headers

    def model_list(self, models: Sequence[ListedModel], query: Mapping[str, str]) -> bytes:
        """Return a page of the models: those after `after_id`, or the last ones before `before_id`.

        Behind a model that is not there any more comes nothing, so that a client that turns pages comes to an end.
        """
        limit = query.get("limit", "")
        size = min(max(int(limit), 1), _LARGEST_PAGE) if re.fullmatch(r"[0-9]{1,9}", limit) else _PAGE
        names = [model.name for model in models]
        backwards = "before_id" in query
        if backwards:
            rest = models[: _index(names, query["before_id"], 0)]
        else:
            rest = models[_index(names, query["after_id"], len(names)) + 1 :] if "after_id" in query else models
        page = rest[-size:] if backwards else rest[:size]
        ends = {"first_id": page[0].name, "last_id": page[-1].name} if page else {"first_id": None, "last_id": None}
        return orjson.dumps({"data": [_card(model) for model in page], "has_more": len(rest) > len(page), **ends})

    def model_card(self, model: ListedModel) -> bytes:
        """Return one model."""
        return orjson.dumps(_card(model))


def _index(names: list[str], name: str, default: int) -> int:
    return names.index(name) if name in names else default


def _card(model: ListedModel) -> dict[str, object]:
    return {
        "type": "model",
        "id": model.name,
        "display_name": model.name,
        "created_at": "1970-01-01T00:00:00Z",  # as documented for a date that is not known
        "lifecycle": "active",
        "max_tokens": model.max_output_tokens or None,
    }


def _ids(request_id: str) -> Headers:
    """Return our request id under our name, and under the one that Anthropic's SDKs read."""
    return [("x-request-id", request_id), ("request-id", request_id)]
