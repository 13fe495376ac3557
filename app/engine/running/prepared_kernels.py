"""The kernels that an engine runs: made ready when a variant is loaded, and chosen meanwhile."""

from collections.abc import Callable, Iterator
from functools import partial
from hashlib import sha256
from threading import Lock
from weakref import WeakKeyDictionary, WeakMethod, ref

import torch

from app.engine.autotuning import Autotuner, Trial, processor
from app.engine.kernels.compiled.compilation import wait_for_compilation
from app.engine.kernels.int8 import product_trials
from app.engine.kernels.warm_up import Record, Recorded, WarmUp
from app.engine.running.cuda_graphs import Recorder
from app.engine.running.flat_model import COMPILED, FlatModel, flat_model, functions_of_steps
from app.engine.running.head import COMPILED_HEAD, Head
from app.engine.scheduling.scheduler import EngineLimits
from app.engine.variant import Variant

_MAX_COMPILATION_S = 600.0
_MAX_TIMED_TOKENS = 65_536  # of all sequences of a decode that is timed
REPRODUCIBLE = frozenset({COMPILED, COMPILED_HEAD})  # of steps whose rows depend on no other row


class Kernels:
    """Knows what steps of each variant run. Safe from any thread.

    ``make_recorder`` returns None for a device without graphs.
    """

    def __init__(
        self,
        tuner: Autotuner,
        limits: EngineLimits,
        make_recorder: Callable[[torch.device], Recorder | None],
    ) -> None:
        self.tuner = tuner
        self.record_next: WeakMethod[Record] | None = None  # called by the thread of the engine
        self.warm_up = WarmUp(tuner)
        self._limits = limits
        self._lock = Lock()  # of the recorders
        self._make_recorder = make_recorder
        self._recorders: dict[torch.device, Recorder | None] = {}
        self._making = Lock()
        self._flat_models: WeakKeyDictionary[Variant, FlatModel | None] = WeakKeyDictionary()

    def prepare(self, variant: Variant) -> FlatModel | None:
        """Make what steps of a variant need, and queue what makes them fast. Returns its flat model
        if it has one.

        The first step of a variant does it otherwise, while others wait.
        """
        if variant not in self._flat_models:
            with self._making:  # for which steps of other variants do not wait
                if variant not in self._flat_models:
                    self._flat_models[variant] = flat_model(variant.model, self.tuner)
                    functions = functions_of_steps(variant.model, self.tuner)
                    record = None if self.recorder(variant.model.device) is None else self._record
                    trials = partial(self._trials, ref(variant))
                    self.warm_up.add(variant, functions, trials, record)
        return self._flat_models[variant]

    def recorder(self, device: torch.device) -> Recorder | None:
        """That of a device, with one stream and one pool of memory."""
        with self._lock:
            if device not in self._recorders:
                self._recorders[device] = self._make_recorder(device)
            return self._recorders[device]

    def _record(self, variant: Variant) -> Recorded:
        record = self.record_next() if self.record_next is not None else None
        return Recorded.ALL if record is None else record(variant)

    def finish(self, *variants: Variant) -> None:
        """Compile and time now what steps of these variants need. For a thread of its own."""
        for variant in variants:
            self.prepare(variant)
            functions = functions_of_steps(variant.model, self.tuner)
            wait_for_compilation(functions, _MAX_COMPILATION_S)
        self.warm_up.finish()

    def are_awaited(self, variant: Variant) -> bool:
        """Whether functions of its steps are not compiled, but will be tried to be."""
        self.prepare(variant)
        functions = functions_of_steps(variant.model, self.tuner)
        return any(each.is_claimed and not each.is_ready for each in functions)

    def digest(self, *, is_reproducible: bool) -> str:
        """A digest of what outputs depend on beside weights and requests: processor, versions of
        the code, and the kernels that are taken now."""
        choices = {} if is_reproducible else self.tuner.choices
        kernels = sorted((key, choice.kernel) for key, choice in choices.items())
        return sha256(f"{processor()} {is_reproducible} {kernels}".encode()).hexdigest()

    def _trials(self, of: Callable[[], Variant | None]) -> Iterator[Trial]:
        """None once the variant is unloaded, which what waits must not keep in memory."""
        if (variant := of()) is None:
            return
        limits, flat = self._limits, self.prepare(variant)
        yield from product_trials(variant.model, self.tuner)
        yield from Head(variant.model, self.tuner).trials(limits.max_num_seqs)
        if flat is not None:
            yield from flat.trials(
                max_rows=limits.max_num_seqs,
                max_prompt=limits.max_batch_tokens + limits.num_end_tokens,
                max_tokens=min(
                    variant.max_model_len, limits.max_model_len or variant.max_model_len
                ),
                max_cache_tokens=_MAX_TIMED_TOKENS,
            )
