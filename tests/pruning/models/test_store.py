"""Models are found by name, and loaded completely or refused."""

import os
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from pruning.models.architectures import UnknownArchitecture, UnsupportedConfig
from pruning.models.store import ModelNotFound, ModelStore, NotAModel, load
from tests.support.tiny_directory import MAX_POSITIONS, NUM_BLOCKS, edit_config
from tests.support.unsupported import QUANTIZED, TYPES, quantize_config, write_unsupported


def test_a_config_is_read_again_when_a_file_has_changed_and_only_then(
    tiny_models_dir: Path,
) -> None:
    store, path = ModelStore(tiny_models_dir), tiny_models_dir / "tiny" / "config.json"
    before, text = path.stat(), path.read_text()
    assert store.inspect("tiny").num_blocks == NUM_BLOCKS
    path.write_text(text.replace(f'"num_hidden_layers": {NUM_BLOCKS}', '"num_hidden_layers": 5'))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert store.inspect("tiny").num_blocks == NUM_BLOCKS, "the same size and time: not read"
    os.utime(path)
    assert store.inspect("tiny").num_blocks == 5
    path.unlink()
    with pytest.raises(NotAModel, match="has no config"):
        store.inspect("tiny")


def test_names_are_the_directories_with_a_config(tiny_models_dir: Path) -> None:
    (tiny_models_dir / "not-a-model").mkdir()
    (tiny_models_dir / ".hidden").mkdir()
    (tiny_models_dir / ".hidden" / "config.json").write_text("{}")
    assert ModelStore(tiny_models_dir).names() == ["tiny"]


def test_inspect_tells_without_reading_weights(tiny_models_dir: Path) -> None:
    info = ModelStore(tiny_models_dir).inspect("tiny")
    assert (info.model_type, info.num_blocks) == ("llama", NUM_BLOCKS)
    assert (info.max_positions, info.dtype) == (MAX_POSITIONS, "float32")


def test_a_model_whose_files_are_not_whole_is_refused_before_it_is_loaded(
    tiny_models_dir: Path,
) -> None:
    store, path = ModelStore(tiny_models_dir), tiny_models_dir / "tiny"
    tokenizer = (path / "tokenizer.json").read_bytes()
    (path / "tokenizer.json").unlink()
    with pytest.raises(
        NotAModel, match=r"has no tokenizer \(tokenizer\.json, .* next to the weights"
    ):
        store.inspect("tiny")
    (path / "tokenizer.json").write_bytes(tokenizer)
    assert store.inspect("tiny").num_blocks == NUM_BLOCKS
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(NotAModel, match="bytes, but its header says"):
        store.inspect("tiny")


@pytest.mark.parametrize("name", ["", "other", "..", "../tiny", "/", "tiny/", "a" * 500, "\0"])
def test_what_is_not_in_the_store_is_not_found(tiny_models_dir: Path, name: str) -> None:
    with pytest.raises(ModelNotFound, match="existing models: tiny"):
        ModelStore(tiny_models_dir).path(name)


def test_a_path_is_taken_only_where_paths_are_allowed(tiny_models_dir: Path) -> None:
    path = str(tiny_models_dir / "tiny")
    assert ModelStore(Path("none"), allow_paths=True).path(path) == Path(path)
    with pytest.raises(ModelNotFound):
        ModelStore(Path("none")).path(path)


@pytest.mark.parametrize("depth", [NUM_BLOCKS + 2, NUM_BLOCKS - 2])
def test_a_depth_that_the_weights_do_not_have_never_loads(
    tiny_models_dir: Path, depth: int
) -> None:
    edit_config(tiny_models_dir / "tiny", num_hidden_layers=depth)
    with pytest.raises(NotAModel, match=r"(missing|unexpected) keys"):
        load(tiny_models_dir / "tiny")


def test_weights_of_another_shape_never_load(tiny_models_dir: Path) -> None:
    edit_config(tiny_models_dir / "tiny", intermediate_size=40)
    with pytest.raises(NotAModel):
        load(tiny_models_dir / "tiny")


def test_one_missing_tensor_is_enough_to_refuse(tiny_models_dir: Path) -> None:
    file = tiny_models_dir / "tiny" / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.3.mlp.up_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(NotAModel, match=r"missing keys \(model.layers.3.mlp.up_proj.weight\)"):
        load(tiny_models_dir / "tiny")


def test_directories_that_are_no_models_say_what_is_missing(tiny_models_dir: Path) -> None:
    store, path = ModelStore(tiny_models_dir), tiny_models_dir / "odd"
    path.mkdir()
    with pytest.raises(NotAModel, match=r"no config\.json"):
        store.inspect("odd")
    (path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(NotAModel, match=r"no \.safetensors"):
        store.inspect("odd")
    (path / "model.safetensors").write_bytes(b"junk")
    with pytest.raises(NotAModel, match="is not a safetensors file"):
        store.load("odd")
    for text in ("not json", "[]", "{}", '{"model_type": "no-such-family"}'):
        (path / "config.json").write_text(text)
        with pytest.raises((NotAModel, UnknownArchitecture)):
            store.inspect("odd")


@pytest.mark.parametrize("model_type", TYPES)
def test_models_of_other_kinds_never_load_and_it_says_what_is_supported(
    tmp_path: Path, model_type: str
) -> None:
    path = write_unsupported(tmp_path / "other", model_type)
    said = f"'{model_type}'.*decoder-only.*llama"
    with pytest.raises(UnknownArchitecture, match=said):
        load(path)
    with pytest.raises(UnknownArchitecture, match=said):
        ModelStore(tmp_path).inspect("other")


@pytest.mark.parametrize("method", QUANTIZED)
def test_quantized_models_never_load_and_it_says_what_to_give(
    tiny_models_dir: Path, method: str
) -> None:
    quantize_config(tiny_models_dir / "tiny", method)
    with pytest.raises(UnsupportedConfig, match=rf"\({method}\).*the original unquantized"):
        load(tiny_models_dir / "tiny")
    with pytest.raises(UnsupportedConfig, match=method):
        ModelStore(tiny_models_dir).inspect("tiny")
