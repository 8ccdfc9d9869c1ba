"""What every dialect has to offer the gateway: which operations it has, and what is read and changed for each.

Sans-I/O: bytes and numbers come in, bytes, headers and usage go out. A dialect reads the few fields that it needs and
passes all others through untouched. A new provider is one module that has a `Dialect`, and one line in `registry`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

import orjson

from edgeproxy.domain.features import Feature
from edgeproxy.domain.limits import Limit
from edgeproxy.domain.records import record
from edgeproxy.domain.usage import Usage
from edgeproxy.errors import GatewayError
from edgeproxy.providers.body import replace_member

Headers = list[tuple[str, str]]

NOT_EXAMINED = "what was not examined"

# Parameters of a query that are passed on, each with the values that it may have (None: any). All others are dropped.
AllowedQuery = Mapping[str, frozenset[str] | None]


class Body(Enum):
    """What an operation's requests carry."""

    JSON = auto()  # an object, read as a whole before anything is sent
    FORM = auto()  # multipart: held until the model's name has been seen, the rest is handed on as it comes
    ANY = auto()  # not read: handed on as it comes
    NONE = auto()  # answered here, from the configuration


@record
class Incoming:
    """A request as far as it has to be read.

    `body` is all of it (JSON), or what has come so far; `size` is the length of the whole in bytes as far as it is
    known. `model` is the name that the path holds, or the form, where `model_span` says at which bytes. `strict` asks
    what gives the request no upper bound, which takes a closer look.
    """

    method: str
    body: bytes
    size: int
    model: str = ""
    model_span: tuple[int, int] | None = None
    strict: bool = False


@record
class RequestFacts:
    """What the gateway has to know of a request.

    `input_estimate` and `output_max` are tokens; `output_max` None means that the request declares no maximum.
    `usage_requested` says that a stream brings its usage without being asked by us; `stream_options` is where a client
    asks for it. `is_free` says that the provider bills nothing for it. `features` are what hides its bill. `long_cache`
    says that it asks for a cache of an hour. `other_models` are those that it lets the provider use beside `model`.

    `answers` is how many are asked for; `output_max` is for all of them together. `least_output` is the least that the
    maximum can be lowered to (`Endpoint.with_output_max`), None where it cannot. `unbounded` is what lets the request
    be billed for more input than it has bytes, or for more output than its maximum: "" for nothing, NOT_EXAMINED where
    nobody asked (`Incoming.strict`).
    """

    model: str
    stream: bool
    input_estimate: int
    output_max: int | None
    usage_requested: bool = True
    stream_options: dict[str, object] | None = None
    is_free: bool = False
    features: tuple[Feature, ...] = ()
    long_cache: bool = False
    model_span: tuple[int, int] | None = None
    other_models: tuple[str, ...] = ()
    answers: int = 1
    least_output: int | None = None
    unbounded: str = NOT_EXAMINED


@record
class LimitLevel:
    """Where one window of the key stands after this request was admitted or refused."""

    limit: Limit
    remaining: int
    reset_ms: int


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A model that the gateway names to clients: ours to tell, never asked of the provider."""

    name: str
    provider: str
    max_output_tokens: int  # 0 if unknown


class UsageReader(Protocol):
    """Reads the usage out of an answer while it passes. Whatever bytes come, it raises nothing and stays bounded."""

    @property
    def is_finished(self) -> bool:
        """Whether the answer's own last word has been read: a client may stop listening after it."""

    def feed(self, chunk: bytes) -> bytes:
        """Read `chunk` and return what is to be forwarded now: nearly always the same object."""

    def end(self) -> bytes:
        """The answer is over: return what is still to be forwarded."""

    def output_so_far(self) -> int:
        """Return a lower bound of the output tokens that have passed; cheap, 0 where only the end tells."""

    def usage(self, input_estimate: int) -> Usage:
        """Return what the answer used so far; `estimated` unless the provider's final figures were read."""


class Endpoint:
    """One operation of a dialect. The defaults are those of most: a POST of JSON whose body names the model."""

    name = ""  # as in the errors and documents
    methods: tuple[str, ...] = ("POST",)
    body = Body.JSON

    def read_request(self, incoming: Incoming) -> RequestFacts:
        """Return the facts of a request. Raises GatewayError (400) without echoing any of it."""
        raise NotImplementedError

    def outgoing_body(self, body: bytes, facts: RequestFacts, model: str, *, ask_for_usage: bool) -> bytes:
        """Return the bytes to send in place of `body`: itself, or with another name of the model spliced in."""
        if model == facts.model:
            return body
        if facts.model_span is not None:
            start, end = facts.model_span
            return body[:start] + model.encode() + body[end:]
        return replace_member(body, "model", orjson.dumps(model))

    def with_output_max(self, body: bytes, facts: RequestFacts, tokens: int) -> bytes:
        """Return the body with a maximum of `tokens` for all answers together, in place of a larger one or of none.

        Every other byte stays. Only for a request whose facts have a `least_output`, which `tokens` is not below.
        """
        raise NotImplementedError

    def reader(self, facts: RequestFacts, content_type: str, *, ask_for_usage: bool, max_bytes: int) -> UsageReader:
        """Return a reader for one successful answer that holds at most `max_bytes`.

        `content_type` is the answer's, in lower case and without parameters: it says what has come, while the request
        says only what was asked for.
        """
        raise NotImplementedError


class Models(Endpoint):
    """All models, or one of them by name: which there are is the operator's to say, so the provider is never asked."""

    name = "models"
    methods = ("GET", "HEAD")
    body = Body.NONE


MODELS = Models()


@dataclass(frozen=True, slots=True)
class Call:
    """What a path asks for.

    `path` is what to send to the provider, with `{model}` where the model's name belongs. `model` is the name in the
    path, decoded, "" when the body holds it.
    """

    endpoint: Endpoint
    path: str
    model: str = ""


class Dialect(Protocol):
    """One provider API, in both directions."""

    name: str
    query: AllowedQuery
    example_path: str  # where a client of another dialect is sent

    def find(self, path: str) -> Call | None:
        """Return what a path asks for, None when this dialect does not have it."""

    def upstream_path(self, base_path: str, path: str) -> str:
        """Return the path below the path of a provider's base URL, as this dialect's own clients join them."""

    def outgoing_headers(self, secret: str, client_headers: Mapping[str, str]) -> Headers:
        """Return the headers to send: ours, and those of the client on the allow-list."""

    def incoming_headers(self, status: int, provider_headers: Headers, request_id: str) -> Headers:
        """Return the headers of an answer that may be handed on, and our request id under the names clients read."""

    def is_credentials_error(self, body: bytes) -> bool:
        """Whether the body of a 400 says that the provider did not accept our secret."""

    def error(self, error: GatewayError, request_id: str) -> tuple[Headers, bytes]:
        """Return headers and body of an error of ours, as clients of this dialect parse it."""

    def limit_headers(self, levels: Sequence[LimitLevel], now_ms: int) -> Headers:
        """Return rate-limit headers computed from the key's own limits."""

    def model_list(self, models: Sequence[ListedModel], query: Mapping[str, str]) -> bytes:
        """Return the answer to a question for all models; `query` may ask for a part of them."""

    def model_card(self, model: ListedModel) -> bytes:
        """Return the answer to a question for one model."""
