"""The runner of each variant, made at its first use by the thread that steps the engine."""

from weakref import WeakKeyDictionary, WeakMethod

from app.engine.cache.caches import Caches
from app.engine.cache.pages import PAGE_TOKENS
from app.engine.kernels.warm_up import Recorded
from app.engine.running.cuda_graphs import shapes_to
from app.engine.running.model_runner import ModelRunner
from app.engine.running.prepared_kernels import Kernels
from app.engine.scheduling.scheduler import EngineLimits
from app.engine.variant import Variant
from pruning.models.blocks import num_blocks


class Runners:
    """Not thread-safe, except for ``max_len``."""

    def __init__(self, limits: EngineLimits, caches: Caches, kernels: Kernels) -> None:
        self._limits = limits
        self._caches = caches
        self._kernels = kernels
        self._made: WeakKeyDictionary[Variant, ModelRunner] = WeakKeyDictionary()
        kernels.record_next = WeakMethod(self._record_next)  # no cycle: an engine has large caches

    def max_len(self, variant: Variant) -> int:
        """The maximum of prompt and generated tokens of a sequence of this variant."""
        longest = self._limits.max_model_len or variant.max_model_len
        return min(variant.max_model_len, longest, self._num_pages(variant) * PAGE_TOKENS)

    def of(self, variant: Variant) -> ModelRunner:
        """Raises ``CacheTooSmall``."""
        if variant not in self._made:
            flat = self._kernels.prepare(variant)
            record = self._kernels.recorders.of(variant.model.device)
            shapes = shapes_to(
                self._limits.max_num_seqs, self.max_len(variant), self._num_pages(variant)
            )
            self._made[variant] = ModelRunner(
                variant, self._caches.of(variant), flat, record, self._kernels.tuner, shapes
            )
        return self._made[variant]

    def _record_next(self, variant: Variant) -> Recorded:
        return self.of(variant).record_next()

    def _num_pages(self, variant: Variant) -> int:
        """The pages of this variant that its cache has room for."""
        return self._caches.of(variant).pool.num_units // num_blocks(variant.model)
