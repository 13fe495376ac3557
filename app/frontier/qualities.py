"""What int8 weights cost: perplexity beside the dense model's, on the windows of a job.

Windows are added until the limit is decided and the ratio is known closely. Intervals hold at every
such look.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import torch
from transformers import PreTrainedModel

from pruning.checkpoints.store import CheckpointStore
from pruning.data.calibration import evaluation_windows
from pruning.data.corpora import CalibrationError
from pruning.data.windows import Windows
from pruning.evaluation.domains import domain_quality
from pruning.evaluation.perplexity import measure_perplexity
from pruning.evaluation.points import worst_of
from pruning.evaluation.quality import DomainQuality, Interval
from pruning.evaluation.verdict import Verdict
from pruning.models.forward import InMemoryForward
from pruning.models.store import LoadedModel
from pruning.spec.calibration import Calibration, default_calibration
from pruning.spec.evaluation import FIRST_WINDOWS, Evaluation
from pruning.spec.prune import PruneSpec

CLOSE = 0.005  # relative half width of a ratio within the limit: int8 costs little
MOST_WINDOWS = 192  # of a domain

Models = Mapping[str, PreTrainedModel]


def windows_for(
    loaded: LoadedModel, checkpoints: CheckpointStore, checkpoint: str | None
) -> Mapping[str, Windows]:
    """Those that the depths of this checkpoint were measured on, and more; else packaged text."""
    if checkpoint is not None:
        manifest = checkpoints.manifest(checkpoint)
        spec = PruneSpec.from_dict(manifest.spec)
        evaluation = (spec.evaluation or Evaluation()).as_measured(manifest.quality.seqlen)
        with suppress(CalibrationError):  # its text is gone
            return _windows(loaded, spec.calibration, evaluation)
    calibration = default_calibration(num_samples=8, seqlen=_window_tokens(loaded))
    return _windows(loaded, calibration, Evaluation())


def _windows(
    loaded: LoadedModel, calibration: Calibration, evaluation: Evaluation
) -> Mapping[str, Windows]:
    return evaluation_windows(calibration, loaded.model, loaded.tokenizer, evaluation=evaluation)


def _window_tokens(loaded: LoadedModel) -> int:
    positions = getattr(loaded.model.config, "max_position_embeddings", None)
    return min(128, positions or 128)


def measure_qualities(
    dense: PreTrainedModel,
    models: Models,
    windows: Mapping[str, Windows],
    max_ratio: float,
    until_s: float,
    observe: Callable[[str], object] = lambda _name: None,
) -> dict[str, tuple[DomainQuality, ...]]:
    """The quality of the ``models`` by name. After the time ``until_s``, no windows are added."""
    losses = _Losses({"": dense, **models}, windows)
    found: dict[str, tuple[DomainQuality, ...]] = {}
    open_ones, size = [*models], FIRST_WINDOWS
    while open_ones:
        losses.extend("", size)
        for name in open_ones:
            observe(name)
            losses.extend(name, size)
            found[name] = losses.domains(name)
            if time.monotonic() >= until_s:
                return found
        if size >= losses.available:
            break
        size *= 2
        open_ones = [name for name in open_ones if not _is_enough(found[name], max_ratio)]
    return found


def _is_enough(domains: Sequence[DomainQuality], max_ratio: float) -> bool:
    worst = worst_of(ratios_of(domains))
    if worst is None or worst.high is None:
        return False
    verdict = Verdict.of(worst, max_ratio)
    is_close = worst.high - worst.value <= CLOSE
    return verdict is Verdict.EXCEEDED or (verdict is Verdict.KEPT and is_close)


def ratios_of(domains: Sequence[DomainQuality]) -> dict[str, Interval]:
    """Of the only depth of these domains."""
    return {domain.domain: domain.ratio(domain.raw[0]) for domain in domains}


class _Losses:
    """Losses of models on the first windows of each domain."""

    def __init__(self, models: Models, windows: Mapping[str, Windows]) -> None:
        self._forwards = {name: InMemoryForward(model) for name, model in models.items()}
        self._windows = {name: each.first(MOST_WINDOWS) for name, each in windows.items()}
        self._known: dict[tuple[str, str], list[float]] = {}

    @property
    def available(self) -> int:
        """The windows of the largest domain."""
        return max((len(each.token_ids) for each in self._windows.values()), default=0)

    def extend(self, model: str, size: int) -> None:
        for domain, windows in self._windows.items():
            known = self._known.setdefault((model, domain), [])
            token_ids: torch.Tensor = windows.token_ids[len(known) : size]
            if len(token_ids):
                more = Windows(token_ids, windows.source)
                known += measure_perplexity(self._forwards[model], more).losses

    def domains(self, model: str) -> tuple[DomainQuality, ...]:
        return tuple(self._domain(model, domain) for domain in self._windows)

    def _domain(self, model: str, domain: str) -> DomainQuality:
        losses = self._known[model, domain]
        dense = self._known["", domain][: len(losses)]
        return domain_quality(domain, self._windows[domain], [dense, losses])
