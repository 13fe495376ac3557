"""The autoscaling policy: how many replicas the running and the waiting requests need.

Ray Serve's controller imports this module, so it imports neither torch nor ray.
"""

from collections.abc import Mapping
from typing import Any, Protocol


class AutoscalingContext(Protocol):
    """The fields of Ray Serve's context that this policy reads."""

    @property
    def target_num_replicas(self) -> int: ...

    @property
    def aggregated_metrics(self) -> Mapping[str, Mapping[Any, float]] | None: ...


class QueuedTokensPolicy:
    """The replicas that running requests fill, plus one for every ``tokens_per_replica`` waiting.

    Ray Serve rounds up, applies the bounds, and waits until the target is stable.
    """

    def __init__(self, tokens_per_replica: int) -> None:
        self._tokens_per_replica = tokens_per_replica

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        metrics = context.aggregated_metrics or {}
        if not metrics.get("busy"):
            return context.target_num_replicas, {}  # no replica has reported yet
        queued_tokens = sum(metrics.get("queued_tokens", {}).values())
        return sum(metrics["busy"].values()) + queued_tokens / self._tokens_per_replica, {}
