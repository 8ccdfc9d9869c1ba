"""What an answer is charged: the rules, in one place, without I/O.

    what happened                                             tokens charged
    -------------------------------------------------------   ------------------------------------------------
    the request was not fully sent                            none
    the provider answered with an error status                none
    the provider's figures were read                          exactly those
    sent, but no answer (time limit, broken connection)       the input estimate, flagged
    the answer broke off, or its figures never came           input as known or estimated, what passed, flagged
    the client hung up                                        as above, from what the provider sent until then

The request itself counts in every case: it was admitted.
"""

from dataclasses import dataclass

from edgeproxy.domain.reservations import Outcome
from edgeproxy.domain.usage import Usage
from edgeproxy.providers.base import Dialect, RequestFacts, UsageReader

_NOTHING = Usage()


@dataclass(frozen=True, slots=True)
class Charge:
    """How a reservation is to be resolved."""

    outcome: Outcome
    usage: Usage


class Meter:
    """Reads one answer while it passes. Only an answer with a status of success is read."""

    def __init__(self, dialect: Dialect, facts: RequestFacts, *, asks_for_usage: bool, max_bytes: int) -> None:
        self.dialect = dialect
        self._facts = facts
        self._asks_for_usage = asks_for_usage
        self._max_bytes = max_bytes
        self._reader: UsageReader | None = None
        self._status = 0

    @property
    def may_change_length(self) -> bool:
        """Whether `feed` can return less than it got."""
        return self._asks_for_usage and self._reader is not None

    @property
    def is_finished(self) -> bool:
        """Whether the answer's own last word has passed, after which a client may stop listening."""
        return self._reader is not None and self._reader.is_finished

    def begin(self, status: int) -> None:
        """The answer has this status."""
        self._status = status
        if 200 <= status < 300:
            self._reader = self.dialect.reader(
                self._facts, ask_for_usage=self._asks_for_usage, max_bytes=self._max_bytes
            )

    def feed(self, chunk: bytes) -> bytes:
        """Read a chunk and return what is to be forwarded of it."""
        return chunk if self._reader is None else self._reader.feed(chunk)

    def end(self) -> bytes:
        """Return what is still to be forwarded."""
        return b"" if self._reader is None else self._reader.end()

    def charge(self, *, written: bool) -> Charge:
        """Return what is charged, were the answer over now. `written`: whether the whole request had left."""
        if self._reader is not None:
            return Charge(Outcome.POST, self._reader.usage(self._facts.input_estimate))
        if self._status or not written:
            return Charge(Outcome.VOID, _NOTHING)
        return Charge(Outcome.POST, Usage(input_uncached=self._facts.input_estimate, estimated=True))
