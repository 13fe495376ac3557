"""Several GPUs: the candidates of a round dealt out to actors with a model of their own each.

Needs the extra ``cluster``, that is Ray. Each machine of a cluster needs this package, and the
model at the same path.

Who evaluates which candidate: loads evened out, and states used where they are.
"""

import importlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from math import inf
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Self

import torch

from pruning.models.memory import BATCH_TOKENS
from pruning.removal import Losses
from pruning.search.ray_actors import NO_BLOCK, Crew, Evaluated, Recipe
from pruning.sleb import Blocks

Cost = Callable[[int, int], int]  # of a block at a place, in block passes


def deal(
    candidates: Sequence[int], places: Sequence[int], homes: Mapping[int, int], cost: Cost
) -> dict[int, list[int]]:
    """Each place's share, in the order of ``candidates``.

    ``homes`` has the place that knows a block's states. A block goes home, unless the busiest place
    hands it to the idlest to be done sooner; one without a home goes where there is least to do.
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


# Means over windows that are closer than this, in nats, count as tied between actors. On devices
# of one kind actors agree to the bit; other kernels round otherwise, 16-bit states more coarsely.
TIE_NATS = 1e-5
HALF_TIE_NATS = 1e-3


class ClusterUnavailable(RuntimeError):
    """Ray is not installed, or has fewer devices than actors are asked for."""


class ClusterScorer:
    """``SharedPrefixScorer`` in several processes at once, one GPU each, or a share of the CPUs.

    Is a ``RoundScorer`` and a ``WindowScorer`` over ``windows [num_windows, seqlen]``; one round at
    a time. ``device`` is "auto" (GPUs if the cluster has any), "cuda" or "cpu"; ``state_budget``
    and ``batch_tokens`` are of each actor. Candidates too close to the best to tell which actor's
    rounding decided are evaluated again on one actor. Raises what loading the model raises, or
    ``ClusterUnavailable``; in a round ``ClusterLost`` once ``max_restarts`` fresh actors in a row
    failed in every place.
    """

    def __init__(
        self,
        path: Path,
        windows: torch.Tensor,
        *,
        num_actors: int,
        dtype: str = "auto",
        device: str = "auto",
        state_budget: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
        boundaries: Sequence[int] = (),
        max_restarts: int = 2,
    ) -> None:
        if num_actors < 1 or device not in {"auto", "cpu", "cuda"}:
            raise ValueError(
                f"num_actors={num_actors}, device={device!r}: expected at least one actor, and "
                '"auto", "cpu" or "cuda"; which GPU an actor gets is up to Ray'
            )
        self.num_windows = windows.shape[0]
        self._homes: dict[int, int] = {}  # the place that has a candidate's states
        self._keep: Blocks = ()
        self._gone = -1
        ray = import_ray()
        with ExitStack() as stack:
            stack.enter_context(connected(ray))
            total = ray.cluster_resources()
            recipe = _recipe(
                total, path, num_actors, dtype, device, state_budget, batch_tokens, boundaries
            )
            self._crew = Crew(
                ray, recipe, windows, num_actors=num_actors, max_restarts=max_restarts
            )
            stack.callback(self._crew.close)
            self._open = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the actors, and Ray if it was started for them."""
        self._open.close()

    def losses(self, keep: Blocks) -> Losses:
        """Of the model that keeps exactly these blocks, from one of the actors."""
        shares = {self._places()[0]: [NO_BLOCK]}
        (answer,) = self._crew.run(keep, shares, range(self.num_windows))
        return answer.losses

    def score_round(self, keep: Blocks, candidates: Blocks) -> Iterator[tuple[int, Losses]]:
        return self.score(keep, candidates, range(self.num_windows))

    def score(
        self, keep: Blocks, candidates: Blocks, windows: range
    ) -> Iterator[tuple[int, Losses]]:
        """Yield each candidate as it arrives, those within ``tie_nats`` of the best at the end."""
        best, held = inf, list[Evaluated]()
        for answer in self._crew.run(keep, self._deal(keep, candidates), windows):
            self._homes[answer.block] = answer.place
            best = min(best, fmean(answer.losses))
            held.append(answer)
            certain = [a for a in held if not fmean(a.losses) <= best + self.tie_nats]
            held = [a for a in held if a not in certain]
            yield from ((a.block, a.losses) for a in certain)
        yield from ((a.block, a.losses) for a in self._in_one_place(keep, held, windows))

    @property
    def tie_nats(self) -> float:
        """How close to the best a mean is taken for a tie."""
        return TIE_NATS if self._crew.dtype in {"torch.float32", "torch.float64"} else HALF_TIE_NATS

    def _in_one_place(self, keep: Blocks, tied: list[Evaluated], windows: range) -> list[Evaluated]:
        while len({answer.actor for answer in tied}) > 1:
            place = min(answer.place for answer in tied)
            shares = {place: [answer.block for answer in tied]}
            tied = list(self._crew.run(keep, shares, windows))
        return tied

    def _deal(self, keep: Blocks, candidates: Blocks) -> dict[int, list[int]]:
        if keep != self._keep:
            gone = set(self._keep) - set(keep)
            is_next = len(gone) == 1 and set(keep) < set(self._keep)
            self._gone = gone.pop() if is_next else -1
            self._homes = self._homes if is_next else {}
            self._keep = keep

        def cost(block: int, place: int) -> int:
            """The blocks behind it and the head; at home, it resumes behind the last removal."""
            start = max(block, self._gone) if self._homes.get(block) == place else block
            return 1 + sum(alive > start for alive in keep)

        return deal(candidates, self._places(), self._homes, cost)

    def _places(self) -> list[int]:
        return self._crew.ready_places() or [0]


def _recipe(
    total: Mapping[str, float],
    path: Path,
    num_actors: int,
    dtype: str,
    device: str,
    state_budget: int | None,
    batch_tokens: int,
    boundaries: Sequence[int],
) -> Recipe:
    """``total``: what the cluster has, by Ray's names. Raises ``ClusterUnavailable``."""
    num_gpus = int(total.get("GPU", 0))
    on_gpus = device == "cuda" or (device == "auto" and num_gpus > 0)
    if on_gpus and num_gpus < num_actors:
        raise ClusterUnavailable(
            f"num_actors={num_actors}: Ray knows of {num_gpus} GPUs, and an actor takes one; "
            'ask for fewer actors, add machines, or choose device="cpu"'
        )
    return Recipe(
        path=path.absolute(),
        dtype=dtype,
        device="cuda" if on_gpus else "cpu",
        threads=max(1, int(total.get("CPU", 1)) // num_actors),
        num_gpus=int(on_gpus),
        num_sharing=1 if on_gpus else num_actors,
        state_budget=state_budget,
        batch_tokens=batch_tokens,
        boundaries=tuple(boundaries),
    )


def import_ray(*parts: str) -> ModuleType:
    """With these parts of it, as ``serve``. Raises ``ClusterUnavailable``."""
    try:
        for part in parts:
            importlib.import_module(f"ray.{part}")
        return importlib.import_module("ray")
    except ImportError as error:
        raise ClusterUnavailable(
            f"this needs Ray, which cannot be imported ({error}): pip install 'sleb-serve[cluster]'"
        ) from error


@contextmanager
def connected(ray: ModuleType) -> Iterator[None]:
    """To the cluster that Ray is told of, or one started here; nothing if there is one already.

    Quiet: no dashboard, errors only, and started from here Ray sends no usage statistics.
    """
    if ray.is_initialized():
        yield
        return
    on_sigterm = signal.getsignal(signal.SIGTERM)
    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray has put its own in place
    try:
        yield
    finally:
        ray.shutdown()
