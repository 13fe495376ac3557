"""Times of the parts of a decode step, and the removals that a speed-up needs."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pruning.models.architectures import ARCHITECTURES
from pruning.models.block_times import BlockTimes
from pruning.models.blocks import block_list
from pruning.models.streaming import StreamedModel
from pruning.models.timing import measure_streamed_times, measure_times
from pruning.spec import TargetUnreachable
from tests.support.tiny import tiny_model
from tests.support.tiny_directory import tiny_tokenizer

seconds = st.floats(1e-7, 10)
times = st.builds(BlockTimes, embedding_s=seconds, block_s=seconds, head_s=seconds)


@given(times=times, num_blocks=st.integers(2, 90), speedup=st.floats(1.001, 100), data=st.data())
def test_it_is_the_fewest_removals_that_reach_the_speedup(
    times: BlockTimes, num_blocks: int, speedup: float, data: Any
) -> None:
    most = data.draw(st.integers(1, num_blocks - 1))
    reaching = [k for k in range(1, most + 1) if times.speedup(num_blocks, k) >= speedup]
    if reaching:
        assert times.removals_for(speedup, num_blocks, most) == reaching[0]
        return
    with pytest.raises(TargetUnreachable):
        times.removals_for(speedup, num_blocks, most)


@given(times=times, num_blocks=st.integers(2, 90))
def test_a_speedup_grows_with_the_removals_and_stays_below_the_ideal(
    times: BlockTimes, num_blocks: int
) -> None:
    speedups = [times.speedup(num_blocks, k) for k in range(num_blocks)]
    assert speedups == sorted(speedups)
    assert speedups[0] == 1
    for num_remove, speedup in enumerate(speedups):
        assert speedup <= num_blocks / (num_blocks - num_remove) * (1 + 1e-9)


def test_a_speedup_is_of_the_whole_step() -> None:
    times = BlockTimes(embedding_s=1.0, block_s=2.0, head_s=3.0)
    assert times.speedup(8, 4) == 20 / 12
    assert times.removals_for(20 / 12, 8, 6) == 4


def test_an_unreachable_speedup_says_what_was_measured() -> None:
    times = BlockTimes(embedding_s=0.001, block_s=0.002, head_s=0.003)
    with pytest.raises(TargetUnreachable) as caught:
        times.removals_for(3.0, 8, 6)
    assert caught.value.param == "target_speedup"
    for part in (
        "target_speedup=3.0",
        "all 6 removable blocks of 8 gives 2.5",
        "1 ms",
        "2 ms",
        "3 ms",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize("family", sorted(ARCHITECTURES))
def test_every_family_can_be_timed_and_is_left_alone(family: str) -> None:
    model = tiny_model(family)
    token_ids = torch.tensor([[3, 4, 5]])
    before = model(token_ids).logits
    times = measure_times(model)
    assert min(times.embedding_s, times.block_s, times.head_s) > 0
    assert times.step_s(6) < 1
    assert torch.equal(model(token_ids).logits, before)


@pytest.mark.parametrize("num_sequences", [1, 5])
def test_every_part_gets_a_token_of_each_sequence(num_sequences: int) -> None:
    model = deepcopy(tiny_model("llama"))
    shapes: set[tuple[int, ...]] = set()
    parts = [model.get_input_embeddings(), *block_list(model), model.get_output_embeddings()]
    for module in parts:
        module.register_forward_pre_hook(lambda _, args: shapes.add(tuple(args[0].shape[:2])))
    measure_times(model, num_sequences)
    assert shapes - {(1, 1)} == {(num_sequences, 1)} - {(1, 1)}
    assert (num_sequences, 1) in shapes


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "opt"])
def test_a_streamed_model_is_timed_with_never_more_than_a_part_in_memory(
    model_type: str, tmp_path: Path
) -> None:
    tiny_model(model_type).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    streamed = StreamedModel(tmp_path)
    times = measure_streamed_times(streamed)
    assert min(times.embedding_s, times.block_s, times.head_s) > 0
    assert times.step_s(6) < 1
    weights = sum(each.nbytes for each in streamed.model.parameters())
    assert 0 < streamed.peak_bytes < weights / 3
    assert all(parameter.is_meta for parameter in streamed.model.parameters())


@pytest.mark.parametrize("part", ["embedding_s", "block_s", "head_s"])
def test_a_dear_part_is_found(part: str) -> None:
    model = deepcopy(tiny_model("llama"))
    parts: dict[str, list[nn.Module]] = {
        "embedding_s": [model.get_input_embeddings()],
        "block_s": [block.get_submodule("mlp") for block in block_list(model)],
        "head_s": [model.get_output_embeddings()],
    }
    matrix = torch.ones(500, 500)
    for module in parts[part]:
        module.register_forward_pre_hook(lambda *_: (matrix @ matrix @ matrix).tolist() and None)
    times = measure_times(model)
    found = {name: getattr(times, name) for name in parts}
    assert max(found, key=found.__getitem__) == part
