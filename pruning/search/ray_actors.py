"""Evaluators in processes of their own, on Ray: started, asked, replaced when they are lost.

What runs in an actor: a model and its scorer, asked for one candidate after the other.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from pruning.models.memory import state_budget
from pruning.models.store import load, set_up_torch
from pruning.removal import Losses
from pruning.search.scoring import SharedPrefixScorer
from pruning.sleb import Blocks

NO_BLOCK = -1  # as a candidate: nothing more is removed


@dataclass(frozen=True)
class Recipe:
    """What every actor makes its scorer of, and what it takes of the machine it is on."""

    path: Path
    dtype: str
    device: str
    threads: int
    num_gpus: int
    num_sharing: int  # actors that may have to share one device's memory
    state_budget: int | None
    batch_tokens: int
    boundaries: tuple[int, ...]


class Evaluator:
    """One model, one scorer, one round at a time, a candidate per answer."""

    def load(self, recipe: Recipe, windows: torch.Tensor) -> str:
        """The model's dtype."""
        set_up_torch(recipe.threads)
        model = load(recipe.path, dtype=recipe.dtype, device=recipe.device).model
        budget = state_budget(model.device, recipe.state_budget, num_sharing=recipe.num_sharing)
        self._scorer = SharedPrefixScorer(
            model,
            windows,
            state_budget=budget,
            batch_tokens=recipe.batch_tokens,
            boundaries=recipe.boundaries,
        )
        self._answers: Iterator[tuple[int, Losses]] = iter(())
        return str(model.dtype)

    def begin(
        self, keep: Blocks, candidates: Sequence[int], windows: range
    ) -> tuple[int, Losses] | None:
        """Drop what was begun before, and give the first answer."""
        if NO_BLOCK in candidates:
            self._answers = iter([(NO_BLOCK, self._scorer.losses(keep))])
        else:
            self._answers = self._scorer.score(keep, tuple(candidates), windows)
        return self.more()

    def more(self) -> tuple[int, Losses] | None:
        """The next answer; None behind the last."""
        return next(self._answers, None)


_PATIENCE_S = 60.0  # between looks at whether the cluster still has room for an actor

logger = logging.getLogger(__name__)


class ClusterLost(RuntimeError):
    """No actor is left to evaluate anything, and fresh ones are lost as well."""


@dataclass(frozen=True)
class Evaluated:
    block: int
    losses: Losses
    place: int  # of the actor in its crew
    actor: int  # differs between a lost actor and the one that took its place


@dataclass(eq=False)
class _Actor:
    number: int
    place: int
    handle: Any
    loading: Future[str] | None  # comes true when the model is there; None from then on
    num_lost: int  # actors of this place before it, in a row


class Crew:
    """A number of actors that each run an ``Evaluator``, every one in a place of its own.

    The place of a lost actor is filled again, at most ``max_restarts`` times in a row without an
    answer from it. Raises what loading a model raises, or ``ClusterLost``.
    """

    def __init__(
        self,
        ray: ModuleType,
        recipe: Recipe,
        windows: torch.Tensor,
        *,
        num_actors: int,
        max_restarts: int,
    ) -> None:
        self.ray = ray
        self._recipe = recipe
        self._windows = ray.put(windows.cpu())
        self._max_restarts = max_restarts
        self._numbers = count()
        # No CPUs are claimed of Ray: a CPU actor is not to wait for another that is idle.
        self._class = ray.remote(
            num_cpus=0, num_gpus=recipe.num_gpus, scheduling_strategy="SPREAD"
        )(Evaluator)
        self._lost_by: BaseException | None = None
        self._is_complete = False
        self.dtype = ""
        self.actors = [self._hire(place) for place in range(num_actors)]
        try:
            while len(self.ready_places()) < len(self.actors):
                self._wait_for_any()
        except BaseException:
            self.close()
            raise
        self._is_complete = True

    def ready_places(self) -> list[int]:
        for actor in list(self.actors):
            if actor.loading is not None and actor.loading.done():
                self.loaded(actor)
        return [actor.place for actor in self.actors if actor.loading is None]

    def run(
        self, keep: Blocks, shares: Mapping[int, Sequence[int]], windows: range
    ) -> Iterator[Evaluated]:
        """Losses of ``keep`` without each candidate, as they arrive; one run at a time.

        ``shares`` are candidates by place, or ``NO_BLOCK``. What a lost actor leaves undone, the
        others do. Errors of an evaluation are raised as they are.
        """
        return _Run(self, keep, shares, windows).answers()

    def loaded(self, actor: _Actor) -> _Actor | None:
        """Count it in; or else the fresh actor, as of ``replace``."""
        assert actor.loading is not None
        try:
            self.dtype = actor.loading.result()
        except self.ray.exceptions.RayError as error:
            if not self._is_complete and isinstance(error, self.ray.exceptions.RayTaskError):
                raise error.cause from error  # the first to load: the fault is not the actor's
            return self.replace(actor, error)
        actor.loading = None
        return None

    def replace(self, actor: _Actor, reason: BaseException) -> _Actor | None:
        """The fresh actor, still loading; None if enough were lost in this place."""
        self._lost_by = reason
        self.ray.kill(actor.handle)  # it may only be out of reach, and hold a GPU
        self.actors.remove(actor)
        if actor.num_lost >= self._max_restarts:
            if not self.actors:
                raise self.lost() from reason
            return None
        fresh = self._hire(actor.place, actor.num_lost + 1)
        self.actors.append(fresh)
        return fresh

    def has_room(self) -> bool:
        """Whether the cluster still has what an actor takes, be it busy now."""
        num_gpus: float = self.ray.cluster_resources().get("GPU", 0)
        return num_gpus >= self._recipe.num_gpus

    def lost(self) -> ClusterLost:
        reason = str(self._lost_by or "the scorer is closed").splitlines()[0]
        return ClusterLost(
            f"no actor is left ({reason}), and no fresh one lasts or finds a GPU: look for "
            "processes killed for memory and for lost machines, then search again, from the "
            "blocks removed so far"
        )

    def close(self) -> None:
        for actor in self.actors:
            self.ray.kill(actor.handle)
        self.actors = []

    def _hire(self, place: int, num_lost: int = 0) -> _Actor:
        handle = self._class.remote()
        loading = handle.load.remote(self._recipe, self._windows).future()
        return _Actor(next(self._numbers), place, handle, loading, num_lost)

    def _wait_for_any(self) -> None:
        loading = [actor.loading for actor in self.actors if actor.loading is not None]
        if not wait(loading, _PATIENCE_S, FIRST_COMPLETED).done:
            logger.warning(
                "%d of %d actors are not there yet: they load the model, or wait for a free GPU",
                len(loading),
                len(self.actors),
            )


class _Run:
    """One round: who works on what, and what waits for whoever is free."""

    def __init__(
        self, crew: Crew, keep: Blocks, shares: Mapping[int, Sequence[int]], windows: range
    ) -> None:
        self._crew = crew
        self._errors = crew.ray.exceptions
        self._keep = keep
        self._windows = windows
        self._waiting: list[int] = []
        self._working: dict[_Actor, list[int]] = {}
        self._pending: dict[Future[Any], _Actor] = {}
        for actor in crew.actors:
            self._expect(actor)
        ready = {actor.place: actor for actor in crew.actors if actor.loading is None}
        for place, share in shares.items():
            if place not in ready:
                self._waiting += share
            elif share:
                self._begin(ready[place], share)

    def answers(self) -> Iterator[Evaluated]:
        while self._waiting or any(self._working.values()):
            self._feed()
            answer = self._next_answer()
            if answer is not None:
                yield answer

    def _begin(self, actor: _Actor, share: Sequence[int]) -> None:
        self._working[actor] = list(share)
        answer = actor.handle.begin.remote(self._keep, share, self._windows)
        self._pending[answer.future()] = actor

    def _feed(self) -> None:
        """Give every idle actor its part of what waits."""
        idle = [a for a in self._crew.actors if a.loading is None and a not in self._working]
        part = -(-len(self._waiting) // max(1, len(self._crew.actors)))
        for actor in idle:
            if share := self._waiting[:part]:
                self._waiting = self._waiting[part:]
                self._begin(actor, share)

    def _next_answer(self) -> Evaluated | None:
        ready = self._next_ready()
        actor = self._pending.pop(ready)
        if actor.loading is not None:
            self._expect(self._crew.loaded(actor))
            return None
        try:
            answer = ready.result()
        except self._errors.RayTaskError as error:
            raise error.cause from error
        except self._errors.RayError as error:
            self._waiting += self._working.pop(actor, ())
            self._expect(self._crew.replace(actor, error))
            return None
        if answer is None:
            del self._working[actor]
            return None
        return self._evaluated(actor, *answer)

    def _next_ready(self) -> Future[Any]:
        while self._pending:
            done = wait(self._pending, _PATIENCE_S, FIRST_COMPLETED).done
            if done:
                return next(answer for answer in self._pending if answer in done)
            if not self._working and not self._crew.has_room():
                break
        raise self._crew.lost()

    def _evaluated(self, actor: _Actor, block: int, losses: Losses) -> Evaluated:
        self._working[actor].remove(block)
        self._pending[actor.handle.more.remote().future()] = actor
        actor.num_lost = 0
        return Evaluated(block, losses, actor.place, actor.number)

    def _expect(self, fresh: _Actor | None) -> None:
        if fresh is not None and fresh.loading is not None:
            self._pending[fresh.loading] = fresh
