"""What a checkpoint must reproduce when it is loaded, computed from the model in memory.

It is passed to the verifying process as a safetensors file, with the other fields as JSON in the
header.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from pruning.models.architectures import architecture
from pruning.models.blocks import NO_OWN, Own, final_logits
from pruning.models.forward import Forward, InMemoryForward
from pruning.models.memory import free_bytes, release_cache
from pruning.models.quantize import plain_weights
from pruning.models.save_streamed import kept_weights, other_tensors
from pruning.models.store import COMPANION_FILES, pick_device
from pruning.models.towers import tower_type, whole_config
from pruning.search.dense_model import DenseModel
from pruning.sleb import Blocks
from pruning.spec.prune import Quantize

NUM_WINDOWS = 3
WINDOW_TOKENS = 16
NEW_TOKENS = 16
SAMPLE = "The quick brown fox: 3.14 × 2,000 isn't\n\n    naïve, 数学 or 🦊!"
_NOT_OF_THE_TOKENIZER = ("generation_config.json", "LICENSE")
_TENSORS = ("token_ids", "logits", "scores")
_MEMORY_FACTOR = 1.25  # memory for loading and a few short passes, in sizes of the weights
_KEY = "expectation"


@dataclass(frozen=True)
class Expectation:
    """What a checkpoint must reproduce.

    ``logits [windows, seqlen, vocab]`` belong to ``token_ids [windows, seqlen]``, and ``scores [new
    tokens, vocab]`` to ``continuation``, the greedy one of the first window. ``weights`` are sha256
    digests of the parameters, ``companions`` those of the tokenizer's files, None if missing.
    """

    num_blocks: int
    dtype: str
    is_quantized: bool  # in the compressed-tensors format
    per_block: Mapping[str, Sequence[Any]]  # lists of the config with an entry for each block
    weights: Mapping[str, str]
    others: Mapping[str, str] | None  # digests of the other towers' tensors; None: one tower only
    companions: Mapping[str, str | None]
    sample_ids: Sequence[int]  # of ``SAMPLE``, by the parent's tokenizer
    continuation: Sequence[int]  # empty if the checkpoint is streamed
    device: str  # to load it on
    is_streamed: bool  # whether it is loaded one block at a time
    threads: int  # of torch
    token_ids: torch.Tensor
    logits: torch.Tensor
    scores: torch.Tensor

    def save(self, file: Path) -> None:
        fields = {name: value for name, value in vars(self).items() if name not in _TENSORS}
        header = json.dumps(fields)
        tensors = {name: getattr(self, name).cpu().contiguous() for name in _TENSORS}
        save_file(tensors, file, metadata={_KEY: header})

    @classmethod
    def read(cls, file: Path) -> "Expectation":
        with safe_open(file, framework="pt") as opened:
            fields = json.loads(opened.metadata()[_KEY])
            tensors = {name: opened.get_tensor(name) for name in _TENSORS}
        return cls(**fields, **tensors)


@torch.inference_mode()
def expectation(
    dense: DenseModel,
    keep: Blocks,
    own: Own = NO_OWN,
    quantize: Quantize | None = None,
) -> Expectation:
    """Compute the expectation of the checkpoint that keeps these blocks, with ``own`` tensors.

    With ``quantize``, weights are those that the quantized ones mean. The checkpoint is loaded on
    the device of the run if there is enough memory. Each weight is read once, so a streamed model
    has no continuation, which reads all weights for each token.
    """
    release_cache()
    forward = dense.forward(keep, quantize, own)
    plain = kept_weights(dense, keep, own) if quantize is None else plain_weights(forward.model)
    weights, num_bytes = _digests(plain)
    device, is_streamed = _loaded_on(num_bytes, pick_device(dense.resources.device))
    windows = _windows(dense.model.config)
    logits = logits_of(forward, windows)
    continuation, scores = list[int](), logits[0, :0]
    if isinstance(forward, InMemoryForward) and not is_streamed:
        continuation, scores = _continued(forward, windows[0])
    return Expectation(
        num_blocks=len(keep),
        dtype=str(dense.model.dtype).removeprefix("torch."),
        is_quantized=quantize is not None,
        per_block=_per_block(dense.model.config, keep),
        weights=weights,
        others=others_of(dense.path, dense.model),
        companions=companions(dense.path),
        sample_ids=sample_ids(dense.tokenizer),
        continuation=continuation,
        device=device,
        is_streamed=is_streamed,
        threads=torch.get_num_threads(),
        token_ids=windows,
        logits=logits,
        scores=scores,
    )


def _digests(weights: Iterable[tuple[str, torch.Tensor]]) -> tuple[dict[str, str], int]:
    """The digest of each of these tensors by name, and the bytes of all."""
    digests: dict[str, str] = {}
    num_bytes = 0
    for name, values in weights:
        digests[name] = digest(values)
        num_bytes += values.nbytes
    return digests, num_bytes


def others_of(path: Path, model: PreTrainedModel) -> dict[str, str] | None:
    """Digests of the stored tensors of other towers; None if the model has no others."""
    if tower_type(path) is None:
        return None
    dtype = model.dtype
    is_cast = dtype != whole_config(path).dtype
    tensors = other_tensors(path, model)
    return {
        name: digest(values.to(dtype) if is_cast and values.is_floating_point() else values)
        for name, values in tensors
    }


def digest(values: torch.Tensor) -> str:
    """Return the sha256 of a tensor's bytes, in the order of its elements."""
    data = values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(data.data).hexdigest()


def companions(directory: Path) -> dict[str, str | None]:
    """Return the sha256 of each file that belongs to a tokenizer, None for missing ones."""
    files = [directory / name for name in COMPANION_FILES if name not in _NOT_OF_THE_TOKENIZER]
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None
        for file in files
    }


def sample_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ids: list[int] = tokenizer(SAMPLE).input_ids
    return ids


def _per_block(config: PreTrainedConfig, keep: Blocks) -> dict[str, list[Any]]:
    """Select the entries of kept blocks from the dense config, and not from that of a view."""
    lists = {key: getattr(config, key, None) for key in architecture(config).per_block}
    return {
        key: [entries[block] for block in keep]
        for key, entries in lists.items()
        if entries is not None
    }


def _windows(config: PreTrainedConfig) -> torch.Tensor:
    """Draw token ids ``[windows, seqlen]``, the same for the same size of the vocabulary."""
    positions = getattr(config, "max_position_embeddings", None) or 2 * WINDOW_TOKENS
    shape = (NUM_WINDOWS, min(WINDOW_TOKENS, positions // 2))
    return torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(0))


def _loaded_on(num_bytes: int, device: str) -> tuple[str, bool]:
    """A device with memory for the whole checkpoint beside what this process holds; else this one,
    with the checkpoint streamed."""
    needed = int(_MEMORY_FACTOR * num_bytes)
    for candidate in dict.fromkeys((device, "cpu")):
        if needed < free_bytes(torch.device(candidate)):
            return candidate, False
    return device, True


def logits_of(forward: Forward, token_ids: torch.Tensor) -> torch.Tensor:
    """Return logits ``[batch, seqlen, vocab]`` of token ids ``[batch, seqlen]``, on the host."""
    # within the loop: a streamed head is unloaded when the generator continues
    made = forward.hidden([token_ids])
    [logits] = (final_logits(forward.model, hidden).cpu() for _, hidden in made)
    return logits


def _continued(forward: Forward, prompt: torch.Tensor) -> tuple[list[int], torch.Tensor]:
    """Generate greedily without a cache, and return the logits ``[new tokens, vocab]`` as well."""
    token_ids, scores = prompt.unsqueeze(0), []
    for _ in range(NEW_TOKENS):
        last = logits_of(forward, token_ids)[0, -1]
        scores.append(last)
        token_ids = torch.cat([token_ids, last.argmax().view(1, 1)], dim=1)
    return token_ids[0, len(prompt) :].tolist(), torch.stack(scores)
