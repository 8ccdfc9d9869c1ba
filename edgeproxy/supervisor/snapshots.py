"""One set of metrics from those of many processes: bytes in Prometheus text format in, and out again.

Counters and histograms never go back, also when a process dies: what it had counted stays in the sum. Gauges say what
is, so those of a process end with it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

_LASTING = ("counter", "histogram")

# Name and labels of a sample.
_Series = tuple[str, tuple[tuple[str, str], ...]]


@dataclass(slots=True)
class _Family:
    """One metric: its kind, its help text and the sum of each of its series, in the order they were met."""

    kind: str
    text: str
    series: dict[_Series, float] = field(default_factory=dict)


class Tally:
    """The metrics of all processes, those that have ended included."""

    def __init__(self) -> None:
        self._ended: dict[str, _Family] = {}

    def retire(self, snapshot: bytes) -> None:
        """Keep what an ended process had counted: the last snapshot that it gave."""
        _add(self._ended, snapshot, _LASTING)

    def total(self, snapshots: Iterable[bytes]) -> bytes:
        """Return the sum of the snapshots of the processes that live and of what has ended."""
        families = {name: _Family(each.kind, each.text, dict(each.series)) for name, each in self._ended.items()}
        for snapshot in snapshots:
            _add(families, snapshot)
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Families(families))
        return generate_latest(registry)


class _Families(Collector):
    """Families as the library's own text format wants them."""

    def __init__(self, families: dict[str, _Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        for name, family in self._families.items():
            metric = Metric(name, family.text, family.kind)
            for (sample, labels), value in family.series.items():
                metric.add_sample(sample, dict(labels), value)
            yield metric


def _add(families: dict[str, _Family], snapshot: bytes, kinds: tuple[str, ...] | None = None) -> None:
    for metric in text_string_to_metric_families(snapshot.decode()):
        if kinds is not None and metric.type not in kinds:
            continue
        family = families.setdefault(metric.name, _Family(metric.type, metric.documentation))
        for sample in metric.samples:
            series = (sample.name, tuple(sample.labels.items()))
            family.series[series] = family.series.get(series, 0) + sample.value
