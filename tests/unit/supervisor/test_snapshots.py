"""The sum of many processes' metrics."""

from prometheus_client.parser import text_string_to_metric_families

from edgeproxy.metrics import Metrics
from edgeproxy.supervisor.snapshots import Tally


def values(text: bytes) -> dict[str, float]:
    """Samples as `name{label}` -> value."""
    found = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def worker(requests: int, streams: int, seconds: float) -> bytes:
    metrics = Metrics()
    metrics.requests.labels("openai", "200").inc(requests)
    metrics.open_streams.set(streams)
    metrics.total_seconds.labels("a").observe(seconds)
    return metrics.render()


def test_counters_gauges_and_histograms_of_all_processes_are_summed():
    total = values(Tally().total([worker(2, 1, 0.02), worker(3, 4, 7)]))
    assert total["edgeproxy_requests_total{dialect=openai,status=200}"] == 5
    assert total["edgeproxy_open_streams"] == 5
    assert total["edgeproxy_total_seconds_count{provider=a}"] == 2
    assert total["edgeproxy_total_seconds_sum{provider=a}"] == 7.02
    assert total["edgeproxy_total_seconds_bucket{le=0.025,provider=a}"] == 1
    assert total["edgeproxy_total_seconds_bucket{le=+Inf,provider=a}"] == 2


def test_what_an_ended_process_counted_stays_and_what_it_held_goes():
    tally = Tally()
    tally.retire(worker(2, 1, 0.02))
    tally.retire(b"")
    for _ in range(2):  # a scrape changes nothing
        total = values(tally.total([worker(3, 4, 7)]))
    assert total["edgeproxy_requests_total{dialect=openai,status=200}"] == 5
    assert total["edgeproxy_total_seconds_count{provider=a}"] == 2
    assert total["edgeproxy_open_streams"] == 4
    alone = values(tally.total([]))
    assert alone["edgeproxy_requests_total{dialect=openai,status=200}"] == 2
    assert "edgeproxy_open_streams" not in alone


def test_the_sum_is_text_that_prometheus_reads_the_same_again():
    once = Tally().total([worker(2, 1, 0.02), worker(3, 4, 7)])
    assert Tally().total([once]) == once
    assert b"# TYPE edgeproxy_requests_total counter" in once
    assert b"# HELP edgeproxy_open_streams Answers" in once


def test_label_values_with_odd_characters_stay_as_they_are():
    metrics = Metrics()
    metrics.tokens.labels('a"b\\c\nd', "input").inc()
    total = Tally().total([metrics.render(), metrics.render()])
    assert values(total)['edgeproxy_tokens_total{kind=input,provider=a"b\\c\nd}'] == 2


def test_nothing_is_nothing():
    assert Tally().total([]) == b""
