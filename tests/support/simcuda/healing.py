"""Trainings on the simulated GPU, as a process of its own: torch makes its threads for gradients
once, for the devices that there are. Prints what it has found as JSON.
"""

import json
import sys
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from pruning.healing.students import alone
from pruning.healing.train import Training
from pruning.models.blocks import NO_OWN
from pruning.models.random_models import random_model
from pruning.spec.heal import Heal
from tests.support.repairs import random_text, windows_of
from tests.support.simcuda.device import SimulatedCuda, simulated_cuda
from tests.support.simcuda.models import on_device
from tests.support.tiny import tiny_model

_KEEP = (0, 2, 5)
_HEAL = Heal(num_tokens=12 * 96, rank=4, learning_rate=5e-3, batch_tokens=96, steps_per_check=6)


def losses(model: PreTrainedModel) -> dict[str, Any]:
    """Of all steps of a small training, and of its checks."""
    training = Training(model, alone(model, _KEEP, NO_OWN, _HEAL), random_text(), _HEAL)
    steps = [step.loss for step in training.steps()]
    return {"steps": steps, "checks": [check.loss for check in training.progress.checks]}


def small(cuda: SimulatedCuda) -> dict[str, Any]:
    """The same training on both devices, and with products in bfloat16 as on a GPU."""
    model = tiny_model("llama").requires_grad_(requires_grad=False)
    found = {"cpu": losses(model)}
    found["cuda in bfloat16"] = losses(on_device(model, "cuda:1"))
    Training._autocast = lambda _self: torch.autocast("cuda", enabled=False)  # type: ignore[assignment, method-assign]
    before, kernels = cuda.allocated_bytes(0), cuda.num_kernels
    found["cuda"] = losses(on_device(model, "cuda:1"))
    return {
        **found,
        "num_kernels": cuda.num_kernels - kernels,
        "bytes_of_other_card": cuda.allocated_bytes(0) - before,
    }


def peak(cuda: SimulatedCuda, shape: Mapping[str, Any], gib: int, seqlen: int) -> dict[str, Any]:
    """Bytes at the peak of two steps without a fifth of the blocks, on a card of that size."""
    cuda.set_memory(gib * 2**30)
    with cuda.dry():
        model = random_model(shape, "bfloat16", device="cuda").requires_grad_(requires_grad=False)
        weights = cuda.allocated_bytes()
        depth = shape["num_hidden_layers"]
        heal = Heal(control=False)
        students = alone(model, tuple(range(depth - depth // 5)), NO_OWN, heal)
        windows = torch.zeros(8, seqlen, dtype=torch.long)
        text = windows_of({"prose": windows[:4]}, {"prose": windows[4:]})
        steps = Training(model, students, text, heal).steps()
        for _ in range(2):
            next(steps)
    return {"weights": weights, "peak": cuda.peak_bytes()}


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    with simulated_cuda() as device:
        sys.stdout.write(json.dumps(peak(device, **asked) if asked else small(device)))
