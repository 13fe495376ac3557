"""A streamed model computes what the loaded one does, with only the weights in use."""

import json
import math
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from resource import RUSAGE_SELF, getrusage

import pytest
import torch
from safetensors.torch import load_file, save_file

from pruning.models.architectures import ARCHITECTURES
from pruning.models.blocks import block_list
from pruning.models.store import NotAModel, load
from pruning.models.streaming import StreamedModel
from tests.support.logits import logits_of, streamed_logits, token_ids
from tests.support.tiny import NUM_BLOCKS, VOCAB_SIZE
from tests.support.tiny_checkpoints import LAYOUTS, write_checkpoint
from tests.support.tiny_directory import edit_config


def num_bytes(module: torch.nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


def assert_nothing_is_there(streamed: StreamedModel) -> None:
    assert all(parameter.is_meta for parameter in streamed.model.parameters())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


@pytest.fixture
def streamed(tiny_model_dir: Path) -> Iterator[StreamedModel]:
    model = StreamedModel(tiny_model_dir)
    yield model
    assert_nothing_is_there(model)


@pytest.mark.parametrize("family", sorted(ARCHITECTURES))
def test_the_parts_of_every_family_compute_what_the_whole_computes(
    family: str, tmp_path: Path
) -> None:
    write_checkpoint(tmp_path, family)
    half = load(tmp_path, dtype="bfloat16").model
    streamed = StreamedModel(tmp_path, dtype="bfloat16")
    assert torch.equal(streamed_logits(streamed), logits_of(half, token_ids()))
    assert num_bytes(streamed.model) == num_bytes(half)
    assert_nothing_is_there(streamed)
    buffers = dict(streamed.model.named_buffers())
    assert buffers.keys() == dict(half.named_buffers()).keys()
    assert all(torch.equal(buffers[name], buffer) for name, buffer in half.named_buffers())
    stored = {name for name in half.state_dict() if name in buffers}
    assert not stored, "buffers are computed, so none may have stored values"


@pytest.mark.parametrize("layout", ["whole", "shards", *LAYOUTS])
@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_tied_weights_lie_on_disk_in_many_ways(family: str, layout: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, family, tied=True, layout=layout)
    whole, streamed = load(tmp_path).model, StreamedModel(tmp_path)
    assert torch.equal(streamed_logits(streamed), logits_of(whole, token_ids()))
    assert num_bytes(streamed.model) == num_bytes(whole)
    assert (layout == "shards") == (tmp_path / "model.safetensors.index.json").is_file()


def test_no_more_is_there_than_two_blocks_or_one_end(
    streamed: StreamedModel, tiny_model_dir: Path
) -> None:
    whole = load(tiny_model_dir).model
    block, embeddings = num_bytes(block_list(whole)[0]), num_bytes(whole.get_input_embeddings())
    list(streamed.blocks([3]))
    assert streamed.peak_bytes == block
    list(streamed.blocks([0, 2, 3, 5]))
    assert streamed.peak_bytes == 2 * block
    streamed_logits(streamed)
    head_and_norm = num_bytes(whole) - NUM_BLOCKS * block - embeddings
    assert streamed.peak_bytes == max(2 * block, embeddings, head_and_norm)


def test_the_whole_model_is_never_in_memory(tmp_path: Path) -> None:
    """A sparse file with 2 GiB of zeros, which would take 1 GiB of memory in another dtype."""
    write_checkpoint(tmp_path, "llama")
    file, vocab_size = tmp_path / "model.safetensors", 2**23
    edit_config(tmp_path, vocab_size=vocab_size)
    shapes = {name: tensor.shape for name, tensor in load_file(file).items()}
    header, end = {}, 0
    for name, (rows, *columns) in shapes.items():
        shape = [vocab_size if rows == VOCAB_SIZE else rows, *columns]
        begin, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode()
    with file.open("wb") as sparse:
        sparse.write(len(encoded).to_bytes(8, "little") + encoded)
        sparse.truncate(8 + len(encoded) + end)
    before_kib = getrusage(RUSAGE_SELF).ru_maxrss
    streamed = StreamedModel(tmp_path, dtype="bfloat16")
    list(streamed.blocks(range(NUM_BLOCKS)))
    assert num_bytes(streamed.model) == end // 2 > 2**30
    assert getrusage(RUSAGE_SELF).ru_maxrss - before_kib < 2**18


def test_a_part_has_weights_while_it_visits_and_others_have_none(streamed: StreamedModel) -> None:
    blocks = block_list(streamed.model)
    for index in streamed.blocks([4, 1]):
        present = [i for i, block in enumerate(blocks) if not next(block.parameters()).is_meta]
        assert present == [index]
    with streamed.embeddings():
        assert not streamed.model.get_input_embeddings().weight.is_meta
        assert streamed.model.get_output_embeddings().weight.is_meta
    with streamed.head():
        assert streamed.model.get_input_embeddings().weight.is_meta
        assert not streamed.model.get_output_embeddings().weight.is_meta


def test_visits_that_end_early_leave_nothing_behind(streamed: StreamedModel) -> None:
    before = streamed_logits(streamed)
    with closing(streamed.blocks(range(NUM_BLOCKS))) as visits:
        assert [next(visits), next(visits)] == [0, 1]
    assert_nothing_is_there(streamed)

    def fails() -> None:
        with streamed.head():
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        fails()
    assert_nothing_is_there(streamed)
    peak = streamed.peak_bytes
    assert torch.equal(streamed_logits(streamed), before)
    assert streamed.peak_bytes == peak, "what had been there was counted as gone"


def test_a_block_that_cannot_be_read_ends_the_visits(
    tiny_models_dir: Path,
) -> None:
    streamed = StreamedModel(tiny_models_dir / "tiny")
    visits = streamed.blocks(range(NUM_BLOCKS))
    next(visits)
    (tiny_models_dir / "tiny" / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError):
        list(visits)
    assert_nothing_is_there(streamed)
    list(streamed.blocks([]))


@pytest.mark.parametrize("change", [{"num_hidden_layers": 8}, {"num_hidden_layers": 4}])
def test_config_and_weights_must_agree(tiny_models_dir: Path, change: dict[str, int]) -> None:
    edit_config(tiny_models_dir / "tiny", **change)
    with pytest.raises(NotAModel, match=r"(missing|unexpected) keys"):
        StreamedModel(tiny_models_dir / "tiny")


def test_wrong_shapes_and_names_are_refused(tiny_models_dir: Path) -> None:
    file = tiny_models_dir / "tiny" / "model.safetensors"
    weights = load_file(file)
    save_file({**weights, "model.norm.weight": torch.ones(7)}, file, metadata={"format": "pt"})
    with pytest.raises(NotAModel):
        StreamedModel(tiny_models_dir / "tiny")
    save_file({f"odd.{name}": w for name, w in weights.items()}, file, metadata={"format": "pt"})
    with pytest.raises(NotAModel, match=r"(unexpected|missing) keys"):
        StreamedModel(tiny_models_dir / "tiny")
