"""Metrics as a scraper reads them."""

import re
from collections.abc import Iterator

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

_NAME = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)[{ ]", re.MULTILINE)


class Scrape:
    """The samples of one page. Only those asked for are parsed: a page has thousands."""

    def __init__(self, text: str) -> None:
        self._lines = text.splitlines()
        self.names = set(_NAME.findall(text))

    def samples(self, name: str) -> Iterator[Sample]:
        """Those of one name. Raises ``ValueError`` if a line is not in Prometheus' text format."""
        starts = (f"{name} ", f"{name}{{")
        lines = [line for line in self._lines if line.startswith(starts)]
        for family in text_string_to_metric_families("\n".join([*lines, ""])):
            yield from family.samples

    def value(self, name: str, **labels: str) -> float | None:
        """None if there is no such series. Of requests, those of the own engine by default."""
        either = (labels, {"engine": "own", **labels})
        found = [each.value for each in self.samples(name) if each.labels in either]
        return found[-1] if found else None

    def series(self, name: str) -> list[dict[str, str]]:
        """The labels of every series of that name."""
        return [dict(each.labels) for each in self.samples(name)]
