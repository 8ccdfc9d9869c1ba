"""OpenAI's API: its operations, headers and errors, as OpenAI, DeepSeek, xAI and every compatible server have them.

Source: platform.openai.com/docs/api-reference. How each operation is read and counted is in `openai_chat`,
`openai_responses` and `openai_media`.
"""

from collections.abc import Mapping, Sequence
from urllib.parse import unquote

import orjson

from edgeproxy.domain.features import Feature
from edgeproxy.domain.limits import Dimension
from edgeproxy.errors import (
    BALANCE_EXHAUSTED,
    BUDGET_EXHAUSTED,
    INVALID_KEY,
    REQUEST_EXCEEDS_LIMIT,
    GatewayError,
    Source,
)
from edgeproxy.providers.base import MODELS, AllowedQuery, Call, Endpoint, Headers, LimitLevel, ListedModel
from edgeproxy.providers.headers import answer_headers, pick, retry_headers, tightest
from edgeproxy.providers.openai_chat import ChatCompletions, Completions
from edgeproxy.providers.openai_media import Embeddings, Images, Moderations, Speech, Transcriptions
from edgeproxy.providers.openai_responses import Compact, InputTokens, Responses
from edgeproxy.providers.readers import load
from edgeproxy.providers.unmetered import IDS, Paths, Row

_CLIENT_HEADERS = frozenset({"accept", "openai-beta"})
_ANSWER_HEADERS = frozenset({"openai-processing-ms", "openai-version", "x-should-retry"})
_BUDGET_KINDS = (BALANCE_EXHAUSTED, BUDGET_EXHAUSTED, REQUEST_EXCEEDS_LIMIT)
_TOKEN_DIMENSIONS = (Dimension.TOKENS, Dimension.INPUT_TOKENS, Dimension.OUTPUT_TOKENS)

# Of what is kept at the provider, a part is asked for; the official clients write a list's name with brackets.
_QUERY: AllowedQuery = dict.fromkeys(
    (
        *("api-version", "stream", "starting_after", "include", "include[]", "include_obfuscation"),
        *("after", "limit", "order", "purpose"),
    )
)

_ENDPOINTS: dict[str, Endpoint] = {
    "/v1/chat/completions": ChatCompletions(),
    "/v1/completions": Completions(),
    "/v1/responses": Responses(),
    "/v1/responses/input_tokens": InputTokens(),
    "/v1/responses/compact": Compact(),
    "/v1/embeddings": Embeddings(),
    "/v1/images/generations": Images(),
    "/v1/audio/speech": Speech(),
    "/v1/audio/transcriptions": Transcriptions(),
    "/v1/moderations": Moderations(),
}
_FEATURES = Paths(
    Row("/v1/batches", Feature.BATCHES),
    Row(f"/v1/batches{IDS}", Feature.BATCHES, creates=False),
    Row("/v1/(?:files|uploads)", Feature.FILES),
    Row(f"/v1/(?:files|uploads){IDS}", Feature.FILES, creates=False),
    Row("/v1/conversations", Feature.STORED_CONTEXT),
    Row(f"/v1/conversations{IDS}", Feature.STORED_CONTEXT, creates=False),
    Row("/v1/responses/[A-Za-z0-9_-]+/cancel", Feature.BACKGROUND, creates=False),
    Row(f"/v1/responses{IDS}", Feature.BACKGROUND),  # what made it was charged; but a verb of tomorrow may bill
)
_LIST = "/v1/models"


class OpenAI:
    """The dialect: see `base.Dialect`."""

    name = "openai"
    query = _QUERY
    example_path = "/v1/chat/completions"

    def find(self, path: str) -> Call | None:
        """Return what a path asks for."""
        endpoint = _ENDPOINTS.get(path)
        if endpoint is not None:
            return Call(endpoint, path)
        if path == _LIST or path.startswith(_LIST + "/"):
            return Call(MODELS, path, unquote(path[len(_LIST) + 1 :]))
        return _FEATURES.find(path)

    def upstream_path(self, base_path: str, path: str) -> str:
        """Return the path below a base path, which in this dialect holds the version: `/v1` unless it says another."""
        return base_path + path.removeprefix("/v1") if base_path else path

    def outgoing_headers(self, secret: str, client_headers: Mapping[str, str]) -> Headers:
        """Return the headers for the provider."""
        return [("authorization", f"Bearer {secret}"), *pick(client_headers.items(), _CLIENT_HEADERS)]

    def incoming_headers(self, status: int, provider_headers: Headers, request_id: str) -> Headers:
        """Return what of the provider's headers may be handed on, and our request id."""
        return [*answer_headers(status, provider_headers, _ANSWER_HEADERS), ("x-request-id", request_id)]

    def is_credentials_error(self, body: bytes) -> bool:
        """Whether a 400 is about our secret: xAI answers so, in place of a 401.

        Its message has to begin so: further on, it may repeat what the client sent.
        """
        error = (load(body) or {}).get("error")
        message = error.get("message") if isinstance(error, dict) else error
        return isinstance(message, str) and message.startswith("Incorrect API key")

    def error(self, error: GatewayError, request_id: str) -> tuple[Headers, bytes]:
        """Return an error as `{"error": {message, type, param, code}}`."""
        kind, code = error.kind, error.kind.code
        if kind in _BUDGET_KINDS:
            category = code = "insufficient_quota"  # Codex and the SDKs stop at this one
        elif kind.status == 429:
            category = code = "rate_limit_exceeded"
        elif kind.source is Source.CLIENT:
            category = "invalid_request_error"
        else:
            category = "server_error"
        headers: Headers = [
            ("content-type", "application/json"),
            ("x-request-id", request_id),
            *retry_headers(error),
        ]
        if kind is INVALID_KEY:
            headers.append(("www-authenticate", "Bearer"))
        row = {"message": error.message, "type": category, "param": None, "code": code}
        return headers, orjson.dumps({"error": row})

    def limit_headers(self, levels: Sequence[LimitLevel], now_ms: int) -> Headers:
        """Return `x-ratelimit-*`: the request window and the token window that have least left."""
        headers: Headers = []
        for noun, dimensions in (("requests", (Dimension.REQUESTS,)), ("tokens", _TOKEN_DIMENSIONS)):
            if (level := tightest(levels, dimensions)) is not None:
                headers += [
                    (f"x-ratelimit-limit-{noun}", str(level.limit.amount)),
                    (f"x-ratelimit-remaining-{noun}", str(level.remaining)),
                    (f"x-ratelimit-reset-{noun}", f"{level.reset_ms}ms"),
                ]
        return headers

    def model_list(self, models: Sequence[ListedModel], query: Mapping[str, str]) -> bytes:
        """Return all models: this API has no pages here."""
        return orjson.dumps({"object": "list", "data": [_card(model) for model in models]})

    def model_card(self, model: ListedModel) -> bytes:
        """Return one model."""
        return orjson.dumps(_card(model))


def _card(model: ListedModel) -> dict[str, object]:
    return {"id": model.name, "object": "model", "created": 0, "owned_by": model.provider}
