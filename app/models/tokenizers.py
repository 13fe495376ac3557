"""Tokenizers of models whose weights are not loaded."""

from functools import lru_cache
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from pruning.models.store import load_tokenizer

_NUM_KEPT = 2  # one takes some 100 MB and half a second to read


def tokenizer_in(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in the directory of an opened model. Raises ``NotAModel``."""
    return _tokenizer(path, _changed_at(path))


@lru_cache(_NUM_KEPT)
def _tokenizer(path: Path, _changed_at: float) -> PreTrainedTokenizerBase:
    return load_tokenizer(path)


def _changed_at(path: Path) -> float:
    """When a file of the model has last changed, in seconds since the epoch."""
    return max(file.stat().st_mtime for file in path.iterdir())
