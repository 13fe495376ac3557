"""A forward from its launch until its tokens are on the host.

On a GPU, the next decode is launched before the tokens of the one before are read: so the host
prepares steps and hands tokens out while the device computes. The tokens go from one to the next on
the device. A sequence that turns out to have ended has computed one token more, which is thrown
away. Its pages may be given to others at once, since a device runs what is launched in order.
"""

from collections.abc import Callable
from collections.abc import Sequence as Values
from dataclasses import dataclass
from functools import partial
from weakref import WeakKeyDictionary, WeakMethod

from app.engine.cache.caches import Caches
from app.engine.cache.pages import PAGE_TOKENS
from app.engine.kernels.warm_up import Recorded
from app.engine.running.cuda_graphs import shapes_to
from app.engine.running.model_runner import ModelRunner
from app.engine.running.prepared_kernels import Kernels
from app.engine.sampling.logprobs import score_prompts
from app.engine.sampling.sampling import Choice, Chosen, choose
from app.engine.scheduling.scheduler import Batch, Scheduler
from app.engine.scheduling.sequence import Sequence
from app.engine.step import Step
from app.engine.transfer import upload
from app.engine.variant import Variant
from pruning.models.blocks import num_blocks


@dataclass(frozen=True)
class Launched:
    """A forward that the device runs or has run. Its sequences are as before it."""

    batch: Batch
    step: Step
    seqs: Values[Sequence]  # which get a token
    chosen: Chosen  # of these
    failed: Values[Sequence] = ()  # whose prompts could not be scored


class Launcher:
    """Launches the forwards that a scheduler chooses, by a runner for each variant.

    Not thread-safe, except for ``max_len``.
    """

    def __init__(self, scheduler: Scheduler, caches: Caches, kernels: Kernels) -> None:
        self._scheduler = scheduler
        self._caches = caches
        self._kernels = kernels
        self._runners: WeakKeyDictionary[Variant, ModelRunner] = WeakKeyDictionary()
        kernels.record_next = WeakMethod(self._record_next)  # no cycle: an engine has large caches

    def max_len(self, variant: Variant) -> int:
        """The maximum of prompt and generated tokens of a sequence of this variant."""
        longest = self._scheduler.limits.max_model_len or variant.max_model_len
        return min(variant.max_model_len, longest, self._num_pages(variant) * PAGE_TOKENS)

    def runner(self, variant: Variant) -> ModelRunner:
        """Made at its first use. Raises ``CacheTooSmall``."""
        if variant not in self._runners:
            flat = self._kernels.prepare(variant)
            record = self._kernels.recorder(variant.model.device)
            max_rows, num_pages = self._scheduler.limits.max_num_seqs, self._num_pages(variant)
            shapes = shapes_to(max_rows, self.max_len(variant), num_pages)
            self._runners[variant] = ModelRunner(
                variant, self._caches.of(variant), flat, record, self._kernels.tuner, shapes
            )
        return self._runners[variant]

    def _record_next(self, variant: Variant) -> Recorded:
        return self.runner(variant).record_next()

    def _num_pages(self, variant: Variant) -> int:
        """The pages of this variant that its cache has room for."""
        return self._caches.of(variant).pool.num_units // num_blocks(variant.model)

    def launch(self, batch: Batch, step: Step) -> Launched:
        """Choose the next token of each sequence whose tokens are all cached after this forward."""
        runner = self.runner(batch.variant)
        forwarded = runner.forward(batch, step)
        logits = forwarded.logits
        failed = score_prompts(batch, forwarded, partial(runner.head, step=step))
        parts = zip(batch.sequences, batch.num_scheduled_tokens, strict=True)
        ready = [
            row
            for row, (seq, num) in enumerate(parts)
            if seq.num_uncached == num and seq not in failed
        ]
        seqs = [batch.sequences[row] for row in ready]
        if len(ready) < len(logits):  # a decode needs no copy: all of its rows are ready
            logits = logits[upload(ready, logits.device)]
        return Launched(batch, step, seqs, choose(logits, seqs), failed)

    def ahead_of(self, launched: Launched) -> Launched | None:
        """Launch the decode behind this one, which is not read yet. None if that may not be the
        next forward, if it needs the tokens on the host, or is not recorded."""
        batch, token_ids = launched.batch, launched.chosen.token_ids
        if token_ids is None or launched.failed or launched.step.is_reproducible:
            return None
        runner = self.runner(batch.variant)
        if not (batch.is_decode and runner.can_run_ahead(batch)):
            return None
        if not all(seq.request.params.needs_only_logits for seq in batch.sequences):
            return None
        if (behind := self._scheduler.again(batch)) is None:
            return None
        step = Step()
        logits = runner.run_ahead(behind, token_ids, step)
        return Launched(behind, step, behind.sequences, choose(logits, behind.sequences))


def landed(
    launched: Launched, is_open: Callable[[Sequence], bool]
) -> list[tuple[Sequence, Choice | None]]:
    """The tokens of a forward, once they are there, of the sequences that are still open. These
    have its keys and values in their pages from now on."""
    batch = launched.batch
    for seq, num in zip(batch.sequences, batch.num_scheduled_tokens, strict=True):
        if not is_open(seq):
            continue
        seq.num_cached += num
        seq.pages.publish(seq.tokens, seq.num_cached - num, seq.num_cached)
        seq.ran(launched.step.kernels)
        if seq.num_generated and batch.is_decode:
            seq.num_decodes += 1
            seq.sum_batch_sizes += len(batch.sequences)
    chosen = zip(launched.seqs, launched.chosen.read(), strict=True)
    every = [*chosen, *((seq, None) for seq in launched.failed)]
    return [(seq, choice) for seq, choice in every if is_open(seq)]
