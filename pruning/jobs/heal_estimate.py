"""Estimates of a healing before its job runs: tokens, memory and time. Arithmetic without torch."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from pruning.jobs.job import Job, JobStatus
from pruning.models.safetensors_headers import WeightSizes
from pruning.spec.heal import Depths, Heal
from pruning.spec.prune import TARGETS, PruneSpec

_NUM_BYTES = 4  # adapters are trained in float32
_STEP_OF_ALL_DEPTHS = 1.5  # of the time of a step of one model
_NUM_COPIES = 4  # of an adapter in training: itself, its gradient, and two moments of that


@dataclass(frozen=True)
class HealEstimate:
    """What a healing needs, at most: it may end earlier, as its ``patience`` says.

    ``seconds`` of its trainings go by the pace of earlier ``jobs``; None if there are none.
    """

    num_tokens: int  # of the pruned model
    control_tokens: int  # of the dense model
    adapter_bytes: int  # of both together, on disk as well
    training_bytes: int  # beside weights and activations
    seconds: float | None
    jobs: tuple[str, ...]


def heal_estimate(
    spec: PruneSpec, num_blocks: int, sizes: WeightSizes, succeeded: Iterable[Job]
) -> HealEstimate | None:
    """Of a spec that was checked against a model of these ``sizes``; None if it heals nothing."""
    heal = spec.heal
    if heal is None:
        return None
    num_tokens = _num_tokens(heal, spec.calibration.seqlen)
    is_some_depth = spec.is_depth_open or heal.depths is Depths.ALL
    fewest = 1 if is_some_depth else spec.most_removals(num_blocks)
    each_block = _NUM_BYTES * heal.rank * sizes.num_sides // num_blocks
    healed, whole = each_block * (num_blocks - fewest), each_block * num_blocks
    paces = dict(_paces(spec, succeeded))
    seconds = _num_lasts(heal) * num_tokens * median(paces.values()) if paces else None
    return HealEstimate(
        num_tokens=num_tokens,
        control_tokens=num_tokens if heal.control else 0,
        adapter_bytes=healed + (whole if heal.control else 0),
        training_bytes=healed + _NUM_COPIES * whole if heal.control else _NUM_COPIES * healed,
        seconds=seconds,
        jobs=tuple(paces),
    )


def _num_lasts(heal: Heal) -> float:
    """How many times the last training takes all of them. The last is the control, if any."""
    if not heal.control:
        return 1.0
    return 1 + (_STEP_OF_ALL_DEPTHS if heal.depths is Depths.ALL else 1.0)


def _num_tokens(heal: Heal, seqlen: int) -> int:
    """Whole steps of whole windows."""
    of_step = max(1, heal.batch_tokens // seqlen) * seqlen
    return math.ceil(heal.num_tokens / of_step) * of_step


def _paces(spec: PruneSpec, succeeded: Iterable[Job]) -> Iterable[tuple[str, float]]:
    """Seconds per token of the last training of each job of the same kind."""
    for job in succeeded:
        done = job.heal_progress
        if job.status is not JobStatus.SUCCEEDED or done is None or not done.num_tokens:
            continue
        if _work(job.spec) == _work(spec):
            yield job.id, done.seconds / done.num_tokens


def _work(spec: PruneSpec) -> tuple[object, ...]:
    """The fields that determine the time per token."""
    heal, text = spec.heal, spec.calibration
    if heal is None:
        return ()
    depth = tuple(getattr(spec, target) for target in TARGETS)
    how = (heal.rank, heal.batch_tokens, heal.hidden_weight > 0, heal.depths)
    checks = (heal.steps_per_check, len(text.parts), text.num_samples, text.seqlen)
    return (
        spec.model,
        spec.dtype,
        *how,
        heal.checkpoint_activations,
        *checks,
        heal.control or depth,
    )
