"""A scorer that assigns the candidates of a round to Ray actors, each with a model of its own.

Needs the extra ``cluster``. Every machine of the cluster needs this package, and the model at the
same path.
"""

import importlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from math import inf
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any, Self

import torch

from pruning.extras import missing_extra
from pruning.models.memory import BATCH_TOKENS
from pruning.removal import Losses
from pruning.search.prefixes import NO_BLOCK
from pruning.search.ray_actors import (
    NOTHING,
    ActorConfig,
    ActorPool,
    ActorResult,
    Evaluator,
    ScoringTask,
)
from pruning.sleb import Blocks

logger = logging.getLogger(__name__)

Cost = Callable[[int, int], int]  # of a block at a place, in block passes


def assign(
    candidates: Sequence[int], places: Sequence[int], homes: Mapping[int, int], cost: Cost
) -> dict[int, list[int]]:
    """Assign candidates to places so that all finish at about the same time.

    A block goes to its place in ``homes``, which knows its hidden states, or else to the place with
    the least load. Then the busiest place hands blocks to the idlest while that helps. Returns the
    candidates of each place, in the order of ``candidates``.
    """
    shares: dict[int, set[int]] = {place: set() for place in places}

    def load(place: int) -> int:
        return sum(cost(block, place) for block in shares[place])

    homeless = []
    for block in candidates:
        if (home := homes.get(block)) in shares and home is not None:
            shares[home].add(block)
        else:
            homeless.append(block)
    for block in sorted(homeless, key=lambda block: cost(block, places[0]), reverse=True):
        shares[min(places, key=load)].add(block)
    while True:
        busiest, idlest = max(places, key=load), min(places, key=load)
        moves = {
            block: max(load(busiest) - cost(block, busiest), load(idlest) + cost(block, idlest))
            for block in shares[busiest]
        }
        best = min(moves, key=moves.__getitem__, default=None)
        if best is None or moves[best] >= load(busiest):
            return {place: [b for b in candidates if b in shares[place]] for place in places}
        shares[busiest].remove(best)
        shares[idlest].add(best)


# Means over windows closer than this, in nats, count as tied between actors. Equal devices agree
# to the bit; other kernels round differently, and 16-bit states more coarsely.
TIE_NATS = 1e-5
HALF_TIE_NATS = 1e-3


class ClusterUnavailable(RuntimeError):
    """Ray is not installed, does not start, or has fewer GPUs than actors were requested."""


class ClusterScorer:
    """``SharedPrefixScorer`` in several processes, each with one GPU or a share of the CPUs, of a
    model whose weights are streamed if it ``is_streamed``.

    A ``GrowingScorer`` over ``windows [num_windows, seqlen]``, for one round at a time.
    ``resources`` are arguments of ``actor_pool``. Candidates so close to the best that rounding may
    decide are evaluated again on one actor. Raises what loading the model raises and
    ``ClusterUnavailable``; a round raises ``ClusterLost`` when ``max_restarts`` new actors in a row
    have failed in every place.
    """

    def __init__(
        self,
        path: Path,
        windows: torch.Tensor,
        *,
        num_actors: int,
        boundaries: Sequence[int] = (),
        by_divergence: bool = False,
        is_streamed: bool = False,
        **resources: Any,  # noqa: ANN401 - those of ``actor_pool``
    ) -> None:
        self.num_windows = windows.shape[0]
        self._homes: dict[int, int] = {}  # of a candidate: the place with its states
        self._keep: Blocks = ()
        self._first_changed = 0  # of the blocks, by the last change of the kept ones
        task = ScoringTask(windows.cpu(), tuple(boundaries), by_divergence, is_streamed)
        pool = actor_pool(Evaluator, [task] * num_actors, path, **resources)
        self._open = ExitStack()
        self._pool = self._open.enter_context(pool)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the actors, and Ray if it was started here."""
        self._open.close()

    def losses(self, keep: Blocks) -> Losses:
        """The losses of the model with exactly the blocks ``keep``, from one of the actors."""
        shares = {self._places()[0]: [NO_BLOCK]}
        *_, whole = self._pool.run(keep, shares, range(self.num_windows))
        return whole.losses

    def score_round(self, keep: Blocks, candidates: Blocks) -> Iterator[tuple[int, Losses]]:
        return self.score(keep, candidates, range(self.num_windows))

    def score(
        self, keep: Blocks, candidates: Blocks, windows: range
    ) -> Iterator[tuple[int, Losses]]:
        """Yield candidates as they arrive, and those within ``tie_nats`` of the best at the end."""
        for block, losses in self.growing(keep, candidates, windows, NOTHING):
            if len(losses) == len(windows):
                yield block, losses

    def growing(
        self, keep: Blocks, candidates: Blocks, windows: range, known: Mapping[int, Losses]
    ) -> Iterator[tuple[int, Losses]]:
        """As ``score``; each actor tells of its candidates part by part, at its own pace."""
        best, tied = inf, list[ActorResult]()
        for result in self._pool.run(keep, self._assigned(keep, candidates), windows, known):
            self._homes[result.block] = result.place
            if not result.is_whole:
                yield result.block, result.losses
                continue
            best = min(best, fmean(result.losses))
            tied.append(result)
            certain = [one for one in tied if not fmean(one.losses) <= best + self.tie_nats]
            tied = [one for one in tied if one not in certain]
            yield from ((one.block, one.losses) for one in certain)
        yield from ((one.block, one.losses) for one in self._in_one_place(keep, tied, windows))

    @property
    def tie_nats(self) -> float:
        """Means closer to the best than this count as ties."""
        return TIE_NATS if self._pool.dtype in {"torch.float32", "torch.float64"} else HALF_TIE_NATS

    def _in_one_place(
        self, keep: Blocks, tied: list[ActorResult], windows: range
    ) -> list[ActorResult]:
        while len({result.actor for result in tied}) > 1:
            place = min(result.place for result in tied)
            shares = {place: [result.block for result in tied]}
            tied = [one for one in self._pool.run(keep, shares, windows) if one.is_whole]
        return tied

    def _assigned(self, keep: Blocks, candidates: Blocks) -> dict[int, list[int]]:
        if changed := set(keep) ^ set(self._keep):
            self._keep, self._first_changed = keep, min(changed)

        def cost(block: int, place: int) -> int:
            """Block passes, head included; the home place resumes where the last change began."""
            resumes = self._homes.get(block) == place
            start = max(block + 1, self._first_changed) if resumes else block + 1
            return 1 + sum(alive >= start for alive in keep)

        return assign(candidates, self._places(), self._homes, cost)

    def _places(self) -> list[int]:
        return self._pool.ready_places() or [0]


@contextmanager
def actor_pool(
    kind: type,
    tasks: Sequence[object],
    path: Path,
    *,
    dtype: str = "auto",
    device: str = "auto",
    state_budget: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    max_restarts: int = 2,
) -> Iterator[ActorPool]:
    """An actor of the class ``kind`` for each task, as long as the context lasts.

    Each has the model at ``path``, and a ``state_budget`` and ``batch_tokens`` of its own.
    ``device`` is "auto" (GPUs if the cluster has any), "cuda" or "cpu". Connects to Ray if this
    process is not connected. Raises what ``ClusterScorer`` raises.
    """
    num_actors = len(tasks)
    _check_asked(num_actors, device)
    ray = import_ray()
    with connected(ray):
        total = ray.cluster_resources()
        on_gpus = _are_on_gpus(int(total.get("GPU", 0)), num_actors, device)
        config = ActorConfig(
            path=path.absolute(),
            dtype=dtype,
            device="cuda" if on_gpus else "cpu",
            threads=max(1, int(total.get("CPU", 1)) // num_actors),
            num_gpus=int(on_gpus),
            num_sharing=1 if on_gpus else num_actors,
            state_budget=state_budget,
            batch_tokens=batch_tokens,
        )
        with closing(ActorPool(ray, kind, config, tasks, max_restarts=max_restarts)) as pool:
            yield pool


def _check_asked(num_actors: int, device: str) -> None:
    if num_actors < 1 or device not in {"auto", "cpu", "cuda"}:
        raise ValueError(
            f"num_actors={num_actors}, device={device!r}: expected at least one actor, and "
            '"auto", "cpu" or "cuda"; Ray chooses the GPU of each actor'
        )


def _are_on_gpus(num_gpus: int, num_actors: int, device: str) -> bool:
    """Whether actors on this device take the GPUs of the cluster. Raises ``ClusterUnavailable``."""
    on_gpus = device == "cuda" or (device == "auto" and num_gpus > 0)
    if on_gpus and num_gpus < num_actors:
        raise ClusterUnavailable(
            f"num_actors={num_actors}: the Ray cluster has only {num_gpus} GPUs, and each "
            'actor needs one; use fewer actors, add machines, or choose device="cpu"'
        )
    return on_gpus


def import_ray(*parts: str) -> ModuleType:
    """Import Ray and submodules such as ``serve``. Raises ``ClusterUnavailable``."""
    try:
        for part in parts:
            importlib.import_module(f"ray.{part}")
        return importlib.import_module("ray")
    except ImportError as error:
        raise ClusterUnavailable(
            f"{missing_extra('cluster', 'a Ray cluster')} ({error})"
        ) from error


@contextmanager
def connected(ray: ModuleType) -> Iterator[None]:
    """Connect to the configured Ray cluster, or start one; keep a connection that exists.

    Without dashboard, and with errors as the only log. Raises ``ClusterUnavailable``.
    """
    if ray.is_initialized():
        yield
        return
    on_sigterm = signal.getsignal(signal.SIGTERM)
    logger.info("connecting to a Ray cluster, or starting Ray on this machine")  # takes seconds
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray raises a plain one when its processes are too slow
        raise ClusterUnavailable(
            f"cannot start Ray or connect to its cluster ({error}): check that RAY_ADDRESS, "
            "if set, names a running cluster; otherwise try again when this machine is "
            "less busy"
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray replaces it
    try:
        yield
    finally:
        ray.shutdown()
