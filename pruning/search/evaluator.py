"""What runs in an actor: a model and its scorer, asked for one candidate after the other."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pruning.models.memory import free_bytes
from pruning.models.store import load, set_up_torch
from pruning.removal import Losses
from pruning.search.scoring import SharedPrefixScorer
from pruning.sleb import Blocks

NO_BLOCK = -1  # as a candidate: nothing more is removed


@dataclass(frozen=True)
class Recipe:
    """What every actor makes its scorer of, and what it takes of the machine it is on."""

    path: Path
    dtype: str
    device: str
    threads: int
    num_gpus: int
    num_sharing: int  # actors that may have to share one device's memory
    state_budget: int | None
    batch_tokens: int
    boundaries: tuple[int, ...]


class Evaluator:
    """One model, one scorer, one round at a time, a candidate per answer."""

    def load(self, recipe: Recipe, windows: torch.Tensor) -> str:
        """The model's dtype."""
        set_up_torch(recipe.threads)
        model = load(recipe.path, dtype=recipe.dtype, device=recipe.device).model
        budget = recipe.state_budget
        if budget is None:
            budget = free_bytes(model.device) // (2 * recipe.num_sharing)
        self._scorer = SharedPrefixScorer(
            model,
            windows,
            state_budget=budget,
            batch_tokens=recipe.batch_tokens,
            boundaries=recipe.boundaries,
        )
        self._answers: Iterator[tuple[int, Losses]] = iter(())
        return str(model.dtype)

    def begin(
        self, keep: Blocks, candidates: Sequence[int], windows: range
    ) -> tuple[int, Losses] | None:
        """Drop what was begun before, and give the first answer."""
        if NO_BLOCK in candidates:
            self._answers = iter([(NO_BLOCK, self._scorer.losses(keep))])
        else:
            self._answers = self._scorer.score(keep, tuple(candidates), windows)
        return self.more()

    def more(self) -> tuple[int, Losses] | None:
        """The next answer; None behind the last."""
        return next(self._answers, None)
