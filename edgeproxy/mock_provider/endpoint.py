"""One thing that a provider can be asked: how its request is read, its answer is made and billed.

The dialect modules fill this in, `routes` gives each a path, `server` carries it out.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from edgeproxy.mock_provider.directives import Behaviour
from edgeproxy.mock_provider.exchange import Exchange, Tokens, exchange_from, exchange_of, fields_of
from edgeproxy.mock_provider.multipart import form_fields

Bill = Mapping[str, Tokens]  # by the model that it is billed at

JSON = "application/json"
EVENT_STREAM = "text/event-stream; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Incoming:
    """A request as the HTTP side hands it over."""

    body: bytes
    content_type: str = JSON
    path_model: str = ""  # where the path names the model
    query: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a request is refused."""

    status: int
    message: str
    behaviour: Behaviour = field(default_factory=Behaviour)  # the request's, as far as it could be read
    wrong_key: bool = False
    array: bool = False  # the answer would have been a JSON array


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error answer in a dialect's shape. A wrong key has its own status in some of them."""

    status: int
    headers: dict[str, str]
    body: bytes


class Dialect(Protocol):
    """What all answers of one provider share; the modules `openai`, `anthropic` and `gemini` are the three of them."""

    def answer_headers(self, exchange: Exchange) -> dict[str, str]:
        """Headers that the provider adds to every answer, the ones that a gateway must hide included."""

    def refusal(self, problem: Problem) -> Refusal:
        """Status, headers and body of an error answer."""


def read_json(incoming: Incoming) -> Exchange:
    """Read a JSON body that names its model. Raises ValueError."""
    return exchange_of(incoming.body)


def read_form(incoming: Incoming) -> Exchange:
    """Read a multipart body, one of whose fields names the model. Raises ValueError."""
    form: dict[str, Any] = dict(form_fields(incoming.body, incoming.content_type))
    return exchange_from(form | {"stream": form.get("stream") == "true"})


def read_loosely(incoming: Incoming) -> Exchange:
    """Read a request that need not name a model: a form, a JSON body, any other upload, or none. Raises ValueError."""
    found: dict[str, Any] = {}
    if incoming.content_type.startswith("multipart/form-data"):
        found |= form_fields(incoming.body, incoming.content_type)
    elif incoming.body and incoming.content_type.startswith(JSON):
        found |= fields_of(incoming.body)
    return exchange_from({"model": incoming.path_model} | found)


def bill_of(exchange: Exchange) -> Bill:
    """All tokens at the model that served them."""
    return {exchange.served_model: exchange.tokens}


def free(_exchange: Exchange) -> Bill:
    """Nothing is billed, or nothing in tokens."""
    return {}


def content_type_of(exchange: Exchange) -> str:
    """Say what most answers are: JSON, or an event stream."""
    return EVENT_STREAM if exchange.streamed else JSON


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One thing that a provider can be asked.

    `events` gives whole events of a streamed answer, in order; None: it never streams. `error_event` is what reports
    an error in the middle of a stream.
    """

    dialect: Dialect
    unary: Callable[[Exchange], bytes]
    events: Callable[[Exchange], Iterator[bytes]] | None = None
    error_event: Callable[[Exchange], bytes] = lambda _: b""
    read: Callable[[Incoming], Exchange] = read_json
    bill: Callable[[Exchange], Bill] = bill_of
    content_type: Callable[[Exchange], str] = content_type_of
