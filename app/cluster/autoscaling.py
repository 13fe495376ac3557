"""How many replicas a cluster needs, by what runs and by how many tokens wait.

Runs in Ray Serve's controller, so it is to be light: no torch, and no ray.
"""

from collections.abc import Mapping
from typing import Any, Protocol


class Load(Protocol):
    """What Ray Serve hands to a policy, as far as this one looks at it."""

    @property
    def target_num_replicas(self) -> int: ...

    @property
    def aggregated_metrics(self) -> Mapping[str, Mapping[Any, float]] | None: ...


class ByQueuedTokens:
    """As many replicas as what runs fills, and one more for every so many tokens that wait.

    Ray Serve rounds up, keeps to the bounds, and waits until the same was wanted for long enough.
    """

    def __init__(self, tokens_per_replica: int) -> None:
        self._tokens_per_replica = tokens_per_replica

    def __call__(self, load: Load) -> tuple[float, dict[str, Any]]:
        metrics = load.aggregated_metrics or {}
        if not metrics.get("busy"):
            return load.target_num_replicas, {}  # nobody has told anything yet
        queued_tokens = sum(metrics.get("queued_tokens", {}).values())
        return sum(metrics["busy"].values()) + queued_tokens / self._tokens_per_replica, {}
