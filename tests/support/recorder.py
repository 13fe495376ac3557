"""An observer that remembers all it was told, and can stop the run."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from pruning.healing.record import Step
from pruning.removal import Removal
from pruning.search.observed import Observer
from pruning.search.state import (
    ScoredCandidate,
    SearchPlan,
    SearchState,
    decided_field,
    obsolete_fields,
    plan_field,
    round_name,
    scored_field,
)


class Stop(Exception):
    pass


@dataclass
class Recorder(Observer):
    stop_after: int | None = None  # evaluations
    stop_after_repair: int | None = None  # steps of the repair
    phases: list[str] = field(default_factory=list)
    evaluations: list[tuple[int, int]] = field(default_factory=list)
    plans: list[SearchPlan] = field(default_factory=list)
    removals: list[Removal] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    scored: list[ScoredCandidate] = field(default_factory=list)
    repair_steps: list[tuple[int, int]] = field(default_factory=list)
    healing_steps: list[tuple[str, Step]] = field(default_factory=list)
    stop_after_healing: int | None = None  # steps of either training

    def phase(self, phase: str) -> None:
        self.phases.append(phase)

    def searching(self, plan: SearchPlan, done: int, total: int) -> None:
        self.plans.append(plan)
        self.evaluations.append((done, total))

    def evaluated(self, done: int, total: int, scored: Sequence[ScoredCandidate]) -> None:
        self.evaluations.append((done, total))
        self.scored += scored
        if done == self.stop_after:
            raise Stop

    def removed(self, removal: Removal) -> None:
        self.removals.append(removal)

    def repairing(self, done: int, total: int) -> None:
        self.repair_steps.append((done, total))
        if done == self.stop_after_repair:
            raise Stop

    def healing(self, which: str, step: Step) -> None:
        self.healing_steps.append((which, step))
        if len(self.healing_steps) == self.stop_after_healing:
            raise Stop

    def warned(self, message: str) -> None:
        self.warnings.append(message)

    @property
    def state(self) -> SearchState:
        """What a store would have kept of it."""
        fields = plan_field(self.plans[-1])
        for scored in self.scored:
            fields |= scored_field(scored)
        for name, removal in ((round_name(each.step), each) for each in self.removals):
            fields |= decided_field(name, removal)
            fields = {n: v for n, v in fields.items() if n not in obsolete_fields(name, removal)}
        return SearchState.from_fields(json.loads(json.dumps(fields)))
