"""Google's Gemini API: its operations, headers, errors and lists of models.

Sources: ai.google.dev/api, cloud.google.com/apis/design/errors and recorded traffic. What is read of requests is in
`gemini_requests`, of answers in `gemini_answers`. The model's name and the operation are in the path, which clients
write in several ways: it is decoded to be read, and encoded anew to be sent.
"""

import re
from collections.abc import Mapping, Sequence
from urllib.parse import unquote

import orjson

from edgeproxy.domain.features import Feature
from edgeproxy.errors import INVALID_FIELD, INVALID_KEY, RATE_LIMITED, GatewayError
from edgeproxy.providers.base import MODELS, AllowedQuery, Call, Endpoint, Headers, LimitLevel, ListedModel
from edgeproxy.providers.gemini_requests import CountTokens, EmbedContent, GenerateContent
from edgeproxy.providers.headers import answer_headers, pick, retry_headers
from edgeproxy.providers.unmetered import IDS, Paths, Row

# How long Google's server may take, in seconds. Not `accept`, nor what selects fields of the answer: with them an
# answer could come without its usage. Not the names of projects and client libraries: they identify the client.
_CLIENT_HEADERS = frozenset({"x-server-timeout"})
_ANSWER_HEADERS = frozenset({"x-gemini-service-tier"})

_QUERY: AllowedQuery = {
    "alt": frozenset({"json", "sse"}),
    "prettyPrint": frozenset({"true", "false", "1", "0"}),
    "pageSize": None,
    "pageToken": None,
}

_METHODS: dict[str, Endpoint] = {
    "generateContent": GenerateContent("generate content", stream=False),
    "streamGenerateContent": GenerateContent("stream generate content", stream=True),
    "countTokens": CountTokens(),
    "embedContent": EmbedContent("embed content", batch=False),
    "batchEmbedContents": EmbedContent("batch embed contents", batch=True),
}
_MODELS = re.compile(r"/(v1|v1beta)/models(?:/([^/]+))?")
_NAME = re.compile(r"[!-~]+")
_LETTERS = re.compile(r"[A-Za-z]+")
_VERSION = re.compile(r"/v1(?:beta)?$")

_V = "/v1(?:beta)?"
_ITEM = f"{IDS}(?::[A-Za-z]+)?"
_FEATURES = Paths(
    Row(f"{_V}/models/[A-Za-z0-9._:-]+:(?:batchGenerateContent|asyncBatchEmbedContent)", Feature.BATCHES),
    Row(f"{_V}/batches(?:{_ITEM})?", Feature.BATCHES, creates=False),
    Row(f"(?:/upload)?{_V}/files", Feature.FILES),
    Row(f"{_V}/files{_ITEM}", Feature.FILES, creates=False),
    Row(f"{_V}/(?:cachedContents|interactions)", Feature.STORED_CONTEXT),
    Row(f"{_V}/(?:cachedContents|interactions){_ITEM}", Feature.STORED_CONTEXT, creates=False),
)

_STATUSES = {
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    504: "DEADLINE_EXCEEDED",
}
_TYPES = "type.googleapis.com/google.rpc."
_WRONG_SECRET = "API_KEY_INVALID"  # noqa: S105 - what Google calls it, also when the key has expired
_LONGEST_WAIT_MS = 300_000  # that gemini-cli is ready to wait
_PAGE, _LARGEST_PAGE = 50, 1000
_NUMBER = re.compile(r"[0-9]{1,9}")


class Gemini:
    """The dialect: see `base.Dialect`."""

    name = "gemini"
    # `fields` asks for a part of an answer, `$alt`, `callback` and other values of `alt` for another form of it: usage
    # could be left out. `key` and `access_token` are credentials, and of the client's only this gateway has any use.
    query = _QUERY
    example_path = "/v1beta/models/{model}:generateContent"

    def find(self, path: str) -> Call | None:
        """Return what a path asks for. The operation stands behind the last colon: a name can have some, too."""
        match = _MODELS.fullmatch(path)
        if match is None:
            return _FEATURES.find(path)
        if match[2] is None:
            return Call(MODELS, path)
        name = unquote(match[2]).removeprefix("models/")
        model, colon, method = name.rpartition(":")
        if method in _METHODS:
            return Call(_METHODS[method], f"/{match[1]}/models/{{model}}:{method}", model) if _is_name(model) else None
        if colon and _LETTERS.fullmatch(method):  # an operation that is not served, or that of a feature
            return _FEATURES.find(path)
        return Call(MODELS, path, name) if _is_name(name) else None

    def upstream_path(self, base_path: str, path: str) -> str:
        """Return the path below a base path. The version is the client's: where the base has one too, it gives way."""
        return _VERSION.sub("", base_path) + path

    def outgoing_headers(self, secret: str, client_headers: Mapping[str, str]) -> Headers:
        """Return the headers for the provider."""
        return [("x-goog-api-key", secret), *pick(client_headers.items(), _CLIENT_HEADERS)]

    def incoming_headers(self, status: int, provider_headers: Headers, request_id: str) -> Headers:
        """Return what of the provider's headers may be handed on, and our request id."""
        return [*answer_headers(status, provider_headers, _ANSWER_HEADERS), ("x-request-id", request_id)]

    def is_credentials_error(self, body: bytes) -> bool:
        """Whether a 400 is about our secret: Google calls that an invalid argument. A stream's error is in a list.

        Only the reason is looked at: messages quote the request.
        """
        try:
            value = orjson.loads(body)
        except orjson.JSONDecodeError:
            return False
        for row in value if isinstance(value, list) else [value]:
            error = row.get("error") if isinstance(row, dict) else None
            details = error.get("details") if isinstance(error, dict) else None
            if isinstance(details, list) and any(
                isinstance(each, dict) and each.get("reason") == _WRONG_SECRET for each in details
            ):
                return True
        return False

    def error(self, error: GatewayError, request_id: str) -> tuple[Headers, bytes]:
        """Return an error as `{"error": {code, message, status, details}}`."""
        status = error.kind.status
        fallback = "INVALID_ARGUMENT" if status < 500 else "UNAVAILABLE" if error.kind.retryable else "INTERNAL"
        headers: Headers = [
            ("content-type", "application/json; charset=UTF-8"),
            ("x-request-id", request_id),
            *retry_headers(error),
        ]
        if error.kind is INVALID_KEY:
            headers.append(("www-authenticate", "Bearer"))
        row = {
            "code": status,
            "message": error.message,
            "status": _STATUSES.get(status, fallback),
            "details": _details(error),
        }
        return headers, orjson.dumps({"error": row})

    def limit_headers(self, levels: Sequence[LimitLevel], now_ms: int) -> Headers:
        """Return none: Google has no such headers, so its clients read none. Errors say what to wait for."""
        return []

    def model_list(self, models: Sequence[ListedModel], query: Mapping[str, str]) -> bytes:
        """Return a page of models. Raises GatewayError when it is not a page that is asked for."""
        size = min(_number(query, "pageSize") or _PAGE, _LARGEST_PAGE)
        start = _number(query, "pageToken")
        page: dict[str, object] = {"models": [_card(model) for model in models[start : start + size]]}
        if start + size < len(models):
            page["nextPageToken"] = str(start + size)
        return orjson.dumps(page)

    def model_card(self, model: ListedModel) -> bytes:
        """Return one model."""
        return orjson.dumps(_card(model))


def _is_name(name: str) -> bool:
    """Whether a decoded name can be one: visible ASCII, and nothing that leads out of its place in a path."""
    return _NAME.fullmatch(name) is not None and all(part.strip(".") for part in name.split("/"))


def _details(error: GatewayError) -> list[dict[str, object]]:
    """Return what clients read: our code, how long to wait, and which limit.

    gemini-cli stops after a 429 when the wait is longer than five minutes, and shows our message; or when the limit has
    a day in its name, and shows one of its own. So where asking again is no use and no such wait says so, the limit has
    that name, whatever its window really is.
    """
    details: list[dict[str, object]] = [
        {"@type": f"{_TYPES}ErrorInfo", "reason": error.kind.code.upper(), "domain": "edgeproxy"}
    ]
    says_stop = (error.retry_after_ms or 0) > _LONGEST_WAIT_MS
    window = "PerMinute" if error.kind is RATE_LIMITED else "" if error.kind.retryable or says_stop else "PerDay"
    if error.kind.status == 429 and window:
        violation = {"quotaMetric": "edgeproxy/api_key_limit", "quotaId": f"ApiKeyLimit{window}"}
        details.append({"@type": f"{_TYPES}QuotaFailure", "violations": [violation]})
    if error.retry_after_ms is not None:
        seconds = f"{error.retry_after_ms // 1000}.{error.retry_after_ms % 1000:03}".rstrip("0").rstrip(".")
        details.append({"@type": f"{_TYPES}RetryInfo", "retryDelay": f"{seconds}s"})
    return details


def _number(query: Mapping[str, str], name: str) -> int:
    """Return a number out of the query, 0 for none. A page's token is one, too: where in the list it begins."""
    text = query.get(name, "")
    if not text:
        return 0
    if not _NUMBER.fullmatch(text):
        raise GatewayError(INVALID_FIELD, f"The parameter '{name}' is not valid.")
    return int(text)


def _card(model: ListedModel) -> dict[str, object]:
    """Return a model as Google lists it. Which methods it has is told by its name, as it is with all of Google's."""
    methods = ["generateContent", "countTokens"]
    if "embedding" in model.name:
        methods = ["embedContent", "countTokens"]
    card: dict[str, object] = {
        "name": f"models/{model.name}",
        "baseModelId": model.name,
        "version": "",
        "displayName": model.name,
        "supportedGenerationMethods": methods,
    }
    if model.max_output_tokens:
        card["outputTokenLimit"] = model.max_output_tokens
    return card
