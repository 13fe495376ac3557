"""The state of a search, from which another process can resume it, and its text fields."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType

from pruning.models.block_times import BlockTimes
from pruning.removal import Losses, Removal

PLAN = "plan"
RANKING = "0"  # the name of the round that ranks the candidates of the dense model

_NOTHING: Mapping[int, Losses] = MappingProxyType({})


def round_name(step: int) -> str:
    """The name of the greedy round ``step``, 1 for the first."""
    return str(step)


@dataclass(frozen=True)
class SearchPlan:
    """What a search depends on beside its spec. Losses of different plans do not compare."""

    windows_digest: str
    num_remove: int  # an upper bound if losses decide
    times: BlockTimes | None = None  # of a decode step; None in older states
    model_fingerprint: str | None = None  # of the dense model; None in older states

    def holds_for(self, windows_digest: str, model_fingerprint: str) -> bool:
        """Whether losses of this plan compare with those of this text and this model."""
        is_of_model = self.model_fingerprint in (None, model_fingerprint)
        return self.windows_digest == windows_digest and is_of_model

    @classmethod
    def from_json(cls, text: str) -> "SearchPlan":
        fields = json.loads(text)
        times = fields.pop("times", None)
        return cls(**fields, times=BlockTimes(**times) if times else None)


@dataclass(frozen=True)
class ScoredCandidate:
    """The losses of one candidate in the round of that name, which is not decided yet.

    They are those of the first windows, and of all of them in the end.
    """

    round: str
    block: int
    losses: Losses


@dataclass(frozen=True)
class SearchState:
    """``removals`` are the decisions of the greedy rounds, ``decided`` those of the refinement by
    the names of the rounds. ``scored`` has losses of candidates by the names of other rounds.
    """

    plan: SearchPlan | None = None
    removals: tuple[Removal, ...] = ()
    decided: Mapping[str, Removal] = field(default_factory=dict)
    scored: Mapping[str, Mapping[int, Losses]] = field(default_factory=dict)

    def scored_in(self, name: str) -> Mapping[int, Losses]:
        """The losses of the candidates of an undecided round."""
        return self.scored.get(name, _NOTHING)

    @classmethod
    def from_fields(cls, fields: Mapping[str, str]) -> "SearchState":
        """Parse what the functions below write."""
        decided: dict[str, Removal] = {}
        scored: dict[str, dict[int, Losses]] = {}
        for field_name, text in fields.items():
            kind, _, name = field_name.partition(":")
            if kind == _DECIDED:
                decided[name] = Removal.from_dict(json.loads(text))
            elif kind == _SCORED:
                of_round, _, block = name.rpartition(":")
                scored.setdefault(of_round, {})[int(block)] = json.loads(text)
        removals: list[Removal] = []
        while (removal := decided.pop(round_name(len(removals) + 1), None)) is not None:
            removals.append(removal)
        return cls(
            plan=SearchPlan.from_json(fields[PLAN]) if PLAN in fields else None,
            removals=tuple(removals),
            decided=decided,
            scored=scored,
        )


def num_whole(scored: Mapping[int, Losses], num_windows: int) -> int:
    """How many evaluations the losses of some candidates amount to."""
    return sum(map(len, scored.values())) // num_windows


_DECIDED, _SCORED = "round", "scored"


def plan_field(plan: SearchPlan) -> dict[str, str]:
    return {PLAN: json.dumps(asdict(plan))}


def scored_field(scored: ScoredCandidate) -> dict[str, str]:
    return {f"{_SCORED}:{scored.round}:{scored.block}": json.dumps(list(scored.losses))}


def decided_field(name: str, removal: Removal) -> dict[str, str]:
    """The field of the round of that name."""
    return {f"{_DECIDED}:{name}": json.dumps(asdict(removal))}


def obsolete_fields(name: str, removal: Removal) -> tuple[str, ...]:
    """Names of the fields that are obsolete once the round of that name is decided."""
    return tuple(f"{_SCORED}:{name}:{block}" for block in removal.scores)
