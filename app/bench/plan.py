"""What ``sleb bench`` measures: scenarios, their sizes, and the variants of one model."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Self

from app.engine.autotuning import OFF, Autotuner
from app.engine.kernels.int8 import int8_model
from app.engine.variant import Variant, make_variant
from pruning.models.names import VariantName
from pruning.plural import counted
from pruning.removal import kept
from pruning.repair.repair import Repaired
from pruning.sleb import Blocks

DENSE = "dense"
AGAIN = "dense again"  # the control: the dense model a second time, which shows what noise reads
HALF = "half"  # of the blocks; with the dense times it gives the time of one block


class Scenario(StrEnum):
    """The two scenarios of the paper, and a service under load."""

    GENERATION = "generation"  # a batch of prompts, generated together
    PROMPT = "prompt"  # one long prompt until its first token
    SERVED = "served"  # clients that each send one request after another


@dataclass(frozen=True)
class BenchPlan:
    """Sizes of the scenarios, with the paper's as defaults. Lengths are in tokens."""

    scenarios: tuple[Scenario, ...] = tuple(Scenario)
    batch_size: int = 64
    prompt_tokens: int = 64
    new_tokens: int = 128
    long_prompt: int = 2048
    concurrency: int = 8
    requests: int = 32  # of all clients together
    served_tokens: int = 64  # new ones of each request
    repeats: int = 5
    seed: int = 0

    @property
    def warm_up(self) -> Self:
        """A short run that is not measured, as the first is slower and chooses kernels."""
        return replace(self, new_tokens=2, served_tokens=2)

    def description(self, scenario: Scenario) -> str:
        if scenario is Scenario.GENERATION:
            return (
                f"batch size {self.batch_size}, {counted(self.prompt_tokens, 'prompt token')}, "
                f"{counted(self.new_tokens, 'new token')}"
            )
        if scenario is Scenario.PROMPT:
            return f"one prompt of {counted(self.long_prompt, 'token')}"
        return (
            f"{counted(self.concurrency, 'client')}, {counted(self.requests, 'request')} of "
            f"{self.prompt_tokens} + {self.served_tokens} tokens"
        )

    def rows(self, scenario: Scenario) -> int:
        """The number of sequences in one decode step of the scenario."""
        sizes = {Scenario.GENERATION: self.batch_size, Scenario.SERVED: self.concurrency}
        return sizes.get(scenario, 1)


@dataclass(frozen=True)
class BenchSubject:
    """A dense model, and the removed blocks of each variant by name.

    ``repairs`` are those of repaired variants; tensors of them are in memory. ``tuner`` chooses
    between kernels. ``tenants`` are those whose checkpoints they belong to.
    """

    name: str
    dense: Variant
    removed: Mapping[str, Blocks]
    repairs: Mapping[str, Repaired] = field(default_factory=dict)
    tuner: Autotuner = OFF
    tenants: frozenset[str] = frozenset()

    @property
    def num_blocks(self) -> int:
        return len(self.dense.keep)

    @property
    def int8(self) -> frozenset[str]:
        """The names of variants with int8 weights."""
        return frozenset(name for name in self.removed if VariantName.parse(name).is_int8)

    def sides(self) -> dict[str, Variant]:
        """The variants that take turns: dense twice, then the pruned ones, and half the model."""
        blocks = range(self.num_blocks)
        int8 = self.dense
        if self.int8:
            int8 = replace(self.dense, model=int8_model(self.dense.model, self.tuner))
        pruned = {
            name: without(
                int8 if name in self.int8 else self.dense, removed, name, self.repairs.get(name)
            )
            for name, removed in self.removed.items()
        }
        again = without(self.dense, (), AGAIN)
        half = without(self.dense, blocks[self.num_blocks // 2 :], HALF)
        return {DENSE: self.dense, AGAIN: again, **pruned, HALF: half}


def without(
    dense: Variant,
    removed: Collection[int],
    name: str | None = None,
    repaired: Repaired | None = None,
) -> Variant:
    """The variant without these blocks; by default it is named after its depth."""
    keep = kept(len(dense.keep), removed)
    name = name or str(VariantName(dense.name, depth=len(dense.keep) - len(keep)))
    return make_variant(name, dense.name, dense.model, keep, repaired)
