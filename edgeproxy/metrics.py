"""Every Prometheus metric, declared once, with closed label sets.

No key, account, address or model name taken from a client is ever a label: labels are our own words.
A process builds one `Metrics`; nothing is registered by importing.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_SHORT_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1)


class Metrics:
    """The metrics of one process and their registry.

    `dialect` is a dialect's name, `provider` a name from the configuration, `status` an HTTP status,
    `reason` and `error` a code from `errors`, `kind` a kind of token.
    """

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a time of creation beside every counter tells nothing, and cannot be summed
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "edgeproxy_requests", "Requests answered.", ["dialect", "status"], registry=self.registry
        )
        self.refusals = Counter(
            "edgeproxy_refusals",
            "Requests answered by the gateway itself, by reason.",
            ["reason"],
            registry=self.registry,
        )
        self.tokens = Counter(
            "edgeproxy_tokens",
            "Tokens metered: input, cache_read, cache_write, output.",
            ["provider", "kind"],
            registry=self.registry,
        )
        self.estimated = Counter(
            "edgeproxy_estimated_answers",
            "Answers whose usage is an estimate because the provider's figures did not arrive.",
            ["provider"],
            registry=self.registry,
        )
        self.first_byte_seconds = Histogram(
            "edgeproxy_first_byte_seconds",
            "From the request's arrival to the first byte of the answer.",
            ["provider"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.total_seconds = Histogram(
            "edgeproxy_total_seconds",
            "From the request's arrival to the end of the answer.",
            ["provider"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.overhead_seconds = Histogram(
            "edgeproxy_overhead_seconds",
            "From the request's arrival to its last byte being handed to the provider's connection.",
            buckets=_SHORT_SECONDS,
            registry=self.registry,
        )
        self.open_streams = Gauge(
            "edgeproxy_open_streams", "Answers that are being forwarded now.", registry=self.registry
        )
        self.upstream_errors = Counter(
            "edgeproxy_upstream_errors",
            "Failures of providers, by error code or by HTTP status.",
            ["provider", "error"],
            registry=self.registry,
        )
        self.redis_seconds = Histogram(
            "edgeproxy_redis_round_trip_seconds",
            "Round trips to Redis that a request waited for.",
            buckets=_SHORT_SECONDS,
            registry=self.registry,
        )
        self.settlements_lost = Counter(
            "edgeproxy_settlements_lost",
            "Settlements that Redis did not confirm: each leaves a reservation open.",
            registry=self.registry,
        )
        self.flushed_events = Counter(
            "edgeproxy_flushed_events",
            "Usage events taken from Redis: stored, repeated, dropped (key erased) or dead (not storable).",
            ["outcome"],
            registry=self.registry,
        )
        self.flush_lag_seconds = Gauge(
            "edgeproxy_flush_lag_seconds",
            "Age of the oldest usage event that waits in Redis.",
            registry=self.registry,
        )
        self.job_failures = Counter(
            "edgeproxy_job_failures", "Rounds of background work that failed.", ["task"], registry=self.registry
        )

    def render(self) -> bytes:
        """Return all metrics of this process in Prometheus text format."""
        return generate_latest(self.registry)
