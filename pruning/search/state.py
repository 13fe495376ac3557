"""The state of a search, from which another process can resume it, and its text fields."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pruning.removal import Losses, Removal

PLAN = "plan"
RANKING = 0  # the step number of scores of the dense model, before the first round


@dataclass(frozen=True)
class SearchPlan:
    """What a search depends on beside its spec. Losses of different plans do not compare."""

    windows_digest: str
    num_remove: int  # an upper bound if losses decide


@dataclass(frozen=True)
class ScoredCandidate:
    """The losses of one candidate, in an undecided round or in the ranking."""

    step: int
    block: int
    losses: Losses


@dataclass(frozen=True)
class SearchState:
    """``scored`` has losses of candidates of the round after ``removals``; ``ranking`` has scores
    of candidates of the dense model, for a metric that ranks them once.
    """

    plan: SearchPlan | None = None
    removals: tuple[Removal, ...] = ()
    scored: Mapping[int, Losses] = field(default_factory=dict)
    ranking: Mapping[int, Losses] = field(default_factory=dict)

    @classmethod
    def from_fields(cls, fields: Mapping[str, str]) -> "SearchState":
        """Parse what the functions below write; scores of earlier rounds are ignored."""
        removals: list[Removal] = []
        while (text := fields.get(_round(len(removals) + 1))) is not None:
            removals.append(_removal(json.loads(text)))
        return cls(
            plan=SearchPlan(**json.loads(fields[PLAN])) if PLAN in fields else None,
            removals=tuple(removals),
            scored=_scored_in(fields, len(removals) + 1),
            ranking=_scored_in(fields, RANKING),
        )


def plan_field(plan: SearchPlan) -> dict[str, str]:
    return {PLAN: json.dumps(asdict(plan))}


def scored_field(scored: ScoredCandidate) -> dict[str, str]:
    return {_scored(scored.step, scored.block): json.dumps(list(scored.losses))}


def round_fields(removals: Sequence[Removal]) -> dict[str, str]:
    return {_round(removal.step): json.dumps(asdict(removal)) for removal in removals}


def decided_fields(removal: Removal) -> tuple[str, ...]:
    """Names of the fields of a round that are obsolete once it is decided."""
    return tuple(_scored(removal.step, block) for block in removal.scores)


def _round(step: int) -> str:
    return f"round:{step}"


def _scored(step: int, block: int | str) -> str:
    return f"scored:{step}:{block}"


def _scored_in(fields: Mapping[str, str], step: int) -> dict[int, Losses]:
    prefix = _scored(step, "")
    return {
        int(name.removeprefix(prefix)): json.loads(text)
        for name, text in fields.items()
        if name.startswith(prefix)
    }


def _removal(data: Mapping[str, Any]) -> Removal:
    """Convert the keys, which are text in JSON, to block indices."""
    scores = {int(block): score for block, score in data["scores"].items()}
    num_windows = {int(block): number for block, number in data["num_windows"].items()}
    return Removal(**{**data, "scores": scores, "num_windows": num_windows})
