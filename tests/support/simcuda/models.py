"""Models on the simulated device, which have the weights of those on the CPU."""

import copy

from transformers import PreTrainedModel

from app.engine.variant import Variant, make_variant


def on_device(model: PreTrainedModel, device: str = "cuda:0") -> PreTrainedModel:
    """A copy of the model there."""
    moved: PreTrainedModel = copy.deepcopy(model).to(device)  # type: ignore[arg-type]  # of torch
    return moved


def variant_on(model: PreTrainedModel, device: str = "cuda:0") -> Variant:
    return make_variant("tiny", "tiny", on_device(model, device))
