"""Metrics as a scraper reads them."""

from prometheus_client.parser import text_string_to_metric_families


class Scrape:
    """The samples of one answer. Raises ``ValueError`` if it is not in Prometheus' text format."""

    def __init__(self, text: str) -> None:
        self._samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    @property
    def names(self) -> set[str]:
        return {name for name, _ in self._samples}

    def value(self, name: str, **labels: str) -> float | None:
        """None if there is no such series."""
        return self._samples.get((name, frozenset(labels.items())))

    def series(self, name: str) -> list[dict[str, str]]:
        """The labels of every series of that name."""
        return [dict(labels) for found, labels in self._samples if found == name]
