"""What the mock provider served, as `GET /__count` reports it.

It lives in memory only, and nothing of a body or of a secret is kept: digests, sizes, names.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

from edgeproxy.mock_provider.exchange import Tokens

_MAX_MODELS = 1000  # names kept apart; model names come from outside, so their number is bounded
_OTHER = "other"
_MAX_PEERS = 100_000


@dataclass(slots=True)
class Served:
    """Counts of answers. Tokens and `completed` count answers whose last byte was handed to the transport."""

    requests: int = 0  # arrived, refused ones included
    started: int = 0  # the head of an answer was written
    completed: int = 0  # a successful answer was written to its end
    broken: int = 0  # ended early, on purpose or because the client left
    input_tokens: int = 0  # cached ones included
    output_tokens: int = 0  # reasoning included
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    cache_write_1h_tokens: int = 0  # those of `cache_write_tokens` that are kept for an hour
    web_searches: int = 0
    cost_nanos: int = 0  # what the answers say that they cost, in 1e-9 USD

    def complete(self, tokens: Tokens) -> None:
        """Count one answer that was written to its end."""
        self.completed += 1
        self.input_tokens += tokens.input_total
        self.output_tokens += tokens.output_total
        self.cache_read_tokens += tokens.cache_read
        self.cache_write_tokens += tokens.cache_write
        self.reasoning_tokens += tokens.reasoning
        self.cache_write_1h_tokens += tokens.cache_write_1h
        self.web_searches += tokens.web_searches
        self.cost_nanos += tokens.cost_nanos


@dataclass(frozen=True, slots=True)
class LastRequest:
    """What the last request looked like: enough to see that it was passed on unchanged, not to read it."""

    path: str = ""
    body_sha256: str = ""
    body_bytes: int = 0
    headers: tuple[str, ...] = ()  # names only, lower case, sorted
    query: tuple[str, ...] = ()  # names only, sorted
    accept_encoding: str = ""
    secret_in: str = ""  # "authorization", "x-api-key", "x-goog-api-key", "query" (a mistake, whatever else came) or ""
    secret_accepted: bool = False


@dataclass(slots=True)
class Counts:
    """All counts of one mock provider."""

    total: Served = field(default_factory=Served)
    by_model: dict[str, Served] = field(default_factory=dict)  # as requested
    by_billed_model: dict[str, Served] = field(default_factory=dict)  # tokens and `completed` only
    by_status: Counter[str] = field(default_factory=Counter)
    open: int = 0  # requests that are being answered now
    open_peak: int = 0
    receiving_bytes: int = 0  # of the bodies of open requests, so far
    keys_in_query: int = 0  # requests with `?key=`, which must never be passed on
    peers: set[object] = field(default_factory=set)  # addresses that requests came from, one per connection
    last: LastRequest = field(default_factory=LastRequest)

    def of_model(self, model: str) -> Served:
        """Return the counts of one model name (as requested, directives included)."""
        return _row(self.by_model, model)

    def of_billed_model(self, model: str) -> Served:
        """Return the counts of what is billed at a model, by the name that the answer gives it."""
        return _row(self.by_billed_model, model)

    def arrived(self, peer: object) -> None:
        """Count one request that came in from `peer`, the address of its connection."""
        self.total.requests += 1
        self.open += 1
        self.open_peak = max(self.open, self.open_peak)
        if len(self.peers) < _MAX_PEERS:
            self.peers.add(peer)

    def reset(self) -> None:
        """Begin anew. What is open stays open."""
        self.total = Served()
        self.by_model = {}
        self.by_billed_model = {}
        self.by_status = Counter()
        self.open_peak = self.open
        self.keys_in_query = 0
        self.peers = set()
        self.last = LastRequest()

    def snapshot(self) -> dict[str, object]:
        """Return the JSON object of `GET /__count`."""
        return {
            **asdict(self.total),
            "open": self.open,
            "open_peak": self.open_peak,
            "receiving_bytes": self.receiving_bytes,
            "keys_in_query": self.keys_in_query,
            "connections": len(self.peers),
            "by_model": {model: asdict(served) for model, served in self.by_model.items()},
            "by_billed_model": {model: asdict(served) for model, served in self.by_billed_model.items()},
            "by_status": dict(self.by_status),
            **{f"last_{name}": value for name, value in asdict(self.last).items()},
        }


def _row(rows: dict[str, Served], model: str) -> Served:
    return rows.setdefault(model if model in rows or len(rows) < _MAX_MODELS else _OTHER, Served())


def last_request(path: str, body: bytes, header_names: Iterable[str], accept_encoding: str) -> LastRequest:
    """Describe a request by digest, sizes and header names."""
    return LastRequest(
        path=path,
        body_sha256=hashlib.sha256(body).hexdigest(),
        body_bytes=len(body),
        headers=tuple(sorted(name.lower() for name in header_names)),
        accept_encoding=accept_encoding.encode("ascii", "replace").decode(),
    )
