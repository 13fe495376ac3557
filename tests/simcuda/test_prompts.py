"""Steps that read several prompts on a simulated GPU: calls of attention, and what they give."""

from collections.abc import Callable
from typing import Any

import pytest
from torch.nn import functional as F

from app.engine.engine import Engine
from app.engine.scheduling.scheduler import EngineLimits
from app.engine.scheduling.sequence import Request
from app.engine.variant import Variant, make_variant
from tests.support.engine_requests import prompt, request
from tests.support.simcuda.device import SimulatedCuda
from tests.support.simcuda.engine_runs import check, events, longer
from tests.support.simcuda.models import variant_on
from tests.support.tiny import NUM_BLOCKS, tiny_model

LIMITS = EngineLimits(max_num_seqs=64, max_batch_tokens=1024, kv_cache_bytes=1 << 23)


def counted(monkeypatch: pytest.MonkeyPatch, run: Callable[[], Any]) -> int:
    """The calls of attention meanwhile."""
    calls = 0
    usual = F.scaled_dot_product_attention

    def attention(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return usual(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", attention)
        run()
    return calls


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "mistral"])
@pytest.mark.parametrize("num_prompts", [1, 3, 20])
def test_prompts_of_like_lengths_are_one_call_in_each_block(
    cuda: SimulatedCuda, monkeypatch: pytest.MonkeyPatch, family: str, num_prompts: int
) -> None:
    of = variant_on(tiny_model(family))
    engine = Engine(LIMITS)
    for row in range(num_prompts):
        engine.add(request(prompt(9 + row, row), of, max_new_tokens=2))
    assert counted(monkeypatch, engine.step) == NUM_BLOCKS
    assert cuda.log.count("download") == 1


@pytest.mark.parametrize("num_chunks", [2, 12])
def test_parts_of_prompts_are_as_few_calls(
    cuda: SimulatedCuda, monkeypatch: pytest.MonkeyPatch, num_chunks: int
) -> None:
    """What is left of prompts whose beginnings are known, beside one that begins."""
    of = variant_on(longer(1100))
    engine = Engine(LIMITS)
    first = prompt(64, 1)

    def asked(row: int) -> Request:
        ids = first + prompt(20 + row, row) if row else prompt(30)
        each = request(ids, of, max_new_tokens=2)
        return Request(each.request_id, of, each.prompt_ids, each.params, cache_scope="all")

    engine.add(Request("first", of, first, request(first, of, max_new_tokens=1).params,
                       cache_scope="all"))  # fmt: skip
    while engine.has_work:
        engine.step()
    for row in range(num_chunks + 1):
        engine.add(asked(row))
    cuda.log.clear()
    assert counted(monkeypatch, engine.step) == 2 * NUM_BLOCKS
    assert cuda.log.count("wait") == cuda.log.count("download") == 1


def test_prompts_and_their_chunks_give_what_they_give_on_the_cpu(cuda: SimulatedCuda) -> None:
    """Of many lengths at once, in steps of few tokens, with keys that are repeated for many."""
    lengths = (1, 9, 15, 16, 17, 40, 63, 64, 65, 100, 260, 700)

    def asked(of: Variant) -> list[Request]:
        return [
            request(prompt(num, num), of, request_id=str(num), max_new_tokens=6, ignore_eos=True)
            for num in lengths
        ]

    model = longer(1100)
    cpu, gpu = make_variant("tiny", "tiny", model), variant_on(model)
    for num_tokens in (48, 1024):
        limits = EngineLimits(16, num_tokens, kv_cache_bytes=1 << 23)
        check(events(Engine(limits), *asked(gpu)), events(Engine(limits), *asked(cpu)))
    assert cuda.num_kernels > 0
