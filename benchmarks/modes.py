"""The modes of search under comparison, run round by round, and the cost of each round."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import TypeVar

import torch
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from pruning.models.blocks import block_list, num_blocks
from pruning.models.streaming import StreamedModel
from pruning.removal import Losses, Removal
from pruning.search.scoring import PlainScorer, SharedPrefixScorer
from pruning.search.staged import StagedScorer, stages
from pruning.sleb import Blocks, RoundScorer, sleb

_T = TypeVar("_T")


@dataclass(frozen=True)
class Cost:
    """Cost of a part of a search. A block pass is all windows passing through one block."""

    seconds: float
    block_passes: float
    window_evaluations: float = 0  # number of (candidate, window) losses

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.seconds + other.seconds,
            self.block_passes + other.block_passes,
            self.window_evaluations + other.window_evaluations,
        )


@dataclass
class Meter:
    """Counts the block passes of the models it is attached to."""

    num_windows: int
    _passed: int = 0  # windows that passed a block

    def attach(self, model: PreTrainedModel) -> list[RemovableHandle]:
        """Count passes of a model and all its views until the handles are removed."""
        return [block.register_forward_hook(self._count) for block in block_list(model)]

    def cost_of(self, work: Callable[[], _T]) -> tuple[_T, Cost]:
        self._passed = 0
        began_s = time.perf_counter()
        result = work()
        seconds = time.perf_counter() - began_s
        return result, Cost(seconds, self._passed / self.num_windows)

    def _count(self, _block: object, _args: object, hidden: torch.Tensor) -> None:
        self._passed += hidden.shape[0]


@dataclass
class MeteredScorer:
    """A scorer that records the peak size of its cached states after each candidate."""

    scorer: RoundScorer
    states: SharedPrefixScorer | None
    peak_state_bytes: int = 0

    def losses(self, keep: Blocks) -> Losses:
        return self.scorer.losses(keep)

    def score_round(self, keep: Blocks, candidates: Blocks) -> Iterator[tuple[int, Losses]]:
        for scored in self.scorer.score_round(keep, candidates):
            if self.states is not None:
                self.peak_state_bytes = max(self.peak_state_bytes, self.states.state_bytes)
            yield scored


@dataclass(frozen=True)
class Round:
    """The removal of a round, and the cost of scoring all its candidates."""

    removal: Removal
    cost: Cost


class Mode:
    """One mode of searching all blocks, with its removals and cost so far.

    ``plain``, ``exact`` and ``staged`` are of a model in memory, and ``stream`` of one on disk. The
    meter is attached to it. At most ``state_budget`` bytes of hidden states are kept.
    """

    def __init__(
        self,
        name: str,
        model: PreTrainedModel | StreamedModel,
        windows: torch.Tensor,
        state_budget: int,
        meter: Meter,
    ) -> None:
        self.scorer = _scorer(name, model, windows, state_budget)
        self.depth = num_blocks(model if isinstance(model, PreTrainedModel) else model.model)
        self.dense = Cost(0, 0)
        self.dense_loss = 0.0
        self.rounds: list[Round] = []
        self._model = model
        self._meter = meter
        self._search: Iterator[Removal] | None = None

    @property
    def peak_weight_bytes(self) -> int:
        """The most that was in memory so far."""
        model = self._model
        return weight_bytes(model) if isinstance(model, PreTrainedModel) else model.peak_bytes

    @property
    def removals(self) -> list[Removal]:
        return [each.removal for each in self.rounds]

    @property
    def order(self) -> list[int]:
        return [removal.block for removal in self.removals]

    @property
    def cost(self) -> Cost:
        """Total cost of the dense evaluation and all rounds."""
        return sum((each.cost for each in self.rounds), self.dense)

    def advance(self) -> None:
        """Run one more round. The first call evaluates the dense model as well."""
        if self._search is None:
            every = tuple(range(self.depth))
            losses, self.dense = self._meter.cost_of(lambda: self.scorer.losses(every))
            self.dense_loss = fmean(losses)
            self._search = sleb(self.scorer, self.depth, self.depth - 2, dense_loss=self.dense_loss)
        search = self._search
        removal, cost = self._meter.cost_of(lambda: next(search))
        self.rounds.append(Round(removal, cost + Cost(0, 0, sum(removal.num_windows.values()))))


def _scorer(
    name: str, model: PreTrainedModel | StreamedModel, windows: torch.Tensor, state_budget: int
) -> MeteredScorer:
    if name == "plain" and isinstance(model, PreTrainedModel):
        return MeteredScorer(PlainScorer(model, windows), None)
    boundaries = stages(windows.shape[0]) if name == "staged" else ()
    shared = SharedPrefixScorer(model, windows, state_budget=state_budget, boundaries=boundaries)
    return MeteredScorer(StagedScorer(shared) if name == "staged" else shared, shared)


def weight_bytes(model: PreTrainedModel) -> int:
    """Total bytes of the parameters. Tied weights count once."""
    return sum(parameter.nbytes for parameter in model.parameters())
