"""The training of an adapter: a generator of steps, which can be stopped and resumed anywhere.

The dense model teaches. It shares its weights with the models that are healed, so all together take
the memory of one.
"""

import logging
import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from statistics import fmean

import torch
from torch import nn
from transformers import PreTrainedModel

from pruning.data.calibration import RepairWindows
from pruning.healing.activations import kept_bytes
from pruning.healing.adapter import Tensors
from pruning.healing.divergence import divergences, hidden_error
from pruning.healing.peers import ALONE, Peers
from pruning.healing.record import Check, Progress, Step
from pruning.healing.state import TrainingState
from pruning.healing.students import Students, last_hiddens
from pruning.healing.text import Order, sample_of
from pruning.models.loss import GPU_LOGITS_BYTES, window_divergences
from pruning.models.memory import free_bytes
from pruning.plural import counted
from pruning.spec.heal import Heal

logger = logging.getLogger(__name__)

LEAST_RATE = 0.1  # of the learning rate, at the end
_LEAST_CHECK_TOKENS = 32_768  # of held-out text, where there is so much
_EPSILON = 1e-6  # of Adam: with less, rounding errors of a gradient of zero become whole steps


class HealingDiverged(RuntimeError):
    """A loss of the training is not a finite number, or none is lower than at its beginning."""


class Training:
    """The training of ``students`` towards ``dense``, from its beginning or from ``earlier``.

    ``text`` has windows to train on, and others to stop by. Of several students, each step trains
    the deepest and another one on the same tokens, as slimmable networks are trained (arXiv
    1903.05134). All of them say when to stop, and which step is kept. A call of a model has at most
    ``micro_tokens`` tokens, but at least one window. ``peers`` make the same steps with it, each on
    its share of the windows, which is one or more. Checks read a part of the held-out text, so that
    they take no longer than the steps between them. ``best`` is the adapter at the best one.
    """

    def __init__(
        self,
        dense: PreTrainedModel,
        students: Students,
        text: RepairWindows,
        heal: Heal,
        *,
        digest: str = "",
        micro_tokens: int = 4096,
        earlier: TrainingState | None = None,
        peers: Peers = ALONE,
    ) -> None:
        self._dense = dense
        self._students = students
        self._adapter = students.adapter
        train, held_out = (
            {domain: windows.token_ids for domain, windows in part.items()}
            for part in (text.train, text.selection)
        )
        self._seqlen = int(next(iter(train.values())).shape[1])
        self._heal = heal
        self._peers = peers
        self._order = Order(train, heal.seed)
        self._micro_windows = max(1, micro_tokens // self._seqlen)
        self._num_windows = max(heal.batch_tokens // self._seqlen, peers.size)  # of a step
        self._rate = heal.rate(dense.config.hidden_size)
        self._optimizer = torch.optim.AdamW(
            self._adapter.parameters.values(), lr=self._rate, eps=_EPSILON, weight_decay=0.0
        )
        if heal.checkpoint_activations:
            students.checkpoint_activations()
        between = heal.steps_per_check * self._step_tokens
        self._held_out_windows = sample_of(held_out, max(between, _LEAST_CHECK_TOKENS))
        self.best: Tensors = self._adapter.values() if earlier is None else earlier.best
        self.progress = Progress(digest) if earlier is None else earlier.progress
        if earlier is not None:
            self._restore(earlier)

    @property
    def num_steps(self) -> int:
        """How many steps the tokens of the budget give."""
        return math.ceil(self._heal.num_tokens / self._step_tokens)

    def state(self) -> TrainingState:
        """The state after the last step, as copies on the CPU."""
        mean, square = {}, {}
        for name, parameter in self._adapter.parameters.items():
            if moments := self._optimizer.state.get(parameter):
                mean[name] = moments["exp_avg"].to("cpu", copy=True)
                square[name] = moments["exp_avg_sq"].to("cpu", copy=True)
        return TrainingState(self.progress, self._adapter.values(), self.best, mean, square)

    def steps(self) -> Iterator[Step]:
        """Make the steps that are left, one at a time.

        Raises ``HealingDiverged``. ``state`` belongs to the last step that was yielded.
        """
        self._fit_activations()
        if not self.progress.checks:
            self._check()
        while not self._is_over:
            yield self._step()

    def _fit_activations(self) -> None:
        """On a GPU, compute activations again in the backward pass if not all would fit."""
        device = self._dense.device
        if device.type != "cuda" or self._heal.checkpoint_activations:
            return
        at_once = min(self._micro_windows, self._num_windows)
        token_ids = self._order.windows(0, at_once).to(device)
        with self._autocast():
            models = [student.model for student in self._students.of_step(0, self._heal.seed)]
            needed = sum(kept_bytes(model, token_ids) for model in models)
        # beside them: a gradient and two moments, and logits with what they are made of
        others = 3 * self._adapter.num_bytes + 2 * GPU_LOGITS_BYTES
        if needed + others > free_bytes(device):
            logger.info("recomputing activations, because %d bytes do not fit into memory", needed)
            self._students.checkpoint_activations()

    @property
    def _is_over(self) -> bool:
        """A model that predicts exactly what the dense one does has no gradient to follow."""
        is_at_goal = self.progress.best.loss == 0
        return is_at_goal or self._used >= 1 or self.progress.num_risen >= self._heal.patience

    @property
    def _step_tokens(self) -> int:
        return self._num_windows * self._seqlen

    @property
    def _used(self) -> float:
        """The share of the budget that is used."""
        used = self.progress.num_tokens / (self.num_steps * self._step_tokens)
        if self._heal.max_minutes is None:
            return used
        return max(used, self.progress.seconds / (60 * self._heal.max_minutes))

    def _step(self) -> Step:
        began_s = time.monotonic()
        rate = self._rate * schedule(self._used, self._heal.warmup)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        loss = self._gradients()
        parameters = list(self._adapter.parameters.values())
        norm = float(nn.utils.clip_grad_norm_(parameters, self._heal.clip_norm))
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise HealingDiverged(
                f"step {self.progress.step + 1} of the healing has loss {loss} and gradient "
                f"norm {norm}: choose a learning rate below {self._rate}"
            )
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        seconds = self._peers.as_first(time.monotonic() - began_s)
        self.progress = replace(
            self.progress,
            step=self.progress.step + 1,
            num_tokens=self.progress.num_tokens + self._step_tokens,
            seconds=self.progress.seconds + seconds,
            losses=(*self.progress.losses, loss),
        )
        is_due = self.progress.step % self._heal.steps_per_check == 0 or self._used >= 1
        check = self._check() if is_due else None
        done, pace = self.progress, self._step_tokens / max(seconds, 1e-9)
        used = min(1.0, self._used)
        return Step(done.step, done.num_tokens, loss, rate, used, pace, done.seconds, check)

    def _gradients(self) -> float:
        """Sum up the gradients of the next step, part by part, and return its loss."""
        read = self.progress.num_tokens // self._seqlen
        windows = self._order.windows(read, self._num_windows)
        total = torch.zeros(1, dtype=torch.float64)
        for part in self._parts(windows):
            loss = self._loss(part) * (len(part) / self._num_windows)
            loss.backward()
            total += float(loss.detach())
        parameters = list(self._adapter.parameters.values())
        for parameter in parameters:
            if parameter.grad is None:  # no token of this process's windows has used it
                parameter.grad = torch.zeros_like(parameter)
        self._peers.add_up([each.grad for each in parameters if each.grad is not None])
        self._peers.add_up([total])
        return float(total)

    def _parts(self, windows: torch.Tensor) -> Iterator[torch.Tensor]:
        """The share of this process, a call at a time, on the device."""
        share = self._peers.share(windows)
        if len(share):
            yield from share.to(self._dense.device).split(self._micro_windows)

    def _loss(self, token_ids: torch.Tensor) -> torch.Tensor:
        """The mean over the models that the next step trains."""
        chosen = self._students.of_step(self.progress.step, self._heal.seed)
        with self._autocast():
            dense, students = last_hiddens(self._dense, self._students, chosen, token_ids)
            dense, hidden = dense.flatten(0, 1), [each.flatten(0, 1) for each in students]
            loss = divergences(self._dense, hidden, dense).mean()
            if self._heal.hidden_weight:
                errors = torch.stack([hidden_error(each, dense) for each in hidden])
                loss = loss + self._heal.hidden_weight * errors.mean()
        return loss

    @torch.no_grad()
    def _check(self) -> Check:
        """Measure the divergence on held-out text, and keep the adapter if it is the best."""
        began_s = time.monotonic()
        measured = {
            domain: self._held_out(windows).mean(dim=1).tolist()
            for domain, windows in self._held_out_windows.items()
        }
        by_domain = {domain: fmean(of_depths) for domain, of_depths in measured.items()}
        by_depth = tuple(map(fmean, zip(*measured.values(), strict=True)))
        done = self.progress
        loss, is_elastic = fmean(by_domain.values()), len(by_depth) > 1
        check = Check(done.step, done.num_tokens, loss, by_domain, by_depth if is_elastic else ())
        if not math.isfinite(check.loss):
            raise HealingDiverged(
                f"after {counted(done.step, 'step')} of the healing, the held-out loss is "
                f"{check.loss}: choose a learning rate below {self._rate}"
            )
        is_best = not done.checks or check.loss < done.best.loss
        if is_best:
            self.best = self._adapter.values()
        self.progress = replace(
            done,
            checks=(*done.checks, check),
            num_risen=0 if is_best else done.num_risen + 1,
            seconds=done.seconds + self._peers.as_first(time.monotonic() - began_s),
        )
        return check

    def _held_out(self, windows: torch.Tensor) -> torch.Tensor:
        """The divergence of every model on each window ``[models, num_windows]``, on the CPU."""
        models = self._students.each
        measured: list[torch.Tensor] = []
        for part in self._parts(windows):
            with self._autocast():
                dense, hidden = last_hiddens(self._dense, self._students, models, part)
                nats = [window_divergences(self._dense, each, dense) for each in hidden]
                measured.append(torch.stack(nats, dim=1))
        whole = torch.zeros(len(windows), len(models), dtype=torch.float64)
        if measured:
            self._peers.share(whole).copy_(torch.cat(measured))
        self._peers.add_up([whole])
        return whole.T

    def _autocast(self) -> AbstractContextManager[object]:
        """Multiply in bfloat16 on a GPU, where it is many times as fast as float32, and by adapters
        where the model does so itself."""
        device = self._dense.device.type
        if device != "cuda" and self._dense.dtype != torch.bfloat16:
            return nullcontext()
        return torch.autocast(device, dtype=torch.bfloat16)

    def _restore(self, earlier: TrainingState) -> None:
        self._adapter.load(earlier.adapter)
        for name, parameter in self._adapter.parameters.items():
            if name in earlier.mean:
                self._optimizer.state[parameter] = {
                    "step": torch.tensor(float(earlier.progress.step)),
                    "exp_avg": earlier.mean[name].to(parameter.device, copy=True),
                    "exp_avg_sq": earlier.square[name].to(parameter.device, copy=True),
                }


def schedule(used: float, warmup: float) -> float:
    """The share of the learning rate when a share of the budget is ``used``.

    It rises in a line, then falls along a cosine to ``LEAST_RATE``.
    """
    if used < warmup:
        return max(used / warmup, LEAST_RATE)
    falling = (used - warmup) / (1 - warmup)
    return LEAST_RATE + (1 - LEAST_RATE) * (1 + math.cos(math.pi * min(1.0, falling))) / 2
