"""A tiny random llama as a directory on disk, with a tokenizer of its own that knows every byte."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

NUM_BLOCKS = 6
MAX_POSITIONS = 256
TEXT = "the quick brown fox jumps over the lazy dog and the dog sleeps on; naïve, 数学, 🦊! " * 4


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    return fast


def write_tiny_model(
    path: Path,
    *,
    num_blocks: int = NUM_BLOCKS,
    seed: int = 0,
    family: str = "llama",
    tied: bool = False,
    head_dim: int | None = None,  # None: what the family has by default
) -> Path:
    """Large weights, so that blocks differ in what they do and text does not repeat itself.

    Making it takes many times as long as writing it, so each process makes it once.
    """
    write_files(path, _files(num_blocks, seed, family, tied, head_dim))
    return path


def write_files(path: Path, files: Mapping[str, bytes]) -> None:
    """Write the files into a directory, by their names."""
    path.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (path / name).write_bytes(content)


def files_in(path: Path) -> Mapping[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


@cache
def _files(
    num_blocks: int, seed: int, family: str, tied: bool, head_dim: int | None
) -> Mapping[str, bytes]:
    tokenizer = tiny_tokenizer()
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        family,
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=num_blocks,
        num_attention_heads=4,
        num_key_value_heads=2,
        **({} if head_dim is None else {"head_dim": head_dim}),
        max_position_embeddings=MAX_POSITIONS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=tied,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return files_in(Path(folder))


def edit_config(path: Path, **changes: object) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **changes}))


def spoil_weights(path: Path) -> None:
    """Replace the weights by a whole file of others, which can be looked at and not loaded."""
    save_file({"other.weight": torch.zeros(2)}, path / "model.safetensors")
