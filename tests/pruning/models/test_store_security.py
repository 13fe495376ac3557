"""Code and pickles in a model's directory are neither run nor loaded."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pruning.models.store import NotAModel, load, read_config

NAMES = {
    "AutoConfig": "code.Config",
    "AutoModelForCausalLM": "code.Model",
    "AutoTokenizer": [None, "code.Tokenizer"],
}


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """Exists once foreign code was run."""
    return tmp_path / "mark"


@pytest.fixture
def model_dir(tiny_models_dir: Path, mark: Path) -> Path:
    """A valid model of a supported type whose files refer to code of their own."""
    path = tiny_models_dir / "tiny"
    (path / "code.py").write_text(
        f"from pathlib import Path\nPath({str(mark)!r}).touch()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast\n"
        "class Config(LlamaConfig): pass\n"
        "class Model(LlamaForCausalLM): pass\n"
        "class Tokenizer(PreTrainedTokenizerFast): pass\n"
    )
    for name in ("config.json", "tokenizer_config.json"):
        fields = json.loads((path / name).read_text())
        (path / name).write_text(json.dumps({**fields, "auto_map": NAMES}))
    return path


def test_code_that_a_model_brings_is_not_run(model_dir: Path, mark: Path) -> None:
    assert read_config(model_dir).model_type == "llama"
    loaded = load(model_dir)
    assert type(loaded.model).__module__.startswith("transformers.models.")
    assert loaded.tokenizer("the dog").input_ids
    assert not mark.exists()


class Canary:
    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (Path.touch, (self._mark,))


def test_pickled_weights_are_not_even_opened(
    tiny_models_dir: Path, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_models_dir / "tiny"
    (path / "model.safetensors").rename(path / "other.safetensors")
    (path / "pytorch_model.bin").write_bytes(pickle.dumps(Canary(mark)))
    monkeypatch.setattr(torch, "load", None)
    with pytest.raises(NotAModel):
        load(path)
    (path / "other.safetensors").unlink()
    with pytest.raises(NotAModel, match="convert its weights to safetensors"):
        load(path)
    assert not mark.exists()
