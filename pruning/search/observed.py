"""What an observer of a search receives, and scorers that report to it."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from pruning.healing.progress import Step
from pruning.removal import Losses, Removal
from pruning.search.ranking import Ranker
from pruning.search.refine import Exchange
from pruning.search.state import ScoredCandidate, SearchPlan
from pruning.sleb import Blocks, RoundScorer


class Observer:
    """Receives the progress of a run; an exception from it stops the run.

    Does nothing with it: subclasses override what they are interested in.
    """

    def phase(self, phase: str) -> None:
        """A phase begins: ``load``, ``calibrate``, ``search``, ``repair``, ``heal``, ``evaluate``
        or ``publish``.
        """

    def calibrating(self, done: int, total: int) -> None:
        """``done`` of ``total`` tokens of each window were sampled from the model."""

    def searching(self, plan: SearchPlan, done: int, total: int) -> None:
        """The search begins, or resumes after ``done`` evaluations.

        ``total`` is exact for a number of blocks without refinement, and otherwise an upper bound.
        """

    def evaluated(self, done: int, total: int, scored: ScoredCandidate | None) -> None:
        """One more candidate was evaluated, or ``total`` is lower than it was.

        ``scored`` has the losses of the candidate if the search can resume within the round.
        """

    def removed(self, removal: Removal) -> None:
        """A round of the greedy search has been decided."""

    def decided(self, name: str, removal: Removal) -> None:
        """The round of that name of the refinement has been decided."""

    def exchanged(self, exchange: Exchange) -> None:
        """The refinement has exchanged blocks. The order will follow."""

    def reordered(self, removals: Sequence[Removal]) -> None:
        """The refinement is over, and these removals take the place of those before."""

    def repairing(self, done: int, total: int) -> None:
        """``done`` of ``total`` steps of the repair are done."""

    def healing(self, which: str, step: Step) -> None:
        """A step of the healing was made: of the ``healed`` model or of the ``control``."""

    def warned(self, message: str) -> None:
        """The model will be published, but without repair or beyond a limit of its quality gate."""


class Tally:
    """Counts evaluations and reports each to the observer."""

    def __init__(self, observer: Observer, done: int, total: int) -> None:
        self.done = done
        self.total = total
        self._observer = observer

    def add(self, scored: ScoredCandidate | None) -> None:
        self.done += 1
        self._observer.evaluated(self.done, self.total, scored)

    def expect(self, num_left: int) -> None:
        """Lower the total: at most ``num_left`` evaluations are left."""
        if self.done + num_left < self.total:
            self.total = self.done + num_left
            self._observer.evaluated(self.done, self.total, None)


class ObservedRanker:
    """A ranker that reports every candidate it scores, under the ``name`` of the round.

    Candidates in ``scored``, by names of rounds, are not scored again. Without a ``name``, the
    search cannot resume within a round. ``latest`` gets the losses of the latest round.
    """

    def __init__(
        self,
        ranker: Ranker,
        tally: Tally,
        scored: Mapping[str, Mapping[int, Losses]],
        name: Callable[[Blocks], str] | None,
        latest: dict[int, Losses],
    ) -> None:
        self._ranker = ranker
        self._tally = tally
        self._scored = scored
        self._name = name
        self._latest = latest

    def score_round(self, keep: Blocks, candidates: Blocks) -> Iterator[tuple[int, Losses]]:
        name = self._name(keep) if self._name else None
        known = self._scored.get(name, {}) if name else {}
        self._latest.clear()
        self._latest.update((block, known[block]) for block in candidates if block in known)
        yield from list(self._latest.items())
        unknown = tuple(block for block in candidates if block not in known)
        for block, losses in self._ranker.score_round(keep, unknown):
            self._tally.add(ScoredCandidate(name, block, losses) if name else None)
            self._latest[block] = losses
            yield block, losses


class ObservedScorer(ObservedRanker):
    """A scorer that reports every candidate of a round."""

    def __init__(
        self,
        scorer: RoundScorer,
        tally: Tally,
        scored: Mapping[str, Mapping[int, Losses]],
        name: Callable[[Blocks], str] | None,
        latest: dict[int, Losses],
    ) -> None:
        super().__init__(scorer, tally, scored, name, latest)
        self._scorer = scorer

    def losses(self, keep: Blocks) -> Losses:
        return self._scorer.losses(keep)
