"""What a run of the serving benchmark measures, and on which model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from app.engine.variant import Variant
from benchmarks.workload import Prompts
from pruning.sleb import Blocks


class Part(StrEnum):
    """In the order in which they run."""

    OFFLINE = "offline"  # the engine against generate and transformers' continuous batching
    MIXED = "mixed"  # the same with prompts and answers of many lengths
    BATCH1 = "batch1"  # one request at a time
    PRUNED = "pruned"  # fewer blocks
    WEIGHTS = "weights"  # many variants in memory
    CONTEXT = "context"  # longer and longer contexts
    HTTP = "http"  # the service, and that of transformers


class Baseline(StrEnum):
    GENERATE = "generate"
    CONTINUOUS_BATCHING = "continuous-batching"
    TRANSFORMERS_SERVE = "transformers-serve"


@dataclass(frozen=True)
class Plan:
    """How much of everything; lengths are in tokens."""

    parts: tuple[Part, ...] = tuple(Part)
    against: tuple[Baseline, ...] = tuple(Baseline)
    concurrency: tuple[int, ...] = (1, 8, 32, 64)
    prompt_len: int = 64
    output_len: int = 64
    num_requests: int = 64  # offline; over HTTP it is as many as there are clients
    num_mixed: int = 64
    mixed_prompt_lens: tuple[int, int] = (16, 256)
    mixed_output_lens: tuple[int, int] = (8, 128)
    batch_size: int = 32  # of dense against pruned
    num_steps: int = 32  # likewise
    context_lens: tuple[int, ...] = (128, 256, 512, 1024, 2048, 4096)
    open_loop_rate: float | None = None  # requests per second; None: half of what is managed
    repeats: int = 3
    seed: int = 0


@dataclass(frozen=True)
class Subject:
    """The dense model, and those of its blocks that each variant asked for goes without."""

    path: Path
    dense: Variant
    tokenizer: PreTrainedTokenizerBase
    removed: Mapping[str, Blocks]  # by what follows the model's name
    dtype: str
    threads: int | None

    def prompts(self, plan: Plan) -> Prompts:
        """The same ones at every call."""
        return Prompts(self.tokenizer, plan.seed)


@dataclass(frozen=True)
class Found:
    """What a part has measured, the ratios that follow from it, and a table in Markdown if any."""

    details: dict[str, Any]
    ratios: dict[str, float | None] = field(default_factory=dict)
    markdown: str = ""
