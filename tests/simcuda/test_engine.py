"""The engine on a simulated GPU: what it gives, and how often the host waits for the device."""

import gc
import weakref
from typing import Any

import pytest
import torch

from app.engine.cache.caches import Caches, CacheTooLarge, check_cache, step_bytes
from app.engine.cache.pages import pages_of
from app.engine.engine import Engine
from app.engine.kernels.flat_block import FusedNorm
from app.engine.kernels.int8 import PRODUCTS, chosen_names, int8_model
from app.engine.running.flat_model import flat_model
from app.engine.scheduling.scheduler import EngineLimits
from app.engine.scheduling.sequence import Request
from app.engine.variant import Variant, make_variant
from pruning.models.memory import free_bytes
from pruning.models.quantize import quantized_layers
from pruning.models.rounding import QuantizedLinear
from pruning.models.store import LoadedModel
from pruning.spec.prune import Quantize
from tests.support.engine_requests import PRUNED_BLOCKS, prompt, request
from tests.support.mixtures import MIXTURE_CONFIGS
from tests.support.quick import slow_but
from tests.support.response_formats import PERSON, constrained
from tests.support.simcuda.device import SimulatedCuda
from tests.support.simcuda.engine_runs import (
    KINDS,
    LIMITS,
    check,
    events,
    longer,
    recorded,
    requests,
)
from tests.support.simcuda.models import on_device, variant_on
from tests.support.tiny import SERVED, tiny_model

EXPERTS = MIXTURE_CONFIGS.keys() & {*SERVED}
# Its own forward takes the one key head of a block by a list, which goes to the device each time.
UNRECORDED = {*EXPERTS, "falcon"}


@pytest.mark.parametrize("family", slow_but(SERVED, "gemma2", "gpt2", "qwen3"))
def test_every_family_gives_what_it_gives_on_the_cpu(cuda: SimulatedCuda, family: str) -> None:
    """Recorded, but for falcon and experts in float32: torch reads on the host where their groups
    end."""
    model = tiny_model(family)
    for keep in (None, PRUNED_BLOCKS):
        cpu = make_variant("tiny", "tiny", model, keep)
        gpu = make_variant("tiny", "tiny", on_device(model), keep)
        expected = events(Engine(LIMITS), *requests(cpu))
        engine = recorded(gpu)
        cuda.num_captures = cuda.num_replays = 0
        check(events(engine, *requests(gpu)), expected)
        assert (cuda.num_replays > 0) == (family not in UNRECORDED)
        assert cuda.num_captures == 0


@pytest.mark.parametrize(
    ("family", "is_fused"), [("llama", True), ("qwen3", True), ("gemma", False)]
)
def test_norms_by_the_root_mean_square_are_one_kernel(
    cuda: SimulatedCuda, family: str, is_fused: bool
) -> None:
    """A weight that is stored as the difference from one is none."""
    assert cuda.current == 0
    models = tiny_model(family), on_device(tiny_model(family)).bfloat16()
    for model, on_gpu in zip(models, (False, True), strict=True):
        flat = flat_model(model)
        assert flat is not None
        norms = [norm for block in flat._blocks for norm in (*block.norms, *block.head_norms)]
        kinds = {type(norm) for norm in norms} - {torch.nn.Identity}
        assert (kinds == {FusedNorm}) == (is_fused and on_gpu)


@pytest.mark.parametrize("family", sorted(EXPERTS))
def test_experts_are_recorded_in_bfloat16(cuda: SimulatedCuda, family: str) -> None:
    of = make_variant("tiny", "tiny", on_device(tiny_model(family)).bfloat16())
    engine = recorded(of)
    num_recorded = cuda.num_replays
    found = events(engine, *requests(of))
    assert cuda.num_replays > num_recorded > 0
    assert all(len(each) == 8 for each in found.values())


def test_a_response_format_gives_what_it_gives_on_the_cpu(
    cuda: SimulatedCuda, tiny_loaded: LoadedModel
) -> None:
    def asked(of: Variant) -> list[Request]:
        return [
            constrained(PERSON, of, (70, 71, 72), "constrained", max_new_tokens=30, seed=5),
            request(prompt(7), of, request_id="free", max_new_tokens=30, ignore_eos=True),
        ]

    expected = events(Engine(LIMITS), *asked(make_variant("tiny", "tiny", tiny_loaded.model)))
    gpu = variant_on(tiny_loaded.model)
    check(events(recorded(gpu), *asked(gpu)), expected)
    assert cuda.num_replays > cuda.num_captures


def test_int8_gives_what_it_gives_on_the_cpu(cuda: SimulatedCuda) -> None:
    """Recorded, its variants too, in integer products of as many rows as CUDA wants."""
    model = tiny_model("llama")
    cpu, gpu = (int8_model(of) for of in (model, on_device(model)))
    choices = [chosen_names(quantized_layers(of)) for of in (cpu, gpu)]
    assert choices[0].keys() == choices[1].keys()
    for keep in (None, PRUNED_BLOCKS):
        on_cpu, on_gpu = (make_variant("tiny+int8", "tiny", of, keep) for of in (cpu, gpu))
        expected = events(Engine(LIMITS), *requests(on_cpu))
        engine = recorded(on_gpu)
        cuda.num_captures = cuda.num_replays = 0
        check(events(engine, *requests(on_gpu)), expected)
        assert cuda.num_replays > cuda.num_captures == 0


@pytest.mark.parametrize(("name", "most"), [("chunked", 12), ("integer", 30)])
@pytest.mark.parametrize("num_rows", [1, 16, 17])
def test_a_product_with_int8_weights_is_a_few_launches(
    cuda: SimulatedCuda, name: str, most: int, num_rows: int
) -> None:
    """For weights of six of the pieces that a CPU takes."""
    plain = torch.nn.Linear(256, 6144, device="cuda", bias=False)
    layer = QuantizedLinear(plain.weight, None, Quantize.INT8)
    rows = torch.randn(num_rows, 256, device="cuda")
    expected = rows @ layer.dequantized().T
    before = cuda.num_kernels
    found = PRODUCTS[name](rows, layer.values, layer.scales)
    assert cuda.num_kernels - before <= most
    assert (found - expected).norm() < 1e-3 * expected.norm()


def test_two_devices_serve_one_variant_each(cuda: SimulatedCuda) -> None:
    model = tiny_model("llama")
    both = [variant_on(model, f"cuda:{index}") for index in range(2)]
    asked = [
        request(prompt(9), of, request_id=str(of.model.device), max_new_tokens=12) for of in both
    ]
    found = events(recorded(*both), *asked)
    first, second = ([each.token_id for each in of] for of in found.values())
    assert first == second
    assert len(first) == 12
    assert cuda.allocated_bytes(0) > 0 < cuda.allocated_bytes(1)


def test_a_model_of_the_second_device_uses_no_memory_of_the_first(cuda: SimulatedCuda) -> None:
    gc.collect()
    before = cuda.allocated_bytes(0)
    cuda.reset_peak(0)
    of = variant_on(tiny_model("llama"), "cuda:1")
    events(recorded(of), *requests(of))
    assert cuda.num_replays > cuda.num_captures
    assert cuda.peak_bytes(0) == before


def test_no_reference_cycle_holds_a_recorded_model(cuda: SimulatedCuda) -> None:
    """So an unload frees its memory at once."""
    of = variant_on(tiny_model("llama"))
    engine = recorded(of)
    model, cache = weakref.ref(of.model), weakref.ref(engine._caches.of(of))
    gc.collect()
    gc.disable()
    try:
        events(engine, *requests(of))
        assert cuda.num_replays > cuda.num_captures
        del of
        assert (model(), cache()) == (None, None)
    finally:
        gc.enable()


def decode_costs(cuda: SimulatedCuda, num_rows: int, **params: Any) -> tuple[int, int, int]:
    """Waits, uploads and downloads of one decode step in the middle of so many outputs."""
    of = variant_on(tiny_model("llama"))
    engine = recorded(of)
    for row in range(num_rows):
        engine.add(request(prompt(9, row), of, max_new_tokens=20, ignore_eos=True, **params))
    for _ in range(8):  # the prompts, and some decodes
        engine.step()
    cuda.log.clear()
    assert len(engine.step()) == num_rows
    counts = [cuda.log.count(kind) for kind in ("wait", "upload", "download")]
    assert sum(cuda.log.by_place("wait").values()) == counts[0]
    return counts[0], counts[1], counts[2]


@pytest.mark.parametrize("num_rows", [1, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_a_decode_step_waits_once_for_all_its_results(
    cuda: SimulatedCuda, kind: str, num_rows: int
) -> None:
    """Uploads are that of the tokens, and one of what their sampling needs."""
    waits, uploads, downloads = decode_costs(cuda, num_rows, **KINDS[kind])
    assert waits == downloads == 1
    assert uploads == (1 if kind == "greedy" else 2)


def test_rows_of_several_kinds_cost_no_more_than_one(cuda: SimulatedCuda) -> None:
    of = variant_on(tiny_model("llama"))
    engine = recorded(of)
    for each in requests(of, num_tokens=20):
        engine.add(each)
    for _ in range(8):
        engine.step()
    cuda.log.clear()
    assert len(engine.step()) == 2 * len(KINDS)
    assert cuda.log.count("wait") == cuda.log.count("download") == 1
    assert cuda.log.count("upload") == 2


def test_a_response_format_costs_one_upload_of_its_masks(
    cuda: SimulatedCuda, tiny_loaded: LoadedModel
) -> None:
    of = variant_on(tiny_loaded.model)
    engine = recorded(of)
    for row in range(3):
        ask = constrained(
            PERSON, of, (70, 71, 72 + row), str(row), max_new_tokens=30, temperature=0.8, seed=row
        )
        engine.add(ask)
    for _ in range(6):
        engine.step()
    cuda.log.clear()
    engine.step()
    assert cuda.log.count("wait") == 1
    assert cuda.log.count("upload") <= 3


def test_a_prompt_waits_once_for_its_token(cuda: SimulatedCuda) -> None:
    of = variant_on(tiny_model("llama"))
    engine = Engine(LIMITS)
    for row in range(3):
        engine.add(request(prompt(9 + row, row), of, max_new_tokens=3))
    engine.step()
    assert cuda.log.count("upload") > 0
    cuda.log.clear()
    for row in range(3):
        engine.add(request(prompt(9 + row, row + 3), of, max_new_tokens=3))
    while not any(event.token_id is not None for event in engine.step()):
        cuda.log.clear()
    assert cuda.log.count("wait") == cuda.log.count("download") == 1


def test_a_cache_that_the_card_cannot_hold_is_refused(cuda: SimulatedCuda) -> None:
    """At the start if it is more than the card has, and at a load if the weights leave less."""
    device = torch.device("cuda:1")
    cuda.set_memory(1 << 30)
    check_cache(1 << 30, device)
    check_cache(1 << 60, torch.device("cpu"))
    with pytest.raises(CacheTooLarge, match=r"SLEB_KV_CACHE_BYTES=.*: cuda:1 has only 1073741824"):
        check_cache((1 << 30) + 1, device)
    of = variant_on(tiny_model("llama"), "cuda:1")
    with pytest.raises(CacheTooLarge, match="the weights leave only on cuda:1"):
        Caches(1 << 30).of(of)


@pytest.mark.parametrize("family", slow_but(SERVED, "gemma2", "llama"))
def test_a_cache_leaves_what_the_largest_step_takes(cuda: SimulatedCuda, family: str) -> None:
    """Which is found by running one, and grows with its tokens."""
    cuda.set_memory(1 << 30)
    of = variant_on(tiny_model(family))
    few, many = step_bytes(of, 64, 64), step_bytes(of, 128, 64)
    assert 0 < few < many
    free = free_bytes(torch.device("cuda:0"))
    cache = Caches(None, num_tokens=128, num_rows=64).of(of)
    assert 0.79 * (free - many) < cache.num_bytes <= 0.8 * (free - many)


@pytest.mark.slow
def test_a_stream_of_a_thousand_tokens_records_nothing(cuda: SimulatedCuda) -> None:
    """All that is recorded is recorded at load, in a bounded number of shapes."""
    of = variant_on(longer(1100))
    limits = EngineLimits(max_num_seqs=4, kv_cache_bytes=1 << 23)
    engine = recorded(of, limits=limits)
    assert 0 < cuda.num_captures <= 3 * 9
    cuda.num_captures = cuda.num_replays = 0
    ask = request(prompt(9), of, max_new_tokens=1000, ignore_eos=True)
    [found] = events(engine, ask).values()
    assert len(found) == 1000
    assert (cuda.num_captures, cuda.num_replays) == (0, 999)


def test_a_long_sequence_does_not_make_short_ones_read_as_much(cuda: SimulatedCuda) -> None:
    """They are read in groups, with what each of them gives alone."""
    model = longer(1100)
    limits = EngineLimits(max_num_seqs=8, kv_cache_bytes=1 << 22)
    lengths = (1000, 9, 9, 9, 9, 9)

    def asked(of: Variant) -> list[Request]:
        return [
            request(prompt(length, seed), of, request_id=str(seed), max_new_tokens=6)
            for seed, length in enumerate(lengths)
        ]

    cpu, gpu = make_variant("tiny", "tiny", model), variant_on(model)
    expected = events(Engine(limits), *asked(cpu))
    engine = recorded(gpu, limits=limits)
    check(events(engine, *asked(gpu)), expected)
    for each in asked(gpu):
        engine.add(each)
    while len(engine.step()) < len(lengths):  # the prompts
        pass
    start = cuda.allocated_bytes()
    cuda.reset_peak()
    engine.step()
    of_longest = 2 * pages_of(1000) * engine._caches.of(gpu).shape.num_bytes
    assert cuda.peak_bytes() - start < 2 * of_longest
