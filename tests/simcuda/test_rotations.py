"""Models whose rotary frequencies depend on the length: on a simulated GPU no step waits for it."""

import copy
import logging
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from transformers import AutoConfig, PreTrainedModel

from app.engine.engine import PromptTooLong
from app.engine.scheduling.scheduler import EngineLimits
from app.engine.variant import make_variant
from pruning.models.rotations import held
from pruning.models.timing import measure_times
from tests.support.engine_requests import expected, prompt, request
from tests.support.families import CONFIGS, LLAMA_LIKE, MAX_POSITIONS
from tests.support.quick import slow_but
from tests.support.simcuda.device import SimulatedCuda
from tests.support.simcuda.engine_runs import events, recorded
from tests.support.simcuda.models import on_device, variant_on
from tests.support.tiny import random_model

DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
LONG = {
    "rope_type": "longrope", "rope_theta": 10_000.0, "original_max_position_embeddings": 40,
    "short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [4.0] * 4,
}  # fmt: skip
LIMITS = EngineLimits(max_num_seqs=2, kv_cache_bytes=1 << 22)
ROTATED: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "flat, dynamic": ("llama", DYNAMIC),
    "flat, longrope": ("phi3", LONG),
    "own forward, dynamic": ("stablelm", {**DYNAMIC, "partial_rotary_factor": 1.0}),
    "own forward, longrope": ("gpt_neox", {**LONG, "partial_rotary_factor": 1.0}),
    "each kind its own": (
        "gemma3_text", {"full_attention": DYNAMIC, "sliding_attention": {**DYNAMIC, "factor": 4.0}},
    ),
}  # fmt: skip


def rotated(family: str, rope: Mapping[str, Any]) -> PreTrainedModel:
    shape = {**LLAMA_LIKE, **CONFIGS[family], "rope_parameters": copy.deepcopy(rope)}
    return random_model(AutoConfig.for_model(family, **shape))


@pytest.mark.parametrize("name", slow_but(ROTATED, "flat, dynamic", "own forward, longrope"))
def test_steps_are_recorded_and_wait_once_for_their_tokens(cuda: SimulatedCuda, name: str) -> None:
    model = rotated(*ROTATED[name])
    cpu, gpu = make_variant("tiny", "tiny", model), variant_on(model)
    lengths = (5, 20)
    # each reaches the last position
    asked = [
        [
            request(
                prompt(num, num), of, request_id=f"{num}", ignore_eos=True,
                max_new_tokens=of.max_model_len - num,
            )
            for num in lengths
        ]
        for of in (cpu, gpu)
    ]  # fmt: skip
    engine = recorded(gpu, limits=LIMITS)
    for each in asked[1]:
        engine.add(each)
    while len(engine.step()) < len(lengths):  # the prompts
        pass
    engine.step()  # launches the one behind it as well
    cuda.log.clear()
    cuda.num_captures = cuda.num_replays = 0
    engine.step()
    assert cuda.log.count("wait") == cuda.log.count("download") == 1
    assert (cuda.num_captures, cuda.num_replays) == (0, 1)
    for each in asked[1]:
        engine.cancel(each.request_id)
    found = events(engine, *asked[1])
    for each in asked[0]:
        tokens = [event.token_id for event in found[each.request_id]]
        assert tokens[: len(oracle := expected(each))] == oracle


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("name", ["flat, dynamic", "own forward, longrope"])
def test_a_longer_text_elsewhere_changes_nothing_and_none_is_served(name: str) -> None:
    """A forward beyond the original length leaves other frequencies in the module."""
    model = rotated(*ROTATED[name])
    used = on_device(model)
    with torch.inference_mode():
        for each in (used, held(used)):
            each(torch.arange(3, 3 + MAX_POSITIONS // 2).repeat(3)[None].to("cuda"))
    found = []
    for of in (variant_on(model), make_variant("tiny", "tiny", used)):
        engine = recorded(of, limits=LIMITS)
        ask = request(prompt(9), of, request_id="asked", max_new_tokens=20)
        found.append([event.token_id for event in events(engine, ask)["asked"]])
        with pytest.raises(PromptTooLong):
            engine.add(request(prompt(of.max_model_len), of, max_new_tokens=1))
    assert found[0] == found[1]


def test_a_decode_step_is_timed_by_replays(
    cuda: SimulatedCuda, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert measure_times(on_device(rotated(*ROTATED["flat, dynamic"]))).is_plausible
    assert cuda.num_replays > 0
    assert not caplog.records


def test_other_models_stay_as_they_are() -> None:
    model = rotated("llama", {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0})
    assert held(model) is model
