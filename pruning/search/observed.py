"""What an observer of a search receives, and scorers that report to it."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pruning.healing.record import Step
from pruning.removal import Losses, Removal
from pruning.search.staged import GrowingScorer, StagedScorer
from pruning.search.state import ScoredCandidate, SearchPlan, num_whole
from pruning.sleb import Blocks

SECONDS_PER_REPORT = 1.0  # of candidates that are not scored as a whole


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

        ``total`` is exact for a number of blocks, and otherwise an upper bound.
        """

    def evaluated(self, done: int, total: int, scored: Sequence[ScoredCandidate]) -> None:
        """Candidates were evaluated, on all windows or on more than before.

        ``scored`` has their losses so far, from which the search can resume within the round.
        """

    def removed(self, removal: Removal) -> None:
        """A round has been decided."""

    def repairing(self, done: int, total: int) -> None:
        """``done`` of ``total`` steps of the repair are done."""

    def healing(self, which: str, step: Step) -> None:
        """A step of the healing was made: of the ``healed`` model or of the ``control``."""

    def evaluating(self, done: int, total: int) -> None:
        """``done`` of ``total`` windows and blocks of the evaluation of a healing are done."""

    def warned(self, message: str) -> None:
        """The model will be published, but without repair or beyond a limit of its quality gate."""


class Tally:
    """Counts evaluations and reports them to the observer.

    A candidate that is scored on some of the windows counts as a share of an evaluation. It is
    reported with the next that is whole, or after ``SECONDS_PER_REPORT``: a report takes time.
    """

    def __init__(self, observer: Observer, done: int, total: int) -> None:
        self.done = done
        self.total = total
        self._observer = observer
        self._waiting: dict[tuple[str, int], ScoredCandidate] = {}
        self._reported_at_s = time.monotonic()

    def reach(self, done: int, scored: ScoredCandidate, *, is_whole: bool) -> None:
        """``done`` evaluations are done, with those losses of a candidate."""
        self.done = done
        self._waiting[scored.round, scored.block] = scored
        if is_whole or time.monotonic() - self._reported_at_s >= SECONDS_PER_REPORT:
            self._report()

    def end_round(self, done: int) -> None:
        """All candidates of a round are scored as far as they have to be."""
        if done != self.done:
            self.done = done
            self._report()

    def _report(self) -> None:
        scored = tuple(self._waiting.values())
        self._waiting.clear()
        self._reported_at_s = time.monotonic()
        self._observer.evaluated(self.done, self.total, scored)


@dataclass
class ObservedScorer:
    """A scorer that reports every candidate of a round, also one that is scored on some windows.

    ``name`` gives the name of the round behind some blocks. Losses in ``scored``, by names of
    rounds, are not computed again. ``latest`` has the losses of the latest round by candidate, and
    ``models`` those of other models, by their blocks.
    """

    scorer: GrowingScorer
    tally: Tally
    scored: Mapping[str, Mapping[int, Losses]]
    name: Callable[[Blocks], str]
    is_staged: bool = False
    latest: dict[int, Losses] = field(default_factory=dict)
    models: dict[Blocks, Losses] = field(default_factory=dict)
    # of the round that is scored: each candidate's losses of the first windows, and the number of
    # evaluations before it
    _known: dict[int, Losses] = field(default_factory=dict)
    _begin: int = 0

    @property
    def num_windows(self) -> int:
        return self.scorer.num_windows

    def losses(self, keep: Blocks) -> Losses:
        self.models[keep] = self.scorer.losses(keep)
        return self.models[keep]

    def score_round(self, keep: Blocks, candidates: Blocks) -> Iterator[tuple[int, Losses]]:
        scored = self.scored.get(self.name(keep), {})
        self._known = {block: scored[block] for block in candidates if block in scored}
        self._begin = self.tally.done - num_whole(self._known, self.num_windows)
        self.latest.clear()
        found = (
            StagedScorer(self).score_round(keep, candidates)
            if self.is_staged
            else self.score(keep, candidates, range(self.num_windows))
        )
        for block, losses in found:
            self.latest[block] = losses
            yield block, losses
        self.tally.end_round(self._begin + len(candidates))

    def score(
        self, keep: Blocks, candidates: Blocks, windows: range
    ) -> Iterator[tuple[int, Losses]]:
        """Those of candidates of the round on these windows; learns of them as they grow."""
        name, part = self.name(keep), slice(windows.start, windows.stop)
        known = {block: self._known.get(block, ())[part] for block in candidates}
        waiting = tuple(block for block in candidates if len(known[block]) < len(windows))
        yield from ((block, known[block]) for block in candidates if block not in waiting)
        for block, losses in self.scorer.growing(keep, waiting, windows, known):
            so_far = [*self._known.get(block, ())[: windows.start], *losses]
            self._known[block] = so_far
            done = self._begin + num_whole(self._known, self.num_windows)
            is_whole = len(so_far) == self.num_windows
            self.tally.reach(done, ScoredCandidate(name, block, so_far), is_whole=is_whole)
            if len(losses) == len(windows):
                yield block, losses
