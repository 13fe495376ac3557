"""An observer that remembers all it was told, and can stop the run."""

from dataclasses import dataclass, field

from pruning.removal import Removal


class Stop(Exception):
    pass


@dataclass
class Recorder:
    stop_after: int | None = None  # evaluations
    phases: list[str] = field(default_factory=list)
    evaluations: list[tuple[int, int]] = field(default_factory=list)
    removals: list[Removal] = field(default_factory=list)

    def phase(self, phase: str) -> None:
        self.phases.append(phase)

    def evaluated(self, done: int, total: int) -> None:
        self.evaluations.append((done, total))
        if done == self.stop_after:
            raise Stop

    def removed(self, removal: Removal) -> None:
        self.removals.append(removal)
