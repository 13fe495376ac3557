"""The windows of one process on their way along a plan: blocks run, and errors are summed up.

What is fitted to the sums is not decided here, so the windows may be spread over processes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from transformers import PreTrainedModel

from pruning.models.blocks import BlockCall, Own, block_calls, block_list, finish, with_own
from pruning.models.loss import window_losses
from pruning.models.memory import state_budget
from pruning.removal import Losses
from pruning.repair.fitted import FittedLayers
from pruning.repair.plan import EMBEDDED, Part, Parts, Plan, Refit, Run, Stream, observed
from pruning.repair.ridge import Folds, Sums, fit_bytes
from pruning.repair.states import States


@dataclass(frozen=True)
class Windows:
    """Token ids [num_windows, seqlen] of one domain, or of one fold of the training windows."""

    part: Part
    domain: str
    token_ids: torch.Tensor


class Walk(Protocol):
    """The steps of a plan, by the number of the stream that each makes.

    Blocks, embeddings and head must have their weights when they are needed. ``run`` makes the
    stream of a ``Run``; ``errors`` and ``refit`` that of a ``Refit``.
    """

    def embed(self) -> None: ...

    def run(self, stream: int) -> None: ...

    def errors(self, stream: int) -> Folds:
        """What the refitted layers read, and the error of the stream behind the block."""

    def error(self, stream: int, own: Own) -> float:
        """The squared error of the stream on the sample, weighted as in ``errors``, with ``own`` in
        the places of parameters of the block."""

    def refit(self, stream: int, own: Own) -> None:
        """``own`` take the places of parameters of the block, by their names in it."""

    def losses(self, stream: int) -> Mapping[str, Losses]:
        """Nats per predicted token of each selection window, by domain."""

    def close(self) -> None: ...


OpenWalk = Callable[[Plan, Sequence[Windows]], Walk]


class LocalWalk:
    """A ``Walk`` in this process.

    At most ``state_budget`` bytes of hidden states are in memory, by default half of the memory
    that is free; others are in a temporary file. A call of a block has at most ``batch_tokens``
    tokens, but at least one window. Raises ``StateBudgetTooSmall``.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        device: torch.device,
        plan: Plan,
        windows: Sequence[Windows],
        *,
        batch_tokens: int,
        budget: int | None = None,
    ) -> None:
        self._model = model
        self._device = device
        self._plan = plan
        seqlen = windows[0].token_ids.shape[1]
        window_bytes = seqlen * self._token_bytes()
        budget = state_budget(
            device,
            budget,
            least=window_bytes,
            of=f"one window of {seqlen} tokens",
            reserved=self._ridge_bytes(windows, max(seqlen, batch_tokens)),
        )
        size = max(1, min(batch_tokens // seqlen, budget // window_bytes))
        self._batches = [
            Windows(each.part, each.domain, token_ids)
            for each in windows
            if each.part in plan.embedded
            for token_ids in torch.split(each.token_ids.to(device), size)
        ]
        # by stream and batch; what one call needs is beside them
        self.states: States[tuple[int, int]] = States(budget - size * window_bytes)
        self._calls: Sequence[BlockCall] = ()  # those of any batch, as all lengths are equal

    @torch.no_grad()
    def embed(self) -> None:
        for at, batch in enumerate(self._batches):
            hidden, calls = block_calls(self._model, batch.token_ids)
            self._calls = self._calls or calls
            self.states.put((EMBEDDED, at), hidden)

    @torch.no_grad()
    def run(self, stream: int) -> None:
        made = self._plan.streams[stream]
        assert isinstance(made.step, Run)
        call = self._calls[made.step.block]
        for at in self._batches_of(made.parts):
            self._advance(stream, at, call(self._source(made, at)))

    @torch.no_grad()
    def errors(self, stream: int) -> Folds:
        """Run the block that is refitted, and compare what comes out with the dense stream.

        The weight of a token is the inverse square of the norm that its state should have. Without
        it, the few tokens that are attention sinks would decide everything.
        """
        made = self._plan.streams[stream]
        call, layers = self._refitted(made)
        run = layers.tapped(call)
        sums = self._no_errors(layers)
        for at in self._batches_of(observed(made.step)):
            output, read = run(self._source(made, at))
            wanted = self._wanted(made, at).flatten(0, 1).float()
            errors = wanted - output.flatten(0, 1).float()
            weights = wanted.square().sum(dim=1).reciprocal()
            sums[self._batches[at].domain].add(read.flatten(0, -2).float(), errors, weights)
        return sums

    @torch.no_grad()
    def error(self, stream: int, own: Own) -> float:
        made = self._plan.streams[stream]
        again = self._with(made, own)
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        for at in self._batches_of(frozenset({Part.SAMPLE})):
            wanted = self._wanted(made, at).float()
            squares = (wanted - again(self._source(made, at)).float()).square().sum(dim=-1)
            total += (squares / wanted.square().sum(dim=-1)).double().sum()
        return float(total)

    @torch.no_grad()
    def refit(self, stream: int, own: Own) -> None:
        made = self._plan.streams[stream]
        again = self._with(made, own)
        for at in self._batches_of(made.reads):
            if self._batches[at].part in made.parts:
                self._advance(stream, at, again(self._source(made, at)))
            else:
                self._release(stream, at)

    @torch.no_grad()
    def losses(self, stream: int) -> Mapping[str, Losses]:
        by_domain: dict[str, list[torch.Tensor]] = {}
        for at in self._batches_of(frozenset({Part.SELECTION})):
            batch = self._batches[at]
            hidden = finish(self._model, self.states.get((stream, at)))
            losses = window_losses(self._model, hidden, batch.token_ids)
            by_domain.setdefault(batch.domain, []).append(losses)
        return {domain: torch.cat(losses).tolist() for domain, losses in by_domain.items()}

    def close(self) -> None:
        self.states.close()

    def _batches_of(self, parts: Parts) -> Iterator[int]:
        return (at for at, batch in enumerate(self._batches) if batch.part in parts)

    def _source(self, made: Stream, at: int) -> torch.Tensor:
        return self.states.get((made.source, at))

    def _wanted(self, made: Stream, at: int) -> torch.Tensor:
        """The state that the dense model has in this place."""
        assert made.dense is not None
        return self.states.get((made.dense, at))

    def _advance(self, stream: int, at: int, hidden: torch.Tensor) -> None:
        self._release(stream, at)
        self.states.put((stream, at), hidden)

    def _release(self, stream: int, at: int) -> None:
        """Forget the states of a batch that nothing needs after this step."""
        for earlier, part in self._plan.releases.get(stream, ()):
            if part is self._batches[at].part:
                self.states.drop((earlier, at))

    def _refitted(self, made: Stream) -> tuple[BlockCall, FittedLayers]:
        """The block that is refitted, and its layers."""
        assert isinstance(made.step, Refit)
        call = self._calls[made.step.block]
        return call, FittedLayers(call.block, self._model.config)

    def _with(self, made: Stream, own: Own) -> BlockCall:
        """The block that is refitted, with other parameters."""
        call, _ = self._refitted(made)
        own = {name: tensor.to(self._device) for name, tensor in own.items()}
        return call.of(with_own(call.block, own))

    def _no_errors(self, layers: FittedLayers) -> Folds:
        folds = {b.domain: None for b in self._batches if b.part is not Part.SELECTION}
        return {fold: Sums(layers.width_in, layers.width_out, self._device) for fold in folds}

    def _refits(self) -> list[FittedLayers]:
        """The layers that are fitted in each step of the plan that fits any."""
        blocks = block_list(self._model)
        steps = (made.step for made in self._plan.streams.values())
        return [
            FittedLayers(blocks[step.block], self._model.config)
            for step in steps
            if isinstance(step, Refit)
        ]

    def _ridge_bytes(self, windows: Sequence[Windows], num_tokens: int) -> int:
        """What sums, a fit and the fitted matrices take at most, beside hidden states."""
        if not (refits := self._refits()):
            return 0
        width_out: int = self._model.config.hidden_size
        width_in = max(layers.width_in for layers in refits)
        num_folds = len({each.domain for each in windows if each.part is not Part.SELECTION})
        of_batch = 4 * num_tokens * (2 * width_in + 3 * width_out)  # float32 copies of a batch
        matrices = sum(layers.num_parameters for layers in refits) * self._model.dtype.itemsize
        return fit_bytes(width_in, width_out, num_folds) + of_batch + matrices

    def _token_bytes(self) -> int:
        """Bytes of a token in the states that one call needs: source, output, dense, and read."""
        width_in = max((layers.width_in for layers in self._refits()), default=0)
        width: int = 3 * self._model.config.hidden_size + width_in
        return width * self._model.dtype.itemsize
