"""What a search has found so far: enough for another process to go on with it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pruning.removal import Losses, Removal

PLAN = "plan"
RANKING = 0  # the round of a metric that looks at the dense model alone, in front of the first


@dataclass(frozen=True)
class Plan:
    """What a search goes by beside its spec. Losses found by another plan do not compare."""

    windows_digest: str
    num_remove: int  # at most, where losses decide


@dataclass(frozen=True)
class Scored:
    """One candidate of a round that is not decided yet, or of the ranking, which stays."""

    step: int
    block: int
    losses: Losses


@dataclass(frozen=True)
class SearchState:
    """``scored`` are candidates of the round behind ``removals``, and their losses; ``ranking`` are
    scores of the dense model's, for a metric that goes by them.
    """

    plan: Plan | None = None
    removals: tuple[Removal, ...] = ()
    scored: Mapping[int, Losses] = field(default_factory=dict)
    ranking: Mapping[int, Losses] = field(default_factory=dict)

    @classmethod
    def from_fields(cls, fields: Mapping[str, str]) -> "SearchState":
        """Of text fields as the functions below write them; those of earlier rounds are ignored."""
        removals: list[Removal] = []
        while (text := fields.get(_round(len(removals) + 1))) is not None:
            removals.append(_removal(json.loads(text)))
        return cls(
            plan=Plan(**json.loads(fields[PLAN])) if PLAN in fields else None,
            removals=tuple(removals),
            scored=_scored_in(fields, len(removals) + 1),
            ranking=_scored_in(fields, RANKING),
        )


def plan_field(plan: Plan) -> dict[str, str]:
    return {PLAN: json.dumps(asdict(plan))}


def scored_field(scored: Scored) -> dict[str, str]:
    return {_scored(scored.step, scored.block): json.dumps(list(scored.losses))}


def round_fields(removals: Sequence[Removal]) -> dict[str, str]:
    return {_round(removal.step): json.dumps(asdict(removal)) for removal in removals}


def decided_fields(removal: Removal) -> tuple[str, ...]:
    """Names of what a round needs no longer once it is decided."""
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
    """JSON has text keys only."""
    scores = {int(block): score for block, score in data["scores"].items()}
    num_windows = {int(block): number for block, number in data["num_windows"].items()}
    return Removal(**{**data, "scores": scores, "num_windows": num_windows})
