"""What ``sleb bench`` measures: three scenarios, their sizes, and the sides that take turns."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum

from app.engine.variant import Variant, make_variant
from pruning.models.names import VariantName
from pruning.removal import kept
from pruning.sleb import Blocks

DENSE = "dense"
HALF = "half"  # of the blocks: from it and the dense side follows what one block takes


class Scenario(StrEnum):
    """The paper's two, and a service under load."""

    GENERATION = "generation"  # a batch of prompts, all answered at once
    PROMPT = "prompt"  # one long input until its first token
    SERVED = "served"  # clients that each ask again as soon as they are answered


@dataclass(frozen=True)
class Plan:
    """Lengths in tokens; the paper's are the defaults."""

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

    def described(self, scenario: Scenario) -> str:
        if scenario is Scenario.GENERATION:
            return (
                f"batch {self.batch_size}, {self.prompt_tokens} prompt tokens, "
                f"{self.new_tokens} new ones"
            )
        if scenario is Scenario.PROMPT:
            return f"one input of {self.long_prompt} tokens"
        return (
            f"{self.concurrency} clients, {self.requests} requests of {self.prompt_tokens} + "
            f"{self.served_tokens} tokens"
        )

    def rows(self, scenario: Scenario) -> int:
        """Sequences whose next token one forward of the scenario is about."""
        sizes = {Scenario.GENERATION: self.batch_size, Scenario.SERVED: self.concurrency}
        return sizes.get(scenario, 1)


@dataclass(frozen=True)
class Subject:
    """A dense model, and the blocks that each of its variants goes without, by its name."""

    name: str
    dense: Variant
    removed: Mapping[str, Blocks]

    @property
    def num_blocks(self) -> int:
        return len(self.dense.keep)

    def sides(self) -> dict[str, Variant]:
        """All that take turns: the dense model first, the variants, and half of the model."""
        every = range(self.num_blocks)
        of_variants = {
            name: without(self.dense, blocks, name) for name, blocks in self.removed.items()
        }
        half = without(self.dense, every[self.num_blocks // 2 :], HALF)
        return {DENSE: self.dense, **of_variants, HALF: half}


def without(dense: Variant, removed: Collection[int], name: str | None = None) -> Variant:
    """The view without these blocks; by default it has the name of a variant of that depth."""
    keep = kept(len(dense.keep), removed)
    name = name or str(VariantName(dense.name, depth=len(dense.keep) - len(keep)))
    return make_variant(name, dense.name, dense.model, keep)
