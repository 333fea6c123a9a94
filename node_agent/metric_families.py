"""Pure: rows of label values to families of metrics, as Prometheus' client has them."""

from collections import Counter
from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

Row = tuple[Iterable[object], float]  # label values and a value


def gauge(name: str, text: str, labels: Iterable[str], rows: Iterable[Row]) -> Metric:
    return _filled(GaugeMetricFamily(f"sriov_underlay_{name}", text, labels=tuple(labels)), rows)


def counter(name: str, text: str, labels: Iterable[str], rows: Iterable[Row]) -> Metric:
    return _filled(CounterMetricFamily(f"sriov_underlay_{name}", text, labels=tuple(labels)), rows)


def counted(found: Iterable[tuple[str, ...]]) -> Iterator[Row]:
    """A row for each combination of label values that is there, with how often it is."""
    yield from Counter(found).items()


def _filled(family: GaugeMetricFamily | CounterMetricFamily, rows: Iterable[Row]) -> Metric:
    for labels, value in rows:
        family.add_metric([str(label) for label in labels], float(value))
    return family
