"""The parts, sizes and model of a run of the serving benchmark."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from app.engine.autotuning import Autotuner
from app.engine.engine import Engine
from app.engine.scheduling.scheduler import EngineLimits
from app.engine.variant import Variant
from benchmarks.workload import Prompts
from pruning.sleb import Blocks


class Part(StrEnum):
    """Parts of the benchmark, in the order in which they run."""

    OFFLINE = "offline"  # the engine against generate and transformers' continuous batching
    MIXED = "mixed"  # the same with prompts and outputs of many lengths
    BATCH1 = "batch1"  # one request at a time
    PRUNED = "pruned"  # pruned variants against the dense model
    WEIGHTS = "weights"  # many variants in memory
    CONTEXT = "context"  # decode steps by context length
    HTTP = "http"  # sleb serve and transformers serve
    PEERS = "peers"  # sleb serve, vLLM and llama.cpp
    PREFIX = "prefix"  # sleb serve and vLLM: prompts that begin alike
    CHAT = "chat"  # the same: conversations that grow
    LONG = "long"  # the same: a long prompt beside short ones


class Baseline(StrEnum):
    GENERATE = "generate"
    CONTINUOUS_BATCHING = "continuous-batching"
    TRANSFORMERS_SERVE = "transformers-serve"
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
    batch_size: int = 32  # of the part "pruned"
    num_steps: int = 32  # likewise
    context_lens: tuple[int, ...] = (128, 256, 512, 1024, 2048, 4096)
    traffic: TrafficSizes = TrafficSizes()
    open_loop_rate: float | None = None  # requests per second; None: half of the closed loop
    repeats: int = 3
    seed: int = 0


@dataclass(frozen=True)
class ServeSubject:
    """The dense model, and the removed blocks of each requested variant."""

    path: Path
    dense: Variant
    tokenizer: PreTrainedTokenizerBase
    removed: Mapping[str, Blocks]  # by suffix of the model's name, such as @-6
    dtype: str
    threads: int | None
    tuner: Autotuner = field(default_factory=Autotuner)  # keeps its choices for this run only

    def engine(self, limits: EngineLimits | None = None) -> Engine:
        """An engine with the kernels of the service, compiled and timed."""
        engine = Engine(limits, tuner=self.tuner)
        engine.kernels.finish(self.dense)  # whose variants run the same kernels
        return engine

    def prompts(self, plan: ServePlan) -> Prompts:
        """A generator that starts from the seed of the plan at every call."""
        return Prompts(self.tokenizer, plan.seed)


@dataclass(frozen=True)
class PartResult:
    """Measurements of a part, the ratios computed from them, and an optional Markdown table."""

    details: dict[str, Any]
    ratios: dict[str, float | None] = field(default_factory=dict)
    markdown: str = ""
