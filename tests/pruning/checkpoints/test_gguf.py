"""GGUF files: transformers reads back what was written, and what llama.cpp has not is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader, GGUFValueType
from tokenizers import Regex, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM

from pruning.checkpoints import gguf
from pruning.checkpoints.gguf import (
    FAMILIES,
    check_gguf,
    vocabulary_of,
    write_gguf,
)
from pruning.checkpoints.llama_cpp import GgufUnsupported
from pruning.checkpoints.verify import CheckpointNotPortable, compare_gguf
from pruning.checkpoints.verify_expected import expectation
from pruning.models.blocks import view
from pruning.models.store import load
from pruning.search.dense_model import DenseModel, Resources, load_dense_model
from pruning.spec.prune import Resident
from tests.support.logits import logits_of, token_ids
from tests.support.quick import slow_but
from tests.support.tiny_directory import edit_config, tiny_tokenizer, write_tiny_model

KEEP = (0, 2, 3, 5)
DTYPES = ("float32", "bfloat16", "float16")


def dense_in(path: Path, family: str, dtype: str = "auto", *, tied: bool = False) -> DenseModel:
    write_tiny_model(path, family=family, tied=tied)
    if family == "mistral":  # the later ones
        edit_config(path, sliding_window=None)
    return load_dense_model(path, Resident.MODEL, Resources("cpu"), dtype=dtype)


@pytest.mark.parametrize("dtype", slow_but(DTYPES, "bfloat16"))
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_its_view_to_transformers(tmp_path: Path, family: str, dtype: str) -> None:
    dense = dense_in(tmp_path / "dense", family, dtype)
    file = tmp_path / "pruned.gguf"
    write_gguf(file, dense, KEEP, "pruned")
    compare_gguf(file, expectation(dense, KEEP))
    read: Any = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=file.name, dtype=getattr(torch, dtype)
    )
    assert torch.equal(
        logits_of(read, token_ids()), logits_of(view(dense.model, KEEP), token_ids())
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_no_metadata_counts_the_blocks_of_the_dense_model(tmp_path: Path, family: str) -> None:
    """llama.cpp reads lists by block from the first entry on; none is written but the tokens."""
    write_gguf(tmp_path / "pruned.gguf", dense_in(tmp_path / "dense", family), KEEP, "pruned")
    fields = GGUFReader(tmp_path / "pruned.gguf").fields.values()
    lists = {field.name for field in fields if GGUFValueType.ARRAY in field.types}
    assert all(name.startswith("tokenizer.") for name in lists)
    [count] = [field for field in fields if field.name.endswith(".block_count")]
    assert count.contents() == len(KEEP)


def test_streamed_and_tied_weights_make_the_same_file(tmp_path: Path) -> None:
    dense = dense_in(tmp_path / "dense", "llama", tied=True)
    streamed = load_dense_model(tmp_path / "dense", Resident.STREAM, Resources("cpu"))
    write_gguf(tmp_path / "one.gguf", dense, KEEP, "pruned")
    write_gguf(tmp_path / "other.gguf", streamed, KEEP, "pruned")
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "other.gguf").read_bytes()
    names = {tensor.name for tensor in GGUFReader(tmp_path / "one.gguf").tensors}
    assert "output.weight" not in names
    assert "blk.3.attn_q.weight" in names


def test_queries_and_keys_that_are_not_permuted_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = dense_in(tmp_path / "dense", "llama")
    monkeypatch.setattr(gguf, "_interleaved", lambda _name, values, _config: values)
    write_gguf(tmp_path / "pruned.gguf", dense, KEEP, "pruned")
    with pytest.raises(CheckpointNotPortable, match=r"8 weights .*self_attn\.k_proj"):
        compare_gguf(tmp_path / "pruned.gguf", expectation(dense, KEEP))


def test_a_cut_file_is_found(tmp_path: Path) -> None:
    dense = dense_in(tmp_path / "dense", "llama")
    file = tmp_path / "pruned.gguf"
    write_gguf(file, dense, KEEP, "pruned")
    file.write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(CheckpointNotPortable, match="transformers cannot load it"):
        compare_gguf(file, expectation(dense, KEEP))


def test_the_file_has_the_tokenizer(tmp_path: Path) -> None:
    dense = dense_in(tmp_path / "dense", "llama")
    write_gguf(tmp_path / "pruned.gguf", dense, KEEP, "pruned")
    fields = GGUFReader(tmp_path / "pruned.gguf").fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    tokenizer = dense.tokenizer
    assert tokens == tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    said = json.loads((tmp_path / "dense" / "tokenizer.json").read_text())["model"]["merges"]
    assert fields["tokenizer.ggml.merges"].contents() == [" ".join(pair) for pair in said]
    assert fields["tokenizer.ggml.pre"].contents() == "gpt-2"
    assert fields["tokenizer.ggml.bos_token_id"].contents() == tokenizer.bos_token_id
    assert fields["tokenizer.ggml.add_bos_token"].contents() is False
    assert fields["tokenizer.chat_template"].contents() == tokenizer.chat_template
    assert fields["tokenizer.ggml.token_type"].contents()[tokenizer.bos_token_id] == 3
    assert fields["llama.block_count"].contents() == len(KEEP)


WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


SPLITTINGS: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "llama-bpe": lambda: split(WORDS % r"\p{N}{1,3}"),
    "qwen2": lambda: split(WORDS % r"\p{N}"),
    "smollm": lambda: pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    ),
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
}
UNKNOWN: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "another pattern": lambda: split(r"\w+"),
    "a space in front": lambda: pre_tokenizers.ByteLevel(add_prefix_space=True),
    "whole numbers": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "spaces": pre_tokenizers.Whitespace,
}


def split_by(path: Path, splitting: pre_tokenizers.PreTokenizer) -> str:
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = splitting
    tokenizer.save_pretrained(path)
    name: str = vocabulary_of(path, tokenizer, len(tokenizer))["tokenizer_pre"]
    return name


@pytest.mark.parametrize(("name", "splitting"), SPLITTINGS.items())
def test_how_text_is_split_has_a_name(
    tmp_path: Path, name: str, splitting: Callable[[], pre_tokenizers.PreTokenizer]
) -> None:
    assert split_by(tmp_path, splitting()) == name


@pytest.mark.parametrize("splitting", UNKNOWN.values(), ids=UNKNOWN.keys())
def test_a_splitting_without_a_name_is_refused(
    tmp_path: Path, splitting: Callable[[], pre_tokenizers.PreTokenizer]
) -> None:
    with pytest.raises(GgufUnsupported, match=r"has no name in GGUF: .* convert_hf_to_gguf"):
        split_by(tmp_path, splitting())


def test_a_vocabulary_is_filled_up_and_not_cut(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    size = len(tokenizer)
    found = vocabulary_of(tmp_path, tokenizer, size + 2)
    assert found["token_list"][size:] == [f"[PAD{size}]", f"[PAD{size + 1}]"]
    assert found["token_types"][size:] == [5, 5]
    with pytest.raises(GgufUnsupported, match=f"has {size} tokens, but the model has 7"):
        vocabulary_of(tmp_path, tokenizer, 7)


def test_other_tokenizers_are_refused(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    with pytest.raises(GgufUnsupported, match=r"requires .*tokenizer\.json"):
        vocabulary_of(tmp_path, tokenizer, 400)
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "Unigram"}}')
    with pytest.raises(GgufUnsupported, match="byte-level BPE"):
        vocabulary_of(tmp_path, tokenizer, 400)


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("gemma", {}, "supports llama, mistral, qwen2, qwen3, not gemma"),
        ("llama", {"mlp_bias": True}, "biases in its feed-forward parts"),
        ("llama", {"hidden_act": "gelu"}, "gelu in its feed-forward parts"),
        ("mistral", {"sliding_window": 64}, "a sliding window"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            "rotary embeddings of type linear",
        ),
    ],
)
def test_what_llama_cpp_would_not_compute_alike_is_refused(
    family: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(GgufUnsupported, match=message):
        check_gguf(AutoConfig.for_model(family, **settings))


def test_a_plain_config_is_not_refused(tiny_model_dir: Path) -> None:
    check_gguf(load(tiny_model_dir).model.config)
    check_gguf(AutoConfig.for_model("mistral", sliding_window=None))
    check_gguf(AutoConfig.for_model("qwen2"))
