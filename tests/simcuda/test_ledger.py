"""What a run of a published shape holds on a card at its peak. Nothing is computed: tensors have
shapes only, and the product's own code runs."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from app.engine.engine import Engine
from app.engine.running.cuda_graphs import no_recorder
from app.engine.scheduling.sequence import FinishReason, Request, SamplingParams
from app.engine.variant import make_variant
from pruning.models.loss import window_divergences, window_losses
from pruning.models.memory import BATCH_TOKENS
from pruning.models.random_models import random_model
from pruning.models.streaming import ResidentModel
from pruning.repair.record import Method
from pruning.repair.repair import repair_depths
from pruning.search.scoring import SharedPrefixScorer
from tests.simcuda.shapes import GIB, LLAMA_2_13B, LLAMA_3_8B
from tests.support.repairs import windows_of
from tests.support.simcuda.device import SimulatedCuda


def model_of(shape: Mapping[str, Any], **changes: Any) -> PreTrainedModel:
    return random_model({**shape, **changes}, "bfloat16", device="cuda")


def head_calls(model: PreTrainedModel) -> list[int]:
    """The rows of each call of the head from now on."""
    rows: list[int] = []
    model.get_output_embeddings().register_forward_hook(
        lambda _module, _args, logits: rows.append(len(logits))
    )
    return rows


@pytest.mark.parametrize(
    ("free_bytes", "num_calls", "num_calls_of_kl"), [(30 * GIB, 1, 2 * 2), (GIB, 8, 2 * 16)]
)
def test_the_head_runs_on_many_rows_of_a_large_vocabulary(
    dry: SimulatedCuda, free_bytes: int, num_calls: int, num_calls_of_kl: int
) -> None:
    model = model_of(LLAMA_3_8B, num_hidden_layers=1)
    hidden = torch.empty(1, 2048, 4096, dtype=torch.bfloat16, device="cuda")
    token_ids = torch.empty(1, 2048, dtype=torch.long, device="cuda")
    dry.set_memory(dry.allocated_bytes() + free_bytes)
    rows = head_calls(model)
    with torch.inference_mode():
        window_losses(model, hidden, token_ids)
        assert len(rows) == num_calls
        rows.clear()
        window_divergences(model, hidden, hidden)
    assert len(rows) == num_calls_of_kl


def on_card(cuda: SimulatedCuda, shape: Mapping[str, Any], num_blocks: int, gib: int) -> Any:
    """The first blocks of a model on a card of that size, and memory that all others would take."""
    cuda.set_memory(gib * GIB)
    model = model_of(shape, num_hidden_layers=num_blocks)
    block_bytes = sum(weight.nbytes for weight in model.model.layers[0].parameters())
    others = (shape["num_hidden_layers"] - num_blocks) * block_bytes
    return model, torch.empty(others, dtype=torch.uint8, device="cuda")


@pytest.mark.parametrize(
    ("shape", "gib"),
    [(LLAMA_3_8B, 24), pytest.param(LLAMA_2_13B, 40, marks=pytest.mark.slow)],
    ids=["8B", "13B"],
)
def test_a_repair_by_ridge_fits_the_card_that_has_the_model(
    dry: SimulatedCuda, shape: Mapping[str, Any], gib: int
) -> None:
    model, _others = on_card(dry, shape, 8, gib)
    domains = ("prose", "code", "documents")

    def windows(number: int) -> Mapping[str, torch.Tensor]:
        return {domain: torch.zeros(number, 2048, dtype=torch.long) for domain in domains}

    keep = (0, 1, 3, 4, 5, 6, 7)
    text = windows_of(windows(2), windows(1))
    [found] = repair_depths(ResidentModel(model), [keep], text, batch_tokens=BATCH_TOKENS)
    assert len(found.tried[Method.RIDGE].penalties) == 3
    assert dry.peak_bytes() < gib * GIB


@pytest.mark.parametrize("by_divergence", [False, True])
@pytest.mark.parametrize(
    ("shape", "gib"),
    [(LLAMA_3_8B, 24), pytest.param(LLAMA_2_13B, 40, marks=pytest.mark.slow)],
    ids=["8B", "13B"],
)
def test_a_search_fits_the_card_that_has_the_model(
    dry: SimulatedCuda, shape: Mapping[str, Any], gib: int, by_divergence: bool
) -> None:
    """At the paper's size: 128 windows of 2048 tokens. Their states go through memory in parts."""
    model, _others = on_card(dry, shape, 8, gib)
    windows = torch.zeros(128, 2048, dtype=torch.long)
    scorer = SharedPrefixScorer(model, windows, by_divergence=by_divergence)
    first = scorer.parts(range(128))[0]
    assert len(dict(scorer.score(tuple(range(8)), tuple(range(1, 7)), first))) == 6
    assert dry.peak_bytes() < gib * GIB


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "gib"),
    [(LLAMA_3_8B, 24), pytest.param(LLAMA_2_13B, 40, marks=pytest.mark.slow)],
    ids=["8B", "13B"],
)
def test_serving_fits_the_card_that_has_the_model(
    dry: SimulatedCuda, shape: Mapping[str, Any], gib: int
) -> None:
    """With the default limits: as many sequences as may run at once, beside one that is long."""
    model, _others = on_card(dry, shape, 8, gib)
    of = make_variant("dense", "dense", model)
    engine = Engine(recorder=no_recorder)
    longest = engine.max_len(of) - 16
    for number in range(engine.limits.max_num_seqs):
        prompt = (7,) * (longest if not number else 100)
        params = SamplingParams(max_new_tokens=12, ignore_eos=True)
        engine.add(Request(str(number), of, prompt, params))
    num_ended = 0
    while engine.has_work:
        num_ended += sum(event.finish_reason is FinishReason.LENGTH for event in engine.step())
    assert num_ended == engine.limits.max_num_seqs
    assert dry.peak_bytes() < gib * GIB
