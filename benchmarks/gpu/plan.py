"""The sizes of a run: those of published models, and small ones that a CPU can run as a test."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch

from benchmarks.workload import SampleRequest
from pruning.models.random_models import SHAPES
from pruning.spec.heal import Heal

Shape = Mapping[str, Any]  # config keys of a model

_TINY: Shape = MappingProxyType(
    {
        "model_type": "llama",
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
    }
)
_STREAMED: Shape = MappingProxyType(
    {**SHAPES["llama-2-70b"], "num_hidden_layers": 4}  # 9 GB on disk
)


@dataclass(frozen=True)
class GpuPlan:
    """Lengths are in tokens. The defaults are for a GPU of 80 GB."""

    device: str
    shape: Shape = field(default_factory=lambda: SHAPES["llama-2-7b"])
    streamed_shape: Shape = field(default_factory=lambda: _STREAMED)
    streamed_depth: int = 80  # of the whole model
    served_shape: Shape = field(default_factory=lambda: SHAPES["tinyllama-1.1b"])  # beside vLLM
    concurrency: tuple[int, ...] = (1, 8, 64)
    family_prompt_lens: tuple[int, ...] = (5, 9, 33, 60, 130)
    family_output_len: int = 24
    num_removed: int = 7  # 20 % of 32 blocks
    batch_sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)
    int8_batch_sizes: tuple[int, ...] = (1, 8, 64)
    num_steps: int = 16
    turns: int = 5
    prompt_len: int = 64
    output_len: int = 128
    num_requests: int = 64
    long_prompt_len: int = 2048
    num_windows: int = 16  # of the measured rounds of a search
    seqlen: int = 2048
    all_windows: int = 128  # of the search that is extrapolated
    heal: Heal = field(default_factory=Heal)
    heal_seqlen: int = 512
    seed: int = 0

    def requests(
        self, vocab_size: int, number: int, prompt_len: int, output_len: int
    ) -> list[SampleRequest]:
        """Prompts of random tokens, which need no tokenizer."""
        generator = torch.Generator().manual_seed(self.seed)
        shape = (number, prompt_len)
        prompts = torch.randint(vocab_size, shape, generator=generator).tolist()
        return [SampleRequest("", tuple(prompt), output_len) for prompt in prompts]


def small(device: str) -> GpuPlan:
    """All parts in about a minute, on any device."""
    return GpuPlan(
        device=device,
        shape=_TINY,
        streamed_shape=_TINY,
        streamed_depth=12,
        served_shape=_TINY,
        concurrency=(1, 2),
        family_prompt_lens=(5, 33),  # one of them is longer than the window of those that slide
        family_output_len=6,
        num_removed=2,
        batch_sizes=(1, 4),
        int8_batch_sizes=(1, 4),
        num_steps=2,
        turns=2,
        prompt_len=8,
        output_len=6,
        num_requests=4,
        long_prompt_len=64,
        num_windows=2,
        seqlen=32,
        all_windows=8,
        heal=Heal(batch_tokens=64, rank=2),
        heal_seqlen=32,
    )
