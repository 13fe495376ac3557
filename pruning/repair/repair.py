"""Repair of pruned models in closed form: behind each cut, the stream follows the dense one again.

*Ridge* refits matrices that write into the stream, by least squares shrunk towards their old
values: those of the block in front of a cut (as ReplaceMe does for one cut, arXiv 2505.02819), and
those of the two blocks behind it, which correct what the one in front could not foresee. It needs
the dense model and text, and no gradients. All depths of a removal order are repaired in one walk
over the blocks.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from math import ceil

import torch

from pruning.data.calibration import RepairWindows
from pruning.models.architectures import architecture
from pruning.models.blocks import NO_OWN, Own, block_list, num_blocks
from pruning.models.streaming import VisitedModel
from pruning.removal import Losses
from pruning.repair.fitted import FittedLayers
from pruning.repair.plan import Cut, Part, Plan, Refit, Route, Run, plan_of, refitted, unrepaired
from pruning.repair.record import Method
from pruning.repair.ridge import fit, gram_of
from pruning.repair.walk import LocalWalk, OpenWalk, Walk, Windows
from pruning.sleb import Blocks

ROUTES: Mapping[Method, Callable[[Blocks, int], Route]] = {
    Method.NONE: unrepaired,
    Method.RIDGE: refitted,
}
SAMPLE_WINDOWS = 16  # about so many in all: steps are tried on them
STEPS = (1.0, 0.5, 0.25)  # shares of a change that are tried
NUM_FOLDS = 3  # at most: each takes sums of its own at every cut, which are large for wide models


@dataclass(frozen=True)
class Repaired:
    """One method at one depth.

    ``losses`` are nats per predicted token of each selection window, by domain. ``tensors`` are
    parameters of the dense model by name, with the values that the pruned model has in their place.
    ``scales`` are the factors of the stream behind each cut, which earlier releases made, and
    ``penalties`` those of the fit of each block, as in ``Fit``.
    """

    method: Method
    losses: Mapping[str, Losses]
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    scales: Mapping[Cut, float] = field(default_factory=dict)
    penalties: Mapping[int, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class RepairedDepth:
    """What each method gave for one keep-set."""

    keep: Blocks
    tried: Mapping[Method, Repaired]


def repair_depths(
    dense: VisitedModel,
    keeps: Sequence[Blocks],
    text: RepairWindows,
    *,
    batch_tokens: int,
    observe: Callable[[int, int], object] = lambda _done, _total: None,
    state_budget: int | None = None,
    open_walk: OpenWalk | None = None,
) -> list[RepairedDepth]:
    """Repair the models that keep ``keeps``, of a family that allows it.

    The unrepaired model is among the results, by ``Method.NONE``. ``observe`` is called with the
    number of steps that are done and their total; what it raises ends the repair. At most
    ``state_budget`` bytes of hidden states are in memory, by default half of what is free, and
    others in a temporary file. Raises ``StateBudgetTooSmall``. Windows go through the blocks in
    this process, or where ``open_walk`` takes them, with a budget and batches of their own.
    """
    depth = num_blocks(dense.model)
    lanes = [(keep, method) for keep in keeps for method in ROUTES]
    plan = plan_of([ROUTES[method](keep, depth) for keep, method in lanes])
    open_walk = open_walk or partial(
        LocalWalk, dense.model, dense.device, batch_tokens=batch_tokens, budget=state_budget
    )
    with closing(open_walk(plan, _windows(text))) as walk:
        repair = _Repair(dense, plan, walk)
        repair.run(observe)
        with dense.head():
            ends = {end: walk.losses(end) for end in sorted(set(plan.ends))}
    results = (
        repair.result(method, end, ends[end])
        for (_, method), end in zip(lanes, plan.ends, strict=True)
    )
    return [RepairedDepth(keep, {each: next(results) for each in ROUTES}) for keep in keeps]


class _Repair:
    """A walk along a plan, and the corrections that are found on the way, by stream."""

    def __init__(self, dense: VisitedModel, plan: Plan, walk: Walk) -> None:
        self._dense = dense
        self._plan = plan
        self._walk = walk
        self._penalties: dict[int, float | None] = {}
        self._matrices: dict[int, Mapping[str, torch.Tensor]] = {}

    def run(self, observe: Callable[[int, int], object]) -> None:
        visits, done = self._plan.visits, 0
        with self._dense.embeddings():
            self._walk.embed()
        with closing(self._dense.blocks(visit.block for visit in visits)) as blocks:
            for visit, _ in zip(visits, blocks, strict=True):
                for stream in visit.streams:
                    self._step(stream)
                    done += 1
                    observe(done, len(self._plan.streams))

    def result(self, method: Method, end: int, losses: Mapping[str, Losses]) -> Repaired:
        """What was found on the way to the stream ``end``."""
        passed = [(at, self._plan.streams[at].step) for at in self._plan.way_to(end)]
        return Repaired(
            method,
            losses,
            {
                name: matrix
                for at, _ in passed
                for name, matrix in self._matrices.get(at, NO_OWN).items()
            },
            penalties={
                step.block: self._penalties[at] for at, step in passed if isinstance(step, Refit)
            },
        )

    @torch.no_grad()
    def _step(self, stream: int) -> None:
        step = self._plan.streams[stream].step
        if isinstance(step, Run):
            self._walk.run(stream)
        else:
            self._refit(stream, step.block)

    def _refit(self, stream: int, block: int) -> None:
        """Change the matrices of the block by what explains the error of the stream behind it."""
        device, errors = self._dense.device, self._walk.errors
        folds = {fold: sums.to(device) for fold, sums in errors(stream).items()}
        fitted = fit(folds)
        own: Own = NO_OWN
        if fitted.penalty is not None:
            own = self._stepped(stream, block, fitted.change, gram_of(folds))
        self._penalties[stream] = fitted.penalty if own else None
        path = f"{architecture(self._dense.model.config).blocks}.{block}"
        self._matrices[stream] = {f"{path}.{name}": own[name] for name in own}
        self._walk.refit(stream, own)

    def _stepped(self, stream: int, block: int, change: torch.Tensor, gram: torch.Tensor) -> Own:
        """The parameters with as much of the change as brings the stream nearest, or none.

        What the block does behind a changed layer is not linear, so a whole change may be too much.
        """
        model = self._dense.model
        layers = FittedLayers(block_list(model)[block], model.config)
        best, least = NO_OWN, self._walk.error(stream, NO_OWN)
        for step in STEPS:
            tried = layers.changed(step * change, gram)
            if (error := self._walk.error(stream, tried)) < least:
                best, least = tried, error
        return best


def _windows(text: RepairWindows) -> list[Windows]:
    """The windows by the way that they go. The sample is spread evenly over each kind of text."""
    train = [kind for windows in text.train.values() for kind in windows.by_kind().values()]
    all_windows = [
        Windows(Part.SELECTION, domain, windows.token_ids)
        for domain, windows in text.selection.items()
    ]
    for fold, token_ids in _folded(train):
        number, wanted = len(token_ids), ceil(SAMPLE_WINDOWS / len(train))
        sample = {at * number // wanted for at in range(min(number, wanted))}
        rest = [at for at in range(number) if at not in sample]
        all_windows.append(Windows(Part.SAMPLE, fold, token_ids[sorted(sample)]))
        all_windows.append(Windows(Part.REST, fold, token_ids[rest]))
    return [windows for windows in all_windows if len(windows.token_ids)]


def _folded(train: Sequence[torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """The windows of each kind of text with its fold: neighbours share one, as they are alike.

    A single kind cannot be left out, so its first half is a fold, and so is its second.
    """
    if len(train) == 1:
        [token_ids] = train
        yield from zip(("first half", "second half"), torch.tensor_split(token_ids, 2), strict=True)
        return
    for at, token_ids in enumerate(train):
        yield f"fold {at * min(NUM_FOLDS, len(train)) // len(train)}", token_ids
