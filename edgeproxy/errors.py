"""Every error that a client can be given, in one table: code, HTTP status, whose fault, whether a retry can help.

This module knows no dialect: `providers` renders a kind in the shape that each client parses. It must never carry a
library's exception text, a header or a part of a body: messages are written here, or built from our own settings.
"""

from dataclasses import dataclass
from enum import StrEnum


class Source(StrEnum):
    """Who has to act: the client, the provider that was called, or the operator of this gateway."""

    CLIENT = "client"
    UPSTREAM = "upstream"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """One row of the table.

    `code` is stable and appears in answers and metrics; `message` says what is wrong and what to do about it;
    `retryable` says whether the same request can succeed later without anybody changing anything.
    """

    code: str
    status: int
    source: Source
    retryable: bool
    message: str


def _kind(code: str, status: int, source: Source, message: str, *, retryable: bool = False) -> ErrorKind:
    return ErrorKind(code, status, source, retryable, message)


_CLIENT, _UPSTREAM, _INTERNAL = Source.CLIENT, Source.UPSTREAM, Source.INTERNAL

BAD_HTTP = _kind("bad_http", 400, _CLIENT, "The request is not valid HTTP/1.1.")
INVALID_KEY = _kind(
    "invalid_api_key",
    401,
    _CLIENT,
    # No names of headers: Claude Code takes a message with one of them for its own, and tells of a login.
    "The API key is missing or not valid. Send a key that the administrator issued.",
)
HTTPS_REQUIRED = _kind(
    "https_required",
    403,  # neither 426 nor a redirect: a client that follows shows its key in clear each time, and nobody notices
    _CLIENT,
    "The request came to the proxy before this gateway over plain http. Use https, and ask for a new API key: this one"
    " could be read on the way.",
)
PATH_NOT_FOUND = _kind("path_not_found", 404, _CLIENT, "This gateway does not serve this path.")
METHOD_NOT_ALLOWED = _kind("method_not_allowed", 405, _CLIENT, "This path does not take this method.")
NOT_IMPLEMENTED = _kind(
    "not_implemented", 501, _CLIENT, "This method, or this transfer coding, is not spoken here. Use plain HTTP/1.1."
)
HEAD_TOO_LARGE = _kind("head_too_large", 431, _CLIENT, "The request has more or longer headers than are taken here.")
HEAD_TIMEOUT = _kind(
    "head_timeout", 408, _CLIENT, "The request's headers did not arrive in time. Send it again.", retryable=True
)
UPGRADE_REFUSED = _kind(
    "upgrade_refused", 426, _CLIENT, "WebSockets and other protocols are not spoken here. Use HTTP/1.1."
)
BODY_TIMEOUT = _kind(
    "body_timeout", 408, _CLIENT, "The request body did not arrive in time. Send it again.", retryable=True
)
BODY_TOO_LARGE = _kind(
    "body_too_large", 413, _CLIENT, "The request body is larger than this gateway accepts. Send less."
)
UNSUPPORTED_ENCODING = _kind(
    "unsupported_encoding", 415, _CLIENT, "Compressed request bodies are not accepted. Send the body as it is."
)
INVALID_JSON = _kind("invalid_json", 400, _CLIENT, "The request body is not a JSON object.")
INVALID_FIELD = _kind("invalid_field", 400, _CLIENT, "A field of the request has the wrong type or value.")
WRONG_PATH = _kind("wrong_path", 400, _CLIENT, "This model is served on another path.")
MODEL_NOT_FOUND = _kind(
    "model_not_found", 404, _CLIENT, "No provider of this gateway serves the requested model. Check its name."
)
MODEL_NOT_ALLOWED = _kind(
    "model_not_allowed", 403, _CLIENT, "This API key may not use the requested model. Ask the administrator."
)
CANNOT_BE_METERED = _kind(
    "cannot_be_metered", 400, _CLIENT, "What this request costs cannot be read from its answer, so it is not served."
)
NO_UPPER_BOUND = _kind(
    "no_upper_bound",
    400,
    _CLIENT,
    "This API key reserves the most that a request can use, and this one declares no maximum of output tokens. Declare"
    " one; or the administrator sets max_output_tokens for the model.",
)
RATE_LIMITED = _kind("rate_limited", 429, _CLIENT, "A rate limit of this API key is reached.", retryable=True)
BUDGET_EXHAUSTED = _kind("budget_exhausted", 429, _CLIENT, "A budget of this API key is used up.")
BALANCE_EXHAUSTED = _kind(
    "balance_exhausted", 429, _CLIENT, "The balance of this API key does not cover this request. Top it up."
)
REQUEST_EXCEEDS_LIMIT = _kind(
    "request_exceeds_limit",
    429,
    _CLIENT,
    "This request alone is larger than a limit of this API key. Ask for less, or ask the administrator.",
)
CONCURRENCY_REACHED = _kind(
    "concurrency_reached",
    429,
    _CLIENT,
    "As many requests as this API key may have open are open. Wait for one to end.",
    retryable=True,
)
UPSTREAM_UNREACHABLE = _kind(
    "upstream_unreachable", 502, _UPSTREAM, "The provider cannot be reached. Try again later.", retryable=True
)
UPSTREAM_FAILED = _kind(
    "upstream_failed",
    502,
    _UPSTREAM,
    "The provider ended the connection before its answer was complete, or its answer was not valid HTTP.",
    retryable=True,
)
UPSTREAM_CREDENTIALS = _kind(
    "upstream_credentials",
    502,
    _UPSTREAM,
    "The provider did not accept this gateway's own credentials. The administrator has to act.",
)
UPSTREAM_BUSY = _kind(
    "upstream_busy",
    503,
    _UPSTREAM,
    "All of this gateway's connections to the provider are in use. Try again shortly.",
    retryable=True,
)
UPSTREAM_TIMEOUT = _kind("upstream_timeout", 504, _UPSTREAM, "The provider did not answer in time.", retryable=True)
COUNTERS_UNAVAILABLE = _kind(
    "counters_unavailable",
    503,
    _INTERNAL,
    "Limits cannot be checked at the moment, so nothing is admitted. Try again shortly.",
    retryable=True,
)
OVERLOADED = _kind(
    "overloaded", 503, _INTERNAL, "This gateway holds as much as it may. Try again shortly.", retryable=True
)
INTERNAL = _kind("internal_error", 500, _INTERNAL, "The gateway failed to handle this request.", retryable=True)

KINDS: tuple[ErrorKind, ...] = (
    BAD_HTTP,
    INVALID_KEY,
    HTTPS_REQUIRED,
    PATH_NOT_FOUND,
    METHOD_NOT_ALLOWED,
    NOT_IMPLEMENTED,
    HEAD_TOO_LARGE,
    HEAD_TIMEOUT,
    UPGRADE_REFUSED,
    BODY_TIMEOUT,
    BODY_TOO_LARGE,
    UNSUPPORTED_ENCODING,
    INVALID_JSON,
    INVALID_FIELD,
    WRONG_PATH,
    MODEL_NOT_FOUND,
    MODEL_NOT_ALLOWED,
    CANNOT_BE_METERED,
    NO_UPPER_BOUND,
    RATE_LIMITED,
    BUDGET_EXHAUSTED,
    BALANCE_EXHAUSTED,
    REQUEST_EXCEEDS_LIMIT,
    CONCURRENCY_REACHED,
    UPSTREAM_UNREACHABLE,
    UPSTREAM_FAILED,
    UPSTREAM_CREDENTIALS,
    UPSTREAM_BUSY,
    UPSTREAM_TIMEOUT,
    COUNTERS_UNAVAILABLE,
    OVERLOADED,
    INTERNAL,
)


class GatewayError(Exception):
    """A request ends with `kind`.

    `message` replaces the kind's own where a setting of ours makes it more helpful (never client or provider text);
    `retry_after_ms` is when the same request can succeed, None when time alone does not help.
    """

    def __init__(self, kind: ErrorKind, message: str | None = None, retry_after_ms: int | None = None) -> None:
        super().__init__(kind.code)
        self.kind = kind
        self.message = message or kind.message
        self.retry_after_ms = retry_after_ms


class OperatorError(Exception):
    """One line for the person at the command line: what is wrong, and what to do."""


class StoreUnavailable(Exception):
    """Redis or PostgreSQL cannot be reached or did not answer in time. `store` says which; no library text.

    `may_have_run` says that the command was on its way when the trouble began.
    """

    def __init__(self, store: str, *, may_have_run: bool = False) -> None:
        super().__init__(store)
        self.store = store
        self.may_have_run = may_have_run


def operator_line(error: OperatorError | StoreUnavailable) -> str:
    """Return the one line that the person at the command line gets: what is wrong, and what to do."""
    if isinstance(error, StoreUnavailable):
        setting = "stores.redis" if error.store == "redis" else "stores.postgres"
        return f"{error.store} cannot be reached or does not answer; check {setting}, and that it runs"
    return str(error)
