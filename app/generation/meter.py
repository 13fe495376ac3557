"""What counts an output of another server in the metrics."""

from collections.abc import Callable
from dataclasses import dataclass

from app.engine.scheduling.sequence import FinishReason, Timings
from app.metrics.metrics import Labels, Metrics


class Meter:
    """Counts nothing: replays are counted in pairs, once both have ended."""

    def admitted(self) -> Callable[[float], None]:
        """Return what observes the seconds between two tokens."""
        return lambda _gap_s: None

    def rejected(self, reason: str) -> None:
        pass

    def finished(self, num_prompt_tokens: int, reason: FinishReason, timings: Timings) -> None:
        pass


@dataclass(frozen=True)
class LabelledMeter(Meter):
    """Counts with these labels."""

    metrics: Metrics
    labels: Labels

    def admitted(self) -> Callable[[float], None]:
        self.metrics.admitted(self.labels)
        return self.metrics.token_gaps(self.labels)

    def rejected(self, reason: str) -> None:
        self.metrics.rejected(self.labels, reason)

    def finished(self, num_prompt_tokens: int, reason: FinishReason, timings: Timings) -> None:
        self.metrics.finished(self.labels, num_prompt_tokens, reason, timings)
