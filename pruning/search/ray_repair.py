"""A repair whose windows are spread over Ray actors, each with a model of its own.

Every actor takes its windows through the same blocks. Sums over tokens are added up at each cut,
and the correction that is fitted to them here goes back to all actors.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pruning.models.blocks import Own
from pruning.models.memory import state_budget
from pruning.models.store import load, set_up_torch
from pruning.removal import Losses
from pruning.repair.plan import Plan
from pruning.repair.ridge import Folds
from pruning.repair.walk import LocalWalk, Windows
from pruning.search.ray_actors import Actor, ActorConfig
from pruning.search.ray_scoring import actor_pool

_Call = tuple[object, ...]  # a method of a walk and its arguments


class Walker:
    """Runs in an actor: the walk of some of the windows."""

    def load(self, config: ActorConfig, task: tuple[Plan, Sequence[Windows]]) -> str:
        """Load the model and return its dtype."""
        set_up_torch(config.threads)
        model = load(config.path, dtype=config.dtype, device=config.device).model
        self._walk = LocalWalk(
            model,
            model.device,
            *task,
            batch_tokens=config.batch_tokens,
            budget=state_budget(model.device, config.state_budget, num_sharing=config.num_sharing),
        )
        return str(model.dtype)

    def call(self, method: str, *arguments: object) -> Any:  # noqa: ANN401 - whatever an actor takes or gives
        """Call a method of the walk. Sums are returned in main memory."""
        result = getattr(self._walk, method)(*arguments)
        if method != "errors":
            return result
        return {fold: sums.to(torch.device("cpu")) for fold, sums in result.items()}


class ClusterWalk:
    """A ``Walk`` in several processes, each with one GPU or a share of the CPUs.

    Arguments and errors are those of ``ClusterScorer``. The replacement of a lost actor repeats all
    steps on the windows of its place. Raises ``ClusterLost`` when ``max_restarts`` new actors in a
    row have failed in a place.
    """

    def __init__(
        self,
        plan: Plan,
        windows: Sequence[Windows],
        *,
        path: Path,
        num_actors: int,
        **resources: Any,  # noqa: ANN401 - those of ``actor_pool``
    ) -> None:
        self._done: list[_Call] = []  # calls that have changed the actors
        tasks = [(plan, share) for share in _spread(windows, num_actors)]
        self._open = ExitStack()
        self._pool = self._open.enter_context(actor_pool(Walker, tasks, path, **resources))

    def close(self) -> None:
        """Stop the actors, and Ray if it was started here."""
        self._open.close()

    def embed(self) -> None:
        self._change("embed")

    def run(self, stream: int) -> None:
        self._change("run", stream)

    def errors(self, stream: int) -> Folds:
        total: Folds = {}
        for folds in self._call("errors", stream):
            for fold, sums in folds.items():
                total.setdefault(fold, sums)
                if total[fold] is not sums:
                    total[fold].include(sums)
        return total

    def error(self, stream: int, own: Own) -> float:
        shares: list[float] = self._call("error", stream, self._shared(own))
        return sum(shares)

    def refit(self, stream: int, own: Own) -> None:
        self._change("refit", stream, self._shared(own))

    def losses(self, stream: int) -> Mapping[str, Losses]:
        by_domain: dict[str, list[float]] = {}
        for losses in self._call("losses", stream):
            for domain, part in losses.items():
                by_domain.setdefault(domain, []).extend(part)
        return by_domain

    def _shared(self, own: Own) -> object:
        """Parameters for all actors, sent once."""
        return self._pool.ray.put({name: tensor.cpu() for name, tensor in own.items()})

    def _change(self, *call: object) -> None:
        self._call(*call)
        self._done.append(call)

    def _call(self, *call: object) -> list[Any]:
        """Call a method of all walks at once. Returns the results by place."""
        sent = {actor.place: _sent(actor, call) for actor in self._pool.actors}
        return [self._result(place, sent[place], call) for place in sorted(sent)]

    def _result(self, place: int, pending: Future[Any], call: _Call) -> Any:  # noqa: ANN401 - whatever an actor takes or gives
        errors = self._pool.ray.exceptions
        while True:
            [actor] = [each for each in self._pool.actors if each.place == place]
            try:
                result = pending.result()
            except errors.RayTaskError as error:
                raise error.cause from error
            except errors.RayError as error:
                fresh = self._pool.revived(actor, error)
                for earlier in self._done:
                    _sent(fresh, earlier)  # an actor takes its calls one after the other
                pending = _sent(fresh, call)
            else:
                actor.num_lost = 0
                return result


def _sent(actor: Actor, call: _Call) -> Future[Any]:
    future: Future[Any] = actor.handle.call.remote(*call).future()
    return future


def _spread(windows: Sequence[Windows], num_places: int) -> list[list[Windows]]:
    """The windows of each place: of every domain an equal number, one after the other."""
    most = max(len(each.token_ids) for each in windows)
    shares: list[list[Windows]] = [[] for _ in range(min(num_places, most))]
    for each in windows:
        parts = torch.tensor_split(each.token_ids.cpu(), len(shares))
        for share, token_ids in zip(shares, parts, strict=True):
            if len(token_ids):
                share.append(replace(each, token_ids=token_ids))
    return shares
