"""The parts, sizes and model of a run of the serving benchmark."""

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from app.engine.autotuning import Autotuner
from app.engine.variant import Variant
from benchmarks.workload import Prompts


class Part(StrEnum):
    """Parts of the benchmark, in the order in which they run."""

    OFFLINE = "offline"  # the engine against generate
    MIXED = "mixed"  # the same with prompts and outputs of many lengths
    BATCH1 = "batch1"  # one request at a time
    PEERS = "peers"  # sleb serve, vLLM and llama.cpp
    PREFIX = "prefix"  # sleb serve and vLLM: prompts that begin alike
    CHAT = "chat"  # the same: conversations that grow
    LONG = "long"  # the same: a long prompt beside short ones


class Baseline(StrEnum):
    GENERATE = "generate"
    VLLM = "vllm"
    LLAMA_CPP = "llama.cpp"


@dataclass(frozen=True)
class TrafficSizes:
    """Clients, requests and lengths in tokens of the parts with traffic like that of users."""

    output_len: int = 32
    num_rounds: int = 2  # requests of each client, but for conversations
    prefix_clients: int = 16
    shared_len: int = 1024
    own_len: int = 32
    chat_clients: int = 4
    num_turns: int = 5
    turn_len: int = 128
    short_clients: int = 15
    short_len: int = 64
    long_len: int = 6000


@dataclass(frozen=True)
class ServePlan:
    """Parts, baselines and sizes of a run. Lengths are in tokens."""

    parts: tuple[Part, ...] = tuple(Part)
    against: tuple[Baseline, ...] = tuple(Baseline)
    concurrency: tuple[int, ...] = (1, 8, 32, 64)
    prompt_len: int = 64
    output_len: int = 64
    num_requests: int = 64  # offline; over HTTP one per client
    num_mixed: int = 64
    mixed_prompt_lens: tuple[int, int] = (16, 256)
    mixed_output_lens: tuple[int, int] = (8, 128)
    traffic: TrafficSizes = TrafficSizes()
    repeats: int = 3
    seed: int = 0


@dataclass(frozen=True)
class ServeSubject:
    """The model, and how it runs."""

    path: Path
    dense: Variant
    tokenizer: PreTrainedTokenizerBase
    dtype: str
    threads: int | None
    tuner: Autotuner = field(default_factory=Autotuner)  # keeps its choices for this run only

    def prompts(self, plan: ServePlan) -> Prompts:
        """A generator that starts from the seed of the plan at every call."""
        return Prompts(self.tokenizer, plan.seed)


@dataclass(frozen=True)
class PartResult:
    """Measurements of a part, the ratios computed from them, and an optional Markdown table."""

    details: dict[str, Any]
    ratios: dict[str, float | None] = field(default_factory=dict)
    markdown: str = ""
