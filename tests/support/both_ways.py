"""Steps of an engine that compute logits in two ways, and note both."""

from collections.abc import Callable, Sequence

import pytest
import torch

from app.engine import launching
from app.engine.cache.paged_cache import PagedCache
from app.engine.engine import Engine
from app.engine.running.model_runner import ModelRunner
from app.engine.scheduling.scheduler import EngineLimits
from app.engine.variant import Variant
from tests.support.engine_requests import prompt, request, run

Forwards = list[tuple[torch.Tensor, torch.Tensor]]  # logits of the two ways


def forwards(
    variants: Sequence[Variant],
    sizes: Sequence[tuple[int, int]],
    runner: Callable[[Variant, PagedCache, Forwards], ModelRunner],
    limits: EngineLimits | None = None,
) -> Forwards:
    """All steps that answers of these sizes take, in tokens of prompt and answer, by runners that
    note what they compute."""
    seen: Forwards = []
    asked = [
        request(prompt(num_prompt, seed), variants[seed % len(variants)],
                max_new_tokens=num_new, ignore_eos=True)
        for seed, (num_prompt, num_new) in enumerate(sizes)
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launching, "ModelRunner", lambda each, cache, *_: runner(each, cache, seen))
        outcome = run(Engine(limits), *asked)
    assert [len(outcome.of(each)) for each in asked] == [num_new for _, num_new in sizes]
    return seen
