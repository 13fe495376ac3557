"""Run the same search on several samples of several texts, and evaluate each on unused text."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.data.calibration import calibrate, held_out
from pruning.data.corpora import NOT_ENOUGH, CalibrationError
from pruning.data.windows import Windows
from pruning.evaluation.perplexity import perplexity
from pruning.evaluation.pruned_losses import PrunedModel, pruned_losses
from pruning.models.blocks import num_blocks
from pruning.removal import kept
from pruning.search.dense_model import DenseModel
from pruning.search.observed import Observer
from pruning.search.search import search
from pruning.search.state import SearchState
from pruning.spec.calibration import CalibrationSpec
from pruning.spec.prune import PruneSpec
from pruning.stability.agreement import SearchRun


@dataclass(frozen=True)
class Sample:
    """The calibration windows of one run."""

    text: str
    spec: CalibrationSpec
    windows: Windows


def samples(
    texts: Mapping[str, CalibrationSpec],
    seeds: Sequence[int],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> list[Sample]:
    """Draw a sample of each text with each seed. Raises ``CalibrationError``."""
    specs = [(name, replace(text, seed=seed)) for name, text in texts.items() for seed in seeds]
    return [Sample(name, spec, calibrate(spec, model, tokenizer)) for name, spec in specs]


def unused_windows(
    taken: Sequence[Sample], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Windows]:
    """Return, by text, held-out windows that are in no sample.

    Raises ``CalibrationError`` for a text that has none.
    """
    used = {_digest(window) for sample in taken for window in sample.windows.token_ids}
    by_text: dict[str, dict[str, torch.Tensor]] = {}
    for sample in taken:
        of_text = by_text.setdefault(sample.text, {})
        for window in held_out(sample.spec, model, tokenizer).token_ids:
            if (digest := _digest(window)) not in used:
                of_text[digest] = window
    for text, windows in by_text.items():
        if not windows:
            raise CalibrationError(
                NOT_ENOUGH,
                f"the samples use every window of {text}, so none is left for evaluation: use a "
                "longer text, or fewer or shorter windows",
            )
    return {
        text: Windows(torch.stack(list(windows.values())), f"{text}, windows of no sample")
        for text, windows in by_text.items()
    }


def runs(
    spec: PruneSpec,
    dense: DenseModel,
    taken: Sequence[Sample],
    evaluated_on: Mapping[str, Windows],
    observer: Callable[[int], Observer],
) -> Iterator[SearchRun]:
    """Yield a run for each sample, with the observer of its number. Raises as ``search`` does."""
    for number, sample in enumerate(taken):
        of_sample = replace(spec, calibration=sample.spec)
        removals = search(of_sample, dense, sample.windows, observer(number), SearchState())
        order = [removal.block for removal in removals]
        yield SearchRun(
            text=sample.text,
            seed=sample.spec.seed,
            removals=tuple(removals),
            perplexities={
                text: _curve(dense, order, windows) for text, windows in evaluated_on.items()
            },
            windows=tuple(_digest(window) for window in sample.windows.token_ids),
        )


def _curve(dense: DenseModel, order: Sequence[int], windows: Windows) -> tuple[float, ...]:
    """The perplexity of the dense model on this text, and after each removal."""
    keeps = (kept(num_blocks(dense.model), order[:number]) for number in range(len(order) + 1))
    models = [PrunedModel(keep) for keep in keeps]
    return tuple(map(perplexity, pruned_losses(dense, models, windows.token_ids)))


def _digest(window: torch.Tensor) -> str:
    return Windows(window.unsqueeze(0), "").digest
