"""Repair of pruned models in closed form: behind each cut, the stream follows the dense one again.

*Scale* multiplies the residual stream behind a cut by the ratio of the mean norms of hidden states,
dense against pruned, in front of the next kept block (Prune&Comp, AAAI 2026). *Ridge* refits the
matrix that writes into the stream in front of a cut, by least squares shrunk towards its old values
(as ReplaceMe does for one cut, arXiv 2505.02819). Both need the dense model and text, and no
gradients. All depths of a removal order are repaired in one walk over the blocks.
"""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from pruning.models.architectures import architecture
from pruning.models.blocks import BlockCall, block_calls, finish, num_blocks, with_own
from pruning.models.loss import window_losses
from pruning.removal import Losses
from pruning.repair.cuts import Cut, Visit, cuts_of, visits
from pruning.repair.ridge import Fit, Sums, fit
from pruning.sleb import Blocks


class Method(StrEnum):
    NONE = "none"
    SCALE = "scale"
    RIDGE = "ridge"


def possible_methods(config: PreTrainedConfig) -> tuple[Method, ...]:
    """The repairs that are sound for models of this family and configuration."""
    writes = architecture(config).writes
    if any(getattr(config, switch, value) != value for switch, value in writes.requires):
        return ()
    scale = (Method.SCALE,) if writes.scaled else ()
    return (*scale, Method.RIDGE) if writes.refit else scale


class VisitedModel(Protocol):
    """A dense model whose parts have their weights while they are visited."""

    @property
    def model(self) -> PreTrainedModel: ...

    @property
    def device(self) -> torch.device: ...

    def embeddings(self) -> AbstractContextManager[None]: ...

    def blocks(self, indices: Iterable[int]) -> Generator[int]: ...

    def head(self) -> AbstractContextManager[None]: ...


@dataclass(frozen=True)
class ResidentModel:
    """A dense model that is in memory as a whole."""

    model: PreTrainedModel

    @property
    def device(self) -> torch.device:
        return self.model.device

    def embeddings(self) -> AbstractContextManager[None]:
        return nullcontext()

    def blocks(self, indices: Iterable[int]) -> Generator[int]:
        yield from indices

    def head(self) -> AbstractContextManager[None]:
        return nullcontext()


@dataclass(frozen=True)
class RepairText:
    """Token ids [num_windows, seqlen] by domain: ``train`` to fit on, ``selection`` to choose by.

    No window is in both. The lengths of all windows are equal.
    """

    train: Mapping[str, torch.Tensor]
    selection: Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Repaired:
    """One method at one depth.

    ``losses`` are nats per predicted token of each selection window, by domain. ``tensors`` are
    parameters of the dense model by name, with the values that the pruned model has in their place.
    ``scales`` are the factors of the stream behind each cut.
    """

    method: Method
    losses: Mapping[str, Losses]
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    scales: Mapping[Cut, float] = field(default_factory=dict)
    fits: Mapping[Cut, Fit] = field(default_factory=dict)


@dataclass(frozen=True)
class RepairedDepth:
    """What each method gave for one keep-set."""

    keep: Blocks
    tried: Mapping[Method, Repaired]


def repair_depths(
    dense: VisitedModel,
    keeps: Sequence[Blocks],
    text: RepairText,
    *,
    batch_tokens: int,
    methods: Sequence[Method] = (Method.SCALE, Method.RIDGE),
    observe: Callable[[int, int], object] = lambda _done, _total: None,
) -> list[RepairedDepth]:
    """Repair the models that keep ``keeps``, each by every method that its family allows.

    The unrepaired model is among the results, by ``Method.NONE``. ``observe`` is called with the
    number of block visits that are done and their total; what it raises ends the repair.
    """
    walk = _Walk(dense, keeps, text, batch_tokens, methods)
    plan = list(visits(keeps, num_blocks(dense.model)))
    with dense.embeddings():
        walk.embed()
    with closing(dense.blocks(visit.block for visit in plan)) as blocks:
        for done, (visit, _) in enumerate(zip(plan, blocks, strict=True), start=1):
            walk.visit(visit)
            observe(done, len(plan))
    with dense.head():
        return walk.results()


def folded(model: PreTrainedModel, keep: Blocks, repaired: Repaired) -> Mapping[str, torch.Tensor]:
    """The tensors that the repaired model has in place of parameters of ``model``, by their names.

    A scale of the stream is not stored: instead, what later blocks add is divided by it. Behind the
    last norm, which no factor of the stream passes, that is the same up to the norm's epsilon.
    """
    row = architecture(model.config)
    parameters = dict(model.named_parameters())
    tensors = dict(repaired.tensors)
    scales = {cut.before: scale for cut, scale in repaired.scales.items()}
    factor = 1.0
    for block in keep:
        if factor != 1.0:
            for name in row.writes.scaled:
                path = f"{row.blocks}.{block}.{name}"
                if (values := parameters.get(path)) is not None:  # not every block has a bias
                    tensors[path] = _scaled(values, factor, row.writes.offset)
        factor /= scales.get(block, 1.0)
    return tensors


@dataclass
class _Batch:
    """Windows of one domain that go through a block together. ``hidden`` are the hidden states
    [windows, seqlen, width] of the dense stream."""

    domain: str
    is_train: bool
    token_ids: torch.Tensor
    calls: tuple[BlockCall, ...]
    hidden: torch.Tensor


class _Lane:
    """The stream of one pruned model, repaired by one method, in all batches it needs."""

    def __init__(self, depth: int, keep: Blocks, method: Method, total: int) -> None:
        self.depth = depth
        self.method = method
        self.cuts = {cut.before: cut for cut in cuts_of(keep, total)}
        self.hidden: dict[int, torch.Tensor] = {}  # by batch, from the first cut on
        self.scales: dict[Cut, float] = {}
        self.fits: dict[Cut, Fit] = {}
        self.tensors: dict[str, torch.Tensor] = {}

    @property
    def first(self) -> int | None:
        return min(self.cuts, default=None)


class _Walk:
    """The hidden states of the dense model and of all lanes on their way through the blocks."""

    def __init__(
        self,
        dense: VisitedModel,
        keeps: Sequence[Blocks],
        text: RepairText,
        batch_tokens: int,
        methods: Sequence[Method],
    ) -> None:
        self._dense = dense
        self._model = dense.model
        self._text = text
        self._batch_tokens = batch_tokens
        row = architecture(self._model.config)
        self._path, self._writes = row.blocks, row.writes
        self._keeps = keeps
        total = num_blocks(self._model)
        allowed = [Method.NONE, *(m for m in methods if m in possible_methods(self._model.config))]
        self._lanes = [
            _Lane(depth, keep, method, total)
            for depth, keep in enumerate(keeps)
            for method in allowed
        ]
        self._batches: list[_Batch] = []

    @torch.no_grad()
    def embed(self) -> None:
        parts = ((True, self._text.train), (False, self._text.selection))
        for is_train, domains in parts:
            for domain, windows in domains.items():
                size = max(1, self._batch_tokens // windows.shape[1])
                for token_ids in torch.split(windows.to(self._dense.device), size):
                    hidden, calls = block_calls(self._model, token_ids)
                    self._batches.append(_Batch(domain, is_train, token_ids, calls, hidden))

    @torch.no_grad()
    def visit(self, visit: Visit) -> None:
        for lane in self._lanes:
            if lane.depth in visit.passing:
                self._run(lane, visit.block)
            elif lane.depth in visit.cutting:
                self._cut(lane, lane.cuts[visit.block])
        if visit.runs_dense:
            self._run_dense(visit.block)

    @torch.no_grad()
    def results(self) -> list[RepairedDepth]:
        tried: list[dict[Method, Repaired]] = [{} for _ in self._keeps]
        for lane in self._lanes:
            tried[lane.depth][lane.method] = Repaired(
                lane.method, self._losses(lane), lane.tensors, lane.scales, lane.fits
            )
        return [RepairedDepth(keep, found) for keep, found in zip(self._keeps, tried, strict=True)]

    def _run_dense(self, block: int) -> None:
        for lane in self._lanes:
            if lane.first == block:  # an unrepaired model is only evaluated
                needs_all = lane.method is not Method.NONE
                batches = enumerate(self._batches)
                lane.hidden = {
                    at: batch.hidden for at, batch in batches if needs_all or not batch.is_train
                }
        for batch in self._batches:
            batch.hidden = batch.calls[block](batch.hidden)

    def _cut(self, lane: _Lane, cut: Cut) -> None:
        """Run the block in front of the cut, and correct what comes out of it."""
        if lane.method is Method.RIDGE:
            self._refit(lane, cut)
        self._run(lane, cut.before)
        if lane.method is Method.SCALE:
            lane.scales[cut] = self._scale(lane)
            for at, hidden in lane.hidden.items():
                lane.hidden[at] = hidden * lane.scales[cut]

    def _run(self, lane: _Lane, block: int) -> None:
        prefix = f"{self._path}.{block}."
        own = {
            name.removeprefix(prefix): tensor
            for name, tensor in lane.tensors.items()
            if name.startswith(prefix)
        }
        for at, hidden in lane.hidden.items():
            call = self._batches[at].calls[block]
            lane.hidden[at] = BlockCall(with_own(call.block, own), call.args, call.kwargs)(hidden)

    def _scale(self, lane: _Lane) -> float:
        """The ratio of mean norms on the training windows, dense against pruned."""
        dense = pruned = 0.0
        for at, hidden in lane.hidden.items():
            if self._batches[at].is_train:
                dense += float(self._batches[at].hidden.float().norm(dim=-1).double().sum())
                pruned += float(hidden.float().norm(dim=-1).double().sum())
        return dense / pruned

    def _refit(self, lane: _Lane, cut: Cut) -> None:
        """Change the matrix in front of the cut by what explains the error behind it."""
        layer = self._writes.refit
        assert layer is not None
        train: Sums | None = None
        selection: dict[str, Sums] = {}
        for at, hidden in lane.hidden.items():
            batch = self._batches[at]
            read, errors, weights = _observed(batch, batch.calls[cut.before], hidden, layer)
            if batch.is_train:
                train = train or Sums.like(read, errors)
                train.add(read, errors, weights)
            else:
                sums = selection.setdefault(batch.domain, Sums.like(read, errors))
                sums.add(read, errors, weights)
        assert train is not None
        found = lane.fits[cut] = fit(train, selection)
        name = f"{self._path}.{cut.before}.{layer}.weight"
        matrix = self._model.get_parameter(name)
        change = found.change.T if self._writes.is_transposed else found.change
        lane.tensors[name] = (matrix.float() + change).to(matrix.dtype)

    def _losses(self, lane: _Lane) -> Mapping[str, Losses]:
        found: dict[str, list[float]] = {}
        for at, batch in enumerate(self._batches):
            if not batch.is_train:
                hidden = lane.hidden.get(at, batch.hidden)  # a lane without cuts is the dense model
                losses = window_losses(self._model, finish(self._model, hidden), batch.token_ids)
                found.setdefault(batch.domain, []).extend(losses.tolist())
        return found


def _observed(
    batch: _Batch, call: BlockCall, hidden: torch.Tensor, layer: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What ``layer`` reads in front of a cut, the error of the stream behind it, and the weight of
    each token.

    The weight is the inverse square of the norm that the stream should have. Without it, the few
    tokens that are attention sinks would decide everything.
    """
    inputs: list[torch.Tensor] = []
    block = with_own(call.block, {})
    reader = block.get_submodule(layer)
    reader.register_forward_pre_hook(lambda _module, args: inputs.append(args[0]))
    outputs = BlockCall(block, call.args, call.kwargs)(hidden)
    wanted = batch.hidden.flatten(0, 1).float()
    errors = wanted - outputs.flatten(0, 1).float()
    read = inputs[0].flatten(0, -2).float()
    return read, errors, wanted.square().sum(dim=1).reciprocal()


def _scaled(values: torch.Tensor, factor: float, offset: float) -> torch.Tensor:
    return ((values.float() + offset) * factor - offset).to(values.dtype)
