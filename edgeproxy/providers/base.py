"""What every dialect has to offer the gateway, and what dialects share.

Sans-I/O: bytes and numbers come in, bytes, headers and usage go out. A dialect reads the few fields that it needs and
passes all others through untouched.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeGuard

import orjson

from edgeproxy.domain.limits import Dimension, Limit
from edgeproxy.domain.usage import Usage
from edgeproxy.errors import INVALID_FIELD, INVALID_JSON, GatewayError
from edgeproxy.providers.body import TooIntricateError, ambiguous_member

Headers = list[tuple[str, str]]

# A long run of base64 is a picture or a document: billed by its content, not by its letters. It is looked for only
# where a run begins: from each of its letters, it would take minutes for a body of runs that are a little too short.
_BASE64_RUN = re.compile(rb"(?<![A-Za-z0-9+/=])[A-Za-z0-9+/=]{2048,}+")
_TOKENS_PER_ATTACHMENT = 1600  # a large picture, by the providers' own formulas
_BYTES_PER_TOKEN = 4  # English prose and JSON; an estimate is corrected when the answer is known
_BYTES_PER_EVENT = 200  # framing and metadata around the text of one streamed event

# More than any answer uses; what claims to be more is no count. All counts of one answer, each as large as this, still
# add up to less than 2**53, beyond which Redis would not be exact.
MAX_COUNT = 2**50


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """What the gateway has to know of a request's body.

    `input_estimate` and `output_max` are tokens; `output_max` None means that the request declares no maximum.
    `usage_requested` says that a stream brings its usage without being asked by us; `stream_options` is where a client
    asks for it.
    """

    model: str
    stream: bool
    input_estimate: int
    output_max: int | None
    usage_requested: bool = True
    stream_options: dict[str, object] | None = None


@dataclass(frozen=True, slots=True)
class LimitLevel:
    """Where one window of the key stands after this request was admitted or refused."""

    limit: Limit
    remaining: int
    reset_ms: int


class UsageReader(Protocol):
    """Reads the usage out of an answer while it passes."""

    @property
    def is_finished(self) -> bool:
        """Whether the answer's own last word has been read: a client may stop listening after it."""

    def feed(self, chunk: bytes) -> bytes:
        """Read `chunk` and return what is to be forwarded now: nearly always the same object."""

    def end(self) -> bytes:
        """The answer is over: return what is still to be forwarded."""

    def usage(self, input_estimate: int) -> Usage:
        """Return what the answer used so far; `estimated` unless the provider's final figures were read."""


class Dialect(Protocol):
    """One provider API, in both directions."""

    name: str
    paths: dict[str, str]

    def read_request(self, body: bytes) -> RequestFacts:
        """Return the facts of a body. Raises GatewayError (400) without echoing any of it."""

    def outgoing_body(self, body: bytes, facts: RequestFacts, model: str, *, ask_for_usage: bool) -> bytes:
        """Return the body to send: `body` itself, or with the permitted changes spliced in."""

    def outgoing_headers(self, secret: str, client_headers: Mapping[str, str]) -> Headers:
        """Return the headers to send: ours, and those of the client on the allow-list."""

    def incoming_headers(self, status: int, provider_headers: Headers, request_id: str) -> Headers:
        """Return the headers of an answer that may be handed on, and our request id under the names clients read."""

    def reader(self, facts: RequestFacts, *, ask_for_usage: bool, max_bytes: int) -> UsageReader:
        """Return a reader for one successful answer that holds at most `max_bytes`."""

    def error(self, error: GatewayError, request_id: str) -> tuple[Headers, bytes]:
        """Return headers and body of an error of ours, as clients of this dialect parse it."""

    def limit_headers(self, levels: Sequence[LimitLevel], now_ms: int) -> Headers:
        """Return rate-limit headers computed from the key's own limits."""


def read_object(body: bytes, members: Sequence[str]) -> dict[str, object]:
    """Return the JSON object in `body`. Raises GatewayError when it is none, or says one of `members` twice.

    A member that stands twice would let the gateway read one value and the provider another.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise GatewayError(INVALID_JSON) from None
    if not isinstance(value, dict):
        raise GatewayError(INVALID_JSON)
    try:
        name = ambiguous_member(body, members)
    except TooIntricateError:
        raise GatewayError(INVALID_FIELD, "The request has more parts than can be checked. Send less.") from None
    if name is not None:
        raise GatewayError(INVALID_FIELD, f"The field '{name}' stands twice in the request. Send it once.")
    return value


def text_member(value: dict[str, object], name: str) -> str:
    """Return a required, non-empty string. Raises GatewayError."""
    member = value.get(name)
    if not isinstance(member, str) or not member:
        raise GatewayError(INVALID_FIELD, f"The field '{name}' is missing or is not a string.")
    return member


def flag_member(value: dict[str, object], name: str) -> bool:
    """Return an optional boolean; absent and null are false. Raises GatewayError."""
    member = value.get(name)
    if member is None:
        return False
    if not isinstance(member, bool):
        raise GatewayError(INVALID_FIELD, f"The field '{name}' must be true or false.")
    return member


def count_member(value: dict[str, object], name: str) -> int | None:
    """Return an optional whole number, 0 to 2**53; absent and null are None. Raises GatewayError."""
    member = value.get(name)
    if member is None:
        return None
    if not isinstance(member, int) or isinstance(member, bool) or not 0 <= member <= 2**53:
        raise GatewayError(INVALID_FIELD, f"The field '{name}' must be a whole number that is not negative.")
    return member


def list_member(value: dict[str, object], name: str) -> list[object]:
    """Return a required list. Raises GatewayError."""
    member = value.get(name)
    if not isinstance(member, list):
        raise GatewayError(INVALID_FIELD, f"The field '{name}' is missing or is not a list.")
    return member


def estimate_input_tokens(body: bytes) -> int:
    """Return about how many input tokens a body is: a quarter of its bytes, attachments at a flat rate."""
    size, attachments = len(body), 0
    if b"base64" in body:
        for run in _BASE64_RUN.finditer(body):
            size -= run.end() - run.start()
            attachments += 1
    return size // _BYTES_PER_TOKEN + attachments * _TOKENS_PER_ATTACHMENT + 1


def estimate_output_tokens(events: int, size: int) -> int:
    """Return about how many tokens a stream's events so far hold: one each at least, more when they are long."""
    return max(events, (size - events * _BYTES_PER_EVENT) // _BYTES_PER_TOKEN)


def is_count(value: object) -> TypeGuard[int]:
    """Whether a provider reported a count of tokens: a whole number, 0 to MAX_COUNT."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT


def count(value: object, name: str) -> int:
    """Return a count that a provider reported in member `name`; 0 for anything that is not one."""
    number = value.get(name) if isinstance(value, dict) else None
    return number if is_count(number) else 0


def tightest(levels: Sequence[LimitLevel], dimensions: Sequence[Dimension]) -> LimitLevel | None:
    """Return the window of these dimensions that has least left, None when the key has no such limit."""
    fitting = [level for level in levels if level.limit.dimension in dimensions]
    return min(fitting, key=lambda level: level.remaining, default=None)


def pick(headers: Iterable[tuple[str, str]], allowed: frozenset[str]) -> Headers:
    """Return the headers that are on an allow-list (lower-case names), each as often as it stands there."""
    return [(lower, value) for name, value in headers if (lower := name.lower()) in allowed]


# What of a provider's answer may reach a client, in every dialect. Cookies, organisation ids, the provider's own
# rate limits and everything that a content delivery network adds stay out because they are not named.
ANSWER_HEADERS = frozenset({"content-type", "content-encoding", "content-language", "cache-control", "date"})
_RETRY_STATUSES = (429, 503, 529)


def answer_headers(status: int, headers: Headers, more: frozenset[str]) -> Headers:
    """Return the headers of a provider's answer that may be handed on; `retry-after` where it tells to wait."""
    allowed = ANSWER_HEADERS | more
    if status in _RETRY_STATUSES:
        allowed |= {"retry-after", "retry-after-ms"}
    return pick(headers, allowed)


def retry_headers(error: GatewayError) -> Headers:
    """Return the headers that make SDKs wait or stop: they read these before any body.

    `retry-after` is in whole seconds, rounded up; `retry-after-ms` is exact and preferred by the official SDKs.
    """
    headers: Headers = []
    if error.retry_after_ms is not None:
        headers.append(("retry-after", str(-(-error.retry_after_ms // 1000))))
        headers.append(("retry-after-ms", str(error.retry_after_ms)))
    if not error.kind.retryable:
        headers.append(("x-should-retry", "false"))
    return headers
