"""A streamed model and a view of the model in memory are saved as the same bytes."""

from pathlib import Path

import pytest

from pruning.models.architectures import ARCHITECTURES
from pruning.models.blocks import view
from pruning.models.save_streamed import save_streamed
from pruning.models.store import load
from pruning.models.streaming import StreamedModel
from tests.support.tiny_checkpoints import LAYOUTS, write_checkpoint

KEEP = (0, 1, 3, 5)


def contents(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


@pytest.mark.parametrize("family", sorted(ARCHITECTURES))
def test_every_family_is_saved_as_a_view_is(family: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "dense", family)
    view(load(tmp_path / "dense").model, KEEP).save_pretrained(tmp_path / "saved")
    save_streamed(StreamedModel(tmp_path / "dense"), KEEP, tmp_path / "exported")
    assert contents(tmp_path / "exported") == contents(tmp_path / "saved")


@pytest.mark.parametrize("layout", ["whole", "shards", *LAYOUTS])
def test_any_layout_is_saved_in_shards_of_the_dtype_in_use(layout: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "dense", "gpt2", tied=True, layout=layout)
    half = load(tmp_path / "dense", dtype="bfloat16").model
    view(half, KEEP).save_pretrained(tmp_path / "saved", max_shard_size=30_000)
    streamed = StreamedModel(tmp_path / "dense", dtype="bfloat16")
    save_streamed(streamed, KEEP, tmp_path / "exported", shard_bytes=30_000)
    assert contents(tmp_path / "exported") == contents(tmp_path / "saved")
    assert (tmp_path / "exported" / "model.safetensors.index.json").is_file()
    assert streamed.peak_bytes == 0
