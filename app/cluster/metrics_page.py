"""One page of metrics made of those of all replicas, each series with the name of its own."""

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

REPLICA = "replica"  # the label


def page_of(pages: Mapping[str, str]) -> bytes:
    """``pages``: Prometheus text by the name of the replica that it comes from."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Replicas(pages))
    return generate_latest(registry)


class _Replicas(Collector):
    def __init__(self, pages: Mapping[str, str]) -> None:
        self._pages = pages

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "sleb_replicas", "Replicas that tell of themselves on this page.", len(self._pages)
        )
        families: dict[str, Metric] = {}
        for replica, page in self._pages.items():
            for family in text_string_to_metric_families(page):
                mine = Metric(family.name, family.documentation, family.type)
                merged = families.setdefault(family.name, mine)
                for sample in family.samples:
                    labels = {**sample.labels, REPLICA: replica}
                    merged.add_sample(sample.name, labels, sample.value)
        yield from families.values()
