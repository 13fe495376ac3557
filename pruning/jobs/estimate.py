"""Estimates before a job runs: memory, disk, time, and what a healing needs. Without torch."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from pruning.healing.places import HEALED
from pruning.jobs.job import Job, JobStatus
from pruning.models.safetensors_headers import WeightSizes
from pruning.models.store import DTYPE_BYTES, ModelInfo
from pruning.repair.plan import NUM_BEHIND
from pruning.spec.calibration import Sampling
from pruning.spec.heal import Depths, Heal
from pruning.spec.prune import TARGETS, Metric, PruneSpec, Repair, Resident

_WAIT_LIMITS_S = (5.0, 3600.0)
_UNKNOWN_WAIT_S = 60.0
_ADAPTER_ITEM_BYTES = 4  # adapters are trained in float32
_STEP_OF_ALL_DEPTHS = 1.5  # of the time of a step of one model
_ADAPTER_COPIES = 4  # of an adapter in training: itself, its gradient, and two moments of that


class DiskTooSmall(ValueError):
    """The data directory has no room for the checkpoint of the job."""

    param = "model"

    def __init__(
        self, least_bytes: int, free_bytes: int, place: str = "in the data directory"
    ) -> None:
        super().__init__(
            f"not enough disk space: the pruned checkpoint needs at least {least_bytes} "
            f"bytes, but only {free_bytes} are free {place}; free space, or choose a "
            "smaller model or dtype"
        )


@dataclass(frozen=True)
class Footprint:
    """Sizes in bytes. A checkpoint counts as its weights: its other files take a few MB."""

    weight_bytes: int  # of the dense model; with resident=stream only some are in memory at once
    state_bytes: int | None  # hidden states of the fastest search; None: windows not known yet
    least_state_bytes: int  # the search needs at least this
    checkpoint_bytes: int  # upper bound
    least_checkpoint_bytes: int  # lower bound: where the search decides, every free block removed
    repair_bytes: int  # of the repairs of all depths, at most; on disk beside the checkpoint


@dataclass(frozen=True)
class Duration:
    """Estimated seconds of a job without its healing, by the pace of earlier ``jobs``.

    None if there are none. An upper bound if the number of evaluations is one.
    """

    seconds: float | None
    jobs: tuple[str, ...]


def footprint(spec: PruneSpec, info: ModelInfo, sizes: WeightSizes) -> Footprint:
    """Estimate memory and disk of a spec that was checked against the model."""
    item_bytes, published_bytes = (
        DTYPE_BYTES.get(info.dtype if dtype == "auto" else dtype, 1)  # any other dtype has 8 bits
        for dtype in (spec.dtype, spec.published_dtype)
    )
    blocks, most = info.num_blocks, spec.most_removals(info.num_blocks)
    fewest = 1 if spec.is_depth_open else most
    text = spec.calibration
    state_bytes = text.seqlen * info.hidden_size * item_bytes
    is_streamed = spec.resident is Resident.STREAM
    of_dense = int(spec.metric is Metric.KL)  # the output of the dense model
    num_states = (3 if is_streamed else 2) * blocks + 1 + of_dense
    all_states = text.num_samples * num_states * state_bytes
    return Footprint(
        weight_bytes=item_bytes * sizes.num_parameters(blocks),
        state_bytes=None if Sampling.ROWS in _samplings(spec) else all_states,
        least_state_bytes=state_bytes * ((2 if is_streamed else 1) * blocks + 1 + of_dense),
        checkpoint_bytes=published_bytes * sizes.num_parameters(blocks, fewest),
        least_checkpoint_bytes=published_bytes * sizes.num_parameters(blocks, most),
        repair_bytes=item_bytes * _num_refitted(spec, blocks) * sizes.num_refit,
    )


def _num_refitted(spec: PruneSpec, blocks: int) -> int:
    """The fitted blocks of all depths together, at most: in front of and behind each cut."""
    if spec.repair not in (Repair.AUTO, Repair.RIDGE):
        return 0
    depths = range(1, min(spec.most_removals(blocks), blocks) + 1)
    return sum(min((1 + NUM_BEHIND) * removed, blocks - removed) for removed in depths)


def duration(spec: PruneSpec, num_evaluations: int, succeeded: Iterable[Job]) -> Duration:
    """Estimate by the ``succeeded`` jobs of one attempt with the same model, search and windows."""
    paces = {
        job.id: seconds / job.progress.evaluations_done
        for job in succeeded
        if job.spec.heal is None  # its time is not that of the search alone
        if job.search_of is None  # nor did it search all by itself
        if _work(job.spec) == _work(spec) and job.progress.evaluations_done
        if (seconds := _ran_s(job)) is not None
    }
    seconds = num_evaluations * median(paces.values()) if paces else None
    return Duration(seconds, tuple(paces))


def wait_s(running: Sequence[Job], succeeded: Iterable[Job], now: float) -> float:
    """Estimate the seconds until one of the ``running`` jobs ends, between 5 s and 1 h.

    Uses their own estimates, or else the median duration of the ``succeeded`` jobs.
    """
    took_s = [seconds for job in succeeded if (seconds := _ran_s(job)) is not None]
    typical_s = median(took_s) if took_s else None
    ends = [end for job in running if (end := _end(job, typical_s)) is not None]
    if not ends:
        return _UNKNOWN_WAIT_S
    low, high = _WAIT_LIMITS_S
    return min(max(min(ends) - now, low), high)


def _end(job: Job, typical_s: float | None) -> float | None:
    if job.estimated_finish is not None:
        return job.estimated_finish
    if job.started_at is None or typical_s is None:
        return None
    return job.started_at + typical_s


def _ran_s(job: Job) -> float | None:
    """The duration in seconds; None for several attempts, as only the last one is timed."""
    is_known = job.status is JobStatus.SUCCEEDED and job.attempt == 1
    if not is_known or job.started_at is None or job.finished_at is None:
        return None
    return job.finished_at - job.started_at


def _work(spec: PruneSpec) -> tuple[object, ...]:
    """The fields that determine the time of one evaluation."""
    text = spec.calibration
    windows = (_samplings(spec), text.num_samples, text.seqlen)
    how = (spec.metric, spec.search, spec.resident, spec.evaluate, spec.repair)
    return (spec.model, spec.dtype, *how, *windows)


def _samplings(spec: PruneSpec) -> frozenset[Sampling]:
    return frozenset(part.sampling for part in spec.calibration.parts)


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
    each_block = _ADAPTER_ITEM_BYTES * heal.rank * sizes.num_sides // num_blocks
    healed, whole = each_block * (num_blocks - fewest), each_block * num_blocks
    paces = dict(_healing_paces(spec, succeeded))
    seconds = num_tokens * median(paces.values()) if paces else None
    return HealEstimate(
        num_tokens=num_tokens,
        control_tokens=num_tokens if heal.control else 0,
        adapter_bytes=healed + (whole if heal.control else 0),
        training_bytes=healed + _ADAPTER_COPIES * whole
        if heal.control
        else _ADAPTER_COPIES * healed,
        seconds=seconds,
        jobs=tuple(paces),
    )


def _num_lasts(last: str, depths: Depths) -> float:
    """How many times the last training takes all of them. A control that has nothing to learn makes
    no step, and so is not the last."""
    if last == HEALED:
        return 1.0
    return 1 + (_STEP_OF_ALL_DEPTHS if depths is Depths.ALL else 1.0)


def _num_tokens(heal: Heal, seqlen: int) -> int:
    """Whole steps of whole windows."""
    of_step = max(1, heal.batch_tokens // seqlen) * seqlen
    return math.ceil(heal.num_tokens / of_step) * of_step


def _healing_paces(spec: PruneSpec, succeeded: Iterable[Job]) -> Iterable[tuple[str, float]]:
    """Seconds per token of all trainings of each job of the same kind."""
    for job in succeeded:
        done = job.heal_progress
        if job.status is not JobStatus.SUCCEEDED or done is None or not done.num_tokens:
            continue
        if spec.heal is not None and _work_of_healing(job.spec) == _work_of_healing(spec):
            num_lasts = _num_lasts(done.training, spec.heal.depths)
            yield job.id, num_lasts * done.seconds / done.num_tokens


def _work_of_healing(spec: PruneSpec) -> tuple[object, ...]:
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
