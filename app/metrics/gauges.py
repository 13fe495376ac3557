"""A gauge that is made at a scrape, of rows of labels and a value."""

from collections.abc import Iterable, Sequence

from prometheus_client.core import GaugeMetricFamily, Metric


def gauge(
    name: str, text: str, labels: Sequence[str], rows: Iterable[tuple[Sequence[str], float | None]]
) -> Metric:
    """Where a value is None, there is no series."""
    family = GaugeMetricFamily(name, text, labels=labels)
    for of, value in rows:
        if value is not None:
            family.add_metric(of, value)
    return family
