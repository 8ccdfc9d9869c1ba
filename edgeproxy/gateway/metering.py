"""What an answer is charged: the rules, in one place, without I/O.

    what happened                                             tokens charged
    -------------------------------------------------------   ------------------------------------------------
    the provider bills nothing for it                         none
    the request was not fully sent                            none
    the provider answered with an error status                none
    the provider's figures were read                          exactly those
    sent, but no answer (time limit, broken connection)       the input estimate, flagged
    the answer broke off, or its figures never came           input as known or estimated, what passed, flagged
    the client hung up                                        as above, from what the provider sent until then

The request itself counts in every case: it was admitted.
"""

from edgeproxy.domain.records import record
from edgeproxy.domain.reservations import Outcome
from edgeproxy.domain.usage import Usage
from edgeproxy.gateway.routes import Route
from edgeproxy.providers.base import Headers, Incoming, RequestFacts, UsageReader
from edgeproxy.providers.encoding import DecodingReader, encoding_of
from edgeproxy.providers.readers import ObjectReader

_NOTHING = Usage()
_CHECK_BYTES = 16 * 1024  # of an answer, between two looks at how long it has become
_TOLERATED_TOKENS = 256  # and a quarter: what has passed is counted from outside
_JSON, _EVENTS = "application/json", "text/event-stream"


def _tells_nothing(_answer: dict[str, object]) -> Usage | None:
    return None


@record
class Charge:
    """How a reservation is to be resolved."""

    outcome: Outcome
    usage: Usage


class Meter:
    """Reads one answer while it passes. Only an answer with a status of success, to what costs anything, is read."""

    def __init__(self, route: Route, facts: RequestFacts, *, asks_for_usage: bool, max_bytes: int) -> None:
        self.dialect = route.dialect
        self.operation = route.endpoint.name
        self._endpoint = route.endpoint
        self._facts = facts
        self._asks_for_usage = asks_for_usage
        self._max_bytes = max_bytes
        self.reader: UsageReader | None = None  # None as long as nothing is to be read
        self._status = 0
        self._unchecked = 0  # bytes
        self.may_change_length = False  # whether `feed` can return less than it got
        self.received: int | None = None  # bytes of a request whose size was not known when it was estimated

    def begin(self, status: int, headers: Headers) -> None:
        """The answer has this status and these headers."""
        self._status = status
        if not 200 <= status < 300 or self._facts.is_free:
            return
        named = dict(headers)
        encoding = encoding_of(named["content-encoding"]) if "content-encoding" in named else ""
        content_type = named.get("content-type", "").partition(";")[0].strip().lower()
        if self._facts.stream and content_type != _JSON:
            content_type = _EVENTS  # a server that does not say so streams all the same
        if encoding == "unknown":
            self.reader = ObjectReader(0, _tells_nothing, self._facts.output_max)  # its size is all that is known
            return
        self.may_change_length = self._asks_for_usage and not encoding
        self.reader = self._endpoint.reader(
            self._facts, content_type, ask_for_usage=self.may_change_length, max_bytes=self._max_bytes
        )
        if encoding:
            self.reader = DecodingReader(self.reader)

    def feed(self, chunk: bytes) -> bytes:
        """Read a chunk and return what is to be forwarded of it."""
        self._unchecked += len(chunk)
        return chunk if self.reader is None else self.reader.feed(chunk)

    def end(self) -> bytes:
        """Return what is still to be forwarded."""
        return b"" if self.reader is None else self.reader.end()

    def output_so_far(self) -> int:
        """Return a lower bound of the output tokens that have passed; 0 where only the end of the answer tells."""
        return 0 if self.reader is None else self.reader.output_so_far()

    def so_far(self) -> tuple[int, int]:
        """Return the input and output tokens that have passed, as far as that costs next to nothing to know."""
        return (0, 0) if self.reader is None else (self._input_estimate(), self.output_so_far())

    def is_over(self, output_tokens: int) -> bool:
        """Whether more output has passed than was reserved, beyond doubt. Looks only now and then.

        The backstop for a provider that does not keep to the maximum it was given. Only a stream can be cut: an answer
        in one piece has been written, and is billed, before it comes.
        """
        if self._unchecked < _CHECK_BYTES:
            return False
        self._unchecked = 0
        return self.output_so_far() > output_tokens + output_tokens // 4 + _TOLERATED_TOKENS

    def charge(self, *, written: bool) -> Charge:
        """Return what is charged, were the answer over now. `written`: whether the whole request had left."""
        if self.reader is not None:
            estimate = self._facts.input_estimate if self.received is None else self._input_estimate()
            return Charge(Outcome.POST, self.reader.usage(estimate))
        if self._status or not written or self._facts.is_free:
            return Charge(Outcome.VOID, _NOTHING)
        return Charge(Outcome.POST, Usage(input_uncached=self._input_estimate(), estimated=True))

    def _input_estimate(self) -> int:
        if self.received is None:
            return self._facts.input_estimate
        return self._endpoint.read_request(Incoming("POST", b"", self.received)).input_estimate
