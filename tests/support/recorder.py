"""An observer that remembers all it was told, and can stop the run."""

import json
from dataclasses import dataclass, field

from pruning.removal import Removal
from pruning.search.state import (
    ScoredCandidate,
    SearchPlan,
    SearchState,
    decided_fields,
    plan_field,
    round_fields,
    scored_field,
)


class Stop(Exception):
    pass


@dataclass
class Recorder:
    stop_after: int | None = None  # evaluations
    phases: list[str] = field(default_factory=list)
    evaluations: list[tuple[int, int]] = field(default_factory=list)
    plans: list[SearchPlan] = field(default_factory=list)
    removals: list[Removal] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    scored: list[ScoredCandidate] = field(default_factory=list)

    def phase(self, phase: str) -> None:
        self.phases.append(phase)

    def searching(self, plan: SearchPlan, done: int, total: int) -> None:
        self.plans.append(plan)
        self.evaluations.append((done, total))

    def evaluated(self, done: int, total: int, scored: ScoredCandidate | None) -> None:
        self.evaluations.append((done, total))
        if scored is not None:
            self.scored.append(scored)
        if done == self.stop_after:
            raise Stop

    def removed(self, removal: Removal) -> None:
        self.removals.append(removal)

    def warned(self, message: str) -> None:
        self.warnings.append(message)

    @property
    def state(self) -> SearchState:
        """What a store would have kept of it."""
        fields = plan_field(self.plans[-1])
        for scored in self.scored:
            fields |= scored_field(scored)
        for removal in self.removals:
            fields |= round_fields([removal])
            fields = {n: v for n, v in fields.items() if n not in decided_fields(removal)}
        return SearchState.from_fields(json.loads(json.dumps(fields)))
