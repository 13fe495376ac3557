"""Compiled blocks compute what the flat ones compute: one contract for every family."""

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import PreTrainedModel

from app.engine.autotuning import OFF, Autotuner
from app.engine.cache.paged_cache import PagedCache
from app.engine.engine import Engine
from app.engine.engine_loop import EngineLoop
from app.engine.kernels.int8 import int8_model
from app.engine.running.flat_model import (
    AROUND,
    AROUND_ATTENTION,
    COMPILED,
    FLAT,
    FlatModel,
    flat_model,
)
from app.engine.running.model_runner import Forwarded, ModelRunner
from app.engine.scheduling.scheduler import Batch
from app.engine.step import Interruption, Step
from app.engine.variant import Variant, make_variant
from pruning.models.blocks import block_list
from tests.support.both_ways import Forwards, forwards
from tests.support.compiled import always, load_compiled, torch_threads
from tests.support.engine_requests import PRUNED_BLOCKS, expected, prompt, request, run, variant
from tests.support.quick import slow_but
from tests.support.tiny import NUM_BLOCKS, SERVED, tiny_model

WAYS = (AROUND, AROUND_ATTENTION, COMPILED)
NUM_TOKENS = 64  # of a sequence, for short ones
COMPILED_FAMILIES = (
    "cwm", "gemma", "gemma3_text", "internlm3", "iquestcoder", "llama", "ministral", "mistral",
    "olmo2", "olmo3", "phi3", "qwen2", "qwen3", "seed_oss", "smollm3",
)  # fmt: skip


class BothWays(ModelRunner):
    """Runs steps compiled, and again flat over the same cache, and notes what either gives."""

    def __init__(self, each: Variant, cache: PagedCache, tuner: Autotuner, seen: Forwards) -> None:
        compiled = flat_model(each.model, tuner)
        assert compiled is not None
        assert compiled._compiled is not None
        super().__init__(each, cache, compiled, tuner=tuner)
        self._oracle = ModelRunner(each, cache, flat_model(each.model))
        self._seen = seen

    def forward(self, batch: Batch, step: Step) -> Forwarded:
        ours = super().forward(batch, step)
        pages = slice(1, 1 + self.cache.pool.num_touched)
        both = [each[:, pages] for each in (self.cache.keys, self.cache.values)]
        written = [each.clone() for each in both]
        theirs = self._oracle.forward(batch, Step())
        for mine, other in zip(written, both, strict=True):
            far = (mine - other).float().norm()
            assert far <= (1e-5 if mine.dtype == torch.float32 else 0.05) * other.float().norm()
        self._seen.append((ours.logits, theirs.logits))
        return ours


def steps(
    variants: Sequence[Variant], sizes: Sequence[tuple[int, int]], tuner: Autotuner
) -> Forwards:
    return forwards(variants, sizes, lambda each, cache, seen: BothWays(each, cache, tuner, seen))


def typed(family: str, dtype: torch.dtype, *, is_int8: bool = False) -> PreTrainedModel:
    model = copy.deepcopy(tiny_model(family))
    nn.Module.to(model, dtype)
    return int8_model(model, OFF) if is_int8 else model


@pytest.mark.parametrize("family", SERVED)
def test_every_family_of_usual_parts_is_compiled(family: str) -> None:
    flat = flat_model(tiny_model(family), always(COMPILED))
    is_compiled = flat is not None and flat._compiled is not None
    assert is_compiled == (family in COMPILED_FAMILIES)


@settings(max_examples=20)
@given(
    family=st.sampled_from(COMPILED_FAMILIES),
    is_int8=st.booleans(),
    way=st.sampled_from(WAYS),
    sizes=st.lists(
        st.tuples(st.sampled_from([1, 2, 9, 33, 60, 100]), st.integers(2, 12)),
        min_size=1,
        max_size=7,
    ),
)
def test_they_compute_what_the_flat_blocks_compute(
    family: str, is_int8: bool, way: str, sizes: list[tuple[int, int]]
) -> None:
    model = typed(family, torch.float32, is_int8=is_int8)
    both = [
        make_variant("tiny", "tiny", model),
        make_variant("tiny@-2", "tiny", model, PRUNED_BLOCKS),
    ]
    for ours, theirs in steps(both, sizes, always(way)):  # either is off by up to 5e-6
        assert (ours - theirs).abs().max() < 3e-5 * theirs.abs().max()


@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize("way", WAYS)
def test_any_number_of_threads_computes_the_same(num_threads: int, way: str) -> None:
    for is_int8 in (False, True):
        each = make_variant("tiny", "tiny", typed("llama", torch.float32, is_int8=is_int8))
        with torch_threads(num_threads):
            found = steps([each], [(5, 4)] * num_threads, always(way))
        assert found
        for ours, theirs in found:
            assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("is_int8", [False, True])
@pytest.mark.parametrize(
    "family", slow_but(COMPILED_FAMILIES, "gemma3_text", "olmo2", "phi3", "qwen2")
)
def test_in_bfloat16_they_are_nearer_to_float32_than_the_flat_blocks(
    family: str, is_int8: bool, way: str
) -> None:
    load_compiled()
    tuner = always(way, dtype=torch.bfloat16)
    rounded = typed(family, torch.bfloat16, is_int8=is_int8)
    sizes = [(num_prompt, 2) for num_prompt in (9, 33, 60, 17) * 4]
    exact_model = copy.deepcopy(rounded).float()
    found = steps([make_variant("tiny", "tiny", rounded)], sizes, tuner)
    exact = steps([make_variant("tiny", "tiny", exact_model)], sizes, tuner)
    errors = [
        [(each - truth).pow(2).mean().sqrt() for each in both]
        for both, (_, truth) in zip(found, exact, strict=True)
    ]
    ours, theirs = (sum(each) for each in zip(*errors, strict=True))
    assert ours < 1.2 * theirs


class FlatPrompts(Autotuner):
    """Prompts by torch's operations, and decodes compiled."""

    def kernel(self, key: str, kernels: Collection[str]) -> str:
        if COMPILED not in kernels:
            return super().kernel(key, kernels)
        return FLAT if "prompts" in key else COMPILED


def test_a_cache_after_another_is_the_one_that_is_read() -> None:
    load_compiled()
    for seed in range(3):
        each = request(prompt(9, seed), max_new_tokens=6)
        assert run(Engine(tuner=FlatPrompts()), each).of(each) == expected(each)


def test_whole_blocks_are_timed_only_where_they_have_room(monkeypatch: pytest.MonkeyPatch) -> None:
    flat = flat_model(tiny_model("llama"), always(COMPILED))
    assert flat is not None
    assert flat._compiled is not None
    sizes = flat._compiled._sizes(32, is_whole=True)
    monkeypatch.setattr("app.engine.kernels.compiled.model.MAX_ROOM_BYTES", 4 * sum(sizes.values()))
    assert flat._compiled.max_rows() == 32
    trials = [*flat.trials(8, 64, NUM_TOKENS, 1024)]
    timed = {
        trial.key.partition(" within")[0]: COMPILED in trial.prepare()
        for trial in trials
        if trial.key.startswith("blocks")
    }
    assert timed == {
        **{f"blocks, decode of {rows}": True for rows in (1, 2, 4, 8)},
        **{f"blocks, prompts of {tokens}": tokens <= 32 for tokens in (16, 32, 64)},
    }


def test_a_model_and_its_variants_have_the_same_choices() -> None:
    tuner, keys = always(), []
    for pruned in (False, True):
        flat = flat_model(variant(pruned).model, tuner)
        assert flat is not None
        keys.append([trial.key for trial in flat.trials(8, 64, NUM_TOKENS, 1024)])
    assert keys[0] == keys[1]
    assert len(set(keys[0])) == len(keys[0])


@pytest.mark.parametrize("family", COMPILED_FAMILIES)
def test_all_runs_of_a_trial_compute_the_same(family: str) -> None:
    load_compiled()
    flat = flat_model(tiny_model(family), Autotuner())
    assert flat is not None
    for trial in flat.trials(4, 128, 100, 1024):
        with torch.inference_mode():
            expected, *others = (run() for run in trial.prepare().values())
        assert others
        assert isinstance(expected, torch.Tensor)
        if trial.key.startswith("attention"):
            for other in others:
                torch.testing.assert_close(other, expected, rtol=1e-4, atol=1e-5)


def in_float16(model: PreTrainedModel) -> None:
    model.half()


def with_another_activation(model: PreTrainedModel) -> None:
    block_list(model)[2].get_submodule("mlp").add_module("act_fn", nn.ReLU())


def with_another_norm(model: PreTrainedModel) -> None:
    norm = nn.LayerNorm(model.config.hidden_size)
    block_list(model)[1].add_module("input_layernorm", norm)


def with_a_hook_on_a_matrix(model: PreTrainedModel) -> None:
    layer = block_list(model)[1].get_submodule("mlp.down_proj")
    layer.register_forward_hook(lambda _module, _args, output: output)


@pytest.mark.parametrize(
    "change", [in_float16, with_another_activation, with_another_norm, with_a_hook_on_a_matrix]
)
def test_parts_of_another_kind_are_left_to_the_flat_blocks(
    change: Callable[[PreTrainedModel], None],
) -> None:
    model = copy.deepcopy(tiny_model("llama"))
    change(model)
    flat = flat_model(model, always(COMPILED))
    assert isinstance(flat, FlatModel)
    assert flat._compiled is None


def test_a_background_decode_ends_with_the_block_that_has_begun() -> None:
    interruption, engine = Interruption(), Engine(tuner=always(COMPILED))
    engine.kernels.finish(variant())
    loop = EngineLoop(engine, interruption)
    engine.add(replace(request(prompt(5)), is_background=True))
    assert len(loop.step()) == 1, "no token after the prompt"
    cache = engine._launcher.runner(variant()).cache
    units = range(1, NUM_BLOCKS + 1)  # of the only page
    assert not any(cache.keys[:, unit, 5].any() for unit in units)
    interruption.set()
    assert loop.step() == []
    written = [cache.keys[:, unit, 5].any().item() for unit in units]
    assert written == [True, *[False] * (NUM_BLOCKS - 1)], "more or less than a block has run"


def test_background_steps_run_the_kernels_of_live_steps() -> None:
    kernels = []
    for is_background in (False, True):
        engine = Engine(tuner=always(COMPILED))
        loop = EngineLoop(engine, Interruption())
        engine.add(replace(request(prompt(5)), is_background=is_background))
        events = []
        while loop.has_work:
            events += loop.step()
        timings = events[-1].timings
        assert timings is not None
        kernels.append(timings.kernels)
    assert kernels[0] == kernels[1]
    assert kernels[0]["blocks, decode of 1 within 64"] == COMPILED
