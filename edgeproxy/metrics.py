"""Every Prometheus metric, declared once, with closed label sets.

No key, account, address or model name taken from a client is ever a label: labels are our own words.
A process builds one `Metrics`; nothing is registered by importing. One thread counts: nothing here takes a lock.
"""

from bisect import bisect_left
from typing import Any, Self

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_SHORT_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1)


class _Number:
    """What a metric counts in. The library's own takes a lock for each step, which costs more than the step."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def get(self) -> float:
        return self.value

    def set(self, value: float) -> None:
        self.value = value

    def get_exemplar(self) -> None:
        return None


class _Counter(Counter):
    def _metric_init(self) -> None:
        super()._metric_init()
        self._value = _Number()

    def labels(self, *labelvalues: object, **labelkwargs: object) -> Self:
        children: dict[Any, Any] = self._metrics
        child: Self | None = children.get(labelvalues)
        return super().labels(*labelvalues, **labelkwargs) if child is None else child

    def inc(self, amount: float = 1) -> None:  # type: ignore[override]  # nothing here has exemplars
        try:
            self._value.value += amount
        except AttributeError:  # its labels are missing: the library says so
            super().inc(amount)


class _Gauge(Gauge):
    def _metric_init(self) -> None:
        super()._metric_init()
        self._value = _Number()

    def inc(self, amount: float = 1) -> None:
        self._value.value += amount

    def dec(self, amount: float = 1) -> None:
        self._value.value -= amount


class _Histogram(Histogram):
    def _metric_init(self) -> None:
        super()._metric_init()
        self._sum = _Number()
        self._buckets = [_Number() for _ in self._upper_bounds]

    def labels(self, *labelvalues: object, **labelkwargs: object) -> Self:
        children: dict[Any, Any] = self._metrics
        child: Self | None = children.get(labelvalues)
        return super().labels(*labelvalues, **labelkwargs) if child is None else child

    def observe(self, amount: float) -> None:  # type: ignore[override]  # as above
        try:
            self._sum.value += amount
        except AttributeError:
            super().observe(amount)
        self._buckets[bisect_left(self._upper_bounds, amount)].value += 1


class Metrics:
    """The metrics of one process and their registry.

    `dialect` is a dialect's name, `provider` a name from the configuration, `status` an HTTP status,
    `reason` and `error` a code from `errors`, `kind` a kind of token, `tool` one of `domain.usage.TOOLS`, or `other`.
    """

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a time of creation beside every counter tells nothing, and cannot be summed
        self.registry = CollectorRegistry()
        self._declare_answers()
        self._declare_timings()
        self._declare_accounting()

    def render(self) -> bytes:
        """Return all metrics of this process in Prometheus text format."""
        return generate_latest(self.registry)

    def _declare_answers(self) -> None:
        self.requests = self._counter("edgeproxy_requests", "Requests answered.", "dialect", "status")
        self.refusals = self._counter(
            "edgeproxy_refusals", "Requests answered by the gateway itself, by reason.", "reason"
        )
        self.malformed = self._counter(
            "edgeproxy_malformed_requests",
            "Requests refused for their form, by the row of the table in gateway/hygiene.py, or `parser`.",
            "rule",
        )
        self.slow_clients = self._counter(
            "edgeproxy_slow_clients", "Connections cut because the client took its answer too slowly."
        )
        self.connections_refused = self._counter(
            "edgeproxy_connections_refused",
            "Connections closed before any HTTP: untrusted_peer (plain HTTP from a stranger), proxy_header (none, a"
            " broken or a late one), full (as many as may be are open).",
            "reason",
        )
        self.upstream_errors = self._counter(
            "edgeproxy_upstream_errors", "Failures of providers, by error code or by HTTP status.", "provider", "error"
        )
        self.reloads = self._counter(
            "edgeproxy_reloads", "Configurations read again: applied, or refused and nothing changed.", "outcome"
        )
        self.open_streams = self._gauge("edgeproxy_open_streams", "Answers that are being forwarded now.")

    def _declare_timings(self) -> None:
        self.first_byte_seconds = self._histogram(
            "edgeproxy_first_byte_seconds",
            "From the request's arrival to the first byte of the answer.",
            _SECONDS,
            "provider",
        )
        self.total_seconds = self._histogram(
            "edgeproxy_total_seconds", "From the request's arrival to the end of the answer.", _SECONDS, "provider"
        )
        self.overhead_seconds = self._histogram(
            "edgeproxy_overhead_seconds",
            "From the request's arrival to its last byte being handed to the provider's connection.",
            _SHORT_SECONDS,
        )
        self.redis_seconds = self._histogram(
            "edgeproxy_redis_round_trip_seconds", "Round trips to Redis that a request waited for.", _SHORT_SECONDS
        )

    def _declare_accounting(self) -> None:
        self.tokens = self._counter(
            "edgeproxy_tokens", "Tokens metered: input, cache_read, cache_write, output.", "provider", "kind"
        )
        self.tool_calls = self._counter(
            "edgeproxy_tool_calls",
            "Calls of the providers' own tools, which they bill beside tokens.",
            "provider",
            "tool",
        )
        self.provider_cost_usd = self._counter(
            "edgeproxy_provider_cost_usd", "What providers said they charged, where they say it.", "provider"
        )
        self.estimated = self._counter(
            "edgeproxy_estimated_answers",
            "Answers whose usage is an estimate because the provider's figures did not arrive.",
            "provider",
        )
        self.observed_refusals = self._counter(
            "edgeproxy_observed_refusals",
            "Requests admitted although a limit was reached, because their key only observes: window, concurrency,"
            " balance.",
            "reason",
        )
        self.journaled_settlements = self._counter(
            "edgeproxy_journaled_settlements", "Settlements written to the journal because Redis had not taken them."
        )
        self.late_settlements = self._counter(
            "edgeproxy_late_settlements",
            "Settlements whose reservation was gone (unknown) or settled by `jobs` before (reaped): `jobs` corrects.",
            "reason",
        )
        self.settlements_lost = self._counter(
            "edgeproxy_settlements_lost",
            "Settlements that neither Redis nor the journal had when a process ended: `jobs` charges an estimate.",
        )
        self.flushed_events = self._counter(
            "edgeproxy_flushed_events",
            "Usage events taken from Redis: stored, repeated, dropped (key erased) or dead (not storable).",
            "outcome",
        )
        self.flush_lag_seconds = self._gauge(
            "edgeproxy_flush_lag_seconds", "Age of the oldest usage event that waits in Redis."
        )
        self.reaped_reservations = self._counter(
            "edgeproxy_reaped_reservations",
            "Requests that nothing was heard of for a lease, because their worker died or froze: charged an estimate,"
            " or unreadable (ended without an event).",
            "outcome",
        )
        self.corrections = self._counter(
            "edgeproxy_corrections",
            "Settlements that came too late, compared with what is stored: added, changed (an estimate was stored),"
            " equal, kept (other final figures stand), dropped (key erased) or dead (not storable).",
            "outcome",
        )
        self.partitions_closed = self._gauge(
            "edgeproxy_partitions_closed",
            "Partitions in which nothing is admitted until Redis was compared with PostgreSQL.",
        )
        self.drift_keys = self._gauge(
            "edgeproxy_drift_keys", "Keys of which Redis holds something else than PostgreSQL knows."
        )
        self.job_failures = self._counter("edgeproxy_job_failures", "Rounds of background work that failed.", "task")

    def _counter(self, name: str, doc: str, *labels: str) -> _Counter:
        return _Counter(name, doc, labels, registry=self.registry)

    def _gauge(self, name: str, doc: str) -> _Gauge:
        return _Gauge(name, doc, registry=self.registry)

    def _histogram(self, name: str, doc: str, buckets: tuple[float, ...], *labels: str) -> _Histogram:
        return _Histogram(name, doc, labels, buckets=buckets, registry=self.registry)
