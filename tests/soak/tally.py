"""Counts and latencies of requests by outcome, and descriptions of failures."""

import threading
from collections import Counter, defaultdict
from collections.abc import Sequence
from statistics import median, quantiles

from rich.table import Table


class Tally:
    """Shared by all clients, each of which runs in a thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._statuses: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._seconds: defaultdict[str, list[float]] = defaultdict(list)
        self.failures: list[str] = []

    def add(self, kind: str, outcome: str, seconds: float) -> None:
        with self._lock:
            self._statuses[kind][outcome] += 1
            self._seconds[kind].append(seconds)

    def failed(self, what: str) -> None:
        with self._lock:
            self.failures.append(what)

    def outcomes(self, kind: str) -> Counter[str]:
        with self._lock:
            return Counter(self._statuses[kind])

    def num_requests(self) -> int:
        with self._lock:
            return sum(found.total() for found in self._statuses.values())

    def table(self, title: str) -> Table:
        table = Table("kind", "outcomes", "p50 ms", "p95 ms", title=title)
        for kind, found in sorted(self._statuses.items()):
            outcomes = ", ".join(
                f"{number} × {outcome}" for outcome, number in sorted(found.items())
            )
            middle, late = _quantiles_ms(self._seconds[kind])
            table.add_row(kind, outcomes, f"{middle:.0f}", f"{late:.0f}")
        return table


def _quantiles_ms(seconds: Sequence[float]) -> tuple[float, float]:
    late = quantiles(seconds, n=20)[-1] if len(seconds) > 1 else seconds[0]
    return median(seconds) * 1e3, late * 1e3
