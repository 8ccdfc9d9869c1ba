import pytest
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

from edgeproxy.metrics import Metrics

# What may tell two series apart: words of ours, never a key, an address or a model.
LABELS = {
    "requests": ("dialect", "status"),
    "refusals": ("reason",),
    "malformed": ("rule",),
    "slow_clients": (),
    "connections_refused": ("reason",),
    "tokens": ("provider", "kind"),
    "estimated": ("provider",),
    "tool_calls": ("provider", "tool"),
    "provider_cost_usd": ("provider",),
    "first_byte_seconds": ("provider",),
    "total_seconds": ("provider",),
    "overhead_seconds": (),
    "reloads": ("outcome",),
    "open_streams": (),
    "upstream_errors": ("provider", "error"),
    "redis_seconds": (),
    "settlements_lost": (),
    "observed_refusals": ("reason",),
    "journaled_settlements": (),
    "late_settlements": ("reason",),
    "flushed_events": ("outcome",),
    "flush_lag_seconds": (),
    "reaped_reservations": ("outcome",),
    "corrections": ("outcome",),
    "partitions_closed": (),
    "drift_keys": (),
    "job_failures": ("task",),
}


def declared(metrics):
    return {name: value for name, value in vars(metrics).items() if isinstance(value, MetricWrapperBase)}


def test_the_label_sets_are_closed():
    assert {name: metric._labelnames for name, metric in declared(Metrics()).items()} == LABELS


def test_a_label_that_is_not_declared_is_an_error():
    metrics = Metrics()
    with pytest.raises(ValueError, match="label"):
        metrics.requests.labels("openai", "200", "gpt-mock")
    with pytest.raises(ValueError, match="label"):
        metrics.tokens.labels(provider="mock", key="ep-")
    with pytest.raises(ValueError, match="label"):
        metrics.refusals.inc()


def test_every_metric_is_rendered_with_our_name_and_a_text():
    metrics = Metrics()
    for metric in declared(metrics).values():
        if metric._labelnames:
            metric.labels(*metric._labelnames)
    families = list(text_string_to_metric_families(metrics.render().decode()))
    assert len(families) == len(LABELS)
    for family in families:
        assert family.name.startswith("edgeproxy_")
        assert family.documentation.endswith(".")
        assert family.samples


def test_two_in_one_process_count_apart():
    one, other = Metrics(), Metrics()
    one.settlements_lost.inc(3)
    one.requests.labels("openai", "200").inc()
    assert b"edgeproxy_settlements_lost_total 3.0" in one.render()
    assert b'edgeproxy_requests_total{dialect="openai",status="200"} 1.0' in one.render()
    assert b"edgeproxy_settlements_lost_total 0.0" in other.render()
    assert b"edgeproxy_requests_total{" not in other.render()


def test_times_of_creation_are_not_rendered():
    metrics = Metrics()
    metrics.overhead_seconds.observe(0.001)
    assert b"_created" not in metrics.render()


def test_durations_fall_into_their_buckets():
    metrics = Metrics()
    metrics.redis_seconds.observe(0.0003)
    metrics.total_seconds.labels("mock").observe(200)
    text = metrics.render().decode()
    assert 'edgeproxy_redis_round_trip_seconds_bucket{le="0.00025"} 0.0' in text
    assert 'edgeproxy_redis_round_trip_seconds_bucket{le="0.0005"} 1.0' in text
    assert 'edgeproxy_total_seconds_bucket{le="120.0",provider="mock"} 0.0' in text
    assert 'edgeproxy_total_seconds_bucket{le="300.0",provider="mock"} 1.0' in text
