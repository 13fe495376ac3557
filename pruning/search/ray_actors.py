"""A pool of Ray actors that evaluate candidates, and replacements for actors that are lost."""

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
from pruning.models.streaming import StreamedModel
from pruning.removal import Losses
from pruning.search.scoring import SharedPrefixScorer
from pruning.sleb import Blocks

NOTHING: Mapping[int, Losses] = {}


@dataclass(frozen=True)
class ActorConfig:
    """The model, the scorer and the resources of every actor."""

    path: Path
    dtype: str
    device: str
    threads: int
    num_gpus: int
    num_sharing: int  # actors that may share the memory of one device
    state_budget: int | None
    batch_tokens: int


@dataclass(frozen=True)
class ScoringTask:
    """What an ``Evaluator`` scores: the arguments of its scorer."""

    windows: torch.Tensor  # token ids [num_windows, seqlen]
    boundaries: tuple[int, ...] = ()
    by_divergence: bool = False
    is_streamed: bool = False  # whether blocks are loaded one at a time


class Evaluator:
    """Runs in an actor: a model and its scorer, which tell of one candidate per call."""

    def load(self, config: ActorConfig, task: ScoringTask) -> str:
        """Load the model and return its dtype."""
        set_up_torch(config.threads)
        how = {"dtype": config.dtype, "device": config.device}
        loaded = StreamedModel(config.path, **how) if task.is_streamed else load(config.path, **how)
        model = loaded if isinstance(loaded, StreamedModel) else loaded.model
        self._scorer = SharedPrefixScorer(
            model,
            task.windows,
            state_budget=state_budget(
                model.device, config.state_budget, num_sharing=config.num_sharing
            ),
            batch_tokens=config.batch_tokens,
            boundaries=task.boundaries,
            by_divergence=task.by_divergence,
        )
        self._results: Iterator[tuple[int, Losses]] = iter(())
        return str(loaded.model.dtype)

    def begin(
        self,
        keep: Blocks,
        candidates: Sequence[int],
        windows: range,
        known: Mapping[int, Losses],
    ) -> tuple[int, Losses] | None:
        """Start a round in place of any earlier one, and return its first result.

        ``known`` and the results are as in ``GrowingScorer.growing``.
        """
        self._results = self._scorer.growing(keep, tuple(candidates), windows, known)
        return self.more()

    def more(self) -> tuple[int, Losses] | None:
        """The next result, or None at the end of the round."""
        return next(self._results, None)


_POLL_S = 60.0  # between checks whether the cluster still has room for an actor

logger = logging.getLogger(__name__)


class ClusterLost(RuntimeError):
    """All actors are lost, and so are their replacements."""


@dataclass(frozen=True)
class ActorResult:
    """The losses without ``block`` on the first windows, and the actor that measured them."""

    block: int
    losses: Losses
    is_whole: bool  # whether these are all windows that were asked for
    place: int  # of the actor in its pool
    actor: int  # differs between a lost actor and its replacement


@dataclass(eq=False)
class Actor:
    """An actor in its pool."""

    number: int
    place: int
    handle: Any
    loading: Future[str] | None  # done when the model is loaded; then None
    num_lost: int  # how many actors in a row this place has lost


class ActorPool:
    """Actors that each run an object of the class ``kind`` on one of the tasks, numbered by place.

    Its ``load(config, task)`` loads the model for the task, and returns its dtype.

    A lost actor is replaced, at most ``max_restarts`` times in a row without a result from its
    place. Raises what loading a model raises, or ``ClusterLost``. ``run`` needs ``Evaluator``s.
    """

    def __init__(
        self,
        ray: ModuleType,
        kind: type,
        config: ActorConfig,
        tasks: Sequence[object],
        *,
        max_restarts: int,
    ) -> None:
        self.ray = ray
        self._config = config
        shared = {id(task): ray.put(task) for task in tasks}
        self._tasks = [shared[id(task)] for task in tasks]
        self._max_restarts = max_restarts
        self._numbers = count()
        # Claim no CPUs of Ray, or a CPU actor would wait for another that is idle.
        self._class = ray.remote(
            num_cpus=0, num_gpus=config.num_gpus, scheduling_strategy="SPREAD"
        )(kind)
        self._lost_by: BaseException | None = None
        self._is_complete = False
        self.dtype = ""
        self.actors = [self._spawn(place) for place in range(len(tasks))]
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
        self,
        keep: Blocks,
        shares: Mapping[int, Sequence[int]],
        windows: range,
        known: Mapping[int, Losses] = NOTHING,
    ) -> Iterator[ActorResult]:
        """Yield the losses of ``keep`` without each candidate as they grow; one run at a time.

        ``shares`` are candidates by place, and ``known`` is as in ``GrowingScorer.growing``. Other
        actors take over what a lost one leaves undone. Errors of an evaluation are raised as they
        are.
        """
        return _Round(self, keep, shares, windows, known).results()

    def loaded(self, actor: Actor) -> Actor | None:
        """Mark the actor as ready, or return its replacement if loading failed."""
        assert actor.loading is not None
        try:
            self.dtype = actor.loading.result()
        except self.ray.exceptions.RayError as error:
            if not self._is_complete and isinstance(error, self.ray.exceptions.RayTaskError):
                raise error.cause from error  # the model cannot be loaded at all
            return self.replace(actor, error)
        actor.loading = None
        return None

    def replace(self, actor: Actor, reason: BaseException) -> Actor | None:
        """Spawn a replacement, which loads; None after too many losses in this place."""
        self._lost_by = reason
        self.ray.kill(actor.handle)  # it may be alive but unreachable, and hold a GPU
        self.actors.remove(actor)
        if actor.num_lost >= self._max_restarts:
            if not self.actors:
                raise self.lost() from reason
            return None
        fresh = self._spawn(actor.place, actor.num_lost + 1)
        self.actors.append(fresh)
        return fresh

    def revived(self, actor: Actor, reason: BaseException) -> Actor:
        """A replacement that has loaded. Raises ``ClusterLost`` if this place gets none."""
        fresh = self.replace(actor, reason)
        while fresh is not None and fresh.loading is not None:
            if wait([fresh.loading], _POLL_S).done:
                loaded, fresh = fresh, self.loaded(fresh)
                if loaded.loading is None:
                    return loaded
            elif not self.has_room():
                break
        raise self.lost()

    def has_room(self) -> bool:
        """Whether the cluster still has the GPU that an actor needs, even if it is busy."""
        num_gpus: float = self.ray.cluster_resources().get("GPU", 0)
        return num_gpus >= self._config.num_gpus

    def lost(self) -> ClusterLost:
        reason = str(self._lost_by or "the scorer is closed").splitlines()[0]
        return ClusterLost(
            f"no actor is left ({reason}), and replacements failed or found no GPU: check for "
            "processes killed by the out-of-memory killer and for lost machines, then "
            "resume the search"
        )

    def close(self) -> None:
        for actor in self.actors:
            self.ray.kill(actor.handle)
        self.actors = []

    def _spawn(self, place: int, num_lost: int = 0) -> Actor:
        handle = self._class.remote()
        loading = handle.load.remote(self._config, self._tasks[place]).future()
        return Actor(next(self._numbers), place, handle, loading, num_lost)

    def _wait_for_any(self) -> None:
        loading = [actor.loading for actor in self.actors if actor.loading is not None]
        if not wait(loading, _POLL_S, FIRST_COMPLETED).done:
            logger.warning(
                "%d of %d actors are not ready: loading the model, or waiting for a free GPU",
                len(loading),
                len(self.actors),
            )


class _Round:
    """One round: the candidates of each actor, and those that wait for an idle actor."""

    def __init__(
        self,
        pool: ActorPool,
        keep: Blocks,
        shares: Mapping[int, Sequence[int]],
        windows: range,
        known: Mapping[int, Losses],
    ) -> None:
        self._pool = pool
        self._known = dict(known)
        self._errors = pool.ray.exceptions
        self._keep = keep
        self._windows = windows
        self._waiting: list[int] = []
        self._working: dict[Actor, list[int]] = {}
        self._pending: dict[Future[Any], Actor] = {}
        for actor in pool.actors:
            self._expect(actor)
        ready = {actor.place: actor for actor in pool.actors if actor.loading is None}
        for place, share in shares.items():
            if place not in ready:
                self._waiting += share
            elif share:
                self._begin(ready[place], share)

    def results(self) -> Iterator[ActorResult]:
        while self._waiting or any(self._working.values()):
            self._feed()
            result = self._next_result()
            if result is not None:
                yield result

    def _begin(self, actor: Actor, share: Sequence[int]) -> None:
        self._working[actor] = list(share)
        known = {block: self._known[block] for block in share if block in self._known}
        result = actor.handle.begin.remote(self._keep, share, self._windows, known)
        self._pending[result.future()] = actor

    def _feed(self) -> None:
        """Give every idle actor its part of the waiting candidates."""
        idle = [a for a in self._pool.actors if a.loading is None and a not in self._working]
        part = -(-len(self._waiting) // max(1, len(self._pool.actors)))
        for actor in idle:
            if share := self._waiting[:part]:
                self._waiting = self._waiting[part:]
                self._begin(actor, share)

    def _next_result(self) -> ActorResult | None:
        ready = self._next_ready()
        actor = self._pending.pop(ready)
        if actor.loading is not None:
            self._expect(self._pool.loaded(actor))
            return None
        try:
            result = ready.result()
        except self._errors.RayTaskError as error:
            raise error.cause from error
        except self._errors.RayError as error:
            self._waiting += self._working.pop(actor, ())
            self._expect(self._pool.replace(actor, error))
            return None
        if result is None:
            del self._working[actor]
            return None
        return self._evaluated(actor, *result)

    def _next_ready(self) -> Future[Any]:
        while self._pending:
            done = wait(self._pending, _POLL_S, FIRST_COMPLETED).done
            if done:
                return next(result for result in self._pending if result in done)
            if not self._working and not self._pool.has_room():
                break
        raise self._pool.lost()

    def _evaluated(self, actor: Actor, block: int, losses: Losses) -> ActorResult:
        is_whole = len(losses) == len(self._windows)
        if is_whole:
            self._working[actor].remove(block)
        self._known[block] = losses  # for another actor, should this one be lost
        self._pending[actor.handle.more.remote().future()] = actor
        actor.num_lost = 0
        return ActorResult(block, losses, is_whole, actor.place, actor.number)

    def _expect(self, fresh: Actor | None) -> None:
        if fresh is not None and fresh.loading is not None:
            self._pending[fresh.loading] = fresh
