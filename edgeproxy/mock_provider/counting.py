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

    def complete(self, tokens: Tokens) -> None:
        """Count one answer that was written to its end."""
        self.completed += 1
        self.input_tokens += tokens.input_total
        self.output_tokens += tokens.output_total
        self.cache_read_tokens += tokens.cache_read
        self.cache_write_tokens += tokens.cache_write
        self.reasoning_tokens += tokens.reasoning


@dataclass(frozen=True, slots=True)
class LastRequest:
    """What the last request looked like: enough to see that it was passed on unchanged, not to read it."""

    path: str = ""
    body_sha256: str = ""
    body_bytes: int = 0
    headers: tuple[str, ...] = ()  # names only, lower case, sorted
    accept_encoding: str = ""
    secret_in: str = ""  # "authorization", "x-api-key" or ""
    secret_accepted: bool = False


@dataclass(slots=True)
class Counts:
    """All counts of one mock provider."""

    total: Served = field(default_factory=Served)
    by_model: dict[str, Served] = field(default_factory=dict)
    by_status: Counter[str] = field(default_factory=Counter)
    open: int = 0  # requests that are being answered now
    open_peak: int = 0
    peers: set[object] = field(default_factory=set)  # addresses that requests came from, one per connection
    last: LastRequest = field(default_factory=LastRequest)

    def of_model(self, model: str) -> Served:
        """Return the counts of one model name (as requested, directives included)."""
        if model not in self.by_model and len(self.by_model) >= _MAX_MODELS:
            model = _OTHER
        return self.by_model.setdefault(model, Served())

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
        self.by_status = Counter()
        self.open_peak = self.open
        self.peers = set()
        self.last = LastRequest()

    def snapshot(self) -> dict[str, object]:
        """Return the JSON object of `GET /__count`."""
        return {
            **asdict(self.total),
            "open": self.open,
            "open_peak": self.open_peak,
            "connections": len(self.peers),
            "by_model": {model: asdict(served) for model, served in self.by_model.items()},
            "by_status": dict(self.by_status),
            **{f"last_{name}": value for name, value in asdict(self.last).items()},
        }


def last_request(path: str, body: bytes, header_names: Iterable[str], accept_encoding: str) -> LastRequest:
    """Describe a request by digest, sizes and header names."""
    return LastRequest(
        path=path,
        body_sha256=hashlib.sha256(body).hexdigest(),
        body_bytes=len(body),
        headers=tuple(sorted(name.lower() for name in header_names)),
        accept_encoding=accept_encoding.encode("ascii", "replace").decode(),
    )
