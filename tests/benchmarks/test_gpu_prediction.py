"""What is predicted for a card: by what it is computed, and beside what it is reported."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from torch.utils._python_dispatch import TorchDispatchMode

from app.engine.engine import Engine
from app.engine.running.cuda_graphs import DecodeInputs
from app.engine.scheduling.scheduler import EngineLimits
from app.engine.variant import make_variant
from benchmarks.gpu.__main__ import Run, show_prediction
from benchmarks.gpu.arithmetic import CARDS, ModelSize, card_named
from benchmarks.gpu.plan import GpuPlan, small
from benchmarks.gpu.prediction import (
    KERNELS_PER_BLOCK,
    OTHER_KERNELS,
    assumptions,
    comparison,
    predicted,
    search_passes,
    table,
)
from pruning.models.blocks import num_blocks
from pruning.models.random_models import SHAPES, random_model
from tests.support.tiny import tiny_model

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "gpu.md"
PLAN = GpuPlan("cuda")


class Kernels(TorchDispatchMode):
    """Counts operators that are no views."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.number = 0

    def __torch_dispatch__(
        self, func: Any, types: object, args: Any = (), kwargs: Any = None
    ) -> object:
        aliased = [each.alias_info for each in func._schema.arguments if each.alias_info]
        self.number += all(alias.is_write for alias in aliased)
        return func(*args, **(kwargs or {}))


def test_a_decode_step_has_as_many_kernels_as_are_counted_on() -> None:
    model = copy.deepcopy(tiny_model("llama")).bfloat16()
    limits = EngineLimits(kv_cache_bytes=1 << 22)
    for keep in ((0, 1, 2, 3, 4, 5), (0, 1, 2, 3)):
        runner = Engine(limits)._launcher.runner(make_variant("tiny", "tiny", model, keep))
        zeros = torch.zeros(4, dtype=torch.long)
        inputs = DecodeInputs(zeros, zeros, torch.zeros(4, 2, len(keep), dtype=torch.long))
        with Kernels() as kernels, torch.no_grad():
            runner._decode(inputs)
        assert kernels.number == KERNELS_PER_BLOCK * len(keep) + OTHER_KERNELS


def test_sizes_are_those_of_a_model() -> None:
    shape = {**SHAPES["tinyllama-1.1b"], "num_hidden_layers": 2}
    model, size = random_model(shape, "bfloat16", device="meta"), ModelSize.of(shape)
    matrices = sum(each.numel() for each in model.parameters() if each.ndim == 2)
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    assert size.num_parameters(num_blocks(model)) == matrices - weight.numel()


def test_known_figures_are_predicted() -> None:
    found = {(each.part, each.name): each.value for each in predicted(PLAN, CARDS["h100"])}
    assert found["steps", "floor"] == pytest.approx(3.94, abs=0.01)  # 13.2 GB at 3.35 TB/s
    assert search_passes(32, 7) == 32 + 5320
    assert found["pruned", "generation, pruned over dense"] < 32 / 25
    assert found["search", "exact, a search at most"] < found["search", "without shared prefixes"]


@pytest.mark.parametrize("parts", ["steps", "search", "stream"])
def test_what_is_measured_is_predicted_under_the_same_name(parts: str) -> None:
    plan = small("cpu")
    run = Run(plan, 1e18)
    run.part(parts)
    figures = predicted(plan, CARDS["a100"])
    found = [each for each in figures if each.measured(run.found) is not None]
    assert len(found) >= 3
    report = {"parts": run.found, "machine": {"gpus": ["NVIDIA A100-SXM4-80GB"]}}
    assert len(comparison(report, plan)) == 2 + len(found)
    assert comparison({**report, "machine": {"gpus": []}}, plan) == []


def test_cards_are_known_by_what_torch_calls_them() -> None:
    assert card_named("NVIDIA H100 80GB HBM3") is CARDS["h100"]
    assert card_named("NVIDIA GeForce RTX 4090") is CARDS["rtx4090"]
    assert card_named("Simulated GPU") is None


def test_the_guide_has_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    cards = [CARDS["a100"], CARDS["h100"]]
    guide = GUIDE.read_text()
    assert table(PLAN, cards) in guide
    assert assumptions(cards) in " ".join(guide.split())
    show_prediction("a100,h100")
    assert table(PLAN, cards) in capsys.readouterr().out


def test_an_unknown_card_is_refused() -> None:
    with pytest.raises(typer.BadParameter, match="expected some of a100"):
        show_prediction("a100,b1000")
